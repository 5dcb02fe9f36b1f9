"""Ranks under a budget of what the hardware is estimated to need.

No formula says what a layer will take before it is quantized and laid out, so the plan is tried:
written, quantized, lowered and estimated. The next plan counts with what each layer took in the
trials where it had a few weights less and a few more, until the estimate meets the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import fx

from fxloom.errors import RecipeError
from fxloom.estimation import estimate
from fxloom.lowering import lower
from fxloom.passes.factorable import Method
from fxloom.passes.factoring import Factoring, Plan
from fxloom.passes.quantize import Quantize
from fxloom.passes.rank_budget import CLOSE, Candidate, candidates, chosen
from fxloom.recipe import progress_of_pass
from fxloom.target import Target

if TYPE_CHECKING:
    from fxloom.data import Data

Unit = Literal["dsp", "lut"]

TRIALS = 8

WORSE = 10.0
"""So many times the least harm is borne where that uses more of the budget."""

FINE = 1000
"""Steps that a unit is divided in, for what a layer is expected to need."""


Choice = dict[str, Candidate]
"""By the names of layers."""


class HardwareSharing:
    """Layers that share a budget of DSP blocks or LUTs, as C synthesis reports them.

    plan: what others become. methods: by the names of those that share, by what they may be
    factored. quantize: what the estimate is made behind.
    """

    def __init__(
        self,
        factoring: Factoring,
        plan: Plan,
        methods: Mapping[str, Sequence[Method]],
        unit: Unit,
        target: Target,
        quantize: Quantize,
        data: Data,
    ) -> None:
        self._factoring, self._plan, self._unit = factoring, plan, unit
        self._target, self._quantize, self._data = target, quantize, data
        subjects = {each.name: each for each in factoring.subjects}
        self._tables = {
            name: candidates(subjects[name], each, "parameters", factoring.statistics[name])
            for name, each in methods.items()
        }
        self._names = {name: subjects[name].prunable.layers for name in methods}

    def within(self, share: float) -> Plan:
        """The best plan found that needs this share of what the graph needs. Raises RecipeError,
        naming the smallest there is, where none does."""
        total, dense = self._needed(self._factoring.graph)
        if not total:
            raise RecipeError(
                f"factorize: budget: the model needs no {self._unit} on {self._target.part} as it "
                "is. Choose another cost, target, or quantize with more bits"
            )
        limit = share * total
        smallest = {
            name: min(table, key=lambda each: each.cost) for name, table in self._tables.items()
        }
        needed, parts = self._tried(smallest)
        if needed > limit:
            nearest = ceil(needed / total * 1e4) / 1e4
            raise RecipeError(
                f"factorize: budget = {share:g} cannot be had: of {total:g} {self._unit} the "
                f"smallest share that was found is {nearest:g}"
            )
        fits, plans = [(needed, smallest)], [smallest]
        tried = {name: {table[-1]: dense[name]} for name, table in self._tables.items()}
        for _ in range(TRIALS):
            for name, each in plans[-1].items():
                tried[name][each] = parts[name]
            unshared = needed - sum(parts[name] for name in self._tables)
            if _best(fits)[0] >= CLOSE * limit:
                break
            found = self._cheapest(tried, limit - unshared)
            if found is None or found in plans:
                break
            needed, parts = self._tried(found)
            plans.append(found)
            if needed <= limit:
                fits.append((needed, found))
        return self._plan | _factored(_best(fits)[1])

    def _cheapest(
        self, tried: Mapping[str, Mapping[Candidate, float]], budget: float
    ) -> Choice | None:
        tables, own = {}, {}
        for name, table in self._tables.items():
            costs = [round(FINE * _expected(tried[name], each)) for each in table]
            priced = [
                replace(each, cost=cost)
                for each, cost in zip(table, costs, strict=True)
                if cost < costs[-1] or each is table[-1]
            ]
            tables[name] = priced
            own[name] = {(each.method, each.ranks): each for each in table}
        found = chosen(tables, int(FINE * budget)) if budget > 0 else None
        if found is None:
            return None
        return {name: own[name][each.method, each.ranks] for name, each in found.items()}

    def _tried(self, found: Mapping[str, Candidate]) -> tuple[float, dict[str, float]]:
        if (tell := progress_of_pass()) is not None:
            tell(f"trial of {sum(each.cost for each in found.values()):,} weights")
        return self._needed(self._factoring.written(self._plan | _factored(found))[0])

    def _needed(self, graph: fx.GraphModule) -> tuple[float, dict[str, float]]:
        """What a graph needs when quantized, and each of the layers, or its factors."""
        report = estimate(lower(self._quantize(graph, self._data).graph), self._target)
        whole = getattr(report.total.csynth, self._unit)
        if whole.value is None:
            raise RecipeError(f"factorize: {self._unit}: cannot be estimated: {whole.source}")
        needed = dict.fromkeys(self._names, 0.0)
        for layer in report.layers:
            value = getattr(layer.csynth, self._unit).value or 0
            for name, layers in self._names.items():
                # Of the layer itself, or of what took its place.
                if any(
                    layer.name == each or layer.name.startswith(f"{each}.factor") for each in layers
                ):
                    needed[name] += value
        return float(whole.value), needed


def _best(fits: Sequence[tuple[float, Choice]]) -> tuple[float, Choice]:
    """The one that uses most of the budget, of those that do no more harm by far than another."""
    harms = [sum(each.harm for each in found.values()) for _, found in fits]
    good = (fit for fit, harm in zip(fits, harms, strict=True) if harm <= WORSE * min(harms))
    return max(good, key=lambda fit: fit[0])


def _expected(tried: Mapping[Candidate, float], each: Candidate) -> float:
    """What a layer needs: between those that were tried with fewer and with more weights.

    The layer as it is counts only until two chains were tried: its products may be wider.
    """
    if each in tried:
        return tried[each]
    chains = [(other.cost, needed) for other, needed in tried.items() if other.method]
    if len(chains) < 2:
        chains = [(other.cost, needed) for other, needed in tried.items()]
    costs, needed = zip(*sorted(chains), strict=True)
    between = float(np.interp(each.cost, costs, needed))
    return between * max(1.0, each.cost / max(cost for cost, _ in chains))


def _factored(found: Mapping[str, Candidate]) -> Plan:
    return {name: (each.method, each.ranks) for name, each in found.items() if each.method}
