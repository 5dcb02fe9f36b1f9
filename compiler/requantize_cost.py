"""What rounding and saturation cost in LUTs: an estimate of what one conversion takes.

Truncating and wrapping are wires. Rounding adds one to the bits that are kept; saturating chooses,
bit by bit, between the number and an end of its range. The rules were made on conversions that
yosys 0.23 synthesised (synth_xilinx, xcup), all of them within the interval: see
benchmarks/requantize_luts.py. No vendor's tool was run, and logic around a conversion may share
its LUTs.
"""

from math import ceil
from typing import NamedTuple

from fxloom.fixed_point import FixedPoint, Overflow, Rounding

LUT_INPUTS = 6


class Luts(NamedTuple):
    """How many are likely, and between which numbers."""

    likely: int
    least: int
    most: int


NONE = Luts(0, 0, 0)


def conversion_luts(
    source: FixedPoint, to: FixedPoint, rounding: Rounding, overflow: Overflow
) -> tuple[Luts, Luts]:
    """LUTs of rounding and those of saturating one number, as far as its type tells."""
    dropped = source.fraction - to.fraction
    rounds = rounding is not Rounding.TRN and dropped > 0
    # What is kept has no sign here, and one bit more where rounding up may carry.
    kept = max(source.width - source.signed - dropped, 0)
    over = kept + rounds - (to.width - to.signed)
    loses_sign = source.signed and not to.signed
    if overflow is Overflow.WRAP:
        return _rounding(min(kept + source.signed, to.width), dropped, rounding), NONE
    saturates = over > 0 or loses_sign
    saturation = _saturation(max(over, 0), to.width) if saturates else NONE
    return _rounding(kept + source.signed, dropped, rounding), saturation


def _rounding(kept: int, dropped: int, rounding: Rounding) -> Luts:
    if rounding is Rounding.TRN or dropped <= 0:
        return NONE
    kept = max(kept, 1)
    # Where a tie depends on more than the first dropped bit, the others are looked at too.
    ties = 0 if rounding is Rounding.RND else 1 + ceil(max(dropped - 2, 0) / (LUT_INPUTS - 1))
    # In the carry chain a bit takes a LUT's place, but logic around it may be in that LUT.
    return Luts(kept + ties, 1, kept + 2 * ties + 1)


def _saturation(over: int, width: int) -> Luts:
    detection = ceil(over / (LUT_INPUTS - 1)) if over > LUT_INPUTS - 2 else 0
    return Luts(width + detection, max(width - 2, 1), 2 * width + detection + 1)
