"""The best few numbers for many: k-means in one dimension, by dynamic programming.

In one dimension clusters are intervals, so the optimum is found exactly (Wang and Song 2011, The R
Journal 3/2, "Ckmeans.1d.dp"); where the best first element of the last interval only moves up with
the last element, dividing and conquering takes k n log n steps. Of many values a histogram is
clustered: its bins are narrow against the clusters, so that what is lost is of the order of the
square of their ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxloom.quantized_ops import blocks

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Cost = Callable[[Ints, Ints], Floats]

BINS = 1 << 15
"""Of a histogram of many values."""
MOST_EXACT = 1 << 12
"""Distinct values up to which they themselves are clustered."""
WORK = 1 << 19
"""Points times clusters that dynamic programming sees; of more, neighbours are joined first."""
SAMPLE = 1 << 16
OUTSIDE = 1e-4
FARTHEST = 4.0
"""Bins reach this many times as far as all values but that share of them at each end."""
SWEEPS = 100


@dataclass(frozen=True)
class Points:
    """Different numbers, ascending, with how often each occurs: both [n]."""

    values: Floats
    counts: Floats

    def sums(self) -> tuple[Floats, Floats, Floats]:
        """Counts, values and squares before every point: [n + 1] each. Values are taken from their
        mean, so that differences of sums keep their digits."""
        mean = float(self.counts @ self.values / self.counts.sum())
        centred = self.values - mean
        weighted = self.counts * centred
        found = (self.counts, weighted, weighted * centred)
        c, s, q = (np.concatenate([[0.0], np.cumsum(each)]) for each in found)
        return c, s, q


def best_centroids(points: Points, k: int) -> Floats:
    """At most k numbers, ascending, with the least sum of squared distances to the nearest."""
    assert k >= 1
    if len(points.values) <= k:
        return points.values.copy()
    joined = _joined(points, max(WORK // k, 4 * k))
    starts = _intervals(joined, min(k, len(joined.values)))
    centroids = _means(joined, np.append(starts, len(joined.values)))
    return centroids if joined is points else _settled(points, centroids)


def least_errors(points: Points, most: int) -> Floats:
    """The least sum of squared distances with 1, 2, ... centroids: [most], or fewer by points."""
    joined = _joined(points, max(WORK // most, 4 * most))
    grown = [float(least[-1]) for least, _ in _growing(joined, min(most, len(joined.values)))]
    # What joining points leaves out is the same for any number.
    lost = 0.0 if joined is points else float(points.sums()[2][-1] - joined.sums()[2][-1])
    return np.asarray(np.maximum(np.array(grown) + lost, 0.0), np.float64)


def _intervals(points: Points, k: int) -> Ints:
    """Where the k intervals with the least squared error begin."""
    begins = [begins for _, begins in _growing(points, k)]
    starts = np.empty(k, np.int64)
    end = len(points.values)
    for number in range(k - 1, -1, -1):
        starts[number] = end = begins[number][end]
    return starts


def _growing(points: Points, most: int) -> Iterator[tuple[Floats, Ints]]:
    """By dynamic programming, for 1 to `most` intervals: the least squared error of the first `end`
    points for every end, and where the last interval begins."""
    c, s, q = points.sums()
    n = len(points.values)

    def cost(first: Ints, last: Ints) -> Floats:
        """Squared error of points first to last - 1 around their mean."""
        total, count = s[last] - s[first], c[last] - c[first]
        return (q[last] - q[first]) - total * total / count

    ends = np.arange(1, n + 1)
    least = np.concatenate([[0.0], cost(np.zeros(n, np.int64), ends)])  # of the first `end` points
    begins = np.zeros(n + 1, np.int64)
    yield least, begins
    for number in range(1, most):
        least, begins = _one_more(least, cost, number)
        yield least, begins


def _one_more(least: Floats, cost: Cost, number: int) -> tuple[Floats, Ints]:
    """The least errors with one interval more, of the first `end` points for every end, and where
    that interval begins. number: intervals so far."""
    n = len(least) - 1
    ends = np.arange(number + 1, n + 1)
    m = len(ends)
    best = np.full(n + 1, np.inf)
    # Where the interval of an end begins; beyond both sides the bounds of all.
    begins = np.full(m + 2, number, np.int64)
    begins[m + 1] = n - 1
    step = 1 << max(m.bit_length() - 1, 0)
    while step:
        places = np.arange(step, m + 1, 2 * step)
        low = begins[places - step]
        high = np.minimum(begins[np.minimum(places + step, m + 1)], ends[places - 1] - 1)
        lengths = high - low + 1
        starts = np.concatenate([[0], np.cumsum(lengths)])
        firsts = np.arange(starts[-1]) + np.repeat(low - starts[:-1], lengths)
        errors = least[firsts] + cost(firsts, np.repeat(ends[places - 1], lengths))
        smallest = np.minimum.reduceat(errors, starts[:-1])
        equal = np.flatnonzero(errors == np.repeat(smallest, lengths))
        chosen = equal[np.searchsorted(equal, starts[:-1])]
        begins[places] = firsts[chosen]
        best[ends[places - 1]] = smallest
        step //= 2
    found = np.zeros(n + 1, np.int64)
    found[ends] = begins[1 : m + 1]
    return best, found


def _joined(points: Points, most: int) -> Points:
    """At most that many points, neighbours joined into their means: more where the best centroids
    lie more densely, which is as the cube root of the density (Panter and Dite 1951)."""
    n = len(points.values)
    if n <= most:
        return points
    widths = np.gradient(points.values)
    share = np.cumsum(_at_most_one(np.cbrt(points.counts * widths * widths), most))
    groups = np.minimum((share / share[-1] * most).astype(np.int64), most - 1)
    begins = np.flatnonzero(np.diff(groups, prepend=-1))
    counts = np.add.reduceat(points.counts, begins)
    return Points(np.add.reduceat(points.counts * points.values, begins) / counts, counts)


def _at_most_one(shares: Floats, total: int) -> Floats:
    """Shares in proportion, that many together and none above one: an outlier far from all others
    takes a place, and the others divide what is left."""
    falling = np.sort(shares)[::-1]
    below = np.cumsum(falling[::-1])[::-1]  # each and all that are smaller
    whole = int(np.argmax(falling * (total - np.arange(len(falling))) <= below))
    capped: Floats = np.minimum(shares * ((total - whole) / below[whole]), 1.0)
    return capped


def _means(points: Points, borders: Ints) -> Floats:
    """The means of the points between borders; of an empty interval nothing."""
    c, s = (np.concatenate([[0.0], np.cumsum(each)])
            for each in (points.counts, points.counts * points.values))  # fmt: skip
    counts = np.diff(c[borders])
    return np.asarray(np.diff(s[borders])[counts > 0] / counts[counts > 0])


def _settled(points: Points, centroids: Floats) -> Floats:
    """Each the mean of the points that are nearest to it, until nothing moves (Lloyd 1957)."""
    for _ in range(SWEEPS):
        middles = (centroids[1:] + centroids[:-1]) / 2
        borders = np.searchsorted(points.values, middles, side="right")
        moved = _means(points, np.concatenate([[0], borders, [len(points.values)]]))
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


@dataclass(frozen=True)
class Bins:
    """Equal bins from `low` on, numbered from 1; 0 is what lies below, BINS + 1 what lies above."""

    low: float
    scale: float

    @classmethod
    def of(cls, values: Tensor) -> Bins:
        """Bins for the values of a tensor, except for outliers that would make them wide."""
        low, high = (float(x) for x in torch.aminmax(values))
        sample = values[:: max(values.numel() // SAMPLE, 1)].to(torch.float64)
        ends = torch.quantile(sample, torch.tensor([OUTSIDE, 1 - OUTSIDE], dtype=torch.float64))
        middle, half = float(ends.mean()), FARTHEST * float(ends[1] - ends[0]) / 2
        if half > 0:
            low, high = max(low, middle - half), min(high, middle + half)
        scale = BINS * (1 - 2.0**-20) / (high - low) if high > low else 1.0
        return cls(low, min(scale, float(np.finfo(np.float32).max)))

    def numbers(self, block: Tensor) -> Tensor:
        """The bin of every value: int32."""
        if block.dtype.itemsize < 4:  # too coarse to count bins
            block = block.to(torch.float32)
        return (block - self.low).mul_(self.scale).add_(1).clamp_(0, BINS + 1).to(torch.int32)

    @property
    def values(self) -> Floats:
        """The middles of the bins inside."""
        return np.asarray(self.low + (np.arange(BINS) + 0.5) / self.scale, np.float64)


def _is_outside(numbers: Tensor) -> Tensor:
    return (numbers == 0) | (numbers == BINS + 1)


def points_of(values: Tensor) -> tuple[Points, Bins | None]:
    """The different numbers of a tensor [n] with how often each occurs; of many, bins."""
    if values.numel() <= SAMPLE:
        distinct, counts = np.unique(values.double().numpy(), return_counts=True)
        if len(distinct) <= MOST_EXACT:
            return Points(distinct, counts.astype(np.float64)), None
    bins = Bins.of(values)
    counted = torch.zeros(BINS + 2, dtype=torch.int64)
    for block in blocks(values):
        counted += torch.bincount(bins.numbers(block), minlength=BINS + 2)
    inside = counted[1:-1].numpy()
    used = inside > 0
    middles = bins.values
    if used.sum() <= MOST_EXACT:  # steps, perhaps: what a bin holds may be a single number
        sums = torch.zeros(BINS + 2, dtype=torch.float64)
        for block in blocks(values):
            sums += torch.bincount(bins.numbers(block), block.double(), minlength=BINS + 2)
        middles = sums[1:-1].numpy() / np.maximum(inside, 1)
    found = [(middles[used], inside[used])]
    if counted[0] or counted[-1]:
        far = torch.cat([block[_is_outside(bins.numbers(block))] for block in blocks(values)])
        distinct, often = np.unique(far.double().numpy(), return_counts=True)
        below = distinct < found[0][0][0]
        found = [(distinct[below], often[below]), *found, (distinct[~below], often[~below])]
    x, counts = (np.concatenate(each) for each in zip(*found, strict=True))
    return Points(x, counts.astype(np.float64)), bins


def counts_of(points: Points, centroids: Floats) -> Floats:
    """How many values are nearest to each centroid; centroids: ascending."""
    borders = np.searchsorted(points.values, (centroids[1:] + centroids[:-1]) / 2)
    total = np.concatenate([[0.0], np.cumsum(points.counts)])
    return np.asarray(np.diff(total[np.concatenate([[0], borders, [len(points.values)]])]))


def cluster(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """At most k centroids [k], ascending, and the number of each value's [n], in few bits.

    values: [n], finite.
    """
    points, bins = points_of(values)
    centroids = best_centroids(points, k)
    return torch.from_numpy(centroids), nearest(values, centroids, points, bins)


def nearest(values: Tensor, centroids: Floats, points: Points, bins: Bins | None) -> Tensor:
    """The number of the centroid that is nearest to each value: [n], uint8 or int16.

    centroids: ascending. points, bins: of the values.
    """
    middles = torch.from_numpy((centroids[1:] + centroids[:-1]) / 2)
    kind = torch.uint8 if len(centroids) <= 256 else torch.int16
    if bins is None:
        return torch.bucketize(values.double(), middles).to(kind)
    numbers = torch.empty(values.numel(), dtype=kind)
    # A bin on a border goes to one side as a whole: the bins are narrow.
    table = torch.zeros(BINS + 2, dtype=kind)
    table[1:-1] = torch.bucketize(torch.from_numpy(bins.values), middles).to(kind)
    lowest, highest = (float(x) for x in (points.values[0], points.values[-1]))
    has_outliers = lowest < bins.low or highest > bins.values[-1] + 0.5 / bins.scale
    for block, out in zip(blocks(values), blocks(numbers), strict=True):
        places = bins.numbers(block)
        torch.index_select(table, 0, places, out=out)
        if has_outliers:
            outside = _is_outside(places)
            out[outside] = torch.bucketize(block[outside].double(), middles).to(kind)
    return numbers
