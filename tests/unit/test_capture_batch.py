"""The batch axis is tracked through every op, and what mixes samples is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from fxloom.batch_axis import Merged, sample_shape, track
from fxloom.errors import CaptureError, UnsupportedLayer
from tests.capturing import capture_anything as capture

X = torch.linspace(-2, 2, 3 * 4 * 5).reshape(3, 4, 5)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def axes(graph: fx.GraphModule) -> list[Any]:
    return [n.meta["batch_axis"] for n in graph.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x - x.mean(0), "mean (aten.mean.dim)"),
        (lambda x: x - x.mean(), "mean (aten.mean.dim)"),
        (lambda x: x / x.abs().max(), "amax (aten.amax)"),
        (lambda x: x.softmax(0), "softmax (aten.softmax.int)"),
        (lambda x: x.flip(0), "flip (aten.flip)"),
        (lambda x: x.cumsum(0), "cumsum (aten.cumsum)"),
        (lambda x: x.roll(1, 0), "roll (aten.roll)"),
        (lambda x: x[:1] + x, "slice (aten.slice.Tensor)"),
        (lambda x: x + x[0], "select (aten.select.int)"),
        (lambda x: torch.cat([x, x], 0), "cat (aten.cat)"),
        (lambda x: F.layer_norm(x.permute(1, 0, 2), [x.shape[0], 5]), "layer_norm"),
        (lambda x: x + x.transpose(0, 1).mean(1), "mean (aten.mean.dim)"),
        (lambda x: x[:, 0] @ x[:, 0].T, "matmul (aten.matmul)"),
        (lambda x: torch.einsum("btc,sc->bts", x, x[:, 0]), "einsum (aten.einsum)"),
        (lambda x: x.mean(2).t() @ x.mean(2), "matmul (aten.matmul)"),
        (lambda x: x.reshape(4, -1, 5), "reshape (aten.reshape)"),
        (lambda x: x.reshape(1, -1).softmax(1), "softmax (aten.softmax.int)"),
        (lambda x: x.reshape(-1), "output 0 of reshape (aten.reshape)"),
        (lambda x: F.max_pool1d(x.transpose(0, 1), 2), "max_pool1d (aten.max_pool1d)"),
        (lambda x: x / x.shape[0], "it uses the batch size as a number"),
        (lambda x: F.batch_norm(x, None, None, training=True), "normalises over the batch"),
    ],
)
def test_mixing_samples_is_refused_by_name(function: Callable[[Tensor], Any], name: str) -> None:
    with pytest.raises(UnsupportedLayer) as caught:
        capture(Function(function), X)
    assert name in str(caught.value)


def test_sequence_first_attention_is_refused() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    x = torch.linspace(-1, 1, 40).reshape(2, 5, 4)
    with pytest.raises(UnsupportedLayer, match="attention"):
        capture(Attend(), x)
    capture(Attend(), x, batch_axes=1)


def test_batch_first_attention_passes() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    graph = capture(Attend(), torch.linspace(-1, 1, 40).reshape(2, 5, 4))
    assert Merged(1, 1, 2) in axes(graph)


def test_all_problems_are_listed_at_once() -> None:
    def forward(x: Tensor) -> Tensor:
        return x.softmax(0) + x.flip(0) + F.mish(x)

    def supported(node: fx.Node) -> str | None:
        return "no lowering." if "mish" in str(node.target) else None

    with pytest.raises(UnsupportedLayer) as caught:
        capture(Function(forward), X, supported=supported)
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        "softmax", "flip", "mish",
    ]  # fmt: skip
    assert "mish (aten.mish): no lowering." in caught.value.problems


def test_one_cause_is_one_problem() -> None:
    with pytest.raises(UnsupportedLayer) as caught:
        capture(Function(lambda x: (x.flip(0) * 2).softmax(-1)), X)
    assert len(caught.value.problems) == 1


def test_an_op_without_a_rule_is_refused() -> None:
    match = r"cdist.*, line \d+ of .*does not know it.*list ops"
    with pytest.raises(UnsupportedLayer, match=match):
        capture(Function(lambda x: torch.cdist(x, x)), X)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.transpose(0, 1) * 2, [1, 1]),
        (lambda x: x.reshape(-1, 5), [Merged(0, 1, 4)]),
        (lambda x: F.relu(x.reshape(-1, 5)).reshape(-1, 4, 5), [Merged(0, 1, 4)] * 2 + [0]),
        (lambda x: x.transpose(0, 1).reshape(-1, 5), [1, Merged(0, 4, 1)]),
        (lambda x: x.permute(2, 0, 1).flatten(1), [1, Merged(1, 1, 4)]),
        (lambda x: x.mean((1, 2)), [0]),
        (lambda x: x.transpose(0, 2).mean(0), [2, 1]),
        (lambda x: x.transpose(0, 2).mean(0, keepdim=True), [2, 2]),
        (lambda x: x @ x.transpose(1, 2), [0, 0]),
        (lambda x: x.unsqueeze(0), [1]),
        (lambda x: x.transpose(0, 1)[2], [1, 0]),
    ],
)
def test_axis_is_followed(function: Callable[[Tensor], Tensor], expected: list[Any]) -> None:
    last = expected[-1]

    def unmerged(x: Tensor) -> Tensor:
        y = function(x)
        if last == Merged(0, 4, 1):
            return y.reshape(4, -1, 5)
        return y.reshape(-1, 4, 5) if isinstance(last, Merged) and last.axis == 0 else y

    if last == Merged(1, 1, 4):
        with pytest.raises(UnsupportedLayer, match="merged"):
            capture(Function(function), X)
        return
    assert axes(capture(Function(unmerged), X))[: len(expected)] == expected


def test_sample_shape_leaves_the_batch_out() -> None:
    graph = capture(Function(lambda x: x.reshape(-1, 5).relu().reshape(-1, 20)), X)
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert [sample_shape(node) for node in nodes] == [(4, 5), (4, 5), (20,)]


def test_linear_over_merged_axes_passes() -> None:
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(5, 2), nn.Unflatten(0, (-1, 4)))
    graph = capture(model, X)
    assert axes(graph) == [Merged(0, 1, 4)] * 2 + [0]


def test_each_input_may_have_its_own_batch_axis() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y.transpose(0, 1)

    graph = capture(Two(), (torch.ones(2, 3), torch.ones(3, 2)), batch_axes=(0, 1))
    assert [n.meta["batch_axis"] for n in graph.graph.find_nodes(op="placeholder")] == [0, 1]
    with pytest.raises(CaptureError, match="one batch size only"):
        capture(Two(), (torch.ones(2, 2), torch.ones(2, 2)), batch_axes=(0, 0))


def test_tracking_again_changes_nothing() -> None:
    graph = capture(Function(lambda x: x.transpose(0, 1) * 2), X)
    before = axes(graph)
    assert track(graph) == []
    assert axes(graph) == before
