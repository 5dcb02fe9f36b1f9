"""Each spelling of an operation is captured in its one canonical form."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from fxloom.graph import BATCH, aten, lint_origins
from tests.capturing import capture_anything as capture

X = torch.linspace(-2, 2, 2 * 6).reshape(2, 6)
BATCH_NORM = ("input_1", "weight", "bias", "running_mean", "running_var")
IMAGE = torch.linspace(-2, 2, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


class Function(nn.Module):
    """A model whose forward is one function of its parameter w and the input."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(6, 6, generator=generator))
        self.b = nn.Parameter(torch.randn(6, generator=generator))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def calls(graph: fx.GraphModule) -> list[tuple[Any, ...]]:
    """(op, positional arguments...) of each compute node, nodes by name."""
    return [
        (node.target, *fx.node.map_arg(node.args, lambda arg: arg.name))
        for node in graph.graph.nodes
        if node.op == "call_function"
    ]


def convolution(bias: str | None, *rest: Any) -> tuple[Any, ...]:
    return (aten.convolution.default, "input_1", "weight", bias, *rest)


def ops(graph: fx.GraphModule) -> list[Any]:
    return [call[0] for call in calls(graph)]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: F.relu(x), (aten.relu.default, "x")),
        (lambda m, x: x.clamp(min=0), (aten.relu.default, "x")),
        (lambda m, x: x.clamp_min(0.0), (aten.relu.default, "x")),
        (lambda m, x: F.relu6(x), (aten.clamp.default, "x", 0, 6)),
        (lambda m, x: nn.ReLU6(inplace=True)(x * 1), (aten.clamp.default, "mul", 0.0, 6.0)),
        (lambda m, x: x.clip(-1, 1), (aten.clamp.default, "x", -1, 1)),
        (lambda m, x: x.clamp_max(1), (aten.clamp.default, "x", None, 1)),
        (lambda m, x: F.hardtanh(x, -2, 1), (aten.clamp.default, "x", -2, 1)),
        (lambda m, x: F.leaky_relu(x), (aten.leaky_relu.default, "x", 0.01)),
        (lambda m, x: x + 1.5, (aten.add.Tensor, "x", 1.5)),
        (lambda m, x: x - m.b, (aten.sub.Tensor, "x", "b")),
        (lambda m, x: 1 - x, (aten.sub.Tensor, 1, "x")),
        (lambda m, x: 2 * x, (aten.mul.Tensor, "x", 2)),
        (lambda m, x: x / 4, (aten.mul.Tensor, "x", 0.25)),
        (lambda m, x: x / 3, (aten.div.Tensor, "x", 3)),
        (lambda m, x: F.linear(x, m.w), (aten.linear.default, "x", "w", None)),
        (lambda m, x: x @ m.w.T, (aten.linear.default, "x", "w", None)),
        (lambda m, x: torch.mm(x, m.w.t()), (aten.linear.default, "x", "w", None)),
        (lambda m, x: x @ m.w, (aten.linear.default, "x", "w_folded", None)),
        (lambda m, x: torch.addmm(m.b, x, m.w.t()), (aten.linear.default, "x", "w", "b")),
        (lambda m, x: F.linear(x, m.w, m.b[:1]), (aten.add.Tensor, "linear", "b_folded")),
        (lambda m, x: F.linear(x, m.b), (aten.reshape.default, "linear", [-1])),
        (lambda m, x: x.mean(1), (aten.mean.dim, "x", [1], False)),
        (lambda m, x: x.mean(-1, keepdim=True), (aten.mean.dim, "x", [1], True)),
        (lambda m, x: x.max(1)[0], (aten.amax.default, "x", [1], False)),
        (lambda m, x: x[:, :4], (aten.slice.Tensor, "x", 1, 0, 4, 1)),
        (lambda m, x: x[..., -2:], (aten.slice.Tensor, "x", 1, 4, 6, 1)),
        (lambda m, x: x.chunk(2, 1)[1], (aten.slice.Tensor, "x", 1, 3, 6, 1)),
        (lambda m, x: x[:, -1], (aten.select.int, "x", 1, 5)),
        (lambda m, x: x.unbind(1)[2], (aten.select.int, "x", 1, 2)),
        (lambda m, x: torch.cat([x, x], -1), (aten.cat.default, ["x", "x"], 1)),
        (lambda m, x: F.softmax(x, -1), (aten.softmax.int, "x", 1, None)),
        (lambda m, x: x.view(x.size(0), 2, 3), (aten.reshape.default, "x", [-1, 2, 3])),
        (lambda m, x: x.reshape(-1, 3, 2), (aten.reshape.default, "x", [-1, 3, 2])),
        (lambda m, x: x.unflatten(1, (2, 3)), (aten.reshape.default, "x", [-1, 2, 3])),
        (lambda m, x: x.unsqueeze(-1), (aten.reshape.default, "x", [-1, 6, 1])),
        (lambda m, x: x[:, None], (aten.reshape.default, "x", [-1, 1, 6])),
        (lambda m, x: F.pad(x, (1, 2)), (aten.constant_pad_nd.default, "x", [1, 2], 0.0)),
    ],
)
def test_spellings_have_one_form(function: Callable[..., Any], expected: tuple[Any, ...]) -> None:
    assert calls(capture(Function(function), X))[-1] == expected


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (
            nn.Conv2d(4, 2, 3),
            (
                aten.convolution.default,
                "input_1",
                "weight",
                "bias",
                [1, 1],
                [0, 0],
                [1, 1],
                False,
                [0, 0],
                1,
            ),
        ),
        (
            nn.Conv2d(4, 4, 3, stride=2, padding=(2, 1), dilation=(1, 2), groups=4, bias=False),
            (
                aten.convolution.default,
                "input_1",
                "weight",
                None,
                [2, 2],
                [2, 1],
                [1, 2],
                False,
                [0, 0],
                4,
            ),
        ),
        (
            nn.Conv2d(4, 2, 3, padding="same", dilation=2),
            (
                aten.convolution.default,
                "input_1",
                "weight",
                "bias",
                [1, 1],
                [2, 2],
                [2, 2],
                False,
                [0, 0],
                1,
            ),
        ),
        (
            nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1),
            (
                aten.convolution.default,
                "input_1",
                "weight",
                "bias",
                [2, 2],
                [0, 0],
                [1, 1],
                True,
                [1, 1],
                1,
            ),
        ),
        (
            nn.BatchNorm2d(4, momentum=0.2),
            (
                aten.batch_norm.default,
                "input_1",
                "weight",
                "bias",
                "running_mean",
                "running_var",
                False,
                0.2,
                1e-05,
                False,
            ),
        ),
        (
            nn.MaxPool2d(2, ceil_mode=True),
            (aten.max_pool2d.default, "input_1", [2, 2], [2, 2], [0, 0], [1, 1], True),
        ),
        (
            nn.AvgPool2d(3, 1, count_include_pad=False),
            (aten.avg_pool2d.default, "input_1", [3, 3], [1, 1], [0, 0], False, False, None),
        ),
        (nn.AdaptiveAvgPool2d(1), (aten.adaptive_avg_pool2d.default, "input_1", [1, 1])),
        (nn.AdaptiveAvgPool2d((None, 2)), (aten.adaptive_avg_pool2d.default, "input_1", [6, 2])),
        (nn.Flatten(), (aten.reshape.default, "input_1", [-1, 144])),
        (nn.ZeroPad2d((1, 0, 2, 0)), (aten.constant_pad_nd.default, "input_1", [1, 0, 2, 0], 0.0)),
    ],
)
def test_layers_have_all_arguments_written_out(layer: nn.Module, expected: tuple[Any, ...]) -> None:
    assert [call[:1] + tuple(call[1:]) for call in calls(capture(layer, IMAGE))] == [expected]


def test_one_dimensional_layers_have_the_same_forms() -> None:
    model = nn.Sequential(nn.Conv1d(4, 3, 3), nn.MaxPool1d(2), nn.BatchNorm1d(3))
    assert [call[2:] if index == 1 else call[0] for index, call in enumerate(
        calls(capture(model, IMAGE[..., 0])))] == [
        aten.convolution.default,
        ([2], [2], [0], [1], False),
        aten.batch_norm.default,
    ]  # fmt: skip


def test_same_padding_of_an_even_kernel_pads_the_extra_column_last() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(4, 2, (4, 3), padding="same")), IMAGE)
    pad, convolution = calls(graph)
    assert pad == (aten.constant_pad_nd.default, "input_1", [1, 1, 1, 2], 0.0)
    assert convolution[5] == [0, 0]


def test_alpha_becomes_a_multiplication() -> None:
    graph = capture(Function(lambda m, x: torch.sub(x, F.relu(x), alpha=3)), X)
    assert calls(graph)[1:] == [
        (aten.mul.Tensor, "relu", 3),
        (aten.sub.Tensor, "x", "mul"),
    ]


def test_transpose_is_a_permute_and_a_reshape_after_it_runs() -> None:
    graph = capture(Function(lambda m, x: x.view(-1, 2, 3).transpose(1, -1).flatten(1)), X)
    assert calls(graph)[1:] == [
        (aten.permute.default, "reshape", [0, 2, 1]),
        (aten.reshape.default, "permute", [-1, 6]),
    ]


def test_stack_becomes_a_concatenation() -> None:
    graph = capture(Function(lambda m, x: torch.stack([x, F.relu(x)], -1)), X)
    assert ops(graph)[-3:] == [aten.reshape.default, aten.reshape.default, aten.cat.default]


def test_what_does_nothing_vanishes() -> None:
    def forward(m: Function, x: Tensor) -> Tensor:
        x = m.dropout(x.clone().contiguous().detach()).to(torch.float32)
        return F.relu(x[:, :].reshape(x.shape).expand(-1, 6)[:])

    model = Function(forward)
    model.dropout = nn.Dropout(0.5)
    assert calls(capture(model, X)) == [(aten.relu.default, "x")]


def test_constants_spread_over_the_batch_broadcast() -> None:
    def forward(m: Function, x: Tensor) -> Tensor:
        return (
            x + m.b.expand(x.shape[0], -1) + torch.ones(x.size(0), 6) + x.new_zeros(x.shape[0], 6)
        )

    graph = capture(Function(forward), X)
    assert ops(graph) == [aten.add.Tensor] * 3
    assert not graph.graph.find_nodes(op="call_function", target=aten.sym_size.int)


def test_parametrized_weight_becomes_a_plain_trainable_parameter() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
    graph = capture(nn.Sequential(layer), X)
    assert calls(graph) == [(aten.linear.default, "input_1", "_0_weight", "_0_bias")]
    weight = graph.get_parameter("0.weight")
    assert weight.requires_grad
    torch.testing.assert_close(weight.data, layer.weight.data)


def test_constant_arithmetic_is_folded_to_a_buffer() -> None:
    model = Function(lambda m, x: x * torch.arange(6).float().add(1))
    graph = capture(model, X)
    assert ops(graph) == [aten.mul.Tensor]
    (folded,) = graph.buffers()
    assert folded.tolist() == [1, 2, 3, 4, 5, 6]


def test_layers_keep_their_names_and_functions_are_named_after_their_module() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.act(self.conv(self.act(x))) + x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block1 = Block()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.block1(x))

    graph = capture(Net(), IMAGE).graph
    lint_origins(graph)
    assert [node.meta["origin"] for node in graph.nodes if node.op == "call_function"] == [
        "block1.act", "block1.conv", "block1.act_1", "block1.add", "block1.relu", "relu",
    ]  # fmt: skip


def test_values_carry_the_batch_as_a_prime_on_meta_tensors() -> None:
    graph = capture(nn.Linear(6, 2), X)
    value = graph.graph.output_node().args[0].meta["val"]
    assert value.device.type == "meta"
    assert value.shape == (BATCH, 2)
