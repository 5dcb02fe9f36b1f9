"""Tables: correctly rounded everywhere; softmax keeps its argmax; errors stay within bounds."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from fxloom import functions, ops
from fxloom.backends.simulator import Simulator, simulate
from fxloom.compilation import compile
from fxloom.data import Data
from fxloom.errors import RecipeError, UnsupportedLayer
from fxloom.exact import exact_forward
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.frontend import capture
from fxloom.functions import FUNCTIONS, table, table_error
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize
from fxloom.passes.softmaxes import softmax_formats
from fxloom.program import Program
from fxloom.target import Target
from tests.models import Fn, make

aten = torch.ops.aten
SOURCE = FixedPoint(9, 4)
POINTS = torch.arange(SOURCE.lo, SOURCE.hi + 1, dtype=torch.float64) * SOURCE.step


@pytest.mark.parametrize("op", FUNCTIONS, ids=str)
def test_entries_are_the_nearest_and_its_slope_bounds_the_function(op: object) -> None:
    function = FUNCTIONS[op]()
    to = FixedPoint(40, 14)
    curve, lowest = function.within(SOURCE), function.lowest(SOURCE)
    entries = table(curve, SOURCE, to)
    wanted = op(POINTS.clamp(min=lowest)).numpy()  # type: ignore[operator]
    assert np.abs(entries * to.step - wanted).max() <= to.step * 0.5001
    assert table_error(curve, SOURCE, to, entries) <= to.step / 2
    slopes = np.abs(np.diff(wanted)) / SOURCE.step
    steepest = function.slope(lowest, SOURCE.hi * SOURCE.step)
    assert slopes.max() <= steepest * (1 + 1e-9)
    assert not function.is_nonnegative or entries.min() >= 0


def test_entries_of_rational_functions_round_ties_to_even() -> None:
    for fraction in range(-2, 8):
        entries = table(
            FUNCTIONS[aten.hardswish.default]().curve, SOURCE, FixedPoint(40, 40 - fraction)
        )
        for m, entry in zip(range(SOURCE.lo, SOURCE.hi + 1), entries, strict=True):
            x = Fraction(m, 2**SOURCE.fraction)
            exact = x * min(max(x + 3, Fraction(0)), Fraction(6)) / 6 * Fraction(2) ** fraction
            below = floor(exact)
            rest = exact - below
            up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2)
            assert entry == below + up


def test_entries_beyond_64_bits_saturate() -> None:
    source, to = FixedPoint(3, 90), FixedPoint(8, 8)
    for name in ("softplus", "silu"):
        entries = table(FUNCTIONS[getattr(aten, name).default]().curve, source, to)
        np.testing.assert_array_equal(entries, [0] * 4 + [entries[4]] + [to.hi] * 3)


@pytest.mark.parametrize("op", FUNCTIONS, ids=str)
def test_arguments_far_from_zero_take_no_longer_and_saturate(op: object) -> None:
    source, to = FixedPoint(6, 40), FixedPoint(40, 20)
    function = FUNCTIONS[op]()
    entries = table(function.within(source), source, to)
    x = torch.arange(source.lo, source.hi + 1, dtype=torch.float64) * source.step
    wanted = op(x.clamp(min=function.lowest(source)))  # type: ignore[operator]
    low, high = to.lo * to.step, to.hi * to.step
    # sin and cos of such numbers are what float64 makes of them
    np.testing.assert_allclose(entries * to.step, wanted.clamp(low, high), atol=1e-5)


def test_entries_do_not_depend_on_the_machines_error_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, to = FixedPoint(7, 4), FixedPoint(20, 4)
    curve = FUNCTIONS[aten.gelu.default]().curve
    fast = table(curve, source, to)
    monkeypatch.setattr(functions, "DOUBT", functions.Decimal(1))  # always ask for more digits
    np.testing.assert_array_equal(table(curve, source, to), fast)


def softmax_program(
    bits: int, count: int, scale: float, **options: object
) -> tuple[Program, np.ndarray]:
    """Softmax of inputs of so many bits that range over [-scale, scale]; and some samples."""
    x = torch.linspace(-scale, scale, 4 * count).reshape(4, count)
    step = Quantize(inputs=bits, method="minmax", **options)  # type: ignore[arg-type]
    result = step(capture(nn.Softmax(-1), x), Data(x_train=x))
    return lower(result.graph), x.numpy()


@pytest.mark.parametrize(("bits", "count"), [(2, 2), (4, 2), (3, 3), (2, 4)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 9.0])
@pytest.mark.parametrize("rounding", [Rounding.TRN, Rounding.RND_CONV])
def test_softmax_keeps_the_argmax_of_every_input(
    bits: int, count: int, scale: float, rounding: Rounding
) -> None:
    program, _ = softmax_program(bits, count, scale, outputs=2, rounding=rounding)
    kind = program.inputs[0].value.type
    inputs = np.array(list(itertools.product(range(kind.lo, kind.hi + 1), repeat=count)))
    (outputs,) = Simulator(program).run_mantissas([inputs])
    check_order(inputs, outputs)


def check_order(inputs: np.ndarray, outputs: np.ndarray) -> None:
    """Where one input is ahead of all others, so is its output, and equal ones stay equal."""
    ahead = np.sort(inputs, axis=1)[:, -1] > np.sort(inputs, axis=1)[:, -2]
    assert ahead.any()
    ordered = np.sort(outputs, axis=1)
    assert (ordered[ahead, -1] > ordered[ahead, -2]).all()
    np.testing.assert_array_equal(outputs[ahead].argmax(1), inputs[ahead].argmax(1))
    rank = np.argsort(inputs, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(outputs, rank, 1), axis=1) >= 0).all()


@settings(max_examples=12, phases=[Phase.generate])
@given(
    bits=st.integers(2, 10),
    count=st.integers(2, 40),
    scale=st.sampled_from([0.02, 0.5, 3.0, 20.0]),
    outputs=st.integers(1, 16),
    table_bits=st.integers(10, 12),
    rounding=st.sampled_from(Rounding),
    overflow=st.sampled_from(Overflow),
    seed=st.integers(0, 2**32 - 1),
)
def test_softmax_keeps_the_argmax_by_one_step(
    bits: int, count: int, scale: float, outputs: int, table_bits: int, rounding: Rounding,
    overflow: Overflow, seed: int,
) -> None:  # fmt: skip
    program, _ = softmax_program(
        bits, count, scale, outputs=outputs, table_bits=table_bits,
        rounding=rounding, overflow=overflow,
    )  # fmt: skip
    kind = program.inputs[0].value.type
    rng = np.random.default_rng(seed)
    top = rng.integers(kind.lo + 1, kind.hi, (600, 1), endpoint=True)
    # Others right behind the winner, at most so far behind, or anywhere.
    reach = rng.choice([1, 2, 1 << bits], (600, 1))
    inputs = np.maximum(top - rng.integers(1, reach, (600, count), endpoint=True), kind.lo)
    winner = rng.integers(0, count, (600, 1))
    np.put_along_axis(inputs, winner, top, 1)
    (got,) = Simulator(program).run_mantissas([inputs])
    check_order(inputs, got)


@pytest.mark.parametrize("count", [1, 2, 7, 33])
@pytest.mark.parametrize("outputs", [4, 9, 16])
def test_softmax_stays_within_its_bound(count: int, outputs: int) -> None:
    x = torch.randn(2000, count, generator=torch.manual_seed(0)) * 3
    result = Quantize(inputs=9, outputs=outputs, table_bits=9, method="minmax", samples=2000)(
        capture(nn.Softmax(-1), x[:2]), Data(x_train=x)
    )
    (errors,) = result.summary["table_errors"].values()  # type: ignore[attr-defined]
    program = lower(result.graph)
    y = simulate(program, x.numpy())
    wanted = torch.softmax(x.double(), -1).numpy()
    worst = float(np.abs(y - wanted).max())
    assert worst <= errors["bound"]
    assert count == 1 or worst > errors["bound"] / 40  # and the bound is not an idle one


@pytest.mark.parametrize("module", [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.Mish(), nn.Softplus()])
def test_function_stays_within_its_bound(module: nn.Module) -> None:
    x = torch.randn(3000, 4, generator=torch.manual_seed(0)) * 2
    result = Quantize(inputs=7, outputs=9, method="minmax", samples=3000)(
        capture(module, x[:2]), Data(x_train=x)
    )
    (errors,) = result.summary["table_errors"].values()  # type: ignore[attr-defined]
    y = simulate(lower(result.graph), x.numpy())
    worst = float(np.abs(y - module(x.double()).numpy()).max())
    assert errors["bound"] / 5 < worst <= errors["bound"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.sin(1e4 * x),
        lambda x: torch.cos(x * 300),
        lambda x: torch.log(torch.relu(x) + 1e-6),
        torch.sin,
    ],
)
def test_a_table_that_may_be_far_off_is_named_in_the_report(
    function: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    x = torch.randn(64, 4, generator=torch.manual_seed(0))
    build = compile(Fn(lambda m, x: function(x)), data=x, target=Target(), out=tmp_path / "build")
    warned = [line for line in build.report.notes if line.startswith("warning")]
    if function is torch.sin:
        assert not warned
    else:
        (line,) = warned
        assert "may be off by" in line
        assert "more table_bits" in line
        assert line in build.report.to_text()


def test_softmax_that_cannot_keep_its_order_is_refused() -> None:
    with pytest.raises(ValueError, match="Give its input fewer bits"):
        softmax_formats(FixedPoint(12, -10), 1000, 8, 10)
    x = torch.linspace(-1e-6, 1e-6, 40).reshape(4, 10)
    graph = capture(nn.Softmax(-1), x)
    with pytest.raises(UnsupportedLayer, match=r"softmax.*keep their order"):
        Quantize(inputs=12, method="minmax")(graph, Data(x_train=x))


def test_what_only_tables_read_gets_their_width_and_the_rest_none() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    model = Fn(
        lambda m, x: torch.tanh(m.a(x)) * m.b(x) + torch.sigmoid(m.b(x)),
        a=nn.Linear(8, 8), b=nn.Linear(8, 8),
    )  # fmt: skip
    step = Quantize(activations=12, table_bits=9, layers={"tanh": {"table_bits": 6}})
    program = lower(step(capture(model, x[:2]), Data(x_train=x)).graph)
    lookups = {i.origin: i.op.source.width for i in program.instrs if isinstance(i.op, ops.Lookup)}
    assert lookups == {"tanh": 6, "sigmoid": 9}
    widths = {i.origin: i.result.type.width for i in program.instrs if i.op.name == "requantize"}
    assert widths["a"] == 6
    assert widths["b"] == 12


def test_table_bits_have_a_limit() -> None:
    with pytest.raises(RecipeError, match="table_bits: required 1 to 16 bits, got 17"):
        Quantize(table_bits=17)


def test_gradients_go_through_tables() -> None:
    """And reach biases: corrected ones were made in inference mode once, and got none."""
    model, x = make("mlp with softmax")
    step = Quantize(weights=12, activations=12, table_bits=12)
    graph = step(capture(model, x[0][:2]), Data(x_train=x[0])).graph
    loss = -torch.log(graph(x[0])[:, 0] + 1e-3).mean()
    loss.backward()
    wanted = torch.autograd.grad(
        -torch.log(model(x[0])[:, 0] + 1e-3).mean(), list(model.parameters())
    )
    names = [name for name, _ in model.named_parameters()]
    found = dict(graph.named_parameters())
    for name, gradient in zip(names, wanted, strict=True):
        got = found[name].grad
        assert got is not None
        cosine = torch.nn.functional.cosine_similarity(got.flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.98, name
    exact = exact_forward(graph, x[0])
    torch.testing.assert_close(graph(x[0]).double(), exact, rtol=0, atol=1e-3)
