"""Equalisation: what the network computes stays, and neurons fill the range of their format.

tests/e2e/test_models.py has the small models, each of which must compute what it did.
"""

import pytest
import torch
from torch import Tensor, fx, nn

from fxloom.accuracy import measure_layers
from fxloom.data import Data
from fxloom.editing import copy_graph
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes import FoldBatchnorm, Legalize
from fxloom.passes.chains import find_chains
from fxloom.passes.equalize import equalize, find_links
from fxloom.passes.quantize import Quantize
from tests.models import Fn


def legal(model: nn.Module, x: tuple[Tensor, ...]) -> fx.GraphModule:
    captured = capture(model.eval(), tuple(t[:2] for t in x))
    return copy_graph(Legalize()(FoldBatchnorm()(captured).graph).graph)


def outputs(graph: fx.GraphModule, x: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        y = graph(*x)
    return list(y) if isinstance(y, tuple | list) else [y]


def scaled(graph: fx.GraphModule, x: tuple[Tensor, ...]) -> dict[str, float]:
    return equalize(graph, dict.fromkeys(find_chains(graph.graph), 15), lambda: [x])


LINKED: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "dense": (nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), (5,), 1),
    "pool and flatten": (
        nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.PReLU(4), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 6, 3), nn.LeakyReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 2)),
        ),
        (2, 9, 9),
        2,
    ),
    "groups and depthwise": (
        nn.Sequential(
            *(nn.Conv1d(4, 8, 1, groups=2), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=8), nn.ReLU()),
            nn.Conv1d(8, 6, 1, groups=2),
        ),
        (4, 6),
        2,
    ),
    "two readers": (
        Fn(
            lambda m, x: m.a(y := m.first(x).relu()) + m.b(y),
            first=nn.Linear(4, 5), a=nn.Linear(5, 3), b=nn.Linear(5, 3, bias=False),
        ),
        (4,),
        1,
    ),
    "sigmoid": (nn.Sequential(nn.Linear(5, 7), nn.Sigmoid(), nn.Linear(7, 3)), (5,), 0),
    "clamp": (nn.Sequential(nn.Linear(5, 7), nn.ReLU6(), nn.Linear(7, 3)), (5,), 0),
    "output of the model": (
        Fn(lambda m, x: ((y := m.a(x).relu()), m.b(y)), a=nn.Linear(4, 4), b=nn.Linear(4, 2)),
        (4,),
        0,
    ),
    "residual": (
        Fn(lambda m, x: m.b(m.a(x).relu() + x), a=nn.Linear(4, 4), b=nn.Linear(4, 2)),
        (4,),
        0,
    ),
    "shared": (
        Fn(lambda m, x: m.a(m.a(x).relu()), a=nn.Linear(4, 4)),
        (4,),
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
def test_layers_are_linked_through_what_scales(name: str) -> None:
    model, shape, count = LINKED[name]
    x = (torch.randn(40, *shape),)
    graph = legal(model, x)
    assert len(find_links(graph, find_chains(graph.graph))) == count
    before = outputs(graph, x)
    assert len(scaled(graph, x)) == count
    for a, b in zip(before, outputs(graph, x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_neurons_get_one_range_and_dead_ones_bounded_weights() -> None:
    first, second = nn.Linear(6, 5), nn.Linear(5, 2)
    with torch.no_grad():
        first.weight.mul_(torch.tensor([0.01, 0.1, 1, 3, 1])[:, None])
        first.bias.mul_(0)[4] = -100  # never active
    x = (torch.randn(4000, 6),)
    graph = legal(nn.Sequential(first, nn.ReLU(), second), x)
    scaled(graph, x)
    (relu,) = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    seen: list[Tensor] = []

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if n is relu:
                seen.append(value)
            return value

    Watch(graph).run(*x)
    ranges = seen[0].quantile(0.99, dim=0)[:4]
    assert ranges.max() < 1.5 * ranges.min()
    weights = dict(graph.named_parameters())
    rows = next(w for w in weights.values() if w.shape == (5, 6)).abs().amax(1)
    assert rows.max() <= 2.1 * rows.median()


def test_errors_of_a_report_are_those_of_scaled_neurons() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight[::2] *= 8
    data = Data(x_train=torch.rand(300, 8))
    graph = capture(model.eval(), torch.rand(2, 8))
    fixed = Quantize(weights=6, activations=6)(graph, data).graph
    found = measure_layers(fixed, graph, lower(fixed), data).errors
    assert set(found) == {"1", "2"}
    assert all(figure.value is not None and figure.value < 0.1 for figure in found.values())
