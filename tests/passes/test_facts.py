"""Weights that are zero for good stay zero, whatever passes come later."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxloom.data import Data
from fxloom.editing import copy_graph
from fxloom.errors import RecipeError
from fxloom.facts import (
    check,
    facts,
    keep_zeros,
    kept_weights,
    share,
    shared_weights,
    sharing,
)
from fxloom.frontend import capture
from fxloom.graph import constant
from fxloom.lowering import lower
from fxloom.passes import Finetune, FoldBatchnorm, Legalize, Quantize
from fxloom.passes.second_order import Moments, best_on_support, refit
from fxloom.quantized_ops import REQUANTIZE, REQUANTIZE_WEIGHTS
from fxloom.recipe import Pass, PassResult, Recipe
from fxloom.sharing import Circulant, Codebook, expanded, holds, means


class Net(nn.Module):
    """Convolutions of all kinds, a batch norm, one linear layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1)
        self.twice = nn.Linear(49, 49)
        self.last = nn.Linear(4 * 49, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(torch.relu(self.norm(self.conv(x)))).flatten(2))
        return self.last(torch.relu(self.twice(torch.relu(self.twice(x)))).flatten(1))


LAYERS = ("conv", "up", "twice", "last")


def pruned(share: float = 0.6) -> tuple[GraphModule, Data]:
    torch.manual_seed(0)
    net = Net()
    net.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    for name in LAYERS:
        weight = net.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.data.mul_(torch.rand_like(weight) > share)
    x = torch.randn(96, 2, 4, 4)
    graph = copy_graph(capture(net.eval(), x[:2]))
    for name in LAYERS:
        keep_zeros(graph, f"{name}.weight")
    return graph, Data(x, torch.randint(0, 3, (96,)))


def rounded_weights(graph: GraphModule) -> dict[str, Tensor]:
    """What the layers of a quantized graph multiply with."""
    found = {}
    for node in graph.graph.nodes:
        if node.target in (REQUANTIZE, REQUANTIZE_WEIGHTS) and node.args[0].op == "get_attr":
            name, *arguments = str(node.args[0].target), *node.args[1:]
            found[name] = node.target(constant(graph, name), *arguments)
    return found


@pytest.mark.parametrize(
    "steps",
    [
        [FoldBatchnorm(), Legalize()],
        [Finetune(epochs=2), Quantize()],
        [Quantize(weights=3, weight_rounding="second_order"), Finetune(epochs=2)],
        [Quantize(weights=3, weight_rounding="adaround", per_channel=True)],
        [Quantize(weights=3, activations=4, equalize=True), Finetune(epochs=2, ranges=True)],
        [Quantize(weight_format="ternary"), Finetune(epochs=3, narrowing=1)],
        [Quantize(weights=3, weight_format="power_of_two", weight_rounding="second_order")],
    ],
    ids=lambda steps: "+".join(step.name for step in steps),
)
def test_zeros_stay_zero(steps: list[Pass]) -> None:
    graph, data = pruned()
    wanted = {name: int(zeros.kept.sum()) for name, zeros in facts(graph).items()}
    result = Recipe(steps).run(graph, data).graph
    assert set(facts(result)) == set(wanted)
    for name, most in wanted.items():
        values = dict(result.named_parameters(remove_duplicate=False))[name]
        kept = kept_weights(result, name)
        assert kept is not None
        assert int(kept.sum()) == most
        assert not bool((values != 0)[~kept].any())
    if any(isinstance(step, Quantize) for step in steps):
        lower(result).verify()
        weights = rounded_weights(result)
        for name in wanted:
            kept = kept_weights(result, name)
            assert kept is not None
            assert bool(weights[name][kept].any())
            assert not bool(weights[name][~kept].any())


def test_training_moves_the_other_weights() -> None:
    graph, data = pruned()
    result = Finetune(epochs=1)(graph, data).graph
    before, after = (dict(g.named_parameters())["last.weight"] for g in (graph, result))
    kept = kept_weights(graph, "last.weight")
    assert kept is not None
    assert bool((before != after)[kept].all())


def test_tied_weights_have_one_fact() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    net = Tied()
    net.a.weight.data[0] = 0
    graph = copy_graph(capture(net, torch.randn(2, 4)))
    keep_zeros(graph, next(name for name in graph.state_dict() if name.endswith("weight")))
    names = [name for name in graph.state_dict() if name.endswith("weight")]
    assert sorted(facts(graph)) == sorted(names)


def test_binary_weights_refuse_zeros() -> None:
    graph, data = pruned()
    with pytest.raises(RecipeError, match=r"binary weights are never zero.*ternary"):
        Quantize(weight_format="binary")(graph, data)


@dataclass(frozen=True)
class Reviving:
    """Makes pruned weights other than zero, or takes a tensor away."""

    name: ClassVar[str] = "reviving"

    takes: bool = False

    def __call__(self, graph: GraphModule, data: Data | None = None) -> PassResult:
        result = copy_graph(graph)
        if self.takes:
            (node,) = (n for n in result.graph.nodes if str(n.target) == "last.weight")
            result.last.other = nn.Parameter(result.last.weight.detach().clone())
            node.target = "last.other"
            del result.last.weight
        else:
            result.last.weight = nn.Parameter(torch.ones_like(result.last.weight))
        return PassResult(result, True, {})


def test_a_pass_that_loses_zeros_is_found_out() -> None:
    graph, data = pruned()
    with pytest.raises(RecipeError, match=r"last\.weight: .*not zero any more"):
        Recipe([Reviving()]).run(graph, data)
    taken = Recipe([Reviving(takes=True)]).run(graph, data)
    assert taken.steps[0].summary == {"pruned_tensors_gone": ["last.weight"]}
    assert "last.weight" not in facts(taken.graph)
    assert "last.weight" in facts(graph)


def test_best_weights_on_a_support_solve_the_normal_equations() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 500, 12, dtype=torch.float64)
    weights = torch.randn(2, 7, 12, dtype=torch.float64)
    x = x @ torch.randn(2, 12, 12, dtype=torch.float64)
    kept = torch.rand(2, 7, 12) > 0.5
    moments = Moments()
    moments.see(x, x @ weights.transpose(1, 2))
    free, bound = refit(weights * kept, moments), refit(weights * kept, moments, kept)
    right = free.target @ free.matrix
    for group in range(2):
        for output in range(7):
            support = kept[group, output]
            matrix = free.matrix[group][support][:, support]
            wanted = torch.linalg.solve(matrix, right[group, output, support])
            torch.testing.assert_close(bound.target[group, output, support], wanted)
    assert not bool(bound.target[~kept].any())
    nothing = best_on_support(free.matrix, right, torch.zeros_like(kept), weights)
    assert not bool(nothing.any())


# Weights that are one number ----------------------------------------------------------------------


def clustered() -> tuple[GraphModule, Data]:
    """The pruned net with few numbers in each of its layers, and that as a fact."""
    graph, data = pruned()
    for name in LAYERS:
        name = f"{name}.weight"
        kept, values = kept_weights(graph, name), constant(graph, name)
        assert kept is not None
        shared = Codebook.of(torch.randint(0, 4, values.shape), 4)
        values.data.copy_(expanded(shared, means(shared, values, kept).float(), kept))
        share(graph, name, shared)
    return graph, data


def test_classes_move_with_their_weights() -> None:
    graph, data = clustered()
    result = Recipe([Legalize()]).run(graph, data)
    assert result.steps[0].summary.get("sharing_gone") is None
    for name in LAYERS:
        shared, kept = (f(result.graph, f"{name}.weight") for f in (shared_weights, kept_weights))
        assert shared is not None
        assert kept is not None
        assert holds(shared, constant(result.graph, f"{name}.weight"), kept)
    before, after = (shared_weights(g, "up.weight") for g in (graph, result.graph))
    assert before is not None
    assert after is not None
    assert before.shape != after.shape


def test_zeros_that_a_move_puts_in_between_are_known() -> None:
    torch.manual_seed(0)
    graph = copy_graph(capture(Net().eval(), torch.randn(2, 2, 4, 4)))
    up = constant(graph, "up.weight")
    shared = Codebook.of(torch.randint(0, 4, up.shape), 4)
    up.data.copy_(expanded(shared, means(shared, up).float()))
    share(graph, "up.weight", shared)
    result = Recipe([Legalize()]).run(graph, None).graph
    kept = kept_weights(result, "up.weight")
    assert kept is not None
    assert int(kept.sum()) == up.numel()
    assert "up.weight" in sharing(result)


def test_classes_that_are_lost_are_told() -> None:
    graph, data = clustered()
    result = Recipe([FoldBatchnorm()]).run(graph, data)
    assert result.steps[0].summary["sharing_gone"] == ["conv.weight"]
    assert sorted(sharing(result.graph)) == ["last.weight", "twice.weight", "up.weight"]
    assert "conv.weight" in sharing(graph)
    # What is computed from a weight's place does not move.
    share(graph, "up.weight", Circulant((6, 4, 3, 3), 1))
    result = Recipe([Legalize()]).run(graph, data)
    assert result.steps[0].summary["sharing_gone"] == ["up.weight"]


def test_a_pass_that_loses_shared_weights_is_found_out() -> None:
    torch.manual_seed(0)
    graph = copy_graph(capture(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)))
    weight = constant(graph, "0.weight")
    shared = Circulant((4, 4), 2)
    weight.data.copy_(expanded(shared, means(shared, weight).float()))
    share(graph, "0.weight", shared)
    moved = copy_graph(graph)
    values = weight.detach().clone()
    values[0, 0] += 1e-6
    moved.get_submodule("0").weight = nn.Parameter(values)
    with pytest.raises(RecipeError, match=r"0\.weight: .*not one number any more.*circulant"):
        check(graph, moved)
