"""What quantizers of QKeras compute, as modules of roundings, comparisons and exact arithmetic.

QKeras computes x + (q - x) in float32, to give q a gradient, which may be an ulp away from q; what
is meant, and computed here, is q, on its fixed-point grid. Rounding is TensorFlow's: halves go to
the even neighbour. Source: the calls of the classes in qkeras/quantizers.py, 0.9.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxloom.keras import activations
from fxloom.keras.description import Layer
from fxloom.keras.quantizers import Quantizer, parsed
from fxloom.keras.registry import Refused
from fxloom.quantized_ops import REQUANTIZE


def function_of(described: Any, layer: Layer) -> nn.Module | None:
    """The module of a layer's activation, a quantizer or a function; None where it is linear."""
    quantizer = parsed(described)
    if isinstance(quantizer, Quantizer):
        return quantized(quantizer)
    if quantizer in NAMED:
        return NAMED[quantizer]()
    return activations.named(quantizer, layer)


def quantized(quantizer: Quantizer) -> nn.Module:
    """The module of a quantizer of values. Raises Refused where there is no exact one."""
    alpha = quantizer.options.get("alpha")
    if isinstance(alpha, str):
        raise Refused(
            f"{quantizer.name} with alpha={alpha!r} would scale activations by what the batch "
            "holds. Give alpha a number, or None"
        )
    if quantizer.name not in QUANTIZED:
        raise Refused(f"{quantizer.name}: {_REASONS[quantizer.name]}")
    if alpha is None or alpha == 1:
        return QUANTIZED[quantizer.name](quantizer)
    return Scaled(QUANTIZED[quantizer.name](quantizer), alpha)


_REASONS = {
    "bernoulli": "it draws random numbers at inference too. Train with binary or "
    "stochastic_binary, or with quantized_sigmoid",
    "quantized_ulaw": "its values, logarithms, lie on no fixed-point grid. Use quantized_bits "
    "or quantized_tanh",
}


class Rounded(nn.Module):
    """x rounded into a format."""

    def __init__(self, width: int, integer: int, signed: bool, symmetric: bool = False) -> None:
        super().__init__()
        overflow = "SAT_SYM" if symmetric else "SAT"
        self.format = (width, integer, signed, "RND_CONV", overflow)

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = REQUANTIZE(x, *self.format)
        return rounded


class Sign(nn.Module):
    """`low` where x is negative, else one."""

    def __init__(self, low: int) -> None:
        super().__init__()
        self.low = low

    def forward(self, x: Tensor) -> Tensor:
        positive = (x >= 0).to(x.dtype)
        return positive if self.low == 0 else positive * 2 - 1


class Scaled(nn.Module):
    """What a quantizer gives, times a number or one for each channel, as float32 holds them."""

    def __init__(self, quantizer: nn.Module, scale: float | Sequence[float]) -> None:
        super().__init__()
        if not isinstance(scale, int | float):
            raise Refused("a quantizer of activations can have one alpha, not one for each channel")
        self.quantizer, self.scale = quantizer, float(np.float32(scale))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.quantizer(x)
        return y * self.scale


class AtMost(nn.Module):
    """What a quantizer gives, but no more than a bound."""

    def __init__(self, quantizer: nn.Module, bound: float) -> None:
        super().__init__()
        self.quantizer, self.bound = quantizer, float(np.float32(bound))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.quantizer(x)
        return y.clamp(max=self.bound)


class Leaky(nn.Module):
    """x where positive, else a fraction of it (a power of two), rounded into a signed format."""

    def __init__(self, bits: int, integer: int, slope: float) -> None:
        super().__init__()
        self.slope, self.lowest = slope, -slope * 2.0**integer
        self.format = (bits, integer + 1, True, "RND_CONV", "SAT")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = REQUANTIZE(torch.maximum(x, x * self.slope), *self.format)
        return y.clamp(min=self.lowest)


def _bits(quantizer: Quantizer) -> nn.Module:
    bits, signed = quantizer["bits"], bool(quantizer["keep_negative"])
    if bits == 1 and signed:
        return Sign(-1)
    integer = quantizer["integer"] + signed
    return Rounded(bits, integer, signed, signed and bool(quantizer["symmetric"]))


def _relu(quantizer: Quantizer) -> nn.Module:
    bits, integer, slope = (quantizer[key] for key in ("bits", "integer", "negative_slope"))
    rounded = Leaky(bits, integer, slope) if slope else Rounded(bits, integer, False)
    if quantizer["relu_upper_bound"] and not quantizer["is_quantized_clip"]:
        return AtMost(rounded, quantizer["relu_upper_bound"])
    return rounded


QUANTIZED: dict[str, Callable[[Quantizer], nn.Module]] = {
    "quantized_bits": _bits,
    "quantized_relu": _relu,
}
NAMED: dict[str, Callable[[], nn.Module]] = {}
