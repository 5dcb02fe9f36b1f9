"""Layers of a graph factored as a plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import copy_graph, finish
from fxloom.graph import BATCH, constant
from fxloom.passes.calibration import Batch, batch_size
from fxloom.passes.channel_criteria import batches
from fxloom.passes.factor_fitting import Choice, Factored, fitted, unfitted
from fxloom.passes.factor_norms import measure_norms
from fxloom.passes.factor_subjects import Subject
from fxloom.passes.factor_writing import readers_of, write_chain
from fxloom.passes.factorable import Method, Ranks
from fxloom.passes.factors import parameters
from fxloom.passes.layerwise import replace_tensor
from fxloom.passes.output_statistics import Statistics, measure
from fxloom.passes.prunable import find_prunable
from fxloom.recipe import progress_of_pass

if TYPE_CHECKING:
    from fxloom.data import Data

MOST_VALUES = 2**26
"""Of the largest tensor, for all samples that are looked at: 0.25 GB."""

FEWEST_SAMPLES = 8

Plan = dict[str, tuple[Method, Ranks]]
"""By the names of layers, how they are factored."""


@dataclass(frozen=True)
class Factoring:
    """A graph, layers of it, and what is known of them.

    batches: samples as the graph takes them; none where there are no data. norms: whether there are
    batch norms between the parts.
    """

    graph: fx.GraphModule
    subjects: Sequence[Subject]
    batches: Sequence[Batch]
    norms: bool
    seed: int

    @classmethod
    def of(
        cls,
        graph: fx.GraphModule,
        subjects: Sequence[Subject],
        data: Data | None,
        samples: int,
        norms: bool,
        seed: int,
    ) -> Factoring:
        """samples: how many are looked at, fewer where they are large."""
        found: list[Batch] = []
        if data is not None:
            values = (node.meta.get("val") for node in graph.graph.nodes if node.op != "get_attr")
            sizes = [value.numel() // BATCH for value in values if isinstance(value, Tensor)]
            most = max(MOST_VALUES // max(*sizes, 1), FEWEST_SAMPLES)
            size = batch_size(graph)
            found = [x for x, _ in batches(graph, data, min(samples, most), size)]
        return cls(graph, subjects, found, norms, seed)

    @cached_property
    def statistics(self) -> Mapping[str, Statistics]:
        """Of what the layers give, by their names."""
        return measure(self.graph, self.subjects, self.batches)

    def written(self, plan: Plan) -> tuple[fx.GraphModule, dict[str, dict[str, object]]]:
        """Another graph with the chains of a plan, and what a summary says of each."""
        module = copy_graph(self.graph)
        prunables = {each.name: each for each in find_prunable(module, embeddings=True)}
        layers: dict[str, dict[str, object]] = {}
        norms: list[Node] = []
        for choice, made in self._made(plan):
            subject = choice.subject
            if made.shift is not None and subject.bias is not None:
                old = constant(module, subject.bias).detach()
                replace_tensor(module, subject.bias, old + made.shift)
            readers = readers_of(module, prunables[subject.name])
            norms += write_chain(module, readers, made.chain, norms=self.norms).norms
            layers[subject.name] = {
                "method": choice.method.name,
                "ranks": list(choice.ranks),
                "weights": subject.layer.size,
                "factors": parameters(made.chain),
                "error": float(f"{made.error:.4g}"),
            }
        module = finish(module)
        if norms:
            measure_norms(module, norms, self.batches)
        return module, layers

    def _made(self, plan: Plan) -> Sequence[tuple[Choice, Factored]]:
        choices = [Choice(each, *plan[each.name]) for each in self.subjects if each.name in plan]
        if self.batches:
            made = fitted(self.graph, choices, self.statistics, self.batches, self.seed)
        else:
            made = unfitted(choices, self.seed)
        tell = progress_of_pass() or (lambda text: None)
        found = []
        for choice, factored in made:
            tell(choice.subject.name)
            found.append((choice, factored))
        return found
