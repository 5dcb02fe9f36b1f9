"""Ranks under a budget of what the hardware is estimated to need.

No formula says what a layer will take before it is quantized and laid out, so the plan is tried:
written, quantized, lowered and estimated. What the factors of each layer took for a weight is what
the next plan counts with, until the estimate meets the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Literal

from torch import fx

from fxloom.errors import RecipeError
from fxloom.estimation import estimate
from fxloom.lowering import lower
from fxloom.passes.factorable import Method
from fxloom.passes.factoring import Factoring, Plan
from fxloom.passes.quantize import Quantize
from fxloom.passes.rank_budget import Candidate, candidates, chosen
from fxloom.recipe import progress_of_pass
from fxloom.target import Target

if TYPE_CHECKING:
    from fxloom.data import Data

Unit = Literal["dsp", "lut"]

CLOSE = 0.985
"""Share of the budget that is enough."""

TRIALS = 8

FINE = 1000
"""Steps that a unit is divided in, for what a layer needs in the mean."""


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
        best = needed, smallest
        weights = {name: table[-1].cost for name, table in self._tables.items()}
        price = {name: dense[name] / weights[name] for name in self._tables}
        fixed, slack = total - sum(dense.values()), 1.0
        for _ in range(TRIALS):
            if best[0] >= CLOSE * limit:
                break
            found = self._cheapest(price, dense, slack * limit - fixed)
            if found is None:
                break
            needed, parts = self._tried(found)
            if best[0] < needed <= limit:
                best = needed, found
            expected = fixed
            for name, each in found.items():
                expected += price[name] * each.cost if each.method else dense[name]
                if each.method:
                    price[name] = parts[name] / each.cost
            # What no layer accounts for, or another rank would not need in proportion.
            slack *= (
                1 + (limit - needed) / limit / 2 if abs(needed - expected) < 0.02 * limit else 1
            )
        return self._plan | _factored(best[1])

    def _cheapest(
        self, price: Mapping[str, float], dense: Mapping[str, float], budget: float
    ) -> dict[str, Candidate] | None:
        tables = {}
        for name, table in self._tables.items():
            costs = [round(FINE * price[name] * each.cost) for each in table[:-1]]
            whole = round(FINE * dense[name])
            tables[name] = [
                *(
                    replace(each, cost=cost)
                    for each, cost in zip(table[:-1], costs, strict=True)
                    if cost < whole
                ),
                replace(table[-1], cost=whole),
            ]
        found = chosen(tables, int(FINE * budget)) if budget > 0 else None
        if found is None:
            return None
        own = {
            name: {(each.method, each.ranks): each for each in table}
            for name, table in self._tables.items()
        }
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


def _factored(found: Mapping[str, Candidate]) -> Plan:
    return {name: (each.method, each.ranks) for name, each in found.items() if each.method}
