"""AdaRound: each weight up or down, whichever lets the layer give the outputs of the float model
(Nagel et al. 2020, arXiv 2004.10568).

The choice is relaxed to a number from 0 to 1, a stretched sigmoid of what Adam moves, and drawn to
one of its ends as time goes by. The error of the outputs is the quadratic form of second-order
rounding, so that no sample is needed beyond its statistics. Weights go to a neighbour on the grid
and no further, which second-order rounding allows itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi

import torch
from torch import Tensor

from fxloom.passes.grid import Grid
from fxloom.passes.second_order import Problem

STEPS = 1000
RATE = 0.02
STRETCH = (-0.1, 1.1)
"""Where the sigmoid is stretched to: its ends are reached."""
SHARPNESS = (20.0, 2.0)
"""Of the pull to the ends, from the first step to the last."""
FREE = 0.2
"""Share of the steps without that pull."""
PULL = 1.0
"""Weight of the pull, with errors in units of those that rounding to nearest leaves."""


def best_neighbours(
    problem: Problem, weights: Tensor, candidates: Sequence[Tensor], grid: Grid, *, by_output: bool
) -> tuple[Tensor, Tensor]:
    """Mantissas and steps [groups, outputs, 1]: the candidate with which rounding to nearest does
    best, then every weight up or down. weights: the float ones, as problem.target.

    by_output: whether each output may choose for itself.
    """
    stacked = torch.stack(list(candidates))
    errors = torch.stack([problem.errors(grid.nearest(weights / s) * s) for s in candidates])
    if by_output:
        steps = stacked.gather(0, errors.argmin(0)[None, :, :, None])[0]
    else:
        steps = stacked[int(errors.sum((1, 2)).argmin())]
    low, high = grid.limits or (torch.tensor(float(n)) for n in (grid.to.lo, grid.to.hi))
    if problem.kept is not None:
        low, high = low * problem.kept, high * problem.kept
    return neighbours(problem, weights, steps, (low, high)), steps


def neighbours(
    problem: Problem, weights: Tensor, step: Tensor, limits: tuple[Tensor, Tensor]
) -> Tensor:
    """Mantissas [groups, outputs, inputs] next to those of the float weights.

    step: [groups, outputs, 1]. limits: least and largest mantissa, broadcastable to the weights.
    """
    low, high = limits
    scaled = weights / step
    floor = torch.maximum(torch.minimum(torch.floor(scaled), high), low)
    ceiling = torch.minimum(floor + 1, high)
    nearest = torch.maximum(torch.minimum(torch.round(scaled), high), low)
    worst = problem.errors(nearest * step)[:, :, None].clamp(min=1e-30)
    share = (scaled - floor).clamp(0.01, 0.99)
    begin, end = STRETCH
    ratio = (share - begin) / (end - begin)
    moving = torch.log(ratio / (1 - ratio)).requires_grad_()
    optimizer = torch.optim.Adam([moving], RATE)
    with torch.enable_grad():
        for number in range(STEPS):
            up = (torch.sigmoid(moving) * (end - begin) + begin).clamp(0, 1)
            rounded = (floor + up * (ceiling - floor)) * step
            loss = (problem.errors(rounded)[:, :, None] / worst).sum() * weights.shape[2]
            progress = (number / STEPS - FREE) / (1 - FREE)
            if progress > 0:
                sharp = SHARPNESS[1] + (SHARPNESS[0] - SHARPNESS[1]) * (1 + cos(pi * progress)) / 2
                loss = loss + PULL * (1 - (2 * up - 1).abs() ** sharp).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        up = torch.sigmoid(moving.detach()) * (end - begin) + begin
    chosen = torch.where(up > 0.5, ceiling, floor)
    # Each output for itself: where the relaxation ends worse than it began, nearest stays.
    better = problem.errors(chosen * step) <= problem.errors(nearest * step)
    return torch.where(better[:, :, None], chosen, nearest)
