"""Models that bring formats along: fxloom.requantize in their forward."""

import numpy as np
import torch
from torch import Tensor, nn

from fxloom import capture, lower, simulate
from fxloom.quantized_ops import REQUANTIZE


def rounded(x: Tensor, width: int, integer: int, signed: bool = True) -> Tensor:
    return REQUANTIZE(x, width, integer, signed, "RND_CONV", "SAT")


class Rounding(nn.Module):
    """A layer whose weights, bias, scale and output have formats of their own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / 3)
        self.bias = nn.Parameter(torch.randn(outputs) / 3)
        self.scale = nn.Parameter(torch.rand(outputs))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = rounded(self.weight, 6, 1), rounded(self.bias, 6, 1)
        y = nn.functional.linear(x, weight) * rounded(self.scale, 16, 1) + bias
        return rounded(torch.relu(y), 6, 0, False)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Rounding(9, 5), Rounding(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(rounded(x, 8, 1)))


def test_its_own_formats_are_what_is_computed() -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(64, 9)
    program = lower(capture(net, x[:2]))
    np.testing.assert_array_equal(simulate(program, x), net(x).detach().numpy())
