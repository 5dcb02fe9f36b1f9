"""Convolutions replaced by compact filters: fire modules, depthwise separable pairs, concatenated
rectifiers.

Fire: Iandola et al. 2016, arXiv 1602.07360. Depthwise separable: Howard et al. 2017, arXiv
1704.04861. CReLU: Shang et al. 2016, arXiv 1603.05201. Weights begin where outputs are nearest to
the original's, layer after layer: see `compact_blocks`, `compact_fitting` and `paired_filters`.
`finetune` trains them; they are ordinary layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import copy_graph, finish
from fxloom.errors import RecipeError
from fxloom.facts import facts, sharing
from fxloom.graph import BATCH, arguments, constant, origin
from fxloom.passes.calibration import Batch
from fxloom.passes.channel_criteria import batches as batches_of
from fxloom.passes.compact_blocks import Block, Window, cast, fire, separable
from fxloom.passes.compact_fitting import (
    Seen,
    bias_of,
    error_of,
    following,
    lifted,
    look,
    normed,
    refitted,
    shifted,
    trained_block,
)
from fxloom.passes.compact_writing import write_block
from fxloom.passes.finetune import Finetune
from fxloom.passes.fitting import MOST_INPUTS
from fxloom.passes.fold_batchnorm import FoldBatchnorm
from fxloom.passes.goals import keys_of
from fxloom.passes.paired_filters import halve, opposite, write_halved
from fxloom.passes.prunable import Prunable
from fxloom.passes.replacing import replaceable, require_float, trained
from fxloom.passes.second_order import refit
from fxloom.recipe import PassResult, progress_of_pass
from fxloom.settings import build, convert, known_keys

if TYPE_CHECKING:
    from fxloom.data import Data

aten = torch.ops.aten

Kind = Literal["fire", "separable", "crelu"]
Step = Literal["batchnorm", "relu"]

OF_LAYERS = {"fire": ("squeeze", "expand"), "separable": ("multiplier",), "crelu": ("threshold",)}
"""Keys that layers may have values of their own for."""


@known_keys(RecipeError)
@dataclass(frozen=True)
class Compact:
    """Convolutions replaced by compact filters that begin near them; batch norms behind them stay.

    kind: separable (a kernel for each input channel, then 1x1), fire (a 1x1 squeeze, then 1x1 and
    the whole kernel side by side) or crelu (of filters that are opposite, in front of a rectifier,
    one is computed; linear layers as well; batch norms are folded before). squeeze: of fire,
    channels between over outputs. expand: of fire, share of the outputs that the 1x1 gives.
    multiplier: of separable, kernels for each input channel. threshold: of crelu, the cosine at
    most of which filters are opposite. between: what lies between the layers of a block, batchnorm
    or relu or both in this order; a fire module has relu unless this says otherwise. include,
    exclude: layers by name (fnmatch patterns). What cannot be replaced, or would not save
    parameters and multiply-adds, stays as it is, and the summary says why; if a pattern other than
    "*" names it, that is an error. layers: other values of squeeze, expand, multiplier or threshold
    for the layers that match a pattern (the last match wins). samples: how many training samples,
    where there are data, say what outputs should be; without, weights count alike. steps: of
    descent on those outputs where there is a relu between; seed: of its order. finetune: keys of
    the finetune pass, which then runs.
    """

    name: ClassVar[str] = "compact"
    compresses: ClassVar[bool] = True

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
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        converted, problems = convert(Compact, values)
        if problems:
            raise RecipeError("\n".join(problems))
        for name, value in converted.items():
            object.__setattr__(self, name, value)
        if problems := list(self._wrong()):
            raise RecipeError("\n".join(problems))

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
        return self._is_normed or (self._is_rectified and self.kind == "separable")

    @property
    def _is_rectified(self) -> bool:
        return self.kind == "fire" if self.between is None else "relu" in self.between

    @property
    def _is_normed(self) -> bool:
        return "batchnorm" in (self.between or ())

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
            lambda each: self._problems(module, each),
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
            "remarks": [_total(layers), *(f"{name}: {note}" for name, note in notes.items())],
        }
        if self.finetune:
            module, summary["finetune"] = trained(module, data, self.finetune)
        return PassResult(module, True, summary)

    # What stands against it --------------------------------------------------------------------

    def _problems(self, module: fx.GraphModule, each: Prunable) -> Iterator[str]:
        reading = {
            user
            for node in module.graph.find_nodes(op="get_attr")
            for user in node.users
            if node.target in each.names
        }
        if not each.readers or reading != set(each.readers):
            yield "its weights are read in other ways as well"
            return
        if each.transposed:
            yield "it is a transposed convolution"
        if each.groups > 1:
            yield f"it is a convolution with {each.groups} groups"
        if any(reader.meta.get("tied") for reader in each.readers):
            yield "it is a part of a recurrence"
        biases = [arguments(reader)[2] for reader in each.readers]
        if any(bias is not None and bias.op != "get_attr" for bias in biases):
            yield "its bias is computed"
        if facts(module).keys() & set(each.names) or sharing(module).keys() & set(each.names):
            yield "its weights were pruned or shared: put compact before that"
        if not each.kept:
            yield "all of its weights are zero"
        if self.kind == "crelu":
            yield from self._unpaired(each, biases)
        else:
            yield from self._unsuitable(each)

    def _unpaired(self, each: Prunable, biases: Sequence[Node | None]) -> Iterator[str]:
        if not all(_is_rectified(reader) for reader in each.readers):
            yield "no relu alone reads its outputs"
        if len(set(biases)) > 1:
            yield "its calls have biases of their own"
        threshold = self._key(each, "threshold")
        if not opposite(each.values.flatten(1), threshold):
            yield f"no two filters have a cosine of at most {threshold:g}"

    def _unsuitable(self, each: Prunable) -> Iterator[str]:
        if each.readers[0].target is not aten.convolution.default:
            yield "it is no convolution"
            return
        kernel = tuple(each.values.shape[2:])
        shown = "x".join(str(size) for size in kernel)
        if max(kernel) == 1:
            yield f"its kernel is {shown}"
            return
        if self.kind == "fire" and not all(size % 2 for size in kernel):
            yield f"a fire module needs a kernel with a middle, and this one is {shown}"
            return
        before, after = _costs(each), self._costs_after(each)
        for what, had, has in zip(("parameters", "multiply-adds"), before, after, strict=True):
            if has >= had:
                yield f"it would have {has:,} {what} instead of {had:,}"

    # Sizes ----------------------------------------------------------------------------------------

    def _key(self, each: Prunable, key: str) -> float:
        return float(keys_of(each, self.layers).get(key, getattr(self, key)))

    def _squeeze(self, each: Prunable) -> int:
        """Channels between, an even number where they are opposite pairs."""
        count = max(round(self._key(each, "squeeze") * len(each.values)), 1)
        return -(-count // 2) * 2 if self._is_rectified else count

    def _points(self, each: Prunable) -> int:
        """Outputs of the 1x1 head; the other one has one at least."""
        n_out = len(each.values)
        return min(max(round(self._key(each, "expand") * n_out), 0), n_out - 1)

    def _costs_after(self, each: Prunable) -> tuple[int, int]:
        """Parameters and multiply-adds of the block."""
        n_out, channels = each.values.shape[:2]
        taps = prod(each.values.shape[2:])
        if self.kind == "separable":
            between = channels * int(self._key(each, "multiplier"))
            first, last = between * taps, between * n_out
        else:
            between, points = self._squeeze(each), self._points(each)
            first, last = channels * between, between * (points + (n_out - points) * taps)
        vectors = between * (2 if self._is_normed else 1 if self._is_rectified else 0)
        biases = [] if not self._is_rectified else [
            n_out for reader in each.readers if arguments(reader)[2] is None
        ][:1]  # fmt: skip
        macs = 0
        for reader in each.readers:
            outside = _positions(reader)
            inside = outside if self.kind == "separable" else _positions(arguments(reader)[0])
            macs += first * inside + last * outside
        return first + last + vectors + sum(biases) + _bias_numbers(each), macs

    # Replacing ------------------------------------------------------------------------------------

    def _replaced(
        self,
        module: fx.GraphModule,
        original: fx.GraphModule,
        each: Prunable,
        batches: Sequence[Batch],
        number: int,
    ) -> dict[str, object]:
        """Put what is compact in the place of a layer; returns what the summary says of it."""
        before = _costs(each)
        readers = each.readers
        weights = constant(module, arguments(readers[0])[1].target).detach().double().flatten(1)
        centred = all(arguments(reader)[2] is not None for reader in readers)
        seen = None
        if batches and weights.shape[1] <= MOST_INPUTS:
            seen = look(module, original, readers, batches)
        target, metric = weights, torch.eye(weights.shape[1], dtype=torch.float64)
        if seen is not None:
            problem = refit(weights[None], seen.moments, centred=centred)
            target, metric = problem.target[0], problem.matrix[0]
        if self.kind == "crelu":
            return self._halved(module, each, before, target, seen)
        taps = prod(each.values.shape[2:])
        window = _window(readers[0], tuple(each.values.shape[2:]))
        shaped = target.reshape(len(target), -1, taps)
        if self.kind == "separable":
            multiplier = int(self._key(each, "multiplier"))
            block, error = separable(shaped, metric, window, multiplier)
        else:
            sizes = self._squeeze(each), self._points(each)
            block, error = fire(shaped, metric, window, *sizes, rectified=self._is_rectified)
        block = cast(block, each.values.dtype)
        if seen is None and self._is_rectified:
            block = block.with_zeros()
        elif seen is not None:
            block = self._settled(block, seen, centred, self.seed + number)
            error = error_of(block, seen.pairs)
            block = normed(block, seen.pairs) if self._is_normed else block
        after = self._costs_after(each)
        moved = write_block(module, readers, block, self.kind)
        return {
            **_figures(before, after),
            "channels between": len(block.first.weight),
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

    def _halved(
        self,
        module: fx.GraphModule,
        each: Prunable,
        before: tuple[int, int],
        target: Tensor,
        seen: Seen | None,
    ) -> dict[str, object]:
        """Opposite filters computed once."""
        bias = bias_of(module, each.readers[0])
        size = target.shape[1] + (bias is not None)
        metric = torch.eye(size, dtype=torch.float64)
        if bias is not None:
            bias = bias.double()
        power = float(target.square().sum())
        if seen is not None:
            moments = seen.moments
            mean = moments.mean("x")[0]
            metric = moments.covariance("x", centred=False)[0]
            power = float(((target @ moments.covariance("x")[0]) * target).sum())
            if bias is not None:
                ones = metric.new_ones(1)
                metric = torch.cat([metric, mean[None]])
                metric = torch.cat([metric, torch.cat([mean, ones])[:, None]], 1)
                bias = bias + moments.mean("y")[0] - target @ mean
        pairs = opposite(each.values.flatten(1), self._key(each, "threshold"))
        halved = halve(target, bias, metric, pairs)
        positions = sum(_positions(reader) for reader in each.readers)
        beside = write_halved(module, each.readers, halved)
        rows, inputs = halved.rows.shape
        biases = 0 if bias is None else rows
        multiplied = rows * inputs + beside
        error = halved.error / max(power, torch.finfo(torch.float64).tiny)
        return {
            **_figures(before, (rows * inputs + biases + beside, multiplied * positions)),
            "pairs": len(pairs),
            "error": float(f"{error:.4g}"),
        }


_DEMANDS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "squeeze": (lambda value: 0 < value <= 1, "a share above 0, at most 1"),
    "expand": (lambda value: 0 <= value < 1, "a share from 0 to below 1"),
    "multiplier": (lambda value: value >= 1 and value == int(value), "a whole number, at least 1"),
    "threshold": (lambda value: -1 <= value < 0, "a cosine from -1 to below 0"),
}


def _is_rectified(layer: Node) -> bool:
    """Whether a relu reads a layer, at once or behind a maximum, and nothing else does."""
    users = list(layer.users)
    maxima = (aten.max_pool1d.default, aten.max_pool2d.default)
    if len(users) == 1 and users[0].target in maxima:
        return _is_rectified(users[0])
    return len(users) == 1 and users[0].target is aten.relu.default


def _window(layer: Node, kernel: tuple[int, ...]) -> Window:
    stride, padding, dilation = (tuple(each) for each in arguments(layer)[3:6])
    return Window(kernel, stride, padding, dilation)


def _positions(node: Node) -> int:
    """Where a layer's weights are used in one sample: places of its value that are no channels."""
    value = node.meta["val"]
    channels = value.shape[1 if node.target is not aten.linear.default else -1]
    return int(value.numel() // (BATCH * channels))


def _bias_numbers(each: Prunable) -> int:
    """Numbers of the biases of all calls."""
    found = {arguments(reader)[2] for reader in each.readers} - {None}
    return len(each.values) * len(found)


def _costs(each: Prunable) -> tuple[int, int]:
    """Parameters and multiply-adds of a layer."""
    positions = sum(_positions(reader) for reader in each.readers)
    return each.size + _bias_numbers(each), each.size * positions


def _figures(before: tuple[int, int], after: tuple[int, int]) -> dict[str, object]:
    return {
        "parameters": before[0],
        "parameters_after": after[0],
        "macs": before[1],
        "macs_after": after[1],
    }


def _total(layers: Mapping[str, Mapping[str, object]]) -> str:
    """What was saved, in a sentence."""

    def counted(key: str) -> tuple[int, int]:
        had, has = (
            sum(int(str(each[name])) for each in layers.values()) for name in (key, f"{key}_after")
        )
        return had, has

    (had, has), (did, does) = counted("parameters"), counted("macs")
    return (
        f"{had:,} parameters and {did:,} multiply-adds of {len(layers)} layers are {has:,} "
        f"({had / has:.2f}x fewer) and {does:,} ({did / does:.2f}x)"
    )
