"""Optimal brain surgeon: weights removed one after the other, the others made good for each.

A layer's output error is quadratic in its weights, (W - T) M (W - T)'. Removing weight q of a row
costs w_q^2 / [M^-1]_qq, and the rest of the row is moved by -w_q / [M^-1]_qq times column q of M^-1
(Hassibi and Stork 1993), from which q is then eliminated. Every row has its own order of removal,
and all rows go at once (Frantar and Alistarh 2022, arXiv 2208.11580). Where rows are too long for
that, weights go in rounds, each followed by a least-squares refit of the others; where they are too
many even for that, columns are decided from left to right with one inverse for all rows, each error
made good by the columns still to come (SparseGPT: Frantar and Alistarh 2023, arXiv 2301.00774).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxloom.passes.patterns import Pattern
from fxloom.passes.second_order import BLOCK, Problem, best_on_support

MOST_EXACT = 2**32
"""Outputs times inputs cubed up to which every row has an inverse of its own: some ten seconds."""

MOST_ROUNDS = 2**32
"""Outputs times inputs squared up to which all weights are refitted several times."""

ROUNDS = 16
"""Steps in which weights go that do not go one by one, each of them followed by a refit."""

REFIT_STEPS = 30
"""Of conjugate gradients, in each of these steps."""

AT_ONCE = 2**24
"""Entries of inverses that are held at a time: 128 MB."""

LEVELS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
"""Shares of the weights of long rows whose removal is tried, to see what it costs."""

SOME_ROWS = 64
"""Outputs of a layer with long rows that are tried."""


@dataclass(frozen=True)
class Curve:
    """What removing weights costs. sizes: weights that go together; prices: of each of them, not
    falling. Both in the order of removal."""

    sizes: Tensor
    prices: Tensor

    @classmethod
    def of(cls, counts: Tensor, losses: Tensor) -> Curve:
        """From the loss at growing numbers of removed weights, the first of them 0."""
        sizes = counts.diff()
        prices = losses.to(torch.float64).diff() / sizes.clamp(min=1)
        return cls(sizes, prices.cummax(0)[0] if len(prices) else prices)


def is_exact(problem: Problem) -> bool:
    """Whether every row may have an inverse of its own."""
    groups, outputs, inputs = problem.target.shape
    return groups * outputs * inputs**3 <= MOST_EXACT


def takes_rounds(problem: Problem) -> bool:
    """Whether all weights may be refitted several times."""
    groups, outputs, inputs = problem.target.shape
    return groups * outputs * inputs**2 <= MOST_ROUNDS


def removal(problem: Problem, gone: Tensor) -> tuple[Tensor, Tensor]:
    """The order in which the weights of every row go, and the loss that each adds.

    gone: bool [groups, outputs, inputs], those that go first because they are zero already.
    Returns int64 columns and float64 losses, both [groups, outputs, inputs].
    """
    orders, losses = [], []
    for target, matrix, first in zip(problem.target, problem.matrix, gone, strict=True):
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        size = max(AT_ONCE // inverse.numel(), 1)
        parts = [
            _removal(rows, inverse, zeros)
            for rows, zeros in zip(target.split(size), first.split(size), strict=True)
        ]
        orders.append(torch.cat([order for order, _ in parts]))
        losses.append(torch.cat([loss for _, loss in parts]))
    return torch.stack(orders), torch.stack(losses)


def _removal(target: Tensor, inverse: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    count, inputs = target.shape
    weights, every = target.clone(), torch.arange(count)
    inverses = inverse.expand(count, -1, -1).clone()
    is_left = torch.ones_like(gone)
    order = torch.empty(count, inputs, dtype=torch.int64)
    losses = torch.empty_like(target)
    for step in range(inputs):
        spread = inverses.diagonal(dim1=1, dim2=2)
        costs = weights.square() / spread
        costs = torch.where(is_left, torch.where(gone, -1.0, costs), torch.inf)
        chosen = costs.argmin(1)
        column = inverses[every, :, chosen]
        pivot = column[every, chosen]
        factor = weights[every, chosen] / pivot
        losses[:, step] = factor * weights[every, chosen]
        order[:, step] = chosen
        weights -= factor[:, None] * column
        inverses.baddbmm_((column / pivot[:, None])[:, :, None], column[:, None], alpha=-1)
        weights[every, chosen] = 0
        inverses[every, chosen, chosen] = 1  # of a weight that is gone, never looked at again
        is_left[every, chosen] = False
    return order, losses


def prices(order: Tensor, losses: Tensor, gone: Tensor) -> Tensor:
    """What each weight costs in `removal`'s order, below zero for those that are gone. A row's
    weights go in that order, so what comes after a dear one cannot be cheaper."""
    return torch.where(gone.gather(2, order), -1.0, losses.cummax(2)[0])


def removed(order: Tensor, losses: Tensor, gone: Tensor, count: int) -> Tensor:
    """Which weights go where `count` of all rows do: bool, of the shape of `gone`."""
    ranks = prices(order, losses, gone).flatten().argsort(stable=True)[:count]
    chosen = torch.zeros(order.numel(), dtype=torch.bool)
    chosen[ranks] = True
    return torch.zeros_like(gone).scatter_(2, order, chosen.reshape(order.shape))


def exact_curve(order: Tensor, losses: Tensor, gone: Tensor) -> Curve:
    """Of the weights of a layer, one by one."""
    ordered = prices(order, losses, gone).flatten().sort()[0]
    return Curve(torch.ones(len(ordered), dtype=torch.int64), ordered)


def best(problem: Problem, kept: Tensor) -> Tensor:
    """The weights with the least error that are zero outside `kept`."""
    right = problem.target @ problem.matrix
    return best_on_support(problem.matrix, right, kept, problem.target)


def in_rounds(
    problem: Problem, gone: Tensor, pattern: Pattern, count: int, reuse: int
) -> tuple[Tensor, Curve]:
    """Which weights go, a share of what is left in each round, and what fewer would have cost.

    What a removal costs beside the weights that are there is exact where every row may have an
    inverse of its own, else as if no other were gone.
    """
    right, size, begin = problem.target @ problem.matrix, gone.numel(), int(gone.sum())
    weights, dropped = problem.target, gone
    counts, errors = [0], [0.0]
    for step in range(1, ROUNDS + 1):
        weights = best_on_support(problem.matrix, right, ~dropped, weights, REFIT_STEPS)
        if is_exact(problem):
            scores = _costs(problem, weights, ~dropped)
        else:
            scores = shared_costs(problem, weights, ~dropped)
        left = (size - begin) * (max(size - count, 1) / max(size - begin, 1)) ** (step / ROUNDS)
        wanted = count if step == ROUNDS else size - round(left)
        dropped = pattern.drop(scores, max(wanted, begin), reuse) | gone
        counts.append(int(dropped.sum()))
        refitted = best_on_support(problem.matrix, right, ~dropped, weights, REFIT_STEPS)
        errors.append(float(problem.errors(refitted).sum()))
    return dropped, Curve.of(torch.tensor(counts), torch.tensor(errors))


def shared_costs(problem: Problem, weights: Tensor, kept: Tensor) -> Tensor:
    """What removing each single weight costs beside all others; zero for those that are gone."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(problem.matrix))
    costs = weights.square() / inverse.diagonal(dim1=1, dim2=2)[:, None]
    return torch.where(kept, costs + torch.finfo(costs.dtype).tiny, 0.0)


def _costs(problem: Problem, weights: Tensor, kept: Tensor) -> Tensor:
    """What removing each single weight costs, beside those that are there; zero for the others."""
    result = torch.zeros_like(weights)
    for group, matrix in enumerate(problem.matrix):
        size = max(AT_ONCE // matrix.numel(), 1)
        rows = zip(torch.split(weights[group], size), torch.split(kept[group], size), strict=True)
        for start, (values, there) in enumerate(rows):
            alive = there.to(matrix.dtype)
            # Rows and columns of what is gone become those of the identity.
            own = matrix * alive[:, :, None] * alive[:, None]
            own = own + torch.diag_embed(1 - alive)
            spread = torch.cholesky_inverse(torch.linalg.cholesky(own)).diagonal(dim1=1, dim2=2)
            result[group, start * size : start * size + len(values)] = values.square() / spread
    return torch.where(kept, result + torch.finfo(result.dtype).tiny, 0.0)


def sweep(
    problem: Problem, gone: Tensor, count: int, dropped: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights from left to right with one inverse for all rows, and which of them are there.

    In each block of columns the share of `count` goes that costs least; or what is `dropped`.
    """
    inputs = problem.target.shape[2]
    weights = problem.target.clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(problem.matrix))
    upper = torch.linalg.cholesky(inverse, upper=True)
    kept = torch.ones_like(gone) if dropped is None else ~dropped
    done = 0
    for first in range(0, inputs, BLOCK):
        last = min(first + BLOCK, inputs)
        block = weights[:, :, first:last]
        pivots = upper.diagonal(dim1=1, dim2=2)[:, None, first:last]
        if dropped is None:
            zeros = gone[:, :, first:last]
            least, most = int(zeros.sum()), zeros.numel()
            share = round(count * last / inputs) - done
            scores = torch.where(zeros, 0.0, (block / pivots).square() + 1e-300)
            share = min(max(share, least), most)
            kept[:, :, first:last] = ~Pattern().drop(scores, share, 1)
            done += share
        errors = torch.empty_like(block)
        for place in range(last - first):
            column = block[:, :, place : place + 1]
            row = upper[:, first + place, first + place : last]
            stays = kept[:, :, first + place : first + place + 1]
            error = torch.where(stays, 0.0, column) / row[:, None, :1]
            errors[:, :, place] = error[:, :, 0]
            block[:, :, place:] -= error * row[:, None]
        weights[:, :, last:] -= errors @ upper[:, first:last, last:]
    return weights * kept, kept


def swept_curve(problem: Problem, gone: Tensor) -> Curve:
    """The cost of removing shares of the weights of long rows, judged by some of the rows."""
    outputs = problem.target.shape[1]
    chosen = torch.linspace(0, outputs - 1, min(SOME_ROWS, outputs)).round().to(torch.int64)
    part = Problem(problem.target[:, chosen], problem.matrix)
    zeros = gone[:, chosen]
    counts = [round(level * zeros.numel()) for level in LEVELS]
    errors = []
    for count in counts:
        weights, _ = sweep(part, zeros, max(count, int(zeros.sum())))
        errors.append(float(part.errors(weights).sum()))
    factor = gone.numel() / zeros.numel()
    scaled = torch.tensor([round(count * factor) for count in counts])
    return Curve.of(scaled, torch.tensor(errors) * factor)
