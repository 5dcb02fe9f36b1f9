"""quantized_sigmoid and quantized_tanh, and the sigmoid that QKeras uses inside.

That one is a setting of the process, not of the model (qkeras.quantizers.set_internal_sigmoid):
"hard" unless QKeras is loaded here and says otherwise.
"""

import sys

import numpy as np
import numpy.typing as npt
from torch import nn

from fxloom.keras.quantizer_modules import Affine, Bounded, Rounded
from fxloom.keras.quantizers import Quantizer
from fxloom.keras.registry import Refused
from fxloom.keras.staircase import Staircase

Numbers = npt.NDArray[np.float64]

_SLOPES = {"hard_sigmoid": 0.5, "smooth_sigmoid": 0.1875}
MAX_BITS = 12
"""Widest table of a real sigmoid or tanh."""

STEP_BITS = 20
"""Behind the point of the numbers at which such a table rises; no x of as many sees that they are
rounded up."""


def inner_sigmoid(user: str) -> tuple[float]:
    """The slope of the line that stands for a sigmoid. Raises Refused where it is none."""
    slope = _slope()
    if slope is None:
        raise Refused(f"{user} with the internal sigmoid 'real' has no exact form here. Use 'hard'")
    return (slope,)


def _slope() -> float | None:
    loaded = sys.modules.get("qkeras.quantizers")
    name = getattr(getattr(loaded, "_sigmoid", None), "__name__", "hard_sigmoid")
    return _SLOPES.get(name)


def quantized_tanh(quantizer: Quantizer) -> nn.Module:
    """Twice a sigmoid less one, or the real tanh, rounded to a sign and bits - 1 bits."""
    bits, symmetric = quantizer["bits"], bool(quantizer["symmetric"])
    slope = None if quantizer["use_real_tanh"] else _slope()
    if slope is not None:
        return Affine(2 * slope, 0, Rounded(bits, 1, True, symmetric))
    _check_width("quantized_tanh", bits)
    half = 1 << (bits - 1)
    codes = np.arange(-half + symmetric, half)
    middles = (codes[:-1] + 0.5) / half
    # Of a sigmoid, tanh(x / 2) is what twice it less one comes to.
    steps = np.arctanh(middles) * (1 if quantizer["use_real_tanh"] else 2)
    return _stairs("quantized_tanh", bits, steps, codes / half)


def quantized_sigmoid(quantizer: Quantizer) -> nn.Module:
    """A sigmoid rounded to bits behind the point."""
    bits, symmetric = quantizer["bits"], bool(quantizer["symmetric"])
    slope = None if quantizer["use_real_sigmoid"] else _slope()
    if slope is not None:
        rounded: nn.Module = Affine(slope, 0.5, Rounded(bits, 0, False))
        return nn.Sequential(rounded, Bounded(2.0**-bits, None)) if symmetric else rounded
    _check_width("quantized_sigmoid", bits)
    codes = np.arange(symmetric, 1 << bits)
    middles = (codes[:-1] + 0.5) / (1 << bits)
    return _stairs("quantized_sigmoid", bits, np.log(middles / (1 - middles)), codes / (1 << bits))


def _check_width(name: str, bits: int) -> None:
    """Raise Refused for a table that is too large, before there is one."""
    if bits > MAX_BITS:
        raise Refused(
            f"{name} of {bits} bits by the real function; {MAX_BITS} are possible. Use the hard one"
        )


def _stairs(name: str, bits: int, steps: Numbers, values: Numbers) -> nn.Module:
    if not len(steps):
        raise Refused(f"{name} of {bits} bits is a constant")
    risen = np.ceil(np.ldexp(steps, STEP_BITS)) * 2.0**-STEP_BITS
    return Staircase(risen.tolist(), values.tolist())
