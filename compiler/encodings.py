"""Weights that need no multiplier: which mantissas a format is left with.

    binary         -1, 1                     (Courbariaux et al. 2015, arXiv 1511.00363)
    ternary        -1, 0, 1                  (Li and Liu 2016, arXiv 1605.04711)
    power_of_two   0 and +-2**k              (Zhou et al. 2017, arXiv 1702.03044)

They are fixed-point numbers of which only some occur; what hardware makes of it is read from them.
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import cache

import torch
from torch import Tensor

from fxloom.fixed_point import FixedPoint

MOST_POWER_BITS = 5
"""A sign and a code of 15 powers and zero: mantissas of 16 bits."""


class Encoding(StrEnum):
    """Which mantissas of their format weights may have."""

    FIXED = "fixed"
    BINARY = "binary"
    TERNARY = "ternary"
    POWER_OF_TWO = "power_of_two"

    def width(self, bits: int) -> int:
        """Bits of the mantissas of weights that are stored in that many bits."""
        match self:
            case Encoding.FIXED:
                return bits
            case Encoding.POWER_OF_TWO:
                return 1 << (bits - 1)  # sign, and powers 0 to 2**(bits - 1) - 2
        return 2

    def stored(self, width: int) -> int:
        """Bits that store a weight whose mantissa has `width`."""
        match self:
            case Encoding.FIXED:
                return width
            case Encoding.BINARY:
                return 1
            case Encoding.TERNARY:
                return 2
        return width.bit_length()

    def levels(self, width: int) -> tuple[int, ...] | None:
        """The mantissas in order; None where all that fit the width occur."""
        match self:
            case Encoding.FIXED:
                return None
            case Encoding.BINARY:
                return (-1, 1)
            case Encoding.TERNARY:
                return (-1, 0, 1)
        powers = [1 << k for k in range(width - 1)]
        return (*(-power for power in reversed(powers)), 0, *powers)

    def nearest(self, mantissas: Tensor, to: FixedPoint) -> Tensor:
        """Real-valued mantissas to the nearest that there are; halfway, to even where all are, and
        else to the larger."""
        levels = self.levels(to.width)
        if levels is None:
            return torch.round(mantissas).clamp_(to.lo, to.hi)
        values, edges = _grid(levels, mantissas.dtype, str(mantissas.device))
        return values[torch.bucketize(mantissas.contiguous(), edges, right=True)]


@cache
def _grid(levels: Sequence[int], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    values = torch.tensor(levels, dtype=dtype, device=device)
    return values, (values[1:] + values[:-1]) / 2
