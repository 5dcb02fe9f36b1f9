"""Layers factored into chains of smaller ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from math import ceil, floor
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, fx

from fxloom.editing import copy_graph, finish
from fxloom.errors import RecipeError
from fxloom.graph import BATCH, constant
from fxloom.passes.calibration import Batch, batch_size
from fxloom.passes.channel_criteria import batches as batches_of
from fxloom.passes.decompositions import METHODS
from fxloom.passes.factor_fitting import Choice, fitted, unfitted
from fxloom.passes.factor_subjects import Subject, layer_of, whole
from fxloom.passes.factor_writing import measure_norms, obstacles, readers_of, write_chain
from fxloom.passes.factorable import Method, Ranks
from fxloom.passes.factors import parameters
from fxloom.passes.finetune import Finetune
from fxloom.passes.goals import keys_of
from fxloom.passes.layerwise import replace_tensor
from fxloom.passes.output_statistics import Statistics, measure
from fxloom.passes.prunable import Prunable, find_prunable
from fxloom.passes.quantize import Quantize
from fxloom.passes.rank_budget import candidates, chosen, least
from fxloom.passes.rank_rules import Rule, reason_against
from fxloom.passes.replacing import replaceable, require_float, trained
from fxloom.recipe import PassResult, progress_of_pass
from fxloom.settings import build, typed_keys

if TYPE_CHECKING:
    from fxloom.data import Data

MOST_VALUES = 2**26
"""Of the largest tensor, for all samples that are looked at: 0.25 GB."""

FEWEST_SAMPLES = 8

AUTO = "auto"

Plan = dict[str, tuple[Method, Ranks]]
"""By the names of layers, how they are factored."""


@typed_keys(RecipeError)
@dataclass(frozen=True)
class Factorize:
    """Layers replaced by chains of smaller layers, where that saves; biases stay.

    method: svd (linear layers and convolutions: few outputs, and a linear layer or 1x1 behind),
    spatial (a column of the kernel, a row), tucker (1x1, kernel, 1x1), cp (1x1, depthwise, 1x1) or
    tt (tensor train); auto: with a budget, of all that take a layer the best. One of the next three
    says how far. rank: of every layer, one number for each rank of the method; "vbmf" finds what is
    more than noise in the weights (Nakajima 2013). energy: share of the squares of the weights that
    every rank keeps alone. budget: share of the whole model's `cost` that is kept; the layers share
    it so that the model's outputs move least, and some stay as they are. cost: parameters, macs, or
    dsp or lut as estimated on `target` (a part, or a TOML file) when quantized with the keys of
    `quantize`. include, exclude: layers by name (fnmatch patterns). What cannot be factored, or
    would save nothing, stays, and the summary says why; if a pattern other than "*" names it and it
    cannot, that is an error. layers: method, rank or energy of their own for layers that match a
    pattern (the last match wins). batchnorm: batch norms between the parts (Tai 2015). samples:
    training samples that say what layers give: each chain is fitted to that on what the factored
    layers before it give; without data the weights alone decide. seed: of what is random. finetune:
    keys of the finetune pass, which then runs.
    """

    name: ClassVar[str] = "factorize"
    compresses: ClassVar[bool] = True

    method: Literal["svd", "spatial", "tucker", "cp", "tt", "auto"] = "svd"
    rank: int | tuple[int, ...] | Literal["vbmf"] | None = None
    energy: float | None = None
    budget: float | None = None
    cost: Literal["parameters", "macs", "dsp", "lut"] = "parameters"
    target: str | None = None
    quantize: Mapping[str, Any] = field(default_factory=dict)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    batchnorm: bool = False
    samples: int = 1024
    seed: int = 0
    finetune: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problems := list(self._wrong()):
            raise RecipeError("\n".join(problems))

    def _wrong(self) -> Iterator[str]:
        given = [key for key in ("rank", "energy", "budget") if getattr(self, key) is not None]
        if len(given) > 1 or not (given or self.layers):
            yield f"required one of rank, energy, budget, got {' and '.join(given) or 'none'}"
        yield from Rule(None, self.rank, self.energy).problems()
        if self.method == AUTO and self.budget is None:
            yield 'method: "auto" is for a budget, which is not given'
        if self.budget is not None and not 0 < self.budget <= 1:
            yield f"budget: required a share above 0 and up to 1, got {self.budget:g}"
        for pattern, keys in self.layers.items():
            rule, wrong = build(Rule, keys)
            yield from (f'layers."{pattern}".{line}' for line in wrong)
            if rule is not None:
                yield from (f'layers."{pattern}".{line}' for line in rule.problems())
        for key in ("target", "quantize"):
            if getattr(self, key) and self.cost not in ("dsp", "lut"):
                yield f"{key}: is for a cost of dsp or lut, got {self.cost}"
        if self.cost != "parameters" and self.budget is None:
            yield f"cost: is for a budget, which is not given, got {self.cost}"
        if self.samples < 1:
            yield f"samples: required at least 1, got {self.samples}"
        if not 0 <= self.seed < 2**32:
            yield f"seed: required a number from 0 to 2**32 - 1, got {self.seed}"
        yield from (f"quantize.{line}" for line in build(Quantize, self.quantize)[1])
        yield from (f"finetune.{line}" for line in build(Finetune, self.finetune)[1])

    @property
    def needs_data(self) -> bool:
        """Whether there must be data."""
        return bool(self.finetune or self.batchnorm or self.budget is not None)

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        if data is None and self.budget is not None:
            raise RecipeError("factorize: budget: required data that say what is lost, got none")
        require_float(graph, self.name, data, self.needs_data)
        chosen, notes = replaceable(
            graph,
            self.name,
            self.include,
            self.exclude,
            self.layers,
            lambda each: self._problems(graph, each),
            embeddings=True,
        )
        subjects = [Subject.of(graph, each) for each in chosen]
        plan, free = self._given(subjects, notes)
        statistics: dict[str, Statistics] = {}
        batches = [] if data is None else self._batches(graph, data)
        if batches:
            looked_at = [each for each in subjects if each in free or each.name in plan]
            statistics = measure(graph, looked_at, batches)
        if self.budget is not None:
            plan |= self._shared_out(graph, subjects, free, plan, statistics)
            notes |= {each.name: "it is worth its cost" for each in free if each.name not in plan}
        elif not plan:
            lines = [f"{name}: {note}" for name, note in notes.items()]
            raise RecipeError("\n".join(["factorize: no layer is left:", *lines]))
        module, layers = self._written(graph, subjects, plan, statistics, batches)
        summary = self._summary(graph, module, layers, notes)
        if self.finetune:
            module, summary["finetune"] = trained(module, data, self.finetune)
        found = self._found(subjects, plan) if self.budget is not None else None
        return PassResult(module if plan else graph, bool(plan), summary, found)

    # What becomes of every layer

    def _rule(self, each: Prunable) -> Rule:
        method = None if self.method == AUTO else self.method
        return Rule(**keys_of(each, self.layers)).over(Rule(method, self.rank, self.energy))

    def _problems(self, graph: fx.GraphModule, each: Prunable) -> Iterator[str]:
        """What stands against factors in a layer's place."""
        if reason := next(obstacles(graph, each, self.batchnorm), ""):
            yield reason
            return
        layer = layer_of(each, readers_of(graph, each)[0])
        rule = self._rule(each)
        methods = self._methods(rule)
        if reasons := [method.problem(layer) for method in methods]:
            if all(reasons):
                yield reasons[0]
                return
        if not rule.says and self.budget is None:
            yield "no rank is given for it"
        elif isinstance(rule.rank, int | tuple):
            yield reason_against(methods[0], layer, rule.ranks(layer))

    def _methods(self, rule: Rule) -> Sequence[Method]:
        return [METHODS[rule.method]] if rule.method is not None else list(METHODS.values())

    def _given(
        self, subjects: Sequence[Subject], notes: dict[str, str]
    ) -> tuple[Plan, list[Subject]]:
        """What the recipe says itself, and the layers that share a budget. notes: gets why other
        layers stay."""
        plan: Plan = {}
        free = []
        for each in subjects:
            rule = self._rule(each.prunable)
            if not rule.says:
                free.append(each)
                continue
            if rule.method is None:
                raise RecipeError(f"factorize: {each.name}: required a method beside its rank")
            method, ranks = METHODS[rule.method], rule.ranks(each.layer)
            if reason := reason_against(method, each.layer, ranks):
                notes[each.name] = reason
            else:
                plan[each.name] = method, ranks
        return plan, free

    def _shared_out(
        self,
        graph: fx.GraphModule,
        subjects: Sequence[Subject],
        free: Sequence[Subject],
        plan: Plan,
        statistics: Mapping[str, Statistics],
    ) -> Plan:
        """What the layers that share the budget become."""
        assert self.budget is not None
        tables = {
            each.name: candidates(
                each, self._methods(self._rule(each.prunable)), self.cost, statistics[each.name]
            )
            for each in free
        }
        total = whole(graph, self.cost)
        fixed = total - sum(each.dense(self.cost) for each in free)
        for each in subjects:
            if each.name in plan:
                fixed += each.cost(*plan[each.name], self.cost) - each.dense(self.cost)
        found = chosen(tables, floor(self.budget * total + 1e-6) - fixed)
        if found is None:
            nearest = ceil((fixed + least(tables)) / total * 1e4) / 1e4
            raise RecipeError(
                f"factorize: budget = {self.budget:g} cannot be had: the smallest share of "
                f"{total:,} {self.cost} is {nearest:g}, with {fixed:,} that cannot be factored"
            )
        return {
            name: (each.method, each.ranks)
            for name, each in found.items()
            if each.method is not None
        }

    # What is done

    def _batches(self, graph: fx.GraphModule, data: Data) -> list[Batch]:
        size = batch_size(graph)
        values = [node.meta.get("val") for node in graph.graph.nodes if node.op != "get_attr"]
        largest = max(x.numel() // BATCH for x in values if isinstance(x, Tensor))
        samples = min(self.samples, max(MOST_VALUES // max(largest, 1), FEWEST_SAMPLES))
        return [inputs for inputs, _ in batches_of(graph, data, samples, size)]

    def _written(
        self,
        graph: fx.GraphModule,
        subjects: Sequence[Subject],
        plan: Plan,
        statistics: Mapping[str, Statistics],
        batches: Sequence[Batch],
    ) -> tuple[fx.GraphModule, dict[str, dict[str, object]]]:
        """A graph with the chains, and what the summary says of them."""
        choices = [Choice(each, *plan[each.name]) for each in subjects if each.name in plan]
        if batches:
            made = fitted(graph, choices, statistics, batches, self.seed)
        else:
            made = unfitted(choices, self.seed)
        chains = {}
        for choice, factored in made:
            if (tell := progress_of_pass()) is not None:
                tell(choice.subject.name)
            chains[choice.subject.name] = choice, factored
        module = copy_graph(graph)
        again = {each.name: each for each in find_prunable(module, embeddings=True)}
        layers, norms = {}, []
        for name, (choice, factored) in chains.items():
            subject = choice.subject
            if factored.shift is not None and subject.bias is not None:
                old = constant(module, subject.bias)
                replace_tensor(module, subject.bias, old.detach() + factored.shift)
            readers = readers_of(module, again[name])
            written = write_chain(module, readers, factored.chain, norms=self.batchnorm)
            norms += written.norms
            layers[name] = {
                "method": choice.method.name,
                "ranks": list(choice.ranks),
                "weights": subject.layer.size,
                "factors": parameters(factored.chain),
                "error": None if factored.error is None else float(f"{factored.error:.4g}"),
            }
        module = finish(module)
        if norms:
            measure_norms(module, norms, batches)
        return module, layers

    def _summary(
        self,
        graph: fx.GraphModule,
        module: fx.GraphModule,
        layers: Mapping[str, Mapping[str, Any]],
        notes: Mapping[str, str],
    ) -> dict[str, object]:
        weights, factors = (
            sum(each[key] for each in layers.values()) for key in ("weights", "factors")
        )
        kept = {key: whole(module, key) / whole(graph, key) for key in ("parameters", "macs")}
        return {
            "layers": layers,
            "kept": {key: float(f"{share:.4g}") for key, share in kept.items()},
            "notes": dict(notes),
            "remarks": [
                f"{weights:,} weights of {len(layers)} layers are {factors:,}; of the model "
                f"{kept['parameters']:.1%} of the parameters and {kept['macs']:.1%} of the "
                "multiply-adds are left",
                *(f"{name}: {note}" for name, note in notes.items()),
            ],
        }

    def _found(self, subjects: Sequence[Subject], plan: Plan) -> Factorize | None:
        """The pass with the ranks that a search found; None where names do not tell layers apart."""
        names = [name for each in subjects for name in each.prunable.layers]
        if not plan or len(set(names)) < len(names):
            return None
        layers = {
            escape(name): {"method": method.name, "rank": list(ranks)}
            for each in subjects
            if each.name in plan
            for name in each.prunable.layers[:1]
            for method, ranks in [plan[each.name]]
        }
        keys = {"budget": None, "cost": "parameters", "target": None, "quantize": {}}
        own = {"method": "svd", "include": tuple(layers), "exclude": (), "layers": layers}
        return replace(self, **keys, **own)
