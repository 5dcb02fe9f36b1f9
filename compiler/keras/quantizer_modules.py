"""Quantizers of values whose steps all have one size."""

import torch
from torch import Tensor, nn

from fxloom.quantized_ops import DIVIDE, REQUANTIZE
from fxloom.uniform import signs


class Rounded(nn.Module):
    """x rounded into a format. symmetric: without the lowest number."""

    def __init__(self, width: int, integer: int, signed: bool, symmetric: bool = False) -> None:
        super().__init__()
        overflow = "SAT_SYM" if symmetric else "SAT"
        self.format = (width, integer, signed, "RND_CONV", overflow)

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = REQUANTIZE(x, *self.format)
        return rounded


class Scaled(nn.Module):
    """What a quantizer gives, times a number of at most 24 bits."""

    def __init__(self, quantizer: nn.Module, scale: float) -> None:
        super().__init__()
        self.quantizer, self.scale = quantizer, scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.quantizer(x)
        return y * self.scale


class Bounded(nn.Module):
    """x between two numbers."""

    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


class Affine(nn.Module):
    """What a quantizer gives for x times a number, plus a number."""

    def __init__(self, slope: float, offset: float, quantizer: nn.Module) -> None:
        super().__init__()
        self.slope, self.offset, self.quantizer = slope, offset, quantizer

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.slope if self.slope != 1 else x
        y: Tensor = self.quantizer(x + self.offset if self.offset else x)
        return y


class Sign(nn.Module):
    """1 where x is not negative, else -1 or 0."""

    def __init__(self, low: int) -> None:
        super().__init__()
        self.low = low

    def forward(self, x: Tensor) -> Tensor:
        return signs(x) if self.low else (x >= 0).to(x.dtype)


class Ternary(nn.Module):
    """The sign of x where it is at least as large as a threshold, else zero."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        # As float32 has it, with which QKeras compares.
        self.threshold = torch.tensor(threshold, dtype=torch.float32).item()

    def forward(self, x: Tensor) -> Tensor:
        if self.threshold <= 0:
            return torch.sign(x)
        above, below = x >= self.threshold, x <= -self.threshold
        return above.to(x.dtype) - below.to(x.dtype)


class Leaky(nn.Module):
    """x where positive, else a fraction of it (a power of two), rounded into a signed format."""

    def __init__(self, bits: int, integer: int, slope: float) -> None:
        super().__init__()
        self.slope, self.lowest = slope, -slope * 2.0**integer
        self.rounded = Rounded(bits, integer + 1, True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rounded(torch.maximum(x, x * self.slope))
        return y if self.slope == 1 else y.clamp(min=self.lowest)


class LeakySigmoid(nn.Module):
    """quantized_relu with use_sigmoid: of a sigmoid's line, slope * x + 1/2 between 0 and 1, twice
    the part above 1/2; and a fraction of what is below, rounded by itself."""

    def __init__(self, bits: int, integer: int, leak: float, slope: float) -> None:
        super().__init__()
        bits -= leak != 0
        self.leak, self.line = leak, slope * 2.0**-integer
        self.unit, self.highest = 2.0**integer, 1 - 2.0**-bits
        self.rounded = Rounded(bits + 1, 1, False)

    def forward(self, x: Tensor) -> Tensor:
        line = (x * self.line + 0.5).clamp(0, 1)
        above: Tensor = self.rounded(line) * 2 - 1
        y = above.clamp(0, self.highest)
        if self.leak:
            below: Tensor = self.rounded(line * self.leak) * (2 / self.leak) - 1
            y = y + below.clamp(-1, 0) * self.leak
        return y * self.unit


class HardSwish(nn.Module):
    """x times (x + shift between 0 and a bound), divided by the bound, rounded once."""

    bound: Tensor

    def __init__(self, shift: int, bound: int, rounded: Rounded) -> None:
        super().__init__()
        self.shift, self.highest, self.format = shift, bound, rounded.format
        self.register_buffer("bound", torch.tensor(bound))

    def forward(self, x: Tensor) -> Tensor:
        product = x * (x + self.shift).clamp(0, self.highest)
        quotient: Tensor = DIVIDE(product, self.bound, *self.format)
        return quotient
