"""Widths under a budget: the multiple-choice knapsack.

Many items are chosen for at a common price of size, which is within one item of the best (Everett
1963); few of them, where one item is much, by the dynamic programme over the budget.
"""

from __future__ import annotations

from math import ceil, gcd, inf

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]

FEW = 256
"""Items up to which the dynamic programme runs."""

STEPS = 4096
"""Steps that a budget is divided in where the sizes have no large common divisor; sizes are
rounded up to them, so that the budget is kept."""

MOST_DOUBLINGS = 400.0
"""Between the least and the largest price of a bit."""


def cheapest(
    harm: Table, size: npt.NDArray[np.int64], budget: int, least: int = 0
) -> list[int] | None:
    """For every item one of its choices, so that the sizes fit the budget and the harm is least.

    harm, size: [items, choices]. least: what the sizes are to come to, where there are few items
    and any choice does. None where not even the smallest choices fit.
    """
    if int(size.min(1).sum()) > budget:
        return None
    found = _at_a_price(harm, size, budget)
    if len(harm) <= FEW:
        rows = np.arange(len(harm))
        is_enough = size[rows, found].sum() >= least
        exact = _programme(harm, size, budget, least)
        if exact is not None and (
            not is_enough or harm[rows, exact].sum() < harm[rows, found].sum()
        ):
            return exact
    return found


def _at_a_price(harm: Table, size: npt.NDArray[np.int64], budget: int) -> list[int]:
    """Every item for itself at the least price that keeps to the budget; what is left of it goes
    where it does most."""
    items = np.arange(len(harm))
    found = size.argmin(1)
    low, high = -MOST_DOUBLINGS, MOST_DOUBLINGS
    while high - low > 1e-3:
        middle = (low + high) / 2
        chosen = (harm + 2.0**middle * size).argmin(1)
        if size[items, chosen].sum() <= budget:
            found, high = chosen, middle
        else:
            low = middle
    left = budget - int(size[items, found].sum())
    while True:
        more = size - size[items, found][:, None]
        gain = harm[items, found][:, None] - harm
        worth = np.where((more > 0) & (more <= left) & (gain > 0), gain / np.maximum(more, 1), 0)
        item, choice = np.unravel_index(int(worth.argmax()), worth.shape)
        if worth[item, choice] <= 0:
            result: list[int] = found.tolist()
            return result
        left -= int(more[item, choice])
        found[item] = choice


def _programme(
    harm: Table, size: npt.NDArray[np.int64], budget: int, least: int
) -> list[int] | None:
    """The dynamic programme: exact where sizes and budget are few steps of a common divisor."""
    unit = gcd(*size.flatten().tolist()) or 1
    if budget // unit > STEPS:
        unit = ceil(budget / STEPS)
    steps = -(-size // unit)
    most = budget // unit
    best = np.full(most + 1, inf)
    best[0] = 0
    choices = []
    for row, sizes in zip(harm, steps.tolist(), strict=True):
        totals = np.full((len(row), most + 1), inf)
        for choice, used in enumerate(sizes):
            if used <= most:
                totals[choice, used:] = best[: most + 1 - used] + row[choice]
        choices.append(totals.argmin(0))
        best = totals.min(0)
    enough = min(-(-least // unit), most)
    left = enough + int(best[enough:].argmin())
    if best[left] == inf:
        return None
    found = []
    for choice, sizes in zip(reversed(choices), reversed(steps.tolist()), strict=True):
        found.append(int(choice[left]))
        left -= sizes[found[-1]]
    return found[::-1]
