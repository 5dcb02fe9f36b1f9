"""One step of pruning: weights are chosen, set to zero, and the others made good for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, fx

from fxloom.passes.calibration import Batch
from fxloom.passes.damage import Damage, saliencies
from fxloom.passes.goals import Goal
from fxloom.passes.layerwise import Layer, walk, write
from fxloom.passes.patterns import Pattern
from fxloom.passes.prunable import Prunable
from fxloom.passes.sparsity import allocate
from fxloom.passes.surgeon import (
    Curve,
    best,
    exact_curve,
    in_rounds,
    is_exact,
    removal,
    removed,
    shared_costs,
    sweep,
    swept_curve,
    takes_rounds,
)
from fxloom.passes.thresholds import smallest

Method = Literal["magnitude", "obd", "obs"]
Scope = Literal["layer", "global", "sensitivity"]

SEGMENTS = 1024
"""Of a curve over weights whose costs do not depend on each other."""


@dataclass(eq=False)
class Pruning:
    """One step, on a graph whose tensors may be replaced.

    floats: the graph whose outputs are wanted. batches: none where no data are needed. common: how
    many weights go from the layers whose goal says no number, together. losses: get the squared
    error of the outputs of every layer that was fitted, relative to their variance; notes: what
    was done otherwise than asked, by layer.
    """

    module: fx.GraphModule
    floats: fx.GraphModule
    batches: Sequence[Batch]
    method: Method
    scope: Scope
    pattern: Pattern
    refits: bool
    goals: Sequence[Goal]
    common: int
    losses: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Write the pruned weights to the graph."""
        self._goals = {goal.prunable: goal for goal in self.goals}
        self._fitted = [each for each in self._goals if each.readers]
        if self.method == "obs":
            counts = self._surgeons_counts()
            for layer in walk(self.module, self.floats, self._fitted, self.batches):
                self._operate(layer, counts[layer.prunable])
            return
        dropped = self._by_scores()
        if self.refits:
            for layer in walk(self.module, self.floats, self._fitted, self.batches):
                self._refit(layer, dropped[layer.prunable])
        for each, mask in dropped.items():
            if not (self.refits and each.readers):
                each.write(self.module, each.values.masked_fill(mask, 0))

    # -- by scores of single weights --------------------------------------------------------------

    def _by_scores(self) -> dict[Prunable, Tensor]:
        """Which weights go, of the tensors' shapes."""
        scores = {each: each.values for each in self._goals}
        if self.method == "obd":
            scores = saliencies(self.module, list(self._goals), self.batches)
        if self._pool and self.scope == "sensitivity":
            damage = Damage(self.module, self.batches)
            curves = {
                each: damage.curve(each, partial(self._cut, each, scores[each]))
                for each in self._pool
            }
            counts = self._shared_out(curves)
        elif self._pool and self.scope == "global" and self.pattern.kind != "n:m":
            found = self._together({each: scores[each] for each in self._pool})
            alone = {goal.prunable: goal.count for goal in self.goals if goal.count is not None}
            found |= {each: self._drop(each, scores[each], n) for each, n in alone.items()}
            return {each: found[each] for each in self._goals}
        else:
            counts = {goal.prunable: goal.count or 0 for goal in self.goals}
        return {each: self._drop(each, scores[each], counts[each]) for each in self._goals}

    def _together(self, scores: Mapping[Prunable, Tensor]) -> dict[Prunable, Tensor]:
        """The least of all weights, or blocks, of several layers."""
        if self.pattern.kind == "free":
            return dict(zip(scores, smallest(list(scores.values()), self.common), strict=True))
        rows = [each.rows(self._power(values)) for each, values in scores.items()]
        factors = [self._goals[each].reuse for each in scores]
        dropped = self.pattern.drop_blocks(rows, factors, self.common)
        return {each: each.from_rows(mask) for each, mask in zip(scores, dropped, strict=True)}

    def _drop(self, each: Prunable, scores: Tensor, count: int) -> Tensor:
        if self.pattern.kind == "free":
            return smallest([scores], count)[0]
        rows = each.rows(self._power(scores))
        return each.from_rows(self.pattern.drop(rows, count, self._goals[each].reuse))

    def _power(self, scores: Tensor) -> Tensor:
        """Squares, which add up in blocks."""
        return scores.to(torch.float64).square()

    def _cut(self, each: Prunable, scores: Tensor, count: int) -> Tensor:
        return each.values.masked_fill(self._drop(each, scores, count), 0)

    def _refit(self, layer: Layer, mask: Tensor) -> None:
        dropped = layer.prunable.rows(mask) | self._gone(layer)
        self._write(layer, self._made_good(layer, dropped))

    # -- by the brain surgeon ---------------------------------------------------------------------

    def _surgeons_counts(self) -> dict[Prunable, int]:
        """How many weights go from every layer."""
        counts = {goal.prunable: goal.count or 0 for goal in self.goals}
        if not self._pool:
            return counts
        damage = Damage(self.module, self.batches) if self.scope == "sensitivity" else None
        curves = {}
        for layer in walk(self.module, self.floats, self._pool, self.batches):
            each = layer.prunable
            if damage is None:
                curve = self._curve(layer)
                curves[each] = replace(curve, prices=curve.prices / layer.variance)
            else:
                curves[each] = damage.curve(each, self._operated(layer))
        return self._shared_out(curves)

    def _operated(self, layer: Layer) -> Callable[[int], Tensor]:
        each = layer.prunable

        def candidate(count: int) -> Tensor:
            weights = each.from_rows(self._decide(layer, count)).to(each.values.dtype)
            return torch.empty_like(each.values).copy_(weights)

        return candidate

    def _curve(self, layer: Layer) -> Curve:
        """What removing weights of a layer costs in squared error of its outputs."""
        gone, problem = self._gone(layer), layer.problem
        reuse = self._goals[layer.prunable].reuse
        if problem is not None and self.pattern.kind == "free":
            if is_exact(problem):
                return exact_curve(*removal(problem, gone), gone)
            if not takes_rounds(problem):
                return swept_curve(problem, gone)
        if problem is not None and takes_rounds(problem):
            return in_rounds(problem, gone, self.pattern, gone.numel(), reuse)[1]
        scores = self._independent(layer)
        if self.pattern.is_blocks:
            blocks = self.pattern.blocks(scores, reuse)
            prices, order = blocks.mean(1).sort()
            return Curve(torch.full_like(order, blocks.shape[1]), prices)
        ordered = scores.flatten().sort()[0]
        counts = torch.linspace(0, len(ordered), SEGMENTS + 1).round().to(torch.int64)
        counts = torch.unique(counts)
        totals = torch.cat([torch.zeros(1, dtype=ordered.dtype), ordered.cumsum(0)])
        return Curve.of(counts, totals[counts])

    def _operate(self, layer: Layer, count: int) -> None:
        self._write(layer, self._decide(layer, count))

    def _decide(self, layer: Layer, count: int) -> Tensor:
        """The weights of a layer, so many of them removed and the others made good for them."""
        gone, problem = self._gone(layer), layer.problem
        count = max(count, int(gone.sum()))
        reuse = self._goals[layer.prunable].reuse
        if problem is None:
            scores = self._independent(layer)
            dropped = self.pattern.drop(scores, count, reuse) | gone
        elif is_exact(problem) and self.pattern.kind == "free":
            dropped = removed(*removal(problem, gone), gone, count)
        elif takes_rounds(problem):
            dropped, _ = in_rounds(problem, gone, self.pattern, count, reuse)
        elif self.pattern.kind == "free":
            return sweep(problem, gone, count)[0]
        else:
            dropped = self.pattern.drop(self._independent(layer), count, reuse) | gone
        return self._made_good(layer, dropped)

    def _made_good(self, layer: Layer, dropped: Tensor) -> Tensor:
        """The best weights that are zero where they are dropped."""
        name, problem = layer.prunable.name, layer.problem
        if problem is None:
            self.notes[name] = (
                f"{layer.prunable.inputs:,} inputs are too many for their covariance: weights "
                "that stay are as they were"
            )
            return torch.where(dropped, 0.0, layer.weights)
        if takes_rounds(problem):
            return best(problem, ~dropped)
        return sweep(problem, dropped, 0, dropped)[0]

    def _independent(self, layer: Layer) -> Tensor:
        """What removing each single weight costs beside all others; of independent inputs where
        nothing else is known. Zero where there is none."""
        if layer.problem is None:
            costs = layer.weights.square() * layer.power[:, None] + torch.finfo(torch.float64).tiny
            return torch.where(self._gone(layer), 0.0, costs)
        return shared_costs(layer.problem, layer.problem.target, ~self._gone(layer))

    # -- both -------------------------------------------------------------------------------------

    @property
    def _pool(self) -> list[Prunable]:
        """The layers that share a number of weights to remove."""
        return [goal.prunable for goal in self.goals if goal.count is None]

    def _shared_out(self, curves: Mapping[Prunable, Curve]) -> dict[Prunable, int]:
        counts = {goal.prunable: goal.count or 0 for goal in self.goals}
        shares = allocate(list(curves.values()), self.common)
        return counts | dict(zip(curves, shares, strict=True))

    def _gone(self, layer: Layer) -> Tensor:
        return layer.prunable.rows(~layer.prunable.is_nonzero())

    def _write(self, layer: Layer, weights: Tensor) -> None:
        write(self.module, layer, weights)
        self.losses[layer.prunable.name] = layer.loss(weights)
