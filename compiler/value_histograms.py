"""How the values of a layer are distributed in the float model, and what its format holds."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log2
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a report is read without torch
    from torch import Tensor

    from fxloom.fixed_point import FixedPoint

BINS = 64
COUNTED = 2**16
"""Most values of a layer that are counted; ends and shares are always those of all values."""


@dataclass(frozen=True, slots=True)
class ValueHistogram:
    """Values of the float model where the fixed-point model rounds to a format.

    name: the input or the layer at whose end it is; low, high: the least and largest value of the
    format; least, largest: of the float values. below, above: shares of the values that it cannot
    hold, beyond half a step. counts: of bins of one width, the first of which begins at start;
    widths are powers of two, and starts multiples of them. samples: how many the values are from.
    """

    name: str
    format: str
    low: float
    high: float
    least: float
    largest: float
    below: float
    above: float
    start: float
    width: float
    counts: tuple[int, ...]
    samples: int

    @property
    def saturated(self) -> float:
        """The share of the values that the format cannot hold."""
        return self.below + self.above


def histogram(name: str, values: Tensor, to: FixedPoint, samples: int) -> ValueHistogram | None:
    """The histogram of a layer's values in the float model; None where none is finite.

    values: any shape, of that many samples; infinite ones count as beyond the format.
    """
    import torch

    flat = finite = values.detach().reshape(-1).double()
    if not flat.sum().isfinite():
        finite = flat[flat.isfinite()]
    if not finite.numel():
        return None
    low, high = to.lo * to.step, to.hi * to.step
    least, largest = (float(end) for end in torch.aminmax(finite))
    below = int((flat < low - to.step / 2).sum()) / flat.numel()
    above = int((flat > high + to.step / 2).sum()) / flat.numel()
    if finite.numel() > COUNTED:  # at random: equal distances may meet the same channels only
        chosen = torch.Generator().manual_seed(0)
        finite = finite[torch.randint(finite.numel(), (COUNTED,), generator=chosen)]
    width, first, bins = _bins(least, largest)
    places = (torch.floor(finite / width) - first).long()
    counts = torch.bincount(places, minlength=bins)
    return ValueHistogram(
        name=name,
        format=str(to),
        low=low,
        high=high,
        least=_short(least),
        largest=_short(largest),
        below=_short(below),
        above=_short(above),
        start=first * width,
        width=width,
        counts=tuple(counts.tolist()),
        samples=samples,
    )


def _bins(least: float, largest: float) -> tuple[float, int, int]:
    """The finest width that needs no more than BINS bins, where they begin in widths, how many."""
    span = (largest - least) or abs(largest) or 1.0
    exponent = max(ceil(log2(span / BINS)), -1000)
    while (bins := floor(largest / 2.0**exponent) - floor(least / 2.0**exponent) + 1) > BINS:
        exponent += 1
    return 2.0**exponent, floor(least / 2.0**exponent), bins


def _short(number: float) -> float:
    """Six digits: later ones may differ between machines."""
    return float(f"{number:.6g}")
