"""Block-circulant weights: the nearest ones, through training and rounding to the integers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxloom
from fxloom.circulant_layout import find_block
from fxloom.data import Data
from fxloom.errors import RecipeError
from fxloom.facts import sharing
from fxloom.frontend import capture
from fxloom.graph import constant
from fxloom.passes import Circulant, Finetune, Prune, Quantize
from fxloom.passes.prunable import find_prunable
from fxloom.recipe import Pass, Recipe
from fxloom.target import Target


class Net(nn.Module):
    """Two convolutions, one of them grouped, and linear layers behind a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.hidden, self.head = nn.Linear(8 * 9, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.depthwise(torch.relu(self.conv(x))))
        return self.head(torch.relu(self.hidden(y.flatten(1))))


def made(model: nn.Module | None = None) -> tuple[GraphModule, Data]:
    torch.manual_seed(0)
    model = Net() if model is None else model
    x = torch.randn(96, 4, 3, 3)
    y = (x.mean((2, 3)) @ torch.randn(4, 5)).argmax(1)
    return capture(model.eval(), x[:2]), Data(x, y, x[:32], y[:32])


def integers(graph: GraphModule) -> dict[str, tuple[np.ndarray, int]]:
    """Of the program of a quantized graph: matrices [n_in, n_out] and taps, by layer."""
    program = fxloom.lower(graph)
    found = {}
    for instr in program.instrs:
        if instr.op.name in ("matmul", "conv"):
            data_ = program.constants[instr.args[1]].data
            taps = int(np.prod(data_.shape[:-2]))
            found[instr.origin] = (data_.reshape(-1, data_.shape[-1]), taps)
    return found


def test_weights_become_the_nearest_block_circulant_ones() -> None:
    """Of a full block the mean over each diagonal; whatever is added to it is further away."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 6, bias=False))
    graph = capture(model, torch.randn(2, 7))
    weight = model[0].weight.detach()
    result = Circulant(block=3)(graph)
    got = constant(result.graph, "0.weight").detach()
    assert got[0, 0] == pytest.approx(float((weight[0, 0] + weight[1, 1] + weight[2, 2]) / 3))
    assert got[3, 6] == weight[3, 6]  # blocks of one input have a number for each weight
    for o in range(6):
        for i in range(7):
            same = [
                (p, q)
                for p in range(6)
                for q in range(7)
                if (p // 3, q // 3, (p - q) % 3) == (o // 3, i // 3, (o - i) % 3)
            ]
            mean = float(torch.stack([weight[place] for place in same]).mean())
            assert float(got[o, i]) == pytest.approx(mean, abs=1e-6)
    assert torch.equal(model[0].weight, weight)
    layer = result.summary["layers"]["0"]  # type: ignore[index]
    assert (layer["weights"], layer["stored"], layer["block"]) == (42, 18, 3)
    lost = ((got - weight).square().sum() / weight.square().sum()).item()
    assert layer["error"] == pytest.approx(lost, rel=1e-3)


def test_what_cannot_be_circulant_stays_and_the_summary_says_why() -> None:
    graph, _ = made()
    result = Circulant(block=4, exclude=("head",))(graph)
    assert list(result.summary["layers"]) == ["conv", "hidden"]  # type: ignore[call-overload]
    assert result.summary["notes"] == {"depthwise": "it is a convolution with 8 groups"}
    assert torch.equal(
        constant(result.graph, "depthwise.weight"), constant(graph, "depthwise.weight")
    )
    assert sorted(sharing(result.graph)) == ["conv.weight", "hidden.weight"]


@pytest.mark.parametrize(
    "then",
    [
        [Finetune(epochs=3), Quantize()],
        [Quantize(weights=3, activations=5), Finetune(epochs=3)],
        [Quantize(weights=4), Finetune(epochs=4, ranges=True, narrowing=1)],
    ],
)
def test_integers_are_circulant_behind_training_and_rounding(then: list[Pass]) -> None:
    """In the order in which the hardware stores them, also behind a flattened image."""
    graph, data = made()
    first = Circulant(block=4, exclude=("head",), layers={"hidden": {"block": 5}})
    trained = Recipe([first, *then]).run(graph, data).graph
    found = integers(trained)
    blocks = {name: find_block(matrix, taps) for name, (matrix, taps) in found.items()}
    assert {name: blocks[name] for name in ("conv", "hidden", "head")} == {
        "conv": 4,
        "hidden": 5,
        "head": 1,
    }


def test_the_circulant_kernel_is_taken_for_what_the_pass_made() -> None:
    graph, data = made()
    recipe = Recipe([Circulant(exclude=("head",), finetune={"epochs": 2}), Quantize(weights=6)])
    result = recipe.run(graph, data)
    assert set(result.steps[0].summary["finetune"]) == {"first", "kept", "kept_epoch"}  # type: ignore[call-overload]
    report = fxloom.estimate(fxloom.lower(result.graph), Target(strategy="resource", reuse=4))
    kernels = {layer.name: layer.kernel.partition(":")[0] for layer in report.layers}
    assert kernels["hidden"] == kernels["conv"] == "circulant"


def test_batch_norms_are_folded_before_they_would_scale_outputs_apart() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)
    )
    nn.init.uniform_(model[1].weight, 0.5, 2)  # type: ignore[arg-type]
    graph, data = made(model)
    result = Recipe([Circulant(), Quantize()]).run(graph, data)
    assert result.steps[0].summary["folded"]
    matrix, taps = integers(result.graph)["0"]
    assert find_block(matrix, taps) == 4


def test_a_tensor_with_several_names_is_circulant_under_all_of_them() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.second(self.first(x)), self.first.weight.T)

    torch.manual_seed(0)
    x = torch.randn(16, 8)
    recipe = Recipe([Circulant(), Quantize()])
    found = integers(recipe.run(capture(Tied(), x[:2]), Data(x)).graph)
    assert len(found) == 3
    assert {find_block(matrix, taps) for matrix, taps in found.values()} == {4}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"block": 1}, "block: required at least 2, got 1"),
        ({"layers": {"fc": {"blocks": 4}}}, r'layers\."fc"\.blocks: unknown key; allowed: block'),
        ({"layers": {"fc": {"block": 0}}}, r'layers\."fc"\.block: required at least 2, got 0'),
        ({"finetune": {"epoch": 2}}, r"finetune\.epoch: unknown"),
    ],
)
def test_keys_are_checked(keys: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Circulant(**keys)  # type: ignore[arg-type]


def test_layers_that_are_named_must_be_possible() -> None:
    graph, data = made()
    with pytest.raises(RecipeError, match=r"depthwise: it is a convolution with 8 groups"):
        Circulant(include=("depthwise", "conv"))(graph)
    with pytest.raises(RecipeError, match=r"head: a block of 6 needs .* there are 24 and 5"):
        Circulant(layers={"head": {"block": 6}})(graph)
    with pytest.raises(RecipeError, match="no layer is left:\nhead: a block of 16 needs"):
        Circulant(block=16, exclude=("conv", "depthwise", "hidden"))(graph)
    with pytest.raises(RecipeError, match='exclude: "heads" matches no layer'):
        Circulant(exclude=("heads",))(graph)
    pruned = Prune(sparsity=0.5)(graph).graph
    with pytest.raises(RecipeError, match="hidden: it was pruned"):
        Circulant(include=("hidden",))(pruned)
    with pytest.raises(RecipeError, match="quantized already"):
        Circulant()(Quantize()(graph, data).graph)
    with pytest.raises(RecipeError, match="required data to finetune on"):
        Circulant(finetune={"epochs": 1})(graph)


def test_layers_of_every_kind_and_precision() -> None:
    """Steps of a sequence, rows of a matrix, weights in double precision."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.rows = nn.Conv1d(7, 14, 3, dilation=2), nn.Linear(14, 21, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rows(torch.relu(self.conv(x)).transpose(1, 2))

    torch.manual_seed(0)
    x = torch.randn(16, 7, 9, dtype=torch.float64)
    recipe = Recipe([Circulant(block=7), Quantize()])
    found = integers(recipe.run(capture(Sequence().double(), x[:2]), Data(x)).graph)
    blocks = {name: find_block(matrix, taps) for name, (matrix, taps) in found.items()}
    assert blocks == {"conv": 7, "rows": 7}


def test_positions_of_a_flattened_image_are_known() -> None:
    graph, _ = made()
    positions = {each.name: each.positions for each in find_prunable(graph)}
    assert positions == {"conv": 1, "depthwise": 1, "hidden": 9, "head": 1}
