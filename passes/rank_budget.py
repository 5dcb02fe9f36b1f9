"""Ranks for a whole model under a budget.

For every layer there is a list of what it may become, from rank 1 up to the layer as it is, each
with what it costs and what it is expected to move the model's outputs. The choice among them is the
multiple-choice knapsack of `allocation`: at equal price all layers keep those directions whose
error per saving is the greatest, and leaving a layer as it is competes with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxloom.passes.allocation import cheapest
from fxloom.passes.decompositions import METHODS, spectra
from fxloom.passes.factor_subjects import Cost, Subject
from fxloom.passes.factorable import Method, Ranks
from fxloom.passes.output_statistics import Statistics

MOST_RANKS = 1024
"""Ranks of one layer that are tried; of more, evenly spaced ones."""

LEVELS = 64
"""Of methods with several ranks: shares of the energy that each of them may lose."""


@dataclass(frozen=True)
class Candidate:
    """What a layer may become. method: None where it stays. cost: without its bias. harm: how far
    the model's outputs move, in the mean over samples, to first order."""

    method: Method | None
    ranks: Ranks
    cost: int
    harm: float


def candidates(
    subject: Subject, methods: Sequence[Method], cost: Cost, known: Statistics
) -> list[Candidate]:
    """All that save, and the layer as it is at the end."""
    dense = subject.dense(cost)
    tails = known.tails()
    found = []
    for method in methods:
        if method.problem(subject.layer):
            continue
        tried = (
            _by_outputs(tails) if method is METHODS["svd"] else _by_weights(method, subject, tails)
        )
        for ranks, harm in tried:
            if method.feasible(subject.layer, ranks) != ranks:
                continue
            if (price := subject.cost(method, ranks, cost)) < dense:
                found.append(Candidate(method, ranks, price, harm))
    return [*sorted(found, key=lambda each: each.cost), Candidate(None, (), dense, 0.0)]


def _by_outputs(tails: Tensor) -> Iterator[tuple[Ranks, float]]:
    """Of the layer's outputs the leading directions are kept."""
    most = len(tails) - 1
    count = min(most, MOST_RANKS)
    for rank in dict.fromkeys(np.linspace(1, most, count).round().astype(int).tolist()):
        yield (rank,), float(tails[rank])


def _by_weights(method: Method, subject: Subject, tails: Tensor) -> Iterator[tuple[Ranks, float]]:
    """The error of the outputs is taken to be, as a share, that of the weights, which is at most
    the sum of what the ranks lose alone (De Lathauwer et al. 2000, property 10)."""
    curves = [_left(values) for values in spectra(method, subject.layer)]
    whole = float(curves[0][0]) or 1.0
    if len(curves) == 1:
        (curve,) = curves
        full = method.full(subject.layer)[0]
        for rank in dict.fromkeys(
            np.linspace(1, full, min(full, MOST_RANKS)).round().astype(int).tolist()
        ):
            lost = float(curve[min(rank, len(curve) - 1)]) / whole
            yield (rank,), lost * float(tails[0])
        return
    levels = torch.logspace(-6, 0, LEVELS, dtype=torch.float64) * whole
    seen = set()
    for level in levels.tolist():
        ranks = tuple(max(int((curve > level).sum()), 1) for curve in curves)
        ranks = method.feasible(subject.layer, ranks)
        if ranks in seen:
            continue
        seen.add(ranks)
        lost = sum(float(c[min(r, len(c) - 1)]) for c, r in zip(curves, ranks, strict=True)) / whole
        yield ranks, min(lost, 1.0) * float(tails[0])


def _left(values: Tensor) -> Tensor:
    """[ranks + 1]: what is lost where only so many are kept."""
    sums = values.flip(0).cumsum(0).flip(0)
    return torch.cat([sums, torch.zeros(1, dtype=sums.dtype)])


def chosen(tables: Mapping[str, Sequence[Candidate]], budget: int) -> dict[str, Candidate] | None:
    """For every layer one of its candidates, so that they keep to a budget together and the model's
    outputs move least. None where not even the smallest fit."""
    if not tables:
        return {}
    width = max(len(table) for table in tables.values())
    rows = [[*table, *[table[-1]] * (width - len(table))] for table in tables.values()]
    harm = np.array([[each.harm for each in row] for row in rows], dtype=np.float64)
    size = np.array([[each.cost for each in row] for row in rows], dtype=np.int64)
    found = cheapest(harm, size, min(budget, int(size.max(1).sum())))
    if found is None:
        return None
    return {name: row[n] for name, row, n in zip(tables, rows, found, strict=True)}


def least(tables: Mapping[str, Sequence[Candidate]]) -> int:
    """The smallest budget that can be met."""
    return sum(min(each.cost for each in table) for table in tables.values())
