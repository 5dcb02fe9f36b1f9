"""Weights rounded against the second-order statistics of what they are multiplied with.

A layer's output error is quadratic in its weights: (W - T) G (W - T)' with G the covariance of its
inputs, which are those that the quantized layers before it give, and T the weights that fit the
float layer's output to them best. T is rounded column by column, every error made good by the
columns still to come (optimal brain surgeon: Hassibi and Stork 1993; its order and factorisation:
Frantar et al. 2022, arXiv 2210.17323, section 3), then integers are moved one at a time while the
error falls (coordinate descent). The bias is the mean of what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

RIDGE = 0.01
"""Of the mean variance of an input, added to each: the float weights pull where data are few."""

NOISE = 1e-12
"""Variance, relative to the mean square, that the rounding of sums may pretend."""

BLOCK = 128
"""Columns between two updates of all that follow."""

SWEEPS = 10
"""Rounds of coordinate descent at most."""

MOST_STEPS = 1000
TOLERANCE = 1e-9
"""Of conjugate gradients: how small the residual becomes, relative to the right side."""


@dataclass
class Moments:
    """Sums over rows x [groups, rows, inputs] and y [groups, rows, outputs], in float64."""

    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def see(self, x: Tensor, y: Tensor) -> None:
        """Add rows."""
        self.count += x.shape[1]
        x, y = x.to(torch.float64), y.to(torch.float64)
        flipped = x.transpose(1, 2)
        for name, value in (
            ("x", x.sum(1)),
            ("y", y.sum(1)),
            ("xx", flipped @ x),
            ("yx", y.transpose(1, 2) @ x),
        ):
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def mean(self, name: str) -> Tensor:
        """The mean of "x" or "y" [groups, channels]."""
        return self.sums[name] / self.count

    def covariance(self, left: str, centred: bool = True) -> Tensor:
        """Of "x" or "y" with x [groups, channels of left, inputs]. centred: around their means,
        or else around zero: the mean of the products."""
        products = self.sums[f"{left}x"] / self.count
        if not centred:
            return products
        return products - self.mean(left)[:, :, None] * self.mean("x")[:, None, :]


@dataclass(frozen=True)
class Problem:
    """Minimise (W - target) matrix (W - target)' over W on a grid.

    target: [groups, outputs, inputs]. matrix: [groups, inputs, inputs], positive definite. kept:
    which weights may be other than zero, bool, shaped as the target; None where all may.
    """

    target: Tensor
    matrix: Tensor
    kept: Tensor | None = None

    def errors(self, weights: Tensor) -> Tensor:
        """For every output [groups, outputs]."""
        off = weights - self.target
        return ((off @ self.matrix) * off).sum(2)


def refit(
    weights: Tensor, moments: Moments, kept: Tensor | None = None, centred: bool = True
) -> Problem:
    """The weights that give the float outputs for the inputs seen; where inputs say little, those
    that were there. weights: [groups, outputs, inputs]. kept: as in a Problem; the weights are the
    best ones of those that are zero elsewhere. centred: a bias takes care of the mean."""
    weights = weights.to(torch.float64)
    variance = moments.covariance("x", centred)
    diagonal = variance.diagonal(dim1=1, dim2=2)
    level = diagonal.mean(1)
    # Constant inputs say nothing: then all weights count alike.
    square = (moments.sums["xx"] / moments.count).diagonal(dim1=1, dim2=2).mean(1)
    ridge = torch.where(level > NOISE * square, RIDGE * level, 1.0)[:, None, None]
    matrix = variance + ridge * torch.eye(variance.shape[1], dtype=torch.float64)
    factor = torch.linalg.cholesky(matrix)
    right = moments.covariance("y", centred) + ridge * weights
    target = torch.cholesky_solve(right.transpose(1, 2), factor).transpose(1, 2)
    if kept is None:
        return Problem(target, matrix)
    return Problem(best_on_support(matrix, right, kept, weights), matrix, kept)


def best_on_support(
    matrix: Tensor, right: Tensor, kept: Tensor, start: Tensor, most_steps: int = MOST_STEPS
) -> Tensor:
    """The weights W [groups, outputs, inputs] that are zero outside `kept` and have the least
    W matrix W' / 2 - W right', by conjugate gradients (Hestenes and Stiefel 1952) on all outputs at
    once, each with a support of its own. start: where to begin; every step lowers the error."""
    found = start * kept
    residual = (right - found @ matrix) * kept
    direction, square = residual, residual.square().sum(2, keepdim=True)
    enough = TOLERANCE**2 * (right * kept).square().sum(2, keepdim=True)
    for _ in range(most_steps):
        is_open = square > enough
        if not bool(is_open.any()):
            break
        image = (direction @ matrix) * kept
        bend = (direction * image).sum(2, keepdim=True)
        length = torch.where(is_open & (bend > 0), square / bend, 0.0)
        found = found + length * direction
        residual = residual - length * image
        before, square = square, residual.square().sum(2, keepdim=True)
        direction = residual + torch.where(before > 0, square / before, 0.0) * direction
    return found


Nearest = Callable[[Tensor], Tensor]
"""Real-valued mantissas to the nearest that weights may have."""


def round_weights(problem: Problem, step: Tensor, nearest: Nearest) -> Tensor:
    """Mantissas [groups, outputs, inputs] with a small error. step: [groups, outputs, 1]."""
    mantissas = _surgeon(problem, step, nearest)
    return _descend(problem, mantissas, step, nearest)


def _surgeon(problem: Problem, step: Tensor, nearest: Nearest) -> Tensor:
    groups, _, inputs = problem.target.shape
    # Inputs that matter most are rounded first, while others can still make good for them.
    order = problem.matrix.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
    rows = torch.arange(groups)[:, None]
    sorting = order[:, None].expand_as(problem.target)
    weights = problem.target.gather(2, sorting).clone()
    kept = None if problem.kept is None else problem.kept.gather(2, sorting)
    matrix = problem.matrix[rows[:, :, None], order[:, :, None], order[:, None, :]]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    upper = torch.linalg.cholesky(inverse, upper=True)
    mantissas = torch.empty_like(weights)
    for first in range(0, inputs, BLOCK):
        last = min(first + BLOCK, inputs)
        block = weights[:, :, first:last]
        errors = torch.empty_like(block)
        for place in range(last - first):
            column = block[:, :, place : place + 1]
            rounded = nearest(column / step)
            if kept is not None:
                rounded = rounded * kept[:, :, first + place, None]
            mantissas[:, :, first + place] = rounded[:, :, 0]
            row = upper[:, first + place, first + place : last]
            error = (column - rounded * step) / row[:, None, :1]
            errors[:, :, place] = error[:, :, 0]
            block[:, :, place:] -= error * row[:, None]
        weights[:, :, last:] -= errors @ upper[:, first:last, last:]
    result = torch.empty_like(mantissas)
    return result.scatter_(2, sorting, mantissas)


def _descend(problem: Problem, mantissas: Tensor, step: Tensor, nearest: Nearest) -> Tensor:
    matrix, inputs = problem.matrix, mantissas.shape[2]
    mantissas = mantissas.clone()
    slopes = (mantissas * step - problem.target) @ matrix
    curvature = matrix.diagonal(dim1=1, dim2=2)
    for _ in range(SWEEPS):
        changed = False
        for first in range(0, inputs, BLOCK):
            last = min(first + BLOCK, inputs)
            local = slopes[:, :, first:last]
            before = mantissas[:, :, first:last].clone()
            for place in range(first, last):
                current = mantissas[:, :, place : place + 1]
                wanted = current - slopes[:, :, place : place + 1] / (
                    curvature[:, None, place : place + 1] * step
                )
                best = nearest(wanted)
                if problem.kept is not None:
                    best = best * problem.kept[:, :, place, None]
                moved = (best - current) * step
                local += moved * matrix[:, place : place + 1, first:last]
                mantissas[:, :, place : place + 1] = best
            moved = (mantissas[:, :, first:last] - before) * step
            if bool(moved.any()):
                changed = True
                slopes[:, :, :first] += moved @ matrix[:, first:last, :first]
                slopes[:, :, last:] += moved @ matrix[:, first:last, last:]
        if not changed:
            break
    return mantissas


def best_steps(
    problem: Problem, candidates: Sequence[Tensor], nearest: Nearest, *, by_output: bool
) -> tuple[Tensor, Tensor]:
    """Mantissas and steps [groups, outputs, 1], those of the candidates with the least error.

    by_output: whether each output may choose for itself.
    """
    found, errors = [], []
    for steps in candidates:
        mantissas = round_weights(problem, steps, nearest)
        found.append((mantissas, steps))
        errors.append(problem.errors(mantissas * steps))
    stacked = torch.stack(errors)
    if not by_output:
        return found[int(stacked.sum((1, 2)).argmin())]
    choice = stacked.argmin(0)[None, :, :, None]
    mantissas, steps = (torch.stack(parts) for parts in zip(*found, strict=True))
    return (
        mantissas.gather(0, choice.expand(1, *mantissas.shape[1:]))[0],
        steps.gather(0, choice)[0],
    )
