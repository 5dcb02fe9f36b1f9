"""Constants of a quantized model: numbers to a stated precision, in formats that lose nothing more.

A number that is no power of two gets SIGNIFICANT bits, as many as float32 holds. All numbers of one
constant share one format, in which each of them is exact.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.quantized_ops import REQUANTIZE

SIGNIFICANT = 24
"""Bits of a constant that is no power of two, the leading one included."""

MAX_CONSTANT_BITS = 40
"""Bits of all constants of one layer in one format: how far apart their exponents may lie."""


class QuantizerRefused(Exception):
    """Why a quantizer has no exact form here; the text follows the layer's name."""


def array_of(values: npt.ArrayLike | Tensor) -> npt.NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def rounded(
    x: Tensor,
    to: FixedPoint,
    rounding: Rounding = Rounding.RND_CONV,
    overflow: Overflow = Overflow.SAT,
) -> Tensor:
    """x in a format, as a node of the graph that keeps it."""
    result: Tensor = REQUANTIZE(x, to.width, to.integer, to.signed, rounding.value, overflow.value)
    return result


def significant(number: Fraction, bits: int = SIGNIFICANT) -> Fraction:
    """The number with so many significant bits that is nearest, ties to even."""
    step = _last_place(number, bits)
    return round(number / step) * step


def _last_place(number: Fraction, bits: int) -> Fraction:
    """The last of so many significant bits."""
    size = abs(number)
    step = Fraction(2) ** (size.numerator.bit_length() - size.denominator.bit_length() - bits)
    # The quotient of two numbers has as many bits as their lengths differ by, or one more.
    return step * 2 if size / step >= 1 << bits else step


def constant_format(numbers: Sequence[Fraction]) -> FixedPoint:
    """The narrowest format that holds all of these dyadic numbers exactly.

    Raises QuantizerRefused where it would need more than MAX_CONSTANT_BITS.
    """
    fraction = max((_fraction_bits(number) for number in numbers if number), default=0)
    steps = [int(number * Fraction(2) ** fraction) for number in numbers]
    low, high = min(0, *steps), max(0, *steps)
    width = max(-low, high).bit_length()
    if width > MAX_CONSTANT_BITS:
        magnitudes = [abs(float(number)) for number in numbers if number]
        raise QuantizerRefused(
            f"its scales from {min(magnitudes):.3g} to {max(magnitudes):.3g} need {width} bits "
            f"in one format, of at most {MAX_CONSTANT_BITS}: they lie too far apart. Use one scale "
            "for all channels, or scales that are powers of two"
        )
    return FixedPoint.holding(low, high, fraction)


def _fraction_bits(number: Fraction) -> int:
    """The least fraction for which number is an integer of steps; negative for large ones."""
    below = number.denominator.bit_length() - 1
    if below:
        return below
    numerator = abs(number.numerator)
    return 1 - (numerator & -numerator).bit_length()


class Constant(nn.Module):
    """Numbers in the format that holds them exactly; called without arguments."""

    value: Tensor

    def __init__(self, numbers: Sequence[Fraction], shape: Sequence[int]) -> None:
        """numbers: dyadic, of at most SIGNIFICANT bits each. Raises QuantizerRefused."""
        super().__init__()
        self.format = constant_format(numbers)
        values = np.array([float(number) for number in numbers], np.float32)
        self.register_buffer("value", torch.from_numpy(values.reshape(tuple(shape))))

    def forward(self) -> Tensor:
        return rounded(self.value, self.format)


def constant(values: npt.ArrayLike | Tensor) -> Constant:
    """These numbers to SIGNIFICANT bits each, in a format of their own."""
    given = array_of(values)
    return Constant([significant(Fraction(float(x))) for x in given.flat], given.shape)


def reciprocal(values: npt.ArrayLike | Tensor) -> Constant:
    """One over each of these numbers, to SIGNIFICANT bits."""
    given = array_of(values)
    return Constant([significant(1 / Fraction(float(x))) for x in given.flat], given.shape)


def addends(values: npt.ArrayLike | Tensor) -> Constant:
    """These numbers to the last of the SIGNIFICANT bits of the largest, as float32 would add them
    to numbers of its size."""
    given = array_of(values)
    numbers = [Fraction(float(x)) for x in given.flat]
    largest = max((abs(number) for number in numbers), default=Fraction())
    step = _last_place(largest, SIGNIFICANT)
    return Constant([round(number / step) * step for number in numbers], given.shape)
