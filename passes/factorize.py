"""Layers factored into chains of smaller ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import fx, nn

from fxloom.errors import RecipeError
from fxloom.graph import constant
from fxloom.passes.decompositions import METHODS
from fxloom.passes.factor_subjects import Cost, Subject, layer_of, whole
from fxloom.passes.factor_writing import ENDINGS, obstacles, readers_of
from fxloom.passes.factorable import Method
from fxloom.passes.factoring import Factoring, Plan
from fxloom.passes.finetune import Finetune
from fxloom.passes.goals import keys_of
from fxloom.passes.hardware_budget import HardwareSharing, Unit
from fxloom.passes.prunable import Prunable
from fxloom.passes.quantize import Quantize
from fxloom.passes.rank_budget import Sharing
from fxloom.passes.rank_rules import Rule, reason_against
from fxloom.passes.replacing import replaceable, require_float, trained
from fxloom.recipe import PassResult
from fxloom.settings import build, typed_keys
from fxloom.target import Target

if TYPE_CHECKING:
    from fxloom.data import Data


@typed_keys(RecipeError)
@dataclass(frozen=True)
class Factorize:
    """Layers replaced by chains of smaller layers, where that saves; biases stay.

    method: svd (linear layers and convolutions: few outputs, and a linear layer or 1x1 behind),
    spatial (a column of the kernel, a row), tucker (1x1, kernel, 1x1), cp (1x1, depthwise, 1x1) or
    tt (tensor train); auto: with a budget, of all that take a layer the best. One of the next three
    says how far. rank: of every layer, one number for each rank of the method; "vbmf" finds what is
    more than noise in the weights (Nakajima 2013). energy: share of the squares of the weights that
    is kept. budget: share of the whole model's `cost` that is kept; the layers share it so that the
    model's outputs move least, and some stay as they are. cost: parameters, macs, or dsp or lut as
    C synthesis is estimated to report them on `target` (a part, or a TOML file) once quantized with
    the keys of `quantize`. include, exclude: layers by name (fnmatch patterns). What cannot be
    factored, or would save nothing, stays, and the summary says why; if a pattern other than "*"
    names it and it cannot, that is an error. layers: method, rank or energy of their own for layers
    that match a pattern (the last match wins). batchnorm: batch norms between the parts (Tai 2015).
    samples: training samples that say what layers give: each chain is fitted to that on what the
    factored layers before it give; without data the weights alone decide. seed: of what is random.
    finetune: keys of the finetune pass, which then runs. What a budget found is a factorize pass
    with ranks; `compile` writes it to found.toml.
    """

    name: ClassVar[str] = "factorize"
    compresses: ClassVar[bool] = True
    endings: ClassVar[tuple[str, ...]] = ENDINGS

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
        if self.method == "auto" and self.budget is None:
            yield 'method: "auto" is for a budget, which is not given'
        if self.budget is not None and not 0 < self.budget <= 1:
            yield f"budget: required a share above 0 and up to 1, got {self.budget:g}"
        for pattern, keys in self.layers.items():
            rule, wrong = build(Rule, keys)
            yield from (f'layers."{pattern}".{line}' for line in wrong)
            if rule is not None:
                yield from (f'layers."{pattern}".{line}' for line in rule.problems())
        for key in ("target", "quantize"):
            if getattr(self, key) and self.cost not in get_args(Unit):
                yield f"{key}: is for a cost of dsp or lut, got {self.cost}"
        yield from (f"quantize.{line}" for line in build(Quantize, self.quantize)[1])
        if self.cost != "parameters" and self.budget is None:
            yield f"cost: is for a budget, which is not given, got {self.cost}"
        if self.samples < 1:
            yield f"samples: required at least 1, got {self.samples}"
        if not 0 <= self.seed < 2**32:
            yield f"seed: required a number from 0 to 2**32 - 1, got {self.seed}"
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
        plan = self._plan(subjects, notes)
        factoring = Factoring.of(graph, subjects, data, self.samples, self.batchnorm, self.seed)
        is_search = self.budget is not None
        if self.budget is not None:
            assert data is not None
            free = [each for each in subjects if each.name not in {*plan, *notes}]
            methods = {each.name: self._methods(each.prunable) for each in free}
            plan = self._sharing(factoring, plan, methods, data).within(self.budget)
            notes |= {each.name: "it is worth its cost" for each in free if each.name not in plan}
        elif not plan:
            lines = [f"{name}: {note}" for name, note in notes.items()]
            raise RecipeError("\n".join(["factorize: no layer is left:", *lines]))
        if not plan:
            return PassResult(graph, False, self._summary(graph, graph, {}, notes))
        module, layers = factoring.written(plan)
        summary = self._summary(graph, module, layers, notes)
        if self.finetune:
            module, summary["finetune"] = trained(module, data, self.finetune)
        return PassResult(module, True, summary, self._found(subjects, plan) if is_search else None)

    def _sharing(
        self,
        factoring: Factoring,
        plan: Plan,
        methods: Mapping[str, Sequence[Method]],
        data: Data,
    ) -> Sharing | HardwareSharing:
        if self.cost == "parameters" or self.cost == "macs":
            return Sharing(factoring, plan, methods, self.cost)
        target = Target.load(self.target) if self.target else Target()
        quantize = Quantize(**self.quantize)
        return HardwareSharing(factoring, plan, methods, self.cost, target, quantize, data)

    def _rule(self, each: Prunable) -> Rule:
        method = None if self.method == "auto" else self.method
        own, problems = build(Rule, keys_of(each, self.layers))
        if own is None or (problems := list(own.problems())):  # of several patterns together
            raise RecipeError("\n".join(f"factorize: {each.name}: {line}" for line in problems))
        return own.over(Rule(method, self.rank, self.energy))

    def _methods(self, each: Prunable) -> Sequence[Method]:
        """By what a layer may be factored."""
        name = self._rule(each).method
        if name is not None:
            return [METHODS[name]]
        return list(METHODS.values()) if each.readers else [METHODS["svd"]]

    def _problems(self, graph: fx.GraphModule, each: Prunable) -> Iterator[str]:
        """What stands against factors in a layer's place."""
        if reason := next(obstacles(graph, each, self.batchnorm), ""):
            yield reason
            return
        if not isinstance(constant(graph, each.names[0]), nn.Parameter):
            yield "its weights are a buffer and no parameter"
            return
        layer, rule = layer_of(each, readers_of(graph, each)[0]), self._rule(each)
        methods = self._methods(each)
        if not each.readers and methods[0] is not METHODS["svd"]:
            yield f"it is an embedding: required svd, got {methods[0].name}"
        elif all(reasons := [method.problem(layer) for method in methods]):
            yield reasons[0]
        elif not rule.says and self.budget is None:
            yield "no rank is given for it"
        elif isinstance(rule.rank, int | tuple):
            yield reason_against(methods[0], layer, rule.ranks(layer, self.seed))

    def _plan(self, subjects: Sequence[Subject], notes: dict[str, str]) -> Plan:
        """What the recipe says itself. notes: gets why layers of which it does stay."""
        plan: Plan = {}
        for each in subjects:
            rule = self._rule(each.prunable)
            if not rule.says:
                continue
            method = METHODS[rule.method or "svd"]
            ranks = rule.ranks(each.layer, self.seed)
            if reason := reason_against(method, each.layer, ranks):
                notes[each.name] = reason
            else:
                plan[each.name] = method, ranks
        return plan

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
        kept = {cost: whole(module, cost) / max(whole(graph, cost), 1) for cost in get_args(Cost)}
        return {
            "layers": layers,
            "kept": {cost: float(f"{share:.4g}") for cost, share in kept.items()},
            "notes": dict(notes),
            "remarks": [
                f"{weights:,} weights of {len(layers)} layers are {factors:,}; of the model "
                f"{kept['parameters']:.1%} of the parameters and {kept['macs']:.1%} of the "
                "multiply-adds are left",
                *(f"{name}: {note}" for name, note in notes.items()),
            ],
        }

    def _found(self, subjects: Sequence[Subject], plan: Plan) -> Factorize | None:
        """The pass with the ranks that a search found; None where names are not of one layer."""
        names = [name for each in subjects for name in each.prunable.layers]
        if len(set(names)) < len(names):
            return None
        layers = {
            escape(each.prunable.layers[0]): {"method": method.name, "rank": ranks}
            for each in subjects
            if each.name in plan
            for method, ranks in [plan[each.name]]
        }
        return replace(
            self,
            method="svd",
            rank=None,
            energy=None,
            budget=None,
            cost="parameters",
            target=None,
            quantize={},
            include=tuple(layers),
            exclude=(),
            layers=layers,
        )
