"""Histograms of magnitudes, and the binary points that percentiles and entropy choose from them.

The bins of all histograms are the same: `BINS` to each power of two, from the smallest float32 to
the largest. So one pass over the data fills them, whatever its order and its batches; no range has
to be known before, outliers of any size leave the other bins as fine as they were, and the borders
of every power-of-two range are borders of bins. 0.5 MB a histogram.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fxloom.fixed_point import FixedPoint
from fxloom.passes.calibration import covering

BINS_LOG2 = 8
BINS = 1 << BINS_LOG2
"""Bins to a power of two."""

_MANTISSA_BITS = 23
_DROPPED = _MANTISSA_BITS - BINS_LOG2
_COUNT = 256 * BINS  # 256: float32 has as many exponents
_AT_ONCE = 2**20

LEAST_COVERED = 50
"""Share of the magnitudes, in percent, that a range chosen by entropy covers at least."""

UNLIKELY = 2.0**-14
"""What a quantized distribution gives to a bin of outliers alone, of what is there."""


@dataclass(slots=True)
class Histogram:
    """Numbers of nonzero magnitudes, bin by bin."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(_COUNT, dtype=torch.int64))

    def see(self, x: Tensor) -> None:
        """Count the values of a tensor; zeros, which any range holds, are left out."""
        flat = x.detach().reshape(-1)
        for start in range(0, flat.numel(), _AT_ONCE):
            magnitudes = flat[start : start + _AT_ONCE].to(torch.float32).abs()
            # Exponent and leading mantissa bits of a positive float32, read as one integer.
            bins = magnitudes.view(torch.int32) >> _DROPPED
            self.counts += torch.bincount(bins, minlength=_COUNT)
            self.counts[0] -= len(magnitudes) - magnitudes.count_nonzero()


def percentile_format(
    histogram: Histogram, share: float, low: float, high: float, width: int, signed: bool
) -> FixedPoint:
    """The format of the smallest power-of-two range that holds a share of the magnitudes.

    share: of the values that are not zero, in percent. low, high: what the histogram spans; never
    is the range wider than what covers that.
    """
    widest = covering(low, high, width, signed)
    octaves = histogram.counts.reshape(-1, BINS).sum(1).cumsum(0)
    total = int(octaves[-1])
    octave = int((octaves < share / 100 * total).sum())
    if not total or octave == len(octaves) - 1:  # the last one is whatever float32 cannot hold
        return widest
    # Octave k has the magnitudes from 2**(k - 127), the first all that are smaller.
    return replace(widest, integer=min(widest.integer, octave - 126 + signed))


def entropy_format(
    histogram: Histogram, low: float, high: float, width: int, signed: bool
) -> FixedPoint:
    """The format whose values' distribution diverges least from that of the magnitudes.

    Migacz, "8-bit inference with TensorRT" (GTC 2017), with power-of-two ranges; the widest range
    on a tie. Above 9 bits the levels of the largest magnitudes are finer than the bins: there only
    what is clipped and the small magnitudes count.
    """
    widest = covering(low, high, width, signed)
    least = percentile_format(histogram, LEAST_COVERED, low, high, width, signed)
    found = [
        replace(widest, integer=integer) for integer in range(widest.integer, least.integer - 1, -1)
    ]
    return min(found, key=lambda to: _divergence(histogram.counts, to))


def _divergence(counts: Tensor, to: FixedPoint) -> float:
    """Kullback-Leibler divergence between what was counted, clipped to a range, and its levels.

    The outliers are in the last bin of the one distribution, and missing in the other: so clipping
    costs. Each level gives its mass to the bins that it stands for, by width, where any has some.
    """
    total = int(counts.sum())
    end = (to.integer - to.signed + 126 + 1) * BINS  # where the range ends
    if not total or to.hi < 1:
        return 0.0
    if end <= 0:
        return float("inf")
    inside = counts[:end].double()
    clipped = inside.clone()
    clipped[-1] += total - inside.sum()
    edges = _edges(len(inside))
    middles, widths = (edges[1:] + edges[:-1]) / 2, edges[1:] - edges[:-1]
    levels = torch.round(middles * 2.0**to.fraction).clamp_(max=to.hi)
    _, index = torch.unique_consecutive(levels, return_inverse=True)
    there = clipped > 0
    size = int(index[-1]) + 1
    mass = torch.zeros(size, dtype=torch.float64).index_add_(0, index, inside)
    room = torch.zeros(size, dtype=torch.float64).index_add_(0, index, widths * there)
    spread = (mass[index] * widths)[there] / room[index][there]
    if not float(spread.sum()):
        return float("inf")
    want, have = clipped[there] / total, spread / spread.sum()
    have = torch.where(have > 0, have, UNLIKELY * want)
    return float((want * torch.log(want / have)).sum())


def _edges(bins: int) -> Tensor:
    """Where the first bins begin and end, float64 [bins + 1]."""
    number = torch.arange(bins + 1, dtype=torch.float64)
    octave, place = number // BINS, number % BINS / BINS
    return torch.where(octave > 0, (1 + place) * torch.exp2(octave - 127.0), place * 2.0**-126)
