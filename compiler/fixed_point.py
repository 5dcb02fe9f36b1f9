"""Fixed-point number formats and the arithmetic of rounding into them.

A value is ``mantissa * 2**-fraction`` with an integer mantissa in two's complement. Only this
module knows what the seven rounding modes and four overflow modes mean; everything else (graph
operator, program, simulator) calls it. Source of the modes: AMD UG1399, "Arbitrary Precision
Fixed-Point Data Types"; checked against the ap_fixed headers that hls4ml ships.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from fxloom.errors import VerifyError

IntArray = npt.NDArray[np.integer]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[Any]
"""Any floating type."""

MAX_WIDTH = 63
"""Widest format: one bit below int64, so that a rounding increment cannot overflow."""

MAX_POINT = 256
"""Largest distance of the binary point from the mantissa, far beyond any real network's."""


class Rounding(StrEnum):
    """What becomes of fraction bits that do not fit."""

    TRN = "TRN"  # toward minus infinity
    TRN_ZERO = "TRN_ZERO"  # toward zero
    RND = "RND"  # to nearest, ties toward plus infinity
    RND_ZERO = "RND_ZERO"  # to nearest, ties toward zero
    RND_INF = "RND_INF"  # to nearest, ties away from zero
    RND_MIN_INF = "RND_MIN_INF"  # to nearest, ties toward minus infinity
    RND_CONV = "RND_CONV"  # to nearest, ties to even


class Overflow(StrEnum):
    """What becomes of values beyond the format's range."""

    WRAP = "WRAP"  # drop the high bits
    SAT = "SAT"  # clamp to the range
    SAT_ZERO = "SAT_ZERO"  # become zero
    SAT_SYM = "SAT_SYM"  # clamp to the range without its lowest negative value


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Two's-complement values ``m * 2**-(width - integer)``.

    width: total bits, 1 to 63. integer: bits left of the binary point, the sign bit included, as
    in AMD's ap_fixed; it may be negative or exceed width.
    """

    width: int
    integer: int
    signed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MAX_WIDTH:
            raise VerifyError(
                f"fixed-point width must be 1 to {MAX_WIDTH} bits, got {self.width}. "
                "Use narrower weights or activations, or requantize in between."
            )
        if abs(self.integer) > MAX_POINT or abs(self.fraction) > MAX_POINT:
            raise VerifyError(
                f"the binary point must lie within {MAX_POINT} bits of the mantissa, got {self}"
            )

    @property
    def fraction(self) -> int:
        """Bits right of the binary point; negative where the step is larger than one."""
        return self.width - self.integer

    @property
    def lo(self) -> int:
        """Lowest mantissa."""
        return -(1 << (self.width - 1)) if self.signed else 0

    @property
    def hi(self) -> int:
        """Highest mantissa."""
        return (1 << (self.width - self.signed)) - 1

    @property
    def step(self) -> float:
        """Value of one mantissa unit, exact."""
        return 2.0**-self.fraction

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}fixed<{self.width},{self.integer}>"

    @staticmethod
    def holding(lo: int, hi: int, fraction: int) -> "FixedPoint":
        """The narrowest format with this fraction that holds every mantissa from lo to hi.

        Unsigned where lo is not negative. Raises VerifyError beyond 63 bits.
        """
        if lo >= 0:
            width = max(1, hi.bit_length())
        else:
            width = 1 + max((-lo - 1).bit_length(), hi.bit_length() if hi > 0 else 0)
        return FixedPoint(width, width - fraction, lo < 0)


def round_quotient(
    numerator: IntArray, denominator: int | Int64Array, rounding: Rounding
) -> Int64Array:
    """numerator / denominator rounded to an integer, exactly.

    numerator: int64, |n| < 2**63; denominator: positive. Compares the remainder with its
    complement rather than adding a half, so that nothing can overflow.
    """
    quotient, remainder = np.divmod(numerator, denominator)  # floor: 0 <= remainder
    complement = denominator - remainder
    negative = numerator < 0
    match rounding:
        case Rounding.TRN:
            up = np.zeros_like(negative)
        case Rounding.TRN_ZERO:
            up = negative & (remainder > 0)
        case Rounding.RND:
            up = remainder >= complement
        case Rounding.RND_MIN_INF:
            up = remainder > complement
        case Rounding.RND_ZERO:
            up = (remainder > complement) | (negative & (remainder == complement))
        case Rounding.RND_INF:
            up = (remainder > complement) | (~negative & (remainder == complement))
        case Rounding.RND_CONV:
            up = (remainder > complement) | ((remainder == complement) & (quotient % 2 == 1))
    return quotient + up


def fit(mantissa: IntArray, to: FixedPoint, overflow: Overflow) -> Int64Array:
    """Bring integers into a format's range by its overflow mode; int64 of the same shape."""
    mantissa = mantissa.astype(np.int64, copy=False)
    match overflow:
        case Overflow.WRAP:
            unused = 64 - to.width
            if to.signed:
                return (mantissa << unused) >> unused
            return mantissa & to.hi
        case Overflow.SAT:
            return np.clip(mantissa, to.lo, to.hi)
        case Overflow.SAT_SYM:
            return np.clip(mantissa, -to.hi if to.signed else 0, to.hi)
        case Overflow.SAT_ZERO:
            inside = (mantissa >= to.lo) & (mantissa <= to.hi)
            return np.where(inside, mantissa, 0)


def requantize(
    mantissa: IntArray, fraction: int, to: FixedPoint, rounding: Rounding, overflow: Overflow
) -> Int64Array:
    """Round and fit mantissas into another format.

    mantissa: int64, any shape, in units of 2**-fraction. Returns int64 of the same shape, each
    within to's range. Raises VerifyError if a shifted value would need more than 63 bits.
    Source: AMD UG1399, ap_fixed modes.
    """
    wide: Int64Array = mantissa.astype(np.int64, copy=False)
    dropped = fraction - to.fraction
    if dropped <= 0:
        return fit(shift_left(wide, -dropped), to, overflow)
    if dropped > 61:
        # Keep 61 dropped bits; the rest only matter as "something was there" (sticky bit).
        excess = min(dropped - 61, 63)
        sticky = (wide & ((1 << excess) - 1)) != 0
        wide, dropped = (wide >> excess) | sticky, 61
    return fit(round_quotient(wide, 1 << dropped, rounding), to, overflow)


def shift_left(mantissa: Int64Array, bits: int) -> Int64Array:
    """mantissa * 2**bits; VerifyError if a result would need more than 63 bits."""
    if bits == 0:
        return mantissa
    largest = max(int(mantissa.max(initial=0)), -int(mantissa.min(initial=0)))
    if largest and largest.bit_length() + bits > MAX_WIDTH:
        raise VerifyError(
            f"a mantissa of {largest.bit_length()} bits shifted left by {bits} exceeds "
            f"{MAX_WIDTH} bits. Choose formats whose binary points lie closer together."
        )
    return mantissa << bits if largest else mantissa


def quantize_values(
    values: FloatArray, to: FixedPoint, rounding: Rounding, overflow: Overflow
) -> Int64Array:
    """Mantissas of real values in a format; values may lie beyond its range.

    values: finite floats, any shape. Every float is a dyadic number, so this is exact: the result
    is what infinitely wide arithmetic would give.
    """
    if to.width <= 53:
        return quantize_floats(values, to, rounding, overflow).astype(np.int64)
    rounded = _rounded_floats(values, to, rounding)
    if overflow is Overflow.WRAP:
        rounded = _remainder(rounded, 2.0**to.width)
    beyond = rounded >= 2.0**63  # more than an int64 holds, and so than any format
    inside = np.where(beyond, 0, np.maximum(rounded, -(2.0**63)))
    highest = 0 if overflow is Overflow.SAT_ZERO else to.hi
    return np.where(beyond, highest, fit(inside.astype(np.int64), to, overflow))


def quantize_floats(
    values: FloatArray, to: FixedPoint, rounding: Rounding, overflow: Overflow
) -> FloatArray:
    """quantize_values with integer-valued floats for a result; formats of at most 53 bits.

    The result is float32 where values are and the format has at most 24 bits, else float64.
    """
    assert to.width <= 53
    rounded = _rounded_floats(values, to, rounding)
    kind = rounded.dtype.type
    low = -to.hi if overflow is Overflow.SAT_SYM and to.signed else to.lo
    match overflow:
        case Overflow.SAT | Overflow.SAT_SYM:
            np.clip(rounded, kind(low), kind(to.hi), out=rounded)
            return rounded
        case Overflow.SAT_ZERO:
            return np.where((rounded >= low) & (rounded <= to.hi), rounded, kind(0))
        case Overflow.WRAP:
            span = 2.0**to.width
            wrapped = _remainder(rounded, kind(span))
            wrapped = np.where(wrapped > to.hi, wrapped - kind(span), wrapped)
            return np.where(wrapped < to.lo, wrapped + kind(span), wrapped)


def _remainder(rounded: FloatArray, span: Any) -> FloatArray:
    """rounded modulo span with the sign of rounded, exact.

    A value that scaling has made infinite has no bit below its leading 53 and so none below span.
    """
    finite = np.where(np.isinf(rounded), rounded.dtype.type(0), rounded)
    remainder: FloatArray = np.fmod(finite, span)
    return remainder


def _rounded_floats(values: FloatArray, to: FixedPoint, rounding: Rounding) -> FloatArray:
    """values in steps of the format, rounded to integers; a new array, float32 where that is
    exact."""
    # Scaling up a float32 cannot underflow, and what overflows to infinity saturates all the same.
    narrow = values.dtype == np.float32 and to.width <= 24 and to.fraction >= 0
    dtype = np.float32 if narrow else np.float64
    values = values.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        scaled: FloatArray = np.ldexp(
            values.astype(dtype, copy=False), np.int32(to.fraction), dtype=dtype
        )
    if to.fraction < 0:  # a tiny value may have vanished, yet it rounds down to -1
        scaled = np.where((scaled == 0) & (values != 0), np.copysign(2.0**-1000, values), scaled)
    exact_in_place = {
        Rounding.TRN: np.floor,
        Rounding.TRN_ZERO: np.trunc,
        Rounding.RND_CONV: np.rint,
    }.get(rounding)
    if exact_in_place is not None:
        exact_in_place(scaled, out=scaled)
        return scaled
    floor: FloatArray = np.floor(scaled)
    with np.errstate(invalid="ignore"):  # infinity stays what it is
        rest = scaled - floor  # inexact only next to one, never next to one half
    match rounding:
        case Rounding.RND:
            up = rest >= 0.5
        case Rounding.RND_MIN_INF:
            up = rest > 0.5
        case Rounding.RND_ZERO:
            up = (rest > 0.5) | ((rest == 0.5) & (scaled < 0))
        case _:
            up = (rest > 0.5) | ((rest == 0.5) & (scaled > 0))
    np.add(floor, up, out=floor)
    return floor


def to_values(mantissa: IntArray, fraction: int) -> npt.NDArray[np.float64]:
    """Real values of mantissas, float64; exact while |mantissa| <= 2**53."""
    values: npt.NDArray[np.float64] = mantissa * np.float64(2.0**-fraction)
    return values
