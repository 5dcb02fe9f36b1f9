"""The search for the widths of weights that keep to a budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from glob import escape
from math import ceil, floor, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from fxloom.batch_axis import sample_shape
from fxloom.encodings import Encoding
from fxloom.errors import RecipeError
from fxloom.estimation import estimate
from fxloom.facts import sharing
from fxloom.graph import as_indices
from fxloom.lowering import lower
from fxloom.passes.allocation import cheapest
from fxloom.passes.distance import Distance, several
from fxloom.passes.hessian import costs_by_trace
from fxloom.passes.learned_widths import learned_bits
from fxloom.passes.losses import require_classes
from fxloom.passes.quantize import Quantization, Quantize
from fxloom.passes.sensitivity import (
    Choice,
    Costs,
    Table,
    Weights,
    all_weights,
    costs_by_curvature,
)
from fxloom.passes.training import as_declared
from fxloom.quantized_ops import require_unrounded
from fxloom.recipe import PassResult, progress_of_pass
from fxloom.target import Target

if TYPE_CHECKING:
    from fxloom.data import Data

IntTable = npt.NDArray[np.int64]

ROUNDS = 12
"""Times that the costs may be corrected by what the chosen widths do."""

MOST_BUDGET = 2.0**62
"""Beyond this all is allowed."""

GRID = 0.25
"""Bits a weight between two trials of a search."""


class _Found(NamedTuple):
    """Widths, and what they do."""

    distance: float
    choice: Choice
    recipe: Quantize
    result: PassResult


class WidthSearch:
    """One search for the widths of a graph's weights.

    quantize: everything else. method, widths, target: see MixedPrecision; budget: the name of one
    of its budgets. by_layer: whether all channels of a layer have one width.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        data: Data,
        quantize: Quantize,
        method: str,
        by_layer: bool,
        widths: Sequence[int],
        target: str | None,
        budget: str,
    ) -> None:
        self.graph, self.data, self.quantize = graph, data, quantize
        self.method, self.by_layer, self.target = method, by_layer, target
        self.budget = budget
        require_unrounded(graph, "mixed_precision", "Put mixed_precision in the place of quantize")
        run = quantize.prepared(graph, data)
        self.module, self.batches = run.module, run.batches
        everything = all_weights(self.module)
        self.weights = [each for each in everything if self._is_free(each)]
        if not self.weights:
            raise RecipeError(
                "mixed_precision: no layer is left whose width could be chosen; "
                f"layers with weights: {', '.join(each.name for each in everything) or 'none'}"
            )
        if not by_layer:
            self._require_unshared()
        self.given = [each for each in everything if not self._is_free(each)]
        self.units = {each.name: self._unit(run, each) for each in everything}
        self.count = sum(self.units[each.name] * each.channels for each in everything)
        self.fixed = sum(
            self._fixed_width(each) * self.units[each.name] * each.channels for each in self.given
        )
        self.free = sum(self.units[each.name] * each.channels for each in self.weights)
        # A whole layer cannot go, and no derivative tells what a whole channel carries.
        may_silence = method != "hessian" and not by_layer
        self.widths = sorted(set(widths) - (set() if may_silence else {0}))
        self.tries: list[dict[str, float]] = []
        self.tell = progress_of_pass() or (lambda text: None)
        self.tell("what each width costs")
        make = costs_by_trace if method == "hessian" else costs_by_curvature
        self.distance = Distance.of(self.module, self.batches, squares=budget == "error")
        self.costs = make(self.module, self.weights, self.widths, self.batches, self.distance)

    def _require_unshared(self) -> None:
        if wrong := sorted(str(each.source.target) for each in self.weights
                           if str(each.source.target) in sharing(self.module)):  # fmt: skip
            raise RecipeError(
                f'mixed_precision: granularity: required "layer" where weights are shared, got '
                f'"channel", and these are: {", ".join(wrong)}'
            )

    def _unit(self, run: Quantization, each: Weights) -> int:
        """What a bit of every weight of an output channel costs."""
        if self.budget != "bit_operations":
            return each.inputs
        return sum(
            prod(sample_shape(node)) // each.channels * each.inputs * run.read_bits(node)
            for node in each.nodes
        )

    def _is_free(self, each: Weights) -> bool:
        """Whether the recipe says nothing of the weights of a layer, and can."""
        plain = each.is_alone and self.quantize.encoding(each.layers) is Encoding.FIXED
        return plain and not self.quantize.is_set("weights", each.layers)

    def _fixed_width(self, each: Weights) -> float:
        widths = self.quantize.channel_widths(each.layers)
        encoding = self.quantize.encoding(each.layers)
        if widths:
            return sum(widths) / len(widths)
        return encoding.stored(encoding.width(self.quantize.width("weights", each.layers)))

    def result(self, limit: float) -> PassResult:
        """The graph quantized with the widths that keep to the budget."""
        match self.budget:
            case "weight_bits":
                found = self._best(limit * self.count, limit)
            case "bit_operations":
                found = self._best(limit, limit)
            case _:
                found = self._trial_for(limit)
        used = {
            each.name: [self.widths[place] for place in found.choice[each.name]]
            for each in self.weights
        }
        summary = {
            **self._used(found.choice),
            "widths": {
                each.name: {
                    "mean": round(float(np.mean(used[each.name])), 2),
                    "fewest": min(used[each.name]),
                    "most": max(used[each.name]),
                    "silent_channels": used[each.name].count(0),
                    "weights": each.values.numel(),
                }
                for each in self.weights
            },
            "error": round(self._error(found.result.graph), 6),
            "remarks": [self._remark(found.choice)],
            "given": {each.name: self._fixed_width(each) for each in self.given},
            "tried": self.tries,
            "quantize": found.result.summary,
        }
        return PassResult(found.result.graph, True, summary, found.recipe)

    # Widths for a number of bits

    def _best(self, budget: float, limit: float) -> _Found:
        """The widths within a budget that move the outputs least. limit: what messages call it."""
        found = []
        for choice in self._choices(floor(min(budget, MOST_BUDGET) - self.fixed + 1e-6), limit):
            recipe = self._recipe(choice)
            result = recipe(self.graph, self.data)
            found.append(_Found(self._moved(result.graph), choice, recipe, result))
        return min(found, key=lambda each: each.distance)

    def _recipe(self, choice: Choice) -> Quantize:
        """A quantize pass with these widths."""
        layers: dict[str, dict[str, Any]] = {}
        for each in self.weights:
            widths = tuple(self.widths[place] for place in choice[each.name])
            for layer in each.layers:
                layers[escape(layer)] = {"weights": widths[0] if self.by_layer else widths}
        for pattern, keys in self.quantize.layers.items():
            layers[pattern] = {**layers.pop(pattern, {}), **keys}  # the last match wins
        return replace(self.quantize, layers=layers)

    def _moved(self, graph: fx.GraphModule) -> float:
        """How far a quantized graph's outputs are from the float model's, per sample."""
        total, count = 0.0, 0
        with torch.inference_mode():
            for batch in self.batches():
                wanted, got = several(self.module(*batch)), several(graph(*batch))
                total += float(self.distance.between(wanted, got))
                count += len(wanted[0])
        return total / max(count, 1)

    def _choices(self, budget: int, limit: float) -> Iterator[Choice]:
        """For every layer and channel the place of its width, in different opinions."""
        if self.method == "learned":
            yield self._solved(self._learned(budget), budget, limit)
        for costs in self.costs if self.method != "learned" else []:
            if not costs.rounded:
                yield self._solved(costs, budget, limit)
                continue
            found: list[tuple[float, Choice]] = []
            for _ in range(ROUNDS):
                choice = self._solved(costs, budget, limit)
                found.append((costs.measured(choice), choice))
                if not costs.corrected(choice, found[-1][0]):
                    break
            yield min(found, key=lambda pair: pair[0])[1]
        fitting = [n for n, width in enumerate(self.widths) if width * self.free <= budget]
        if fitting and self.widths[fitting[-1]]:  # mixing is to be no worse than not mixing
            yield {each.name: [fitting[-1]] * each.channels for each in self.weights}

    def _items(self, costs: Costs) -> tuple[Table, IntTable]:
        """What every channel, or layer, costs in every width: harm and size.

        Where widths begin with none, the channel of a layer that carries most has the next one in
        its place: something must come through.
        """
        harms, sizes = [], []
        for each in self.weights:
            harm = costs.tables[each.name].copy()
            size = np.tile(np.array(self.widths) * self.units[each.name], (each.channels, 1))
            if self.widths[0] == 0:
                kept = int(harm[:, 0].argmax())
                harm[kept, 0], size[kept, 0] = harm[kept, 1], size[kept, 1]
            if self.by_layer:
                harm, size = harm.sum(0, keepdims=True), size.sum(0, keepdims=True)
            harms.append(harm)
            sizes.append(size)
        return np.concatenate(harms), np.concatenate(sizes)

    def _solved(self, costs: Costs, budget: int, limit: float) -> Choice:
        harm, size = self._items(costs)
        found = cheapest(harm, size, min(budget, int(size.max(1).sum())))
        if found is None:
            name = "bit_operations" if self.budget == "bit_operations" else "weight_bits"
            given = ", ".join(each.name for each in self.given)
            raise RecipeError(
                f"mixed_precision: {name} = {limit:g} cannot be had: with widths {self.widths} "
                f"the fewest are {self._least():g}" + (f"; {given} keep theirs" if given else "")
            )
        choice: dict[str, list[int]] = {}
        for each in self.weights:
            rows = 1 if self.by_layer else each.channels
            places, found = found[:rows], found[rows:]
            if self.widths[0] == 0:
                kept = int(costs.tables[each.name][:, 0].argmax())
                places[kept] = max(places[kept], 1)
            choice[each.name] = places * each.channels if self.by_layer else places
        return choice

    def _least(self) -> float:
        """The smallest budget there is, rounded up to what messages show: it can be asked for."""
        least = self.fixed + int(self._items(self.costs[0])[1].min(1).sum())
        if self.budget == "bit_operations":
            return least
        return ceil(least / self.count * 1e4) / 1e4

    def _learned(self, budget: int) -> Costs:
        """Costs that choose the widths next to those that gradients find."""
        (costs, *_) = self.costs
        bits = learned_bits(costs, self.units, budget)
        if self.by_layer:
            bits = {name: found.mean().expand_as(found) for name, found in bits.items()}
        far = {
            each.name: self.units[each.name]
            * (bits[each.name].numpy()[:, None] - np.array(self.widths)) ** 2
            for each in self.weights
        }
        return replace(costs, tables=far, rounded={})

    def _remark(self, choice: Choice) -> str:
        """A sentence for the report."""
        widths = [self.widths[n] for each in self.weights for n in choice[each.name]]
        ((_, used),) = self._used(choice).items()
        kind = "bit operations" if self.budget == "bit_operations" else "bits a weight in the mean"
        if self.by_layer:
            return f"{used:g} {kind}, {min(widths)} to {max(widths)} by layer"
        return (
            f"{used:g} {kind}, {min(widths)} to {max(widths)} by output channel; bits in the table "
            "are those of a layer's widest channel"
        )

    def _used(self, choice: Choice) -> dict[str, float]:
        used = self.fixed + sum(
            self.units[each.name] * sum(self.widths[place] for place in choice[each.name])
            for each in self.weights
        )
        if self.budget == "bit_operations":
            return {"bit_operations": used}
        return {"average_bits": round(used / self.count, 4)}

    # Bits for what is wanted

    def _trial_for(self, limit: float) -> _Found:
        """The widths that a budget asks for, as they were measured: the fewest bits a weight that
        are good enough, or the most that the part has room for."""
        key = self.budget
        measures: dict[str, Callable[[fx.GraphModule], float]] = {
            "error": self._error,
            "points": self._points,
            "dsp": self._dsp,
        }
        measure = measures[key]
        least, most = self._least(), (self.fixed + max(self.widths) * self.free) / self.count
        grid = [most - n * GRID for n in range(int((most - least) / GRID) + 1)][::-1]

        kept: list[_Found] = []

        def holds(bits: float) -> bool:
            self.tell(f"{bits:g} bits a weight")
            found = self._best(bits * self.count, bits)
            got = measure(found.result.graph)
            self.tries.append({"weight_bits": bits, key: round(got, 6)})
            if got <= limit:
                kept[:] = [found]  # each of them better than the one before
            return got <= limit

        # More bits bring the outputs nearer, and need more blocks: the trials go to where it turns.
        easiest, order = (grid[0], grid[::-1]) if key == "dsp" else (grid[-1], grid)
        if not holds(easiest):
            got = ceil(self.tries[-1][key] * 1e4) / 1e4
            advice = (
                "Give activations or widths more bits" if key != "dsp" else "Reuse multipliers more"
            )
            raise RecipeError(
                f"mixed_precision: {key} = {limit:g} cannot be had: with {easiest:g} bits a "
                f"weight it is {got:g}. {advice}, or {key} = {got:g}"
            )
        bisect_left(order, True, hi=len(order) - 1, key=holds)
        return kept[0]

    def _error(self, graph: fx.GraphModule) -> float:
        """How far outputs are from the float model's, relative to their deviation."""
        sums = torch.zeros(4, dtype=torch.float64)
        with torch.inference_mode():
            for batch in self.batches():
                for a, b in zip(several(self.module(*batch)), several(graph(*batch)), strict=True):
                    wide = a.to(torch.float64)
                    squares = [(wide - b).square().sum(), wide.square().sum(), wide.sum()]
                    sums += torch.stack([*squares, torch.tensor(float(wide.numel()))])
        variance = sums[1] / sums[3] - (sums[2] / sums[3]) ** 2
        error = float(sums[0] / sums[3])
        return float((error / float(variance)) ** 0.5) if variance > 0 else error**0.5

    def _points(self, graph: fx.GraphModule) -> float:
        """Points of accuracy lost on the calibration samples, or of agreement without labels."""
        right, kept, count = 0, 0, 0
        with torch.inference_mode():
            for x, labels in self.data.sampled("train", self.quantize.samples):
                inputs = as_declared(self.module, as_indices(self.module, x))
                a, b = self.module(*inputs), graph(*inputs)
                if not isinstance(a, Tensor) or a.dim() != 2 or a.shape[1] < 2:
                    raise RecipeError(
                        "mixed_precision: points: required one output of class scores, [samples, "
                        "classes]; for others give error"
                    )
                wanted = a.argmax(1)
                if labels is not None:
                    require_classes(labels, a)
                    wanted = labels.reshape(-1)
                right += int((a.argmax(1) == wanted).sum())
                kept += int((b.argmax(1) == wanted).sum())
                count += len(wanted)
        return 100 * (right - kept) / count

    def _dsp(self, graph: fx.GraphModule) -> float:
        target = Target.load(self.target) if self.target else Target()
        figure = estimate(lower(graph), target).total.csynth.dsp
        if figure.value is None:
            raise RecipeError(f"mixed_precision: dsp: cannot be estimated: {figure.source}")
        return float(figure.value)
