"""What quantizers of QKeras compute, as modules of roundings, comparisons and exact arithmetic.

QKeras computes x + (q - x) in float32, to give q a gradient, which may be an ulp away from q; what
is meant, and computed here, is q, on its fixed-point grid. Rounding is TensorFlow's: halves go to
the even neighbour. Source: the calls of the classes in qkeras/quantizers.py, 0.9.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fxloom.keras import activations
from fxloom.keras.description import Layer
from fxloom.keras.quantizer_modules import (
    Bounded,
    HardSwish,
    Leaky,
    LeakySigmoid,
    Rounded,
    Scaled,
    Sign,
    Ternary,
)
from fxloom.keras.quantizer_powers import SignedPowers, UnsignedPowers
from fxloom.keras.quantizer_sigmoids import inner_sigmoid, quantized_sigmoid, quantized_tanh
from fxloom.keras.quantizers import Quantizer, names_quantizer, parsed
from fxloom.keras.registry import Refused, ordered


def function_of(described: Any, layer: Layer) -> nn.Module | None:
    """The module of a layer's activation, a quantizer or a function; None where it is linear."""
    if isinstance(described, Mapping) and not names_quantizer(described):
        return activations.named(described, layer)
    quantizer = parsed(described)
    if isinstance(quantizer, Quantizer):
        return ordered(quantized(quantizer), "pointwise")
    if quantizer in NAMED:
        return ordered(NAMED[quantizer](), "pointwise")
    return activations.named(quantizer, layer)


def quantized(quantizer: Quantizer) -> nn.Module:
    """The module of a quantizer of values. Raises Refused where there is no exact one."""
    alpha = quantizer.options.get("alpha")
    require_form(quantizer)
    if isinstance(alpha, str):
        raise Refused(
            f"{quantizer.name} with alpha={alpha!r} would scale activations by what the batch "
            "holds. Give alpha a number, or None"
        )
    if isinstance(alpha, list | tuple):
        raise Refused(f"{quantizer.name} with an alpha for each channel of activations. Give one")
    module = QUANTIZED[quantizer.name](quantizer)
    return module if alpha in (None, 1) else Scaled(module, float(np.float32(alpha)))


def require_form(quantizer: Quantizer) -> None:
    """Raise Refused for a quantizer that has no exact form, whatever its options are."""
    if quantizer.name in _REASONS:
        raise Refused(f"{quantizer.name}: {_REASONS[quantizer.name]}")


_REASONS = {
    "bernoulli": "it draws random numbers at inference too. Train with binary or "
    "stochastic_binary, or with quantized_sigmoid",
    "quantized_ulaw": "its values, logarithms, lie on no fixed-point grid. Use quantized_bits "
    "or quantized_tanh",
}


def _bits(quantizer: Quantizer) -> nn.Module:
    bits, signed = quantizer["bits"], bool(quantizer["keep_negative"])
    if bits == 1 and signed:
        return Sign(-1)
    integer = quantizer["integer"] + signed
    return Rounded(bits, integer, signed, signed and bool(quantizer["symmetric"]))


def _relu(quantizer: Quantizer) -> nn.Module:
    bits, integer, slope = (quantizer[key] for key in ("bits", "integer", "negative_slope"))
    if quantizer["use_sigmoid"]:
        rounded: nn.Module = LeakySigmoid(bits, integer, slope, *inner_sigmoid("quantized_relu"))
    else:
        rounded = Leaky(bits, integer, slope) if slope else Rounded(bits, integer, False)
    if quantizer["relu_upper_bound"] and not quantizer["is_quantized_clip"]:
        bound = float(np.float32(quantizer["relu_upper_bound"]))
        return nn.Sequential(rounded, Bounded(None, bound))
    return rounded


def _hard_swish(quantizer: Quantizer) -> nn.Module:
    if quantizer["bits"] == 1:
        raise Refused("quantized_hswish of 1 bit: use binary")
    rounded = Rounded(quantizer["bits"], quantizer["integer"] + 1, True, quantizer["symmetric"])
    return HardSwish(quantizer["relu_shift"], quantizer["relu_upper_bound"], rounded)


def _ternary(quantizer: Quantizer) -> nn.Module:
    threshold = quantizer["threshold"]
    return Ternary(0.33 if threshold is None else threshold)


QUANTIZED: dict[str, Callable[[Quantizer], nn.Module]] = {
    "quantized_bits": _bits,
    "quantized_relu": _relu,
    "quantized_tanh": quantized_tanh,
    "quantized_sigmoid": quantized_sigmoid,
    "quantized_hswish": _hard_swish,
    "quantized_po2": SignedPowers,
    "quantized_relu_po2": UnsignedPowers,
    "binary": lambda quantizer: Sign(0 if quantizer["use_01"] else -1),
    "stochastic_binary": lambda quantizer: Sign(-1),
    "ternary": _ternary,
    "stochastic_ternary": _ternary,
}


class _Clipped(nn.Module):
    """slope * x + offset between two numbers."""

    def __init__(self, slope: float, offset: float, low: float) -> None:
        super().__init__()
        self.slope, self.offset, self.low = slope, offset, low

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.slope if self.slope != 1 else x
        return (x + self.offset if self.offset else x).clamp(self.low, 1)


class _Positive(nn.Module):
    """1 where x is above zero, else `low`: a sigmoid, which is a half at zero, rounded to even."""

    def __init__(self, low: int) -> None:
        super().__init__()
        self.low = low

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above = (x > 0).to(x.dtype)
        return above if self.low == 0 else above * 2 - 1


NAMED: dict[str, Callable[[], nn.Module]] = {
    "hard_sigmoid": lambda: _Clipped(0.5, 0.5, 0),
    "smooth_sigmoid": lambda: _Clipped(0.1875, 0.5, 0),
    "binary_sigmoid": lambda: _Positive(0),
    "hard_tanh": lambda: _Clipped(1, 0, -1),
    "smooth_tanh": lambda: _Clipped(0.375, 0, -1),
    "binary_tanh": lambda: _Positive(-1),
}
"""Functions of qkeras/quantizers.py that may stand for an activation; some have the names of
others in Keras."""
