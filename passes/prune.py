"""Weights set to zero, so that their multipliers need not be built.

By magnitude (Han et al. 2015, arXiv 1506.02626), by optimal brain damage (LeCun et al. 1990) or by
the optimal brain surgeon, layer by layer (Hassibi and Stork 1993; Frantar and Alistarh 2022, 2023).
What is zero afterwards stays zero through every later pass: see `facts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from typing import TYPE_CHECKING, Any, ClassVar

from torch import fx

from fxloom.editing import copy_graph
from fxloom.errors import CaptureError, DataError, RecipeError
from fxloom.facts import keep_zeros, sharing
from fxloom.graph import as_samples
from fxloom.passes.calibration import Batch, batch_size
from fxloom.passes.finetune import Finetune
from fxloom.passes.goals import choose, goals_of, keys_of, require_numbers, require_some_left
from fxloom.passes.patterns import Pattern
from fxloom.passes.prunable import Prunable
from fxloom.passes.pruning import Method, Pruning, Scope
from fxloom.passes.replacing import trained
from fxloom.passes.sparsity import Schedule, shares
from fxloom.passes.training import as_declared
from fxloom.quantized_ops import require_unrounded
from fxloom.recipe import PassResult, progress_of_pass
from fxloom.settings import build, typed_keys

if TYPE_CHECKING:
    from fxloom.data import Data

LAYER_KEYS = ("sparsity", "reuse")
STEPS = 5


@typed_keys(RecipeError)
@dataclass(frozen=True)
class Prune:
    """Weights of linear layers and convolutions set to zero for good; biases stay.

    sparsity: share of the weights that are zero afterwards, from 0 to below 1; those that are zero
    before count. method: which go; the smallest (magnitude), those that the outputs depend on least
    by their second derivatives (obd), or those without which each layer's outputs can be made up
    best by its other weights, which are changed accordingly (obs). scope: whether every layer loses
    that share (layer), or all together (global): of all weights the smallest, or those that matter
    least beside the variance of their layer's outputs; or as many of every layer as the outputs of
    the model bear, measured layer by layer (sensitivity). pattern: free; N:M, N weights that stay
    of every M, which says the sparsity; slots or words, all weights of a multiplier or all that are
    read in one cycle by a layer with this reuse factor (strategy resource). include, exclude:
    layers by name (fnmatch patterns). layers: another sparsity or reuse for the layers that match a
    pattern (the last match wins); they take no part in a common sparsity. embeddings: whether their
    rows are weights, too. refit: whether the weights that stay are fitted to the layer's outputs;
    None means by obs, which cannot do without. schedule: one_shot, or in several steps: by equal
    shares of what is left (iterative) or ever fewer weights (gradual). finetune: keys of the
    finetune pass, which then runs after every step. samples: how many training samples the pass
    looks at, evenly spaced.
    """

    name: ClassVar[str] = "prune"
    compresses: ClassVar[bool] = True

    sparsity: float | None = None
    method: Method = "magnitude"
    scope: Scope = "global"
    pattern: str = "free"
    reuse: int | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    layers: Mapping[str, Mapping[str, int | float]] = field(default_factory=dict)
    embeddings: bool = False
    refit: bool | None = None
    schedule: Schedule = "one_shot"
    steps: int | None = None
    finetune: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 1024

    def __post_init__(self) -> None:
        pattern = Pattern.parse(self.pattern)
        problems = [*self._sparsity_problems(pattern)]
        problems += self._layer_problems(pattern)
        if pattern.is_blocks != (self.reuse is not None) and not self._reuses_by_layer(pattern):
            problems.append(
                'reuse: required a factor with pattern = "slots" or "words", and only there, got '
                f"{self.reuse} with {pattern.kind}"
            )
        if self.reuse is not None and self.reuse < 1:
            problems.append(f"reuse: required at least 1, got {self.reuse}")
        if self.method == "obs" and (self.refit is False or self.embeddings):
            key = "embeddings" if self.embeddings else "refit"
            problems.append(
                f'{key}: required {str(key == "refit").lower()} with method = "obs", got '
                f"{str(getattr(self, key)).lower()}"
            )
        if self.steps is not None and (self.schedule == "one_shot" or self.steps < 2):
            problems.append(
                'steps: required at least 2, with schedule = "iterative" or "gradual", got '
                f'{self.steps} with "{self.schedule}"'
            )
        if self.samples < 1:
            problems.append(f"samples: required at least 1, got {self.samples}")
        problems += [f"finetune.{line}" for line in build(Finetune, self.finetune)[1]]
        if problems:
            raise RecipeError("\n".join(problems))

    def _sparsity_problems(self, pattern: Pattern) -> Iterator[str]:
        given = {"sparsity": self.sparsity} if self.sparsity is not None else {}
        for name, keys in self.layers.items():
            given |= {f'layers."{name}".sparsity': keys[key] for key in keys if key == "sparsity"}
        if pattern.sparsity is None and self.sparsity is None:
            yield "sparsity: required, but missing"
        for key, value in given.items():
            if pattern.sparsity not in (None, value):
                yield f'{key}: pattern = "{self.pattern}" makes it {pattern.sparsity}, got {value}'
            elif not 0 <= value < 1:
                yield f"{key}: required a share from 0 to below 1, got {value}"

    def _layer_problems(self, pattern: Pattern) -> Iterator[str]:
        for name, keys in self.layers.items():
            for key, value in keys.items():
                where = f'layers."{name}".{key}'
                if key not in LAYER_KEYS:
                    yield f"{where}: unknown key; allowed: {', '.join(LAYER_KEYS)}"
                elif key == "reuse" and not (isinstance(value, int) and value >= 1):
                    yield f"{where}: required an integer of at least 1, got {value}"
                elif key == "reuse" and not pattern.is_blocks:
                    yield f'{where}: is for pattern = "slots" or "words", got "{self.pattern}"'

    def _reuses_by_layer(self, pattern: Pattern) -> bool:
        return pattern.is_blocks and any("reuse" in keys for keys in self.layers.values())

    @property
    def needs_data(self) -> bool:
        """Whether there must be data."""
        by_data = self.method != "magnitude" or self.scope == "sensitivity"
        return by_data or bool(self.refit) or bool(self.finetune)

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        if data is None and self.needs_data:
            raise RecipeError(
                f'prune: required data for method = "{self.method}", scope = "{self.scope}", refit '
                "and finetune as they are here, got none"
            )
        require_unrounded(graph, "prune", "Put prune before quantize, which keeps the zeros")
        current, teacher = graph, graph
        steps = 1 if self.schedule == "one_shot" else self.steps or STEPS
        taken: list[dict[str, object]] = []
        for step in range(steps):
            if (tell := progress_of_pass()) is not None and steps > 1:
                tell(f"step {step + 1} of {steps}")
            current, run = self._step(current, teacher, data, step, steps)
            record: dict[str, object] = {"sparsity": _sparsity(self._chosen(current))}
            if self.finetune:
                current, record["finetune"] = self._trained(current, data, step)
                teacher = current
            taken.append(record)
        summary = self._summary(graph, current, run, taken)
        searched = self.scope == "sensitivity" and Pattern.parse(self.pattern).sparsity is None
        found = self._found(current) if searched else None
        return PassResult(current, True, summary, found)

    def _step(
        self,
        graph: fx.GraphModule,
        teacher: fx.GraphModule,
        data: Data | None,
        step: int,
        steps: int,
    ) -> tuple[fx.GraphModule, Pruning]:
        module = copy_graph(graph)
        chosen = self._chosen(module)
        require_numbers(chosen)
        _require_unshared(module, chosen)
        pattern = Pattern.parse(self.pattern)
        goals, common = goals_of(
            chosen,
            pattern,
            self.sparsity,
            self.reuse,
            self.layers,
            self.scope != "layer",
            lambda final: shares(self.schedule, steps, final)[step],
        )
        batches = list(self._batches(module, data)) if data is not None and self.needs_data else []
        refits = self.method == "obs" or bool(self.refit)
        run = Pruning(
            module, teacher, batches, self.method, self.scope, pattern, refits, goals, common
        )
        run.run()
        pruned = self._chosen(module)
        require_some_left(pruned)
        for each in pruned:
            for name in each.names:
                keep_zeros(module, name)
        return module, run

    def _chosen(self, module: fx.GraphModule) -> list[Prunable]:
        """The weights that the recipe speaks of."""
        return choose(module, self.include, self.exclude, self.layers, self.embeddings)

    def _batches(self, module: fx.GraphModule, data: Data) -> Iterator[Batch]:
        for batch in data.spread(self.samples, batch_size(module)):
            try:
                inputs = as_samples(module, batch)
            except CaptureError as error:
                raise DataError(f"training data: {error}") from None
            yield as_declared(module, inputs)

    def _trained(
        self, graph: fx.GraphModule, data: Data | None, step: int
    ) -> tuple[fx.GraphModule, dict[str, object]]:
        keys = dict(self.finetune)
        if keys.get("checkpoint") is not None:  # each training has a state of its own
            keys["checkpoint"] = f"{keys['checkpoint']}/step{step + 1}"
        return trained(graph, data, keys)

    def _summary(
        self,
        before: fx.GraphModule,
        after: fx.GraphModule,
        run: Pruning,
        taken: Sequence[Mapping[str, object]],
    ) -> dict[str, object]:
        """Weights and zeros of every layer, the squared error of its outputs relative to their
        variance (before a training that followed), what the steps reached, and notes."""
        pruned = self._chosen(after)
        layers: dict[str, dict[str, object]] = {}
        for each in pruned:
            layers[each.name] = {
                "weights": each.size,
                "kept": each.kept,
                "sparsity": _rounded(1 - each.kept / each.size),
            }
            if each.name in run.losses:
                layers[each.name]["loss"] = _rounded(run.losses[each.name])
        total = sum(each.size for each in pruned)
        zeros = total - sum(each.kept for each in pruned)
        return {
            "layers": layers,
            "steps": list(taken),
            "notes": run.notes,
            "remarks": [
                f"{zeros:,} of {total:,} weights of {len(layers)} layers are zero "
                f"({zeros / total:.1%})",
                *(f"{name}: {note}" for name, note in run.notes.items()),
            ],
        }

    def _found(self, graph: fx.GraphModule) -> Prune:
        """The pass that prunes as much of every layer without a search."""
        layers = {
            escape(name): {**keys, "sparsity": 1 - kept}
            for each in self._chosen(graph)
            for kept in [each.kept / each.size]
            for name in each.layers
            for keys in [keys_of(each, self.layers)]
        }
        return replace(self, scope="layer", layers=layers)


def _require_unshared(module: fx.GraphModule, chosen: Sequence[Prunable]) -> None:
    names = sharing(module).keys()
    if wrong := [each.name for each in chosen if not names.isdisjoint(each.names)]:
        raise RecipeError(
            f"prune: {', '.join(wrong)}: weights are shared, and those that are one number cannot "
            "go one by one. Put prune before what shares them, which keeps the zeros, or exclude "
            "these layers"
        )


def _sparsity(pruned: Sequence[Prunable]) -> float:
    zeros = sum(each.size - each.kept for each in pruned)
    return _rounded(zeros / max(sum(each.size for each in pruned), 1))


def _rounded(number: float) -> float:
    """For the report: later digits differ between machines."""
    return float(f"{number:.6g}")
