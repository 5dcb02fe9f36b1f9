"""What every pass of a recipe saves in hardware: the estimate of the graph before and after it.

A float graph has no hardware, so it is quantized for the estimate alone: in the widths of the
recipe's own quantize pass, to nearest and calibrated on few samples. The figures are those of the
estimator, for the target, from the weights that there are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from fxloom.costs import added
from fxloom.errors import FxloomError
from fxloom.estimation import estimate
from fxloom.graph import origin
from fxloom.lowering import lower
from fxloom.quantized_ops import brings_formats, is_quantized
from fxloom.recipe import Figures, Pass, Recipe, count_parameters
from fxloom.report import RESOURCES, LayerCost, LayerReport, Resources, StageLayer
from fxloom.settings import unmatched
from fxloom.target import Target

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from fxloom.data import Data
    from fxloom.passes.quantize import Quantize

SAMPLES = 16
"""Samples that calibrate: formats of activations decide little of what is estimated."""

Costs = Mapping[str, LayerCost]
T = TypeVar("T")


def compresses(recipe: Recipe) -> bool:
    """Whether a pass of the recipe says that it makes hardware smaller."""
    return any(getattr(step, "compresses", False) for step in recipe.passes)


class Stages:
    """Figures of the graphs that a recipe makes, as `Recipe.run` asks for them."""

    def __init__(self, recipe: Recipe, target: Target, data: Data | None) -> None:
        self._quantize = _quick(recipe.passes)
        self._target, self._data = target, data
        self._found: list[Costs | None] = []

    def __call__(self, graph: GraphModule) -> Figures:
        """Parameters, and what the whole costs where that can be estimated."""
        costs = self._costs(graph)
        self._found.append(costs)
        totals = {} if costs is None else _totals(costs.values())
        return {**count_parameters(graph), **totals}

    def layers(self, modified: Sequence[bool]) -> list[tuple[StageLayer, ...]]:
        """For every pass, its layers before and after; empty where nothing is known.

        modified: which of them gave another graph.
        """
        found, place, is_stream = [], 0, self._target.io == "stream"
        for changes in modified:
            before, place = self._found[place], place + changes
            after = self._found[place]
            known = changes and before is not None and after is not None
            found.append(_paired(before or {}, after or {}, is_stream) if known else ())
        return found

    def _costs(self, graph: GraphModule) -> Costs | None:
        if is_quantized(graph) and not brings_formats(graph):
            return None  # the report is about that one
        # Passes add layers and take some away: patterns for those of other stages say nothing here.
        nodes = [node for node in graph.graph.nodes if node.op in ("call_function", "placeholder")]
        known = fitting(self._quantize.layers, {origin(node) for node in nodes})
        try:
            program = lower(replace(self._quantize, layers=known)(graph, self._data).graph)
            found = fitting(self._target.layers, {instr.origin for instr in program.instrs})
            layers = estimate(program, replace(self._target, layers=found)).layers
        except FxloomError:
            return None  # whatever it is, the pass that really quantizes will say it
        return {layer.name: cost_of(layer) for layer in layers}


def fitting(layers: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    """The patterns that match one of the names."""
    missing = unmatched(layers, names)
    return {pattern: keys for pattern, keys in layers.items() if pattern not in missing}


def cost_of(layer: LayerReport) -> LayerCost:
    """The part of a layer's figures that passes change."""
    return LayerCost(
        layer.weight_count,
        layer.nonzero,
        layer.stored_bits,
        layer.macs,
        layer.csynth,
        layer.latency,
    )


def _quick(passes: Sequence[Pass]) -> Quantize:
    """The recipe's quantize pass, as fast as an estimate allows."""
    from fxloom.passes.mixed_precision import MixedPrecision
    from fxloom.passes.quantize import Quantize

    found = Quantize()
    for step in passes:
        if isinstance(step, MixedPrecision):
            step = Quantize(**step.quantize)
        if isinstance(step, Quantize):
            found = step
            break
    return quick(found)


def quick(step: Quantize) -> Quantize:
    """The pass without what costs time and changes no width."""
    return replace(
        step, samples=SAMPLES, weight_rounding="nearest", equalize=False, bias_correction=False
    )


def _totals(costs: Collection[LayerCost]) -> Figures:
    found = {
        "stored_bits": sum(cost.stored_bits for cost in costs),
        "macs": sum(cost.macs for cost in costs),
    }
    for key in RESOURCES:
        values = [getattr(cost.csynth, key).value for cost in costs]
        if None not in values:
            found[key] = int(sum(values))
    return found


def _paired(before: Costs, after: Costs, is_stream: bool) -> tuple[StageLayer, ...]:
    """Layers with weights before or after, in order; those that a layer became, "fc1.factor0" and
    the like, together in its place."""
    held = {name for name, cost in after.items() if cost.weight_count}
    gone = [name for name, cost in before.items() if cost.weight_count and name not in held]
    parts: dict[str, list[LayerCost]] = {}
    for name, cost in after.items():
        wholes = [each for each in gone if name not in before and name.startswith(f"{each}.")]
        parts.setdefault(max(wholes, key=len, default=name), []).append(cost)
    joined = {name: _together(costs, is_stream) for name, costs in parts.items()}
    return tuple(
        StageLayer(name, before.get(name), joined.get(name))
        for name in dict.fromkeys([*before, *joined])
        if any(cost is not None and cost.macs for cost in (before.get(name), joined.get(name)))
    )


def _together(costs: Sequence[LayerCost], is_stream: bool) -> LayerCost:
    """Layers one after another as one. As streams they run side by side: for as long as the slowest
    at least, and all of them at most."""
    if len(costs) == 1:
        return costs[0]
    resources = (
        added([getattr(cost.csynth, key) for cost in costs], unit)
        for key, unit in RESOURCES.items()
    )
    cycles = [cost.latency.value for cost in costs]
    latency = added([cost.latency for cost in costs], "cycles")
    if is_stream and (known := [each for each in cycles if each is not None]):
        slowest = max(known)
        latency = replace(latency, value=slowest, low=slowest, high=latency.bounds[1])
    return LayerCost(
        weight_count=sum(cost.weight_count for cost in costs),
        nonzero=sum(cost.nonzero for cost in costs),
        stored_bits=sum(cost.stored_bits for cost in costs),
        macs=sum(cost.macs for cost in costs),
        csynth=Resources(*resources),
        latency=latency,
    )
