"""The numbers that the weights of a layer may be rounded to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxloom.encodings import Encoding
from fxloom.fixed_point import FixedPoint
from fxloom.passes.calibration import NEGLIGIBLE, covering
from fxloom.quantized_ops import channel_limits

FINER = 4
"""Binary points tried for weights: the one that covers them, and finer ones that clip."""

MOST_SHIFTED = 12
"""Largest distance between the binary points of channels: each bit widens the exact product."""


@dataclass(frozen=True)
class Grid:
    """The mantissas that weights may have: those of a format, of an encoding, or, in every output
    channel, those from low to high [groups, outputs, 1]."""

    to: FixedPoint
    encoding: Encoding
    widths: Tensor | None = None
    limits: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, to: FixedPoint, encoding: Encoding, widths: Sequence[int], groups: int) -> Grid:
        """widths: of the output channels; none mean that all have the width of `to`."""
        if not widths:
            return cls(to, encoding)
        bits = torch.tensor(list(widths)).reshape(groups, -1, 1)
        limits = channel_limits(torch.empty(len(widths), 1, dtype=torch.float64), widths, to.signed)
        low, high = (limit.reshape(groups, -1, 1) for limit in limits)
        return cls(to, encoding, bits, (low, high))

    def nearest(self, mantissas: Tensor) -> Tensor:
        """Real-valued mantissas [groups, outputs, inputs] to the nearest that there are."""
        if self.limits is None:
            return self.encoding.nearest(mantissas, self.to)
        return torch.round(mantissas).clamp_(*self.limits)

    def width(self, group: int, output: int) -> int:
        """Bits of a channel."""
        return self.to.width if self.widths is None else int(self.widths[group, output])


def step_candidates(target: Tensor, grid: Grid, by_output: bool) -> list[Tensor]:
    """Steps [groups, outputs, 1] to try for weights like the target [groups, outputs, inputs].

    by_output: whether each output has its own.
    """
    low, high = target.amin(2), target.amax(2)
    if not by_output:
        low, high = low.amin().expand_as(low), high.amax().expand_as(high)
    fractions = torch.tensor(
        [
            [
                covering(a, b, max(grid.width(group, output), 1), grid.to.signed).fraction
                for output, (a, b) in enumerate(zip(*pair, strict=True))
            ]
            for group, pair in enumerate(zip(low.tolist(), high.tolist(), strict=True))
        ]
    )
    alive = torch.maximum(low.abs(), high.abs()) >= NEGLIGIBLE
    if grid.widths is not None:
        alive &= grid.widths[:, :, 0] > 0
    least = int(fractions[alive].min()) if bool(alive.any()) else 0
    fractions = torch.where(alive, fractions, least).clamp(max=least + MOST_SHIFTED - FINER)
    # The largest power of two is half of what a format holds.
    first = 0 if grid.encoding is Encoding.FIXED else -1
    return [torch.exp2(-(fractions + n).double())[:, :, None] for n in range(first, FINER)]
