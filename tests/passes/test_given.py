"""quantize and finetune of models that bring formats along."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import fxloom
from fxloom import Recipe, capture, lower, simulate
from fxloom.data import Data
from fxloom.errors import RecipeError, UnsupportedLayer
from fxloom.exact import exact_forward
from fxloom.graph import constant
from fxloom.passes import (
    Circulant,
    Finetune,
    MixedPrecision,
    Prune,
    PruneChannels,
    Quantize,
    ShareWeights,
)
from fxloom.quantized_ops import GIVEN, REQUANTIZE
from fxloom.uniform import Activation, grid
from tests.given_nets import Rounded, Weighted, rounded

WIDE = (30, 2, True)


def in_order(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(Rounded(8, 3), *layers).eval()


def completed(net: nn.Module, x: Tensor, **keys: Any) -> tuple[fx.GraphModule, Mapping[str, Any]]:
    result = Recipe([Quantize(**keys)]).run(capture(net, x[:2]), Data.of(x))
    return result.graph, result.steps[0].summary


def dense(inputs: int = 9, outputs: int = 5) -> nn.Module:
    return Weighted(nn.Linear(inputs, outputs))


def test_where_everything_is_given_nothing_is_rounded_again() -> None:
    torch.manual_seed(0)
    net = in_order(dense(), nn.ReLU(), Rounded(6, 2, False), dense(5, 3))
    x = torch.randn(50, 9)
    graph, summary = completed(net, x)
    wanted = net.double()(x.double()).detach().numpy()
    np.testing.assert_array_equal(simulate(lower(graph), x.numpy()), wanted)
    np.testing.assert_array_equal(exact_forward(graph, x).numpy(), wanted)
    assert summary["formats"] == {}
    assert summary["bias_correction"] == {}
    assert summary["given"]["1.layer.weight"] == "fixed<6,1>"
    assert "3.requantize ufixed<6,2>" in summary["remarks"][0]
    with pytest.raises(RecipeError, match="There is none; all else keeps the formats"):
        completed(net.float(), x, layers={"1.layer": {"weights": 3}})


def test_what_has_no_format_gets_one_and_the_rest_keeps_its_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        dense(), nn.ReLU(), Rounded(6, 2, False), nn.Linear(5, 7), nn.ReLU(), dense(7, 3),
        nn.Softmax(1),
    ).eval()  # fmt: skip
    x = torch.randn(200, 9)
    graph, summary = completed(net, x)
    assert set(summary["formats"]) == {"input", "3.weight", "4", "6.argument", "6"}
    assert set(summary["bias_correction"]) == {"3"}
    given = [node for node in graph.graph.nodes if node.meta.get(GIVEN)]
    assert [node.args[1:4] for node in given].count((6, 1, True)) == 4
    assert [node.args[1:4] for node in given].count((6, 2, False)) == 1
    values = simulate(lower(graph), x.numpy())
    np.testing.assert_array_equal(values, exact_forward(graph, x).numpy())
    assert np.abs(values - net(x).detach().numpy()).max() < 0.02


def test_a_batch_norm_behind_given_weights_gets_enough_bits_and_is_rounded_once() -> None:
    torch.manual_seed(0)
    net = in_order(dense(), nn.BatchNorm1d(5), nn.ReLU(), Rounded(6, 2, False))
    x = torch.randn(200, 9)
    with torch.no_grad():
        net.train()(x)
    net.eval()
    graph, summary = completed(net, x)
    assert summary["formats"] == {"2.scale": "fixed<24,2>", "2.shift": "fixed<24,-4>"}
    values = simulate(lower(graph), x.numpy())
    wanted = net(x).detach().numpy()
    assert np.mean(values != wanted) < 0.01
    assert np.abs(values - wanted).max() <= 2**-4
    narrow, _ = completed(net, x, scales=4, weights=4)
    assert np.mean(simulate(lower(narrow), x.numpy()) != wanted) > 0.05


@pytest.mark.parametrize("modes", ["RND_CONV SAT", "TRN SAT", "RND_ZERO SAT_SYM"])
def test_a_function_of_exact_values_is_rounded_once(modes: str) -> None:
    torch.manual_seed(0)
    net = in_order(Weighted(nn.Linear(9, 5), (6, 3, True)), nn.Tanh(), Rounded(6, 1, modes=modes))
    x = 3 * torch.randn(100, 9)
    graph = capture(net, x[:2])
    wanted = net.double()(x.double()).detach().numpy()
    np.testing.assert_array_equal(simulate(lower(graph), x.numpy()), wanted)
    graph, summary = completed(net.float(), x)
    np.testing.assert_array_equal(simulate(lower(graph), x.numpy()), wanted)
    assert summary["formats"] == {}


def test_a_function_of_what_is_too_wide_for_a_table_has_its_argument_rounded_and_says_so() -> None:
    torch.manual_seed(0)
    net = in_order(Weighted(nn.Linear(9, 5), (16, 1, True)), nn.Sigmoid(), Rounded(12, 1, False))
    _, summary = completed(net, torch.randn(100, 9))
    assert summary["formats"] == {"2.argument": "fixed<10,2>", "2": "ufixed<12,1>"}


def test_values_are_rounded_again_where_products_would_be_too_wide() -> None:
    torch.manual_seed(0)
    net = in_order(*(Weighted(nn.Linear(4, 4), WIDE, WIDE) for _ in range(3)))
    x = torch.randn(100, 4)
    graph, summary = completed(net, x, activations=20)
    assert "1.linear" in summary["formats"]
    error = simulate(lower(graph), x.numpy()) - net(x).detach().numpy()
    assert np.abs(error).max() < 1e-3


def test_rounding_for_want_of_bits_is_as_fine_as_float32() -> None:
    """As behind activations whose scales differ between channels."""
    torch.manual_seed(0)
    scales = torch.rand(9) / 50 + 0.02
    layer = Weighted(nn.Linear(9, 5), (16, 1, True))
    net = in_order(Activation(grid(scales)), layer, Activation(grid(torch.tensor(0.0313))))
    x = torch.randn(500, 9)
    graph, summary = completed(net, x)
    assert summary["formats"] == {"2.linear": "fixed<24,3>"}
    wanted = net.double()(x.double()).detach().numpy()
    np.testing.assert_allclose(simulate(lower(graph), x.numpy()), wanted, rtol=1e-6)


class Inputs(nn.Module):
    """An input that is rounded twice, to nearest, and read as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Weighted(nn.Linear(9, 4)), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(rounded(x, 6, 2)) + self.second(x) + self.first(rounded(x, 4, 2))


def test_an_input_with_several_readers_is_finer_than_the_roundings_that_read_it() -> None:
    torch.manual_seed(0)
    net, x = Inputs().eval(), torch.randn(100, 9)
    graph, summary = completed(net, x)
    assert summary["formats"]["x"] == "fixed<15,3>"
    assert summary["given"]["requantize"] == "fixed<6,2>"
    assert np.abs(simulate(lower(graph), x.numpy()) - net(x).detach().numpy()).max() < 0.2


def test_a_value_that_others_read_unrounded_is_rounded_once_for_each() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(9, 9), nn.Linear(9, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.first(rounded(x, 8, 3))
            return rounded(y, 12, 3), self.second(torch.relu(y))

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(100, 9)
    graph, _ = completed(net, x, weights=16, activations=4)
    roundings = [node for node in graph.graph.nodes if node.meta.get(GIVEN)]
    sources = {node.args[0].target for node in roundings[1:]}
    assert sources == {torch.ops.aten.linear.default}
    fine = simulate(lower(graph), x.numpy())[0] - net(x)[0].detach().numpy()
    assert np.abs(fine).max() < 0.01


def test_what_quantize_wrote_is_quantized_already_and_other_passes_say_so_of_both() -> None:
    torch.manual_seed(0)
    net, x = in_order(dense()), torch.randn(50, 9)
    graph = capture(net, x[:2])
    done, _ = completed(net, x)
    with pytest.raises(RecipeError, match="the graph is quantized already"):
        Quantize()(done, Data.of(x))
    passes = [Prune(sparsity=0.5), PruneChannels(sparsity=0.5), ShareWeights(clusters=4)]
    for each in [*passes, Circulant(block=2), MixedPrecision(weight_bits=100)]:
        with pytest.raises(RecipeError, match="brought formats along"):
            each(graph, Data.of(x))
        with pytest.raises(RecipeError, match="quantized already"):
            each(done, Data.of(x))


def labelled() -> tuple[nn.Module, Data]:
    torch.manual_seed(0)
    net = nn.Sequential(
        Rounded(8, 3), dense(9, 12), nn.ReLU(), Rounded(6, 2, False), nn.Linear(12, 8), nn.ReLU(),
        dense(8, 3),
    ).eval()  # fmt: skip
    x = torch.randn(300, 9)
    return net, Data.of((x, (x[:, :3]).argmax(1)))


@pytest.mark.parametrize("keys", [{}, {"ranges": True, "narrowing": 1}])
def test_training_leaves_given_formats(keys: Mapping[str, Any]) -> None:
    net, data = labelled()
    graph = capture(net, data.example(2))
    recipe = Recipe([Quantize(activations=4), Finetune(epochs=4, **keys)])
    result = recipe.run(graph, data)
    kept = [n.args[1:] for n in result.graph.graph.nodes if n.meta.get(GIVEN)]
    first = [n.args[1:] for n in graph.graph.nodes if n.target is REQUANTIZE]
    assert kept == first
    losses = result.steps[1].summary
    assert losses["kept"]["loss"] < losses["first"]["loss"]
    lower(result.graph)


def test_a_graph_with_formats_trains_before_quantize_too() -> None:
    net, data = labelled()
    graph = capture(net, data.example(2))
    result = Recipe([Finetune(epochs=3), Quantize()]).run(graph, data)
    name = "1.layer.weight"
    assert not torch.equal(constant(result.graph, name), constant(graph, name))
    lower(result.graph)


def test_a_model_that_brings_everything_along_compiles_without_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = in_order(dense(), nn.ReLU(), Rounded(6, 2, False), dense(5, 3)), torch.randn(9, 9)
    build = fxloom.compile(net, x[:2], out=tmp_path / "build")
    np.testing.assert_array_equal(build.simulate(x.numpy()), net(x).detach().numpy())
    with pytest.raises(UnsupportedLayer, match=r"1.weight has no fixed-point format"):
        fxloom.compile(in_order(nn.Linear(9, 3)), x[:2], out=tmp_path / "other")
    with pytest.raises(RecipeError, match="required data, got none"):
        fxloom.compile(nn.Linear(9, 3), x[:2], out=tmp_path / "third")


def test_reports_and_traces_take_the_captured_model_for_the_float_one(tmp_path: Path) -> None:
    net, data = labelled()
    build = fxloom.compile(net, data=data, out=tmp_path / "build")
    errors = {layer.name: layer.float_error for layer in build.report.layers}
    first = errors["3.requantize"]
    assert first is not None
    assert first.value == 0
    assert build.report.accuracy is not None
    assert build.report.accuracy.largest_output > 0
    text = build.report.to_text()
    assert "formats that the model brought along and keeps: 0.requantize fixed<8,3>" in text
    values = fxloom.trace(net, data).values
    assert [value.name for value in values] == ["5"]
    stages = fxloom.evaluate(net, data, Recipe([Quantize()])).stages
    assert [stage.numbers for stage in stages] == ["float32", "integers"]


def test_a_trace_of_what_has_nothing_left_to_round_says_so() -> None:
    torch.manual_seed(0)
    found = fxloom.trace(in_order(dense()), torch.randn(50, 9))
    assert found.values == ()
    assert "nothing was left to round" in found.to_text()


class Compared(nn.Module):
    """Given weights read an input without a format, and thresholds read what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = dense(), dense(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last((y >= 0.1).float() + (y > 0.71).float())


def test_what_is_computed_from_rounded_inputs_is_exact_and_so_are_comparisons() -> None:
    torch.manual_seed(0)
    net, x = Compared().eval(), torch.randint(-50, 50, (100, 9)) / 16
    graph, summary = completed(net, x)
    assert set(summary["formats"]) == {"x"}
    wanted = net(x).detach().numpy()
    np.testing.assert_array_equal(simulate(lower(graph), x.numpy()), wanted)


def test_a_float_bias_gets_the_steps_of_the_products_and_nothing_more_is_rounded() -> None:
    torch.manual_seed(0)
    net, x = in_order(Weighted(nn.Linear(9, 5), bias=None)), torch.randn(100, 9)
    graph, summary = completed(net, x)
    assert summary["formats"] == {}
    error = simulate(lower(graph), x.numpy()) - net(x).detach().numpy()
    assert 0 < np.abs(error).max() <= 2**-11 + 1e-6


def test_an_offset_in_front_of_a_softmax_is_no_mask() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.offset = dense(), nn.Parameter(torch.randn(5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.layer(rounded(x, 8, 3)) + rounded(self.offset, 6, 2), 1)

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(100, 9)
    graph, _ = completed(net, x)
    assert np.abs(simulate(lower(graph), x.numpy()) - net(x).detach().numpy()).max() < 0.01
