"""Scales that are no powers of two: moved behind what they commute with, and merged."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fxloom import Recipe, capture, lower, simulate, uniform
from fxloom.data import Data
from fxloom.errors import VerifyError
from fxloom.exact import exact_forward
from fxloom.given_constants import constant
from fxloom.passes import Quantize
from fxloom.program import Program
from tests.given_nets import rounded


def onto(scale: float, bits: int = 6, zero_point: int = 0, signed: bool = True) -> nn.Module:
    """A uniform quantizer of activations."""
    return uniform.Activation(uniform.grid(scale, zero_point, bits, signed=signed))


class Layer(nn.Module):
    """A layer with weights of 4 bits, scales and a bias.

    by_channel: whether each output has a scale of its own.
    """

    def __init__(self, layer: nn.Module, by_channel: bool = True, factor: float = 7.3) -> None:
        super().__init__()
        self.layer, values = layer, layer.weight.detach()
        largest = values.abs().amax(tuple(range(1, values.dim())), keepdim=True)
        scales = largest if by_channel else largest.max()
        self.kind = uniform.weight(values, uniform.grid(scales / factor, bits=4))
        self.integers = nn.Parameter(self.kind.values)
        shape = (-1,) if isinstance(layer, nn.Linear) else (-1, 1, 1)
        found = self.kind.scale
        assert found is not None
        self.scale = constant(found.reshape(shape) if found.ndim else found)
        self.offset = constant(layer.bias.detach().reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        layer, weight = self.layer, self.kind.round(self.integers)
        if isinstance(layer, nn.Linear):
            y = functional.linear(x, weight)
        else:
            y = functional.conv2d(x, weight, None, layer.stride, layer.padding)
        return y * self.scale() + self.offset()


def completed(net: nn.Module, x: Tensor) -> tuple[fx.GraphModule, Program, Mapping[str, Any]]:
    result = Recipe([Quantize()]).run(capture(net.eval(), x[:2]), Data.of(x))
    return result.graph, lower(result.graph), result.steps[0].summary


def on_grid(scale: float, *shape: int) -> Tensor:
    """Samples for which the first rounding has nothing to do: none of them is near a tie."""
    return torch.randint(-100, 100, (64, *shape)) * scale


class Residual(nn.Module):
    """Values on one grid are added and put side by side as the integers that they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.outer = onto(0.031, 8), Layer(nn.Linear(9, 9)), onto(0.031, 8)
        self.last, self.head = onto(0.011, 8), Layer(nn.Linear(18, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.outer(torch.relu(self.inner(x)))
        return self.head(self.last(torch.cat([x + y, y], 1)))


class Attention(nn.Module):
    """A product of two computed values, each with a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = onto(0.031, 8), onto(0.021, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.first(x), self.other(x).transpose(1, 2))


def nets() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    unsigned = {"signed": False}
    return {
        "dense": (
            nn.Sequential(
                onto(0.031, 8), Layer(nn.Linear(9, 8)), nn.ReLU(), onto(0.023, **unsigned),
                Layer(nn.Linear(8, 5), by_channel=False),
            ),
            (9,),
        ),
        "convolutions and pools": (
            nn.Sequential(
                onto(0.031, 8), Layer(nn.Conv2d(3, 8, 3, padding=1)), nn.ReLU(), nn.MaxPool2d(2),
                onto(0.023, **unsigned), nn.AvgPool2d(3, 1), Layer(nn.Conv2d(8, 4, 3)), nn.ReLU(),
                onto(0.013, **unsigned), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                Layer(nn.Linear(4, 5)),
            ),
            (3, 14, 14),
        ),
        "zero points": (
            nn.Sequential(
                onto(0.031, 8, 3, False), Layer(nn.Linear(9, 8)), onto(0.023, 6, 5, False),
                Layer(nn.Linear(8, 5)),
            ),
            (9,),
        ),
        "residual": (Residual(), (9,)),
        "products": (Attention(), (5, 4)),
    }  # fmt: skip


@pytest.mark.parametrize("name", nets())
def test_layers_multiply_narrow_integers_and_values_change_by_their_last_bits(name: str) -> None:
    net, shape = nets()[name]
    x = on_grid(0.031, *shape)
    graph, program, summary = completed(net, x)
    wanted = net.double()(x.double()).detach().numpy()
    values = simulate(program, x.numpy())
    np.testing.assert_allclose(values, wanted, rtol=0, atol=2**-20 * np.abs(wanted).max())
    np.testing.assert_array_equal(values, exact_forward(graph, x).numpy())
    known = {value.name: value for value in [port.value for port in program.inputs]}
    known |= {instr.result.name: instr.result for instr in program.instrs}
    for instr in program.instrs:
        if instr.op.name in ("matmul", "conv"):
            assert known[instr.args[0]].type.width <= 12
    assert max(instr.result.type.width for instr in program.instrs) <= 44
    if name != "products":
        remarks = [text for text in summary["remarks"] if "24 significant bits" in text]
        assert len(remarks) == 1


def test_powers_of_two_stay_where_they_are() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 9))
            self.scale = nn.Parameter(torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0]))

        def forward(self, x: Tensor) -> Tensor:
            y = functional.linear(rounded(x, 8, 3), rounded(self.weight, 4, 2))
            return rounded(torch.relu(y * rounded(self.scale, 8, 4)) * 0.5, 8, 3)

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(50, 9)
    _, program, summary = completed(net, x)
    assert len(summary["remarks"]) == 1
    wanted = net(x).detach().numpy()
    np.testing.assert_array_equal(simulate(program, x.numpy()), wanted)


def test_an_input_that_is_scaled_before_it_is_rounded_gets_a_finer_port() -> None:
    net, x = nn.Sequential(onto(0.031, 8), nn.ReLU()), torch.randn(2000, 9)
    _, program, summary = completed(net, x)
    assert summary["formats"] == {"input": "fixed<17,3>"}
    wanted = net.double()(x.double()).detach().numpy()
    assert np.mean(np.abs(simulate(program, x.numpy()) - wanted) > 0.01) < 0.005


class ByChannel(nn.Module):
    """Inputs of a dense layer with scales of their own: they can move nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.scales, self.more = (constant(torch.rand(4) + 0.3) for _ in range(2))
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = rounded(x, 8, 3) * self.scales()
        y = functional.linear(x, rounded(self.weight, 8, 2)) * self.more()
        return functional.linear(y, rounded(self.weight, 8, 2))


def test_products_that_stay_too_wide_are_refused_with_their_layer() -> None:
    graph = capture(ByChannel().eval(), torch.randn(2, 4))
    with pytest.raises(VerifyError, match=r"mul_1 \(mul\).*63 bits.*requantize in between"):
        lower(graph)


def test_a_sum_of_values_on_different_grids_is_exact() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales = nn.ModuleList(constant(number) for number in (0.31, 0.17))

        def forward(self, x: Tensor) -> Tensor:
            first, second = (scale() for scale in self.scales)
            x = rounded(x, 8, 3)
            return x * first + torch.relu(x) * second

    net, x = Net().eval(), torch.randn(50, 9)
    program = lower(capture(net, x[:2]))
    wanted = net.double()(x.double()).detach().numpy()
    np.testing.assert_array_equal(simulate(program, x.numpy()), wanted)


def test_a_batch_norm_behind_scales_becomes_part_of_them() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    nn.init.normal_(norm.weight)  # of both signs
    norm.running_mean.normal_()
    layers = (onto(0.031, 8), Layer(nn.Linear(9, 8)), norm, nn.ReLU(), onto(0.023, signed=False))
    net, x = nn.Sequential(*layers), on_grid(0.031, 9)
    _, program, summary = completed(net, x)
    assert set(summary["formats"]) == {"input"}
    assert [instr.op.name for instr in program.instrs].count("mul") == 3
    assert [instr.op.name for instr in program.instrs].count("add") == 1
    wanted = net.double()(x.double()).detach().numpy()
    values = simulate(program, x.numpy())
    np.testing.assert_allclose(values, wanted, rtol=0, atol=2**-20 * np.abs(wanted).max())
