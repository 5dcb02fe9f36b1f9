"""narrow_accumulators: widths from data, what they cost, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from fxloom.backends.simulator import quantize_inputs, simulate, trace_all
from fxloom.data import Data
from fxloom.errors import RecipeError, VerifyError
from fxloom.estimation import estimate
from fxloom.exact import exact_forward
from fxloom.fixed_point import Overflow
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.ops import Add
from fxloom.passes.finetune import Finetune
from fxloom.passes.narrow_accumulators import NarrowAccumulators
from fxloom.passes.quantize import Quantize
from fxloom.recipe import Recipe
from fxloom.target import Target
from tests.models import make


def quantized(name: str = "mlp", **options: Any) -> tuple[GraphModule, Data]:
    model, x = make(name)
    data = Data(x_train=x[0])
    return Quantize(**options)(capture(model, x[0][:2]), data).graph, data


def figures(step: NarrowAccumulators, graph: GraphModule, data: Data) -> dict[str, dict[str, Any]]:
    found = step(graph, data).summary["accumulators"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", ["mlp", "resnet avg 3"])
@pytest.mark.parametrize("bits", [6, 8, 10])
def test_overflows_are_those_of_the_exact_sums(name: str, bits: int) -> None:
    """Counted once more on the Program: every sum with its bias, on the same samples."""
    graph, data = quantized(name)
    found = figures(NarrowAccumulators(bits=bits, samples=16), graph, data)
    program = lower(graph)
    x = torch.cat([batch for batch in data.spread(16) if isinstance(batch, torch.Tensor)]).numpy()
    values = trace_all(program, quantize_inputs(program, [x]))
    for layer, record in found.items():
        sums = next(
            values[i.result.name]
            for i in program.instrs
            if i.origin == layer and isinstance(i.op, Add)
        )
        outside = (sums < -(2 ** (bits - 1))) | (sums >= 2 ** (bits - 1))
        assert record["proof"] > bits
        assert record["sums"] == sums.size
        assert record["overflowed"] == outside.sum()
        assert (record["room"] < 1) == bool(outside.any())
        below, above = int(sums.min()), int(sums.max())
        assert record["needed"] == 1 + max((-below - 1).bit_length(), above.bit_length())


def test_what_data_need_never_overflows_on_them() -> None:
    graph, data = quantized("resnet avg 3")
    result = NarrowAccumulators(headroom=0)(graph, data)
    found = result.summary["accumulators"]
    assert isinstance(found, dict)
    assert all(each["overflowed"] == 0 and 1 <= each["room"] <= 2 for each in found.values())
    assert any(each["bits"] < each["proof"] for each in found.values())
    assert data.x_train is not None
    x = data.x_train[:64]
    assert torch.equal(exact_forward(graph, x), exact_forward(result.graph, x))


def test_headroom_adds_bits_up_to_the_proof() -> None:
    graph, data = quantized()
    tight = figures(NarrowAccumulators(headroom=0), graph, data)
    roomy = figures(NarrowAccumulators(headroom=1), graph, data)
    for layer, record in tight.items():
        assert roomy[layer]["bits"] == min(record["bits"] + 1, record["proof"])
    result = NarrowAccumulators(headroom=60)(graph, data)
    assert not result.modified
    assert str(result.graph.graph) == str(graph.graph)


def test_layers_have_widths_of_their_own() -> None:
    graph, data = quantized()
    names = list(figures(NarrowAccumulators(), graph, data))
    first, last = names[0], names[-1]
    step = NarrowAccumulators(bits=7, layers={"*": {"bits": 9}, last: {"bits": 63}})
    found = figures(step, graph, data)
    assert found[first]["bits"] == 9
    assert found[last]["bits"] == found[last]["proof"]


@pytest.mark.parametrize(
    "name", ["mlp", "resnet avg 3", "lstm, last step", "separable", "layer used twice"]
)
@pytest.mark.parametrize("per_channel", [False, True])
def test_graph_and_simulator_agree_where_sums_overflow(name: str, per_channel: bool) -> None:
    graph, data = quantized(name, weights=5, per_channel=per_channel)
    narrow = NarrowAccumulators(bits=8)(graph, data).graph
    assert data.x_train is not None
    x = 3 * data.x_train[:32]
    got, wanted = simulate(lower(narrow), x.numpy()), exact_forward(narrow, x)
    several = got if isinstance(got, tuple) else (got,)
    leaves = wanted if isinstance(wanted, tuple | list) else (wanted,)
    for a, b in zip(several, leaves, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_the_report_shows_width_and_overflows() -> None:
    model, x = make("mlp")
    data = Data(x_train=x[0])
    graph = capture(model, x[0][:2])
    result = Recipe([Quantize(), NarrowAccumulators(bits=9)]).run(graph, data)
    (remark, *_) = result.steps[-1].summary["remarks"]  # type: ignore[misc]
    assert "9 bits, proof needs " in remark
    assert "sums overflowed, nearest 0." in remark
    report = estimate(lower(result.graph), Target())
    widths = [each.accumulator for each in report.layers if each.weight_count]
    assert all(width is not None and "fixed<9," in width for width in widths)


def test_a_narrowed_graph_can_be_trained() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    data = Data(x_train=x, y_train=y)
    recipe = Recipe([Quantize(), NarrowAccumulators(), Finetune(epochs=2)])
    graph = recipe.run(capture(model, x[:2]), data).graph
    np.testing.assert_array_equal(
        simulate(lower(graph), x.numpy()), exact_forward(graph, x).numpy()
    )


def test_a_float_graph_is_refused() -> None:
    model, x = make("mlp")
    with pytest.raises(RecipeError, match=r"required a quantized graph.*behind quantize"):
        NarrowAccumulators()(capture(model, x[0][:2]), Data(x_train=x[0]))


def test_a_second_time_is_refused() -> None:
    graph, data = quantized()
    narrow = NarrowAccumulators()(graph, data).graph
    with pytest.raises(RecipeError, match="narrowed already"):
        NarrowAccumulators()(narrow, data)


@pytest.mark.parametrize("overflow", [each for each in Overflow if each is not Overflow.WRAP])
def test_saturating_accumulators_are_refused(overflow: Overflow) -> None:
    with pytest.raises(RecipeError, match=f"WRAP, got {overflow}.*order of the additions"):
        NarrowAccumulators(overflow=overflow)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "bits: required 1 to 63 bits, got 0"),
        ({"bits": 64}, "bits: required 1 to 63 bits, got 64"),
        ({"headroom": -1}, "headroom: required 0 to 63 bits, got -1"),
        ({"samples": 0}, "samples: required at least 1"),
        ({"layers": {"a": {"bits": 0}}}, 'layers."a".bits: required 1 to 63 bits'),
        ({"layers": {"a": {"width": 3}}}, 'layers."a".width: unknown key'),
        ({"bit": 3}, "bit: unknown key"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        NarrowAccumulators(**options)


def test_a_pattern_without_a_layer_is_refused() -> None:
    graph, data = quantized()
    with pytest.raises(RecipeError, match="nothing matches no layer with an accumulator"):
        NarrowAccumulators(layers={"nothing": {"bits": 9}})(graph, data)


def test_no_data_is_refused() -> None:
    graph, _ = quantized()
    with pytest.raises(RecipeError, match="required data"):
        NarrowAccumulators()(graph)


def test_sums_beyond_float64_are_refused_by_name() -> None:
    graph, data = quantized(weights=28, activations=28, inputs=28)
    with pytest.raises(VerifyError, match="float64 cannot evaluate"):
        NarrowAccumulators()(graph, data)
