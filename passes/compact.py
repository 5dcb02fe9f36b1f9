"""Convolutions replaced by compact filters: fire modules, depthwise separable pairs, concatenated
rectifiers.

Fire: Iandola et al. 2016, arXiv 1602.07360. Depthwise separable: Howard et al. 2017, arXiv
1704.04861. CReLU: Shang et al. 2016, arXiv 1603.05201. Weights begin where outputs are nearest to
the original's, layer after layer: see `compact_blocks`, `compact_fitting` and `paired_filters`.
`finetune` trains them; they are ordinary layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from fxloom.editing import copy_graph, finish
from fxloom.errors import RecipeError
from fxloom.graph import arguments, constant, origin
from fxloom.passes.calibration import Batch
from fxloom.passes.channel_criteria import batches as batches_of
from fxloom.passes.compact_blocks import Block, Window, cast, fire, separable
from fxloom.passes.compact_choice import (
    Kind,
    Plan,
    costs,
    costs_after,
    figures,
    positions,
    problems,
    total,
)
from fxloom.passes.compact_fitting import (
    Seen,
    error_of,
    lifted,
    look,
    normed,
    relative,
    shifted,
    trained_block,
)
from fxloom.passes.compact_writing import ENDINGS, write_block
from fxloom.passes.finetune import Finetune
from fxloom.passes.fitting import MOST_INPUTS
from fxloom.passes.fold_batchnorm import FoldBatchnorm
from fxloom.passes.goals import keys_of
from fxloom.passes.layerwise import bias_of
from fxloom.passes.paired_filters import halve, opposite, write_halved
from fxloom.passes.prunable import Prunable
from fxloom.passes.refitting import following, refitted
from fxloom.passes.replacing import replaceable, require_float, trained
from fxloom.passes.second_order import refit
from fxloom.recipe import PassResult, progress_of_pass
from fxloom.settings import build, typed_keys

if TYPE_CHECKING:
    from fxloom.data import Data

aten = torch.ops.aten

Step = Literal["batchnorm", "relu"]

OF_LAYERS = {"fire": ("squeeze", "expand"), "separable": ("multiplier",), "crelu": ("threshold",)}
"""Keys that layers may have values of their own for."""


@typed_keys(RecipeError)
@dataclass(frozen=True)
class Compact:
    """Convolutions replaced by compact filters that begin near them; batch norms behind them stay.

    kind: separable (a kernel for each input channel, then 1x1), fire (a 1x1 squeeze, then 1x1 and
    the whole kernel side by side) or crelu (of filters that are opposite, in front of a rectifier,
    one is computed; linear layers as well; batch norms are folded before). squeeze: of fire,
    channels between over outputs; no more than tell the heads all that the layer reads. expand: of
    fire, share of the outputs that the 1x1 gives. multiplier: of separable, kernels for each input
    channel. threshold: of crelu, the cosine at most of which filters are opposite. between: what
    lies between the layers of a block, batchnorm or relu or both in this order; a fire module has
    relu unless this says otherwise. include, exclude: layers by name (fnmatch patterns). What
    cannot be replaced, or would not save parameters and multiply-adds, stays as it is, and the
    summary says why; if a pattern other than "*" names it, that is an error. layers: other values
    of squeeze, expand, multiplier or threshold for the layers that match a pattern (the last match
    wins). samples: how many training samples, where there are data, say what outputs should be;
    without, weights count alike. steps: of descent on those outputs where there is a relu between;
    seed: of its order. finetune: keys of the finetune pass, which then runs.
    """

    name: ClassVar[str] = "compact"
    compresses: ClassVar[bool] = True
    endings: ClassVar[tuple[str, ...]] = ENDINGS

    kind: Kind = "separable"
    squeeze: float = 0.25
    expand: float = 0.5
    multiplier: int = 1
    threshold: float = -0.7
    between: tuple[Step, ...] | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    layers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    samples: int = 512
    steps: int = 300
    seed: int = 0
    finetune: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if wrong := list(self._wrong()):
            raise RecipeError("\n".join(wrong))

    def _wrong(self) -> Iterator[str]:
        common = {key: getattr(self, key) for keys in OF_LAYERS.values() for key in keys}
        tables = [("", common)]
        for pattern, keys in self.layers.items():
            allowed = OF_LAYERS[self.kind]
            for key in keys.keys() - set(allowed):
                yield f'layers."{pattern}".{key}: unknown key; allowed: {", ".join(allowed)}'
            known = {key: value for key, value in keys.items() if key in allowed}
            tables.append((f'layers."{pattern}".', known))
        for where, keys in tables:
            for key, value in keys.items():
                if not _DEMANDS[key][0](value):
                    yield f"{where}{key}: required {_DEMANDS[key][1]}, got {value}"
        for key, least, most in (("samples", 1, 2**63), ("steps", 0, 2**32), ("seed", 0, 2**32)):
            if not least <= getattr(self, key) < most:
                yield f"{key}: required at least {least}, got {getattr(self, key)}"
        if self.between not in (None, (), ("relu",), ("batchnorm",), ("batchnorm", "relu")):
            yield 'between: required [], ["batchnorm"], ["relu"] or ["batchnorm", "relu"]'
        elif self.between and self.kind == "crelu":
            yield "between: crelu has no layers to put it between"
        yield from (f"finetune.{line}" for line in build(Finetune, self.finetune)[1])

    @property
    def needs_data(self) -> bool:
        """Whether there must be data."""
        return bool(self.finetune) or self._measures

    @property
    def _measures(self) -> bool:
        """Whether what lies between begins with what data say."""
        return "batchnorm" in (self.between or ()) or (
            self._is_rectified and self.kind == "separable"
        )

    @property
    def _is_rectified(self) -> bool:
        return self.kind == "fire" if self.between is None else "relu" in self.between

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        require_float(graph, self.name, data, bool(self.finetune))
        if data is None and self._measures:
            raise RecipeError(
                f"compact: between = {list(self.between or ())} of {self.kind} begins with what "
                "data say: required data, got none"
            )
        folded: dict[str, object] = {}
        original = graph
        if self.kind == "crelu":
            result = FoldBatchnorm()(graph)
            original, folded = result.graph, {"folded": result.summary["folded"]}
        module = copy_graph(original)
        chosen, notes = replaceable(
            *(module, self.name, self.include, self.exclude, self.layers),
            lambda each: problems(module, each, self._plan(each)),
        )
        batches: list[Batch] = []
        if data is not None:
            batches = [inputs for inputs, _ in batches_of(module, data, self.samples)]
        layers: dict[str, dict[str, object]] = {}
        for number, each in enumerate(chosen):
            if (tell := progress_of_pass()) is not None:
                tell(each.name)
            layers[each.name] = self._replaced(module, original, each, batches, number)
        behind = following(module, original) if batches else []
        for layer in behind:
            refitted(module, original, layer, batches)
        module = finish(module)
        summary: dict[str, object] = {
            "layers": layers,
            **folded,
            "fitted": [origin(layer) for layer in behind],
            "notes": notes,
            "remarks": [total(layers), *(f"{name}: {note}" for name, note in notes.items())],
        }
        if self.finetune:
            module, summary["finetune"] = trained(module, data, self.finetune)
        return PassResult(module, True, summary)

    def _plan(self, each: Prunable) -> Plan:
        """What is to take a layer's place."""
        keys = {key: getattr(self, key) for keys in OF_LAYERS.values() for key in keys}
        keys |= keys_of(each, self.layers)
        n_out = len(each.values)
        squeeze = max(round(keys["squeeze"] * n_out), 1)
        most = each.values.shape[1]  # of which the heads know all there is to know
        if self._is_rectified:  # opposite pairs
            squeeze, most = -(-squeeze // 2) * 2, 2 * most
        return Plan(
            kind=self.kind,
            squeeze=min(squeeze, most),
            points=min(round(keys["expand"] * n_out), n_out - 1),
            multiplier=int(keys["multiplier"]),
            threshold=keys["threshold"],
            rectified=self._is_rectified,
            normed="batchnorm" in (self.between or ()),
        )

    def _replaced(
        self,
        module: fx.GraphModule,
        original: fx.GraphModule,
        each: Prunable,
        batches: Sequence[Batch],
        number: int,
    ) -> dict[str, object]:
        """Put what is compact in the place of a layer; returns what the summary says of it."""
        plan, readers = self._plan(each), each.readers
        before = costs(each)
        weights = constant(module, arguments(readers[0])[1].target).detach().double().flatten(1)
        centred = all(arguments(reader)[2] is not None for reader in readers)
        seen = None
        if batches and weights.shape[1] <= MOST_INPUTS:
            seen = look(module, original, readers, batches)
        problem = None if seen is None else refit(weights[None], seen.moments, centred=centred)
        target = weights if problem is None else problem.target[0]
        if self.kind == "crelu":
            return _halved(module, each, plan, target, seen)
        metric = torch.eye(weights.shape[1]).double() if problem is None else problem.matrix[0]
        taps = prod(each.values.shape[2:])
        reads = (tuple(numbers) for numbers in arguments(readers[0])[3:6])
        window = Window(tuple(each.values.shape[2:]), *reads)
        shaped = target.reshape(len(target), -1, taps)
        if self.kind == "separable":
            block, error = separable(shaped, metric, window, plan.multiplier)
        else:
            sizes = plan.squeeze, plan.points
            block, error = fire(shaped, metric, window, *sizes, rectified=plan.rectified)
        block = cast(block, each.values.dtype)
        if seen is None and plan.rectified:
            block = block.with_zeros()
        elif seen is not None:
            block = self._settled(block, seen, centred, self.seed + number)
            error = error_of(block, seen.pairs)
            block = normed(block, seen.pairs) if plan.normed else block
        after = costs_after(each, plan)
        moved = write_block(module, readers, block, self.kind)
        return {
            **figures(before, after),
            "channels between": len(block.first.weight),
            "fitted to": "weights" if seen is None else "outputs",
            "error": float(f"{error:.4g}"),
            **({"put back in order": len(moved)} if moved else {}),
        }

    def _settled(self, block: Block, seen: Seen, centred: bool, seed: int) -> Block:
        """A block whose outputs are near to those that data want."""
        if not self._is_rectified:
            return shifted(block, seen.pairs) if centred else block
        if self.kind == "separable":
            block = lifted(block, seen.pairs)
        return trained_block(block, seen.pairs, self.steps, seed)


_DEMANDS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "squeeze": (lambda value: 0 < value <= 1, "a share above 0, at most 1"),
    "expand": (lambda value: 0 <= value < 1, "a share from 0 to below 1"),
    "multiplier": (lambda value: value >= 1 and value == int(value), "a whole number, at least 1"),
    "threshold": (lambda value: -1 <= value < 0, "a cosine from -1 to below 0"),
}


def _halved(
    module: fx.GraphModule,
    each: Prunable,
    plan: Plan,
    target: Tensor,
    seen: Seen | None,
) -> dict[str, object]:
    """Opposite filters computed once."""
    bias = bias_of(module, each.readers[0])
    metric: Tensor | None = None
    if bias is not None:
        bias = bias.double()
    variance: float | None = None
    if seen is not None:
        moments = seen.moments
        mean = moments.mean("x")[0]
        metric = moments.covariance("x", centred=False)[0]
        variance = float(((target @ moments.covariance("x")[0]) * target).sum())
        if bias is not None:
            ones = metric.new_ones(1)
            metric = torch.cat([metric, mean[None]])
            metric = torch.cat([metric, torch.cat([mean, ones])[:, None]], 1)
            bias = bias + moments.mean("y")[0] - target @ mean
    pairs = opposite(each.values.flatten(1), plan.threshold)
    halved = halve(target, bias, metric, pairs)
    before, places = costs(each), sum(positions(reader) for reader in each.readers)
    beside = write_halved(module, each.readers, halved)
    rows, inputs = halved.rows.shape
    biases = 0 if bias is None else rows
    multiplied = rows * inputs + beside
    error = relative(halved.error, halved.square, halved.square if variance is None else variance)
    return {
        **figures(before, (rows * inputs + biases + beside, multiplied * places)),
        "pairs": len(pairs),
        "fitted to": "weights" if seen is None else "outputs",
        "error": float(f"{error:.4g}"),
    }
