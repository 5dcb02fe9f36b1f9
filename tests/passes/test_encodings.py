"""Binary, ternary and power-of-two weights: the nearest there is, exact all the way down."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxloom.backends.simulator import quantize_inputs, reference, simulate
from fxloom.data import Data
from fxloom.encodings import Encoding
from fxloom.errors import RecipeError
from fxloom.exact import exact_forward
from fxloom.fixed_point import FixedPoint
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize
from fxloom.program import Program
from fxloom.recipe import Recipe
from tests.capturing import captured
from tests.models import make

ENCODED = [each for each in Encoding if each is not Encoding.FIXED]


@given(st.sampled_from(ENCODED), st.integers(2, 5), st.floats(-1e6, 1e6))
def test_the_nearest_level_is_taken(encoding: Encoding, bits: int, value: float) -> None:
    width = encoding.width(bits)
    levels = encoding.levels(width)
    assert levels is not None
    to = FixedPoint(width, 3)
    assert to.lo <= levels[0]
    assert levels[-1] <= to.hi
    assert len(levels) <= 2 ** encoding.stored(width)
    got = float(encoding.nearest(torch.tensor([value], dtype=torch.float64), to))
    assert got in levels
    assert abs(got - value) == min(abs(level - value) for level in levels)


def test_weights_may_lie_in_any_order(recwarn: pytest.WarningsRecorder) -> None:
    weights = torch.randn(6, 5)
    kind = FixedPoint(4, 1)
    for encoding in (Encoding.TERNARY, Encoding.POWER_OF_TWO):
        found = encoding.nearest(weights.T, kind)
        assert torch.equal(found, encoding.nearest(weights, kind).T)
    assert not list(recwarn)


def weights_of(program: Program) -> list[np.ndarray]:
    """Weights of dense layers and convolutions, each channel over its largest magnitude."""
    found = []
    for instr in program.instrs:
        if instr.op.name in ("matmul", "conv"):
            data = program.operands(instr)[1].data
            assert data is not None
            found.append(data)
    return found


@pytest.mark.parametrize("rounding", ["nearest", "second_order"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("name", ["signals", "separable", "lstm, last step"])
def test_programs_hold_what_the_encoding_has(
    name: str, encoding: Encoding, per_channel: bool, rounding: str
) -> None:
    _, x = make(name)
    step = Quantize(
        weights=4, weight_format=encoding, per_channel=per_channel, weight_rounding=rounding
    )
    result = step(captured(name), Data(x_train=x if len(x) > 1 else x[0]))
    program = lower(result.graph)
    for data in weights_of(program):
        magnitudes = np.unique(np.abs(data[data != 0]))
        assert (np.log2(magnitudes) % 1 == 0).all()
        if encoding is Encoding.BINARY:
            assert (data != 0).all()
        if encoding is not Encoding.POWER_OF_TWO and not per_channel:
            assert len(magnitudes) <= 1
    arrays = [t.numpy() for t in x]
    fast, exact = simulate(program, arrays), exact_forward(result.graph, *x)
    for a, b in zip(_several(fast), _several(exact), strict=True):
        np.testing.assert_array_equal(a, b)
    slow = reference(program, quantize_inputs(program, arrays))
    for a, b in zip(_several(simulate(program, arrays, raw=True)), slow, strict=True):
        np.testing.assert_array_equal(a.ravel(), b.ravel())


def _several(values: object) -> list[np.ndarray]:
    parts = values if isinstance(values, tuple | list) else [values]
    return [np.asarray(part.detach() if isinstance(part, torch.Tensor) else part) for part in parts]


def test_layers_may_differ_and_recipes_say_so(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        '[[pass]]\nname = "quantize"\nweight_format = "ternary"\n'
        'layers = { "2" = { weight_format = "fixed", weights = 8 } }\n'
    )
    recipe = Recipe.load(path)
    assert Recipe.parse(recipe.to_toml()) == recipe
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(200, 6)
    result = recipe.run(capture(model, x[:2]), Data(x_train=x))
    first, last = weights_of(lower(result.graph))
    assert np.unique(np.abs(first)).size <= 2
    assert np.unique(np.abs(last)).size > 8


def test_gradients_reach_encoded_weights() -> None:
    model, x = nn.Linear(6, 3), torch.randn(200, 6)
    for encoding in ENCODED:
        graph = Quantize(weights=3, weight_format=encoding)(
            capture(model, x[:2]), Data(x_train=x)
        ).graph
        graph(x).square().mean().backward()
        weight = next(p for p in graph.parameters() if p.dim() == 2)
        assert weight.grad is not None
        assert (weight.grad != 0).float().mean() > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_format": "quaternary"}, "weight_format.*'fixed', 'binary', 'ternary'"),
        ({"layers": {"*": {"weight_format": "octal"}}}, "required one of fixed, binary"),
        ({"layers": {"*": {"weights": "ternary"}}}, "required a number of bits, got 'ternary'"),
        ({"weight_format": "power_of_two"}, "powers of two need 2 to 5 bits, got 8"),
    ],
)
def test_what_no_format_is_is_refused(options: dict[str, object], message: str) -> None:
    x = torch.randn(20, 4)
    with pytest.raises(RecipeError, match=message):
        Quantize(**options)(capture(nn.Linear(4, 2), x[:2]), Data(x_train=x))  # type: ignore[arg-type]
