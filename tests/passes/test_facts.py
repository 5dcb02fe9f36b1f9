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
from fxloom.facts import facts, keep_zeros, kept_weights
from fxloom.frontend import capture
from fxloom.graph import constant
from fxloom.lowering import lower
from fxloom.passes import Finetune, FoldBatchnorm, Legalize, Quantize
from fxloom.passes.second_order import Moments, best_on_support, refit
from fxloom.quantized_ops import REQUANTIZE, REQUANTIZE_WEIGHTS
from fxloom.recipe import Pass, PassResult, Recipe


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
