"""A histogram with the range of a format over it, in the coordinates of a drawing."""

from __future__ import annotations

from dataclasses import dataclass
from math import log1p

from fxloom.value_histograms import ValueHistogram

WIDTH, HEIGHT = 240, 80


@dataclass(frozen=True, slots=True)
class Column:
    """A bin: where it is, how high, and whether the format holds any of it."""

    x: float
    width: float
    height: float
    inside: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """low, high: ends of the format's range, in the drawing; None where they lie beyond it.
    left, right: the values at the ends of the drawing."""

    columns: tuple[Column, ...]
    begin: float
    end: float
    low: float | None
    high: float | None
    left: float
    right: float


def plot(seen: ValueHistogram) -> Plot:
    """Heights are logarithms of counts. A range much wider than the values is cut off, so that the
    values keep at least a third of the drawing."""
    span = seen.width * len(seen.counts)
    left, right = seen.start, seen.start + span
    left, right = min(left, max(seen.low, left - span)), max(right, min(seen.high, right + span))
    margin = 0.02 * (right - left)
    left, right = left - margin, right + margin
    scale = WIDTH / (right - left)
    most = log1p(max(seen.counts, default=1)) or 1.0
    columns = []
    for place, count in enumerate(seen.counts):
        begin = seen.start + place * seen.width
        if count:
            columns.append(
                Column(
                    x=round((begin - left) * scale, 2),
                    width=round(max(seen.width * scale, 0.6), 2),
                    height=round(max(HEIGHT * log1p(count) / most, 1.5), 2),
                    inside=begin < seen.high and begin + seen.width > seen.low,
                )
            )
    ends = [round(scale * (end - left), 2) for end in (seen.low, seen.high)]
    begin, end = (min(max(each, 0.0), float(WIDTH)) for each in ends)
    return Plot(
        columns=tuple(columns),
        begin=begin,
        end=end,
        low=ends[0] if ends[0] == begin else None,
        high=ends[1] if ends[1] == end else None,
        left=left + margin,
        right=right - margin,
    )
