"""Ranks for a whole model under a budget.

For every layer there is a list of what it may become, from rank 1 up to the layer as it is, each
with what it costs and what it is expected to move the model's outputs. The choice among them is the
multiple-choice knapsack of `allocation`: at equal price all layers keep those directions whose
error per saving is the greatest, and leaving a layer as it is competes with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import torch
from torch import Tensor

from fxloom.errors import RecipeError
from fxloom.passes.allocation import cheapest
from fxloom.passes.decompositions import METHODS, spectra
from fxloom.passes.factor_subjects import Cost, Subject, whole
from fxloom.passes.factorable import Layer, Method, Ranks
from fxloom.passes.factoring import Factoring, Plan
from fxloom.passes.output_statistics import Statistics

MOST_RANKS = 1024
"""Ranks of one layer that are tried; of more, evenly spaced ones."""

LEVELS = 64
"""Of methods with several ranks: shares of the energy that each of them may lose."""

CLOSE = 0.985
"""Share of a budget that is used at least, where any choice does that."""


class Sharing:
    """Layers that share a budget.

    plan: what others become. methods: by the names of those that share, by what they may be
    factored.
    """

    def __init__(
        self,
        factoring: Factoring,
        plan: Plan,
        methods: Mapping[str, Sequence[Method]],
        cost: Cost,
    ) -> None:
        self._plan, self._cost = plan, cost
        subjects = {each.name: each for each in factoring.subjects}
        self._tables = {
            name: candidates(subjects[name], each, cost, factoring.statistics[name])
            for name, each in methods.items()
        }
        self._whole = whole(factoring.graph, cost)
        self._fixed = self._whole
        for name in self._tables:
            self._fixed -= subjects[name].dense(cost)
        for name, (method, ranks) in plan.items():
            self._fixed += subjects[name].cost(method, ranks, cost) - subjects[name].dense(cost)

    def within(self, share: float) -> Plan:
        """The best plan that keeps this share of what the graph costs. Raises RecipeError, naming
        the smallest there is, where none does."""
        if not self._whole:
            raise RecipeError(
                f"factorize: budget: the model has no {self._cost}. Count another cost"
            )
        found = chosen(self._tables, floor(share * self._whole + 1e-6) - self._fixed)
        if found is None:
            smallest = self._fixed + least(self._tables)
            nearest = ceil(smallest / self._whole * 1e4) / 1e4
            raise RecipeError(
                f"factorize: budget = {share:g} cannot be had: the smallest share of "
                f"{self._whole:,} {self._cost} is {nearest:g}; {self._fixed:,} are in what is not "
                "factored, or at ranks that are given"
            )
        new = {name: (each.method, each.ranks) for name, each in found.items() if each.method}
        return self._plan | new


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
    layer, dense, tails = subject.layer, subject.dense(cost), known.tails()
    found = []
    for method in methods:
        if method.problem(layer):
            continue
        is_svd = method is METHODS["svd"]
        for ranks, harm in _by_outputs(tails) if is_svd else _by_weights(method, layer, tails):
            is_possible = method.feasible(layer, ranks) == ranks
            if is_possible and (price := subject.cost(method, ranks, cost)) < dense:
                found.append(Candidate(method, ranks, price, harm))
    return [*sorted(found, key=lambda each: each.cost), Candidate(None, (), dense, 0.0)]


def _by_outputs(tails: Tensor) -> Iterator[tuple[Ranks, float]]:
    """Of the layer's outputs the leading directions are kept."""
    for rank in _spread(len(tails) - 1):
        yield (rank,), float(tails[rank])


def _by_weights(method: Method, layer: Layer, tails: Tensor) -> Iterator[tuple[Ranks, float]]:
    """The error of the outputs is taken to be, as a share, that of the weights, which is at most
    the sum of what the ranks lose alone (De Lathauwer et al. 2000, property 10)."""
    curves = [_left(values) for values in spectra(method, layer)]
    total = float(curves[0][0]) or 1.0
    tried: list[Ranks] = [(rank,) for rank in _spread(method.full(layer)[0])]
    if len(curves) > 1:
        levels = torch.logspace(-6, 0, LEVELS, dtype=torch.float64) * total
        fewest = [[int((curve > level).sum()) for curve in curves] for level in levels]
        tried = [tuple(max(rank, 1) for rank in ranks) for ranks in fewest]
    for ranks in dict.fromkeys(method.feasible(layer, ranks) for ranks in tried):
        left = (float(c[min(r, len(c) - 1)]) for c, r in zip(curves, ranks, strict=True))
        yield ranks, min(sum(left) / total, 1.0) * float(tails[0])


def _spread(most: int) -> list[int]:
    """Ranks up to the largest."""
    ranks = np.linspace(1, most, min(most, MOST_RANKS)).round().astype(int)
    return list(dict.fromkeys(ranks.tolist()))


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
    budget = min(budget, int(size.max(1).sum()))
    found = cheapest(harm, size, budget, ceil(CLOSE * budget))
    if found is None:
        return None
    return {name: row[n] for name, row, n in zip(tables, rows, found, strict=True)}


def least(tables: Mapping[str, Sequence[Candidate]]) -> int:
    """The smallest budget that can be met."""
    return sum(min(each.cost for each in table) for table in tables.values())
