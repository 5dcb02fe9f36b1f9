"""Weights that are few different numbers, so that an index, or less, is stored for each.

By a codebook of centroids (Han et al. 2016, arXiv 1510.00149), by a hash of their place (Chen et
al. 2015, arXiv 1504.04788), or piece by piece from codewords (Gong et al. 2014, arXiv 1412.6115).
Which weights are one number stays so through every later pass: see `facts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from math import floor
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import fx

from fxloom.editing import copy_graph
from fxloom.errors import RecipeError
from fxloom.facts import keep_zeros, kept_weights, share, sharing
from fxloom.graph import constant
from fxloom.passes.allocation import cheapest
from fxloom.passes.codebooks import FLOAT_BITS, MOST_CLUSTERS, Coded, Weights
from fxloom.passes.finetune import Finetune
from fxloom.passes.fold_batchnorm import FoldBatchnorm
from fxloom.passes.goals import choose, keys_of, require_numbers
from fxloom.passes.prunable import Prunable
from fxloom.passes.replacing import trained
from fxloom.quantized_ops import require_unrounded
from fxloom.recipe import PassResult, progress_of_pass
from fxloom.settings import build, typed_keys
from fxloom.sharing import Codebook, classes_of, expanded

if TYPE_CHECKING:
    from fxloom.data import Data

SIZES: Mapping[str, tuple[str, ...]] = {
    "kmeans": ("clusters", "bits", "error", "budget"),
    "hashed": ("ratio",),
    "products": ("clusters", "bits"),
}
"""Of these keys one says how few numbers there are to be."""
MOST_BITS = 16
BUDGET_BITS = 8
"""Bits of an index up to which a budget is divided among layers."""


@typed_keys(RecipeError)
@dataclass(frozen=True)
class ShareWeights:
    """Weights of linear layers and convolutions made few numbers for good; biases stay.

    method: which weights are one number: by a codebook for each layer, with the least squared error
    (kmeans); by a hash of their place (hashed), which needs training behind it; or pieces of rows
    by codewords (products). Zeros stay zero and are in no codebook. clusters: numbers of a
    codebook; bits: the same by the bits of an index; error: as few as keep to a squared error
    relative to the squares of a layer's weights; budget: bits a weight in the mean over layers,
    indices and codebooks, zeros not counted, divided for the least sum of those errors. ratio: of
    hashed weights to the numbers that they become. dim: weights of a piece. groups: codebooks of a
    layer, each for as many neighbouring outputs. centroid_bits: of the fixed-point numbers that
    centroids are rounded to, in one format a layer; None leaves floats. include, exclude: layers by
    name (fnmatch patterns). layers: other sizes for the layers that match a pattern (the last match
    wins); they take no part in a budget. embeddings: whether their rows are weights, too. finetune:
    keys of the finetune pass, which then trains the numbers. seed: of hashes and of where codewords
    begin. Batch norms are folded first: they would scale the outputs of a layer apart.
    """

    name: ClassVar[str] = "share_weights"
    compresses: ClassVar[bool] = True

    method: Literal["kmeans", "hashed", "products"] = "kmeans"
    clusters: int | None = None
    bits: int | None = None
    error: float | None = None
    budget: float | None = None
    ratio: float | None = None
    dim: int | None = None
    groups: int = 1
    centroid_bits: int | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    layers: Mapping[str, Mapping[str, int | float]] = field(default_factory=dict)
    embeddings: bool = False
    finetune: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [*self._problems()]
        problems += [f"finetune.{line}" for line in build(Finetune, self.finetune)[1]]
        if problems:
            raise RecipeError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        sizes = SIZES[self.method]
        every = ("clusters", "bits", "error", "budget", "ratio", "dim", "groups", "centroid_bits")
        given = {key: getattr(self, key) for key in (*every, "seed")}
        named = [key for key in sizes if given[key] is not None]
        if len(named) != 1:
            yield (
                f'required one of {", ".join(sizes)} with method = "{self.method}", got '
                f"{', '.join(named) or 'none'}"
            )
        if self.method == "products" and self.dim is None:
            yield 'dim: required with method = "products", but missing'
        own = {"kmeans": ("groups",), "products": ("dim",)}.get(self.method, ())
        for key in every[:-1]:
            if key not in (*sizes, *own) and given[key] != getattr(ShareWeights, key):
                yield f'{key}: is not for method = "{self.method}", got {given[key]}'
        for pattern, keys in self.layers.items():
            allowed = [key for key in (*sizes, *own) if key not in ("budget", "groups")]
            for key, value in keys.items():
                if key not in allowed:
                    where = f'layers."{pattern}".{key}'
                    yield f"{where}: unknown key; allowed: {', '.join(allowed)}"
                else:
                    given[f'layers."{pattern}".{key}'] = value
            if len(keys.keys() & set(sizes)) > 1:
                yield f'layers."{pattern}": required at most one of {", ".join(allowed)}'
        for where, value in given.items():
            holds, demand = _DEMANDS[where.rpartition(".")[2]]
            if value is not None and not holds(value):
                yield f"{where}: required {demand}, got {value}"

    @property
    def needs_data(self) -> bool:
        """Whether there must be data."""
        return bool(self.finetune)

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        if data is None and self.needs_data:
            raise RecipeError("share_weights: required data for finetune, got none")
        before = "Put share_weights before quantize, which keeps what is shared"
        require_unrounded(graph, "share_weights", before)
        folded = FoldBatchnorm()(graph)
        module = copy_graph(folded.graph)
        chosen = self._chosen(module)
        self._require_fit(module, chosen)
        weights = {each: self._weights(module, each) for each in chosen}
        clusters = self._clusters(weights)
        records: dict[str, dict[str, object]] = {}
        for number, (each, held) in enumerate(weights.items(), 1):
            if (tell := progress_of_pass()) is not None:
                tell(f"layer {number} of {len(weights)}, {each.name}")
            coded = self._coded(each, held, clusters.get(each), number)
            records[each.name] = self._record(held, coded)
            _write(module, each, held, coded)
        summary: dict[str, object] = {"layers": records, "folded": folded.summary["folded"]}
        if self.finetune:
            module, summary["finetune"] = self._trained(module, data)
        summary["remarks"] = list(self._remarks(records))
        searched = {"error", "budget"} & {
            *(key for key in SIZES["kmeans"] if getattr(self, key) is not None),
            *(key for keys in self.layers.values() for key in keys),
        }
        return PassResult(module, True, summary, self._found(clusters) if searched else None)

    def _chosen(self, module: fx.GraphModule) -> list[Prunable]:
        """The weights that the recipe speaks of."""
        found = choose(module, self.include, self.exclude, self.layers, self.embeddings, self.name)
        require_numbers(found, self.name)
        return found

    def _require_fit(self, module: fx.GraphModule, chosen: Sequence[Prunable]) -> None:
        """Raise RecipeError listing all layers that cannot be shared so, and why."""
        problems, had = [], sharing(module)
        for each in chosen:
            views = {(constant(module, name).shape, constant(module, name).stride())
                     for name in each.names}  # fmt: skip
            if not had.keys().isdisjoint(each.names):
                text = had[next(name for name in each.names if name in had)].identity[0]
                problems.append(f"{each.name}: its weights are shared already: {text}")
            elif each.transposed and (self.method != "kmeans" or self.groups > 1):
                problems.append(
                    f"{each.name}: a transposed convolution's weights move when it is compiled, "
                    'which only method = "kmeans" with groups = 1 follows'
                )
            elif len(views) > 1 and self.method != "kmeans":
                problems.append(
                    f"{each.name}: another layer reads these weights transposed, which only method "
                    '= "kmeans" follows'
                )
            elif self.groups > len(each.values):
                problems.append(f"{each.name}: {self.groups} groups of {len(each.values)} outputs")
        if problems:
            lines = "\n".join(problems)
            raise RecipeError(f"share_weights: {lines}. Exclude these layers")

    def _weights(self, module: fx.GraphModule, each: Prunable) -> Weights:
        kept = kept_weights(module, each.names[0])
        if kept is None and each.kept < each.size:
            kept = each.is_nonzero()
        return Weights(each.values, kept, self.centroid_bits, self.groups)

    def _size(self, each: Prunable) -> dict[str, Any]:
        """The key that says how few numbers a layer has, and its dim."""
        own = keys_of(each, self.layers)
        found = {key: getattr(self, key) for key in SIZES[self.method]}
        if own.keys() & found.keys():
            found = {key: own.get(key) for key in found}
        return {**found, "dim": own.get("dim", self.dim)}

    def _clusters(self, weights: Mapping[Prunable, Weights]) -> dict[Prunable, int]:
        """Numbers of a codebook, of the layers that have codebooks."""
        found: dict[Prunable, int] = {}
        for each, held in weights.items():
            size = self._size(each)
            if size.get("clusters") is not None:
                found[each] = int(size["clusters"])
            elif size.get("bits") is not None:
                found[each] = 1 << int(size["bits"])
            elif size.get("error") is not None:
                fewest = held.fewest(float(size["error"]))
                if fewest is None:
                    raise RecipeError(
                        f"share_weights: {each.name}: no codebook of up to {MOST_CLUSTERS} numbers "
                        f"keeps to error = {size['error']:g}. Choose a larger one, or more "
                        "centroid_bits"
                    )
                found[each] = fewest
        if self.budget is not None:
            pool = {each: held for each, held in weights.items() if each not in found}
            found |= self._divided(pool)
        return found

    def _divided(self, pool: Mapping[Prunable, Weights]) -> dict[Prunable, int]:
        """A codebook size for each layer, within the budget that they share."""
        assert self.budget is not None
        if not pool:
            return {}
        bits = np.arange(1, BUDGET_BITS + 1)
        centroid = self.centroid_bits or FLOAT_BITS
        sizes = np.array(
            [held.size * bits + held.books * (1 << bits) * centroid for held in pool.values()]
        )
        harm = np.array([held.errors(1 << BUDGET_BITS)[(1 << bits) - 1] for held in pool.values()])
        total = sum(held.size for held in pool.values())
        found = cheapest(harm, sizes, floor(self.budget * total))
        if found is None:
            least = float(sizes.min(1).sum() / total)
            raise RecipeError(
                f"share_weights: budget: required at least {least + 5e-4:.3f} bits a weight, with "
                f"which every codebook has two numbers, got {self.budget:g}"
            )
        return {each: 1 << int(bits[place]) for each, place in zip(pool, found, strict=True)}

    def _coded(self, each: Prunable, held: Weights, clusters: int | None, number: int) -> Coded:
        if self.method == "hashed":
            ratio = float(self._size(each)["ratio"])
            # Layers of one shape have hashes of their own.
            seed = (self.seed * 1_000_003 + number) % 2**32
            return held.by_hash(max(round(held.size / ratio), 1), seed)
        assert clusters is not None
        if self.method == "products":
            return held.by_products(clusters, int(self._size(each)["dim"]), self.seed)
        return held.by_kmeans(clusters)

    def _record(self, held: Weights, coded: Coded) -> dict[str, object]:
        """For the summary: bits a weight are those of indices and numbers, zeros not counted."""
        shared = coded.shared
        numbers = shared.classes * (self.centroid_bits or FLOAT_BITS)
        bits = shared.index_bits(held.size) + numbers
        return {
            "weights": held.values.numel(),
            "kept": held.size,
            "clusters": shared.size if isinstance(shared, Codebook) else shared.classes,
            "numbers": shared.classes,
            "error": _rounded(held.error(coded)),
            "bits": _rounded(bits / max(held.size, 1)),
        }

    def _trained(
        self, graph: fx.GraphModule, data: Data | None
    ) -> tuple[fx.GraphModule, dict[str, object]]:
        """The numbers trained, and rounded again where they have a format."""
        module, reached = trained(graph, data, self.finetune)
        if self.centroid_bits is not None:
            module = copy_graph(module)
            for each in self._chosen(module):
                shared = sharing(module)[each.names[0]]
                held = self._weights(module, each)
                _write(module, each, held, held.again(shared))
        return module, reached

    def _remarks(self, records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        kept = sum(each["kept"] for each in records.values())
        numbers = sum(each["numbers"] for each in records.values())
        bits = sum(each["kept"] * each["bits"] for each in records.values()) / max(kept, 1)
        yield (
            f"{kept:,} weights of {len(records)} layers are {numbers:,} numbers: {bits:.2f} bits a "
            f"weight, indices and numbers, where floats have {FLOAT_BITS}"
        )
        if self.method == "hashed" and not self.finetune:
            yield "hashed weights begin as means of unrelated ones: train them (finetune)"

    def _found(self, clusters: Mapping[Prunable, int]) -> ShareWeights:
        """The pass that makes the same codebooks without a search."""
        layers = {escape(name): {"clusters": size} for each, size in clusters.items()
                  for name in each.layers}  # fmt: skip
        most = max(clusters.values())
        return replace(self, error=None, budget=None, bits=None, clusters=most, layers=layers)


def _write(module: fx.GraphModule, each: Prunable, held: Weights, coded: Coded) -> None:
    """Put coded weights in the place of a tensor, and state what is known of them."""
    numbers = coded.numbers.to(held.values.dtype)
    each.write(module, expanded(coded.shared, numbers, held.kept))
    first = constant(module, each.names[0])
    for name in each.names:
        alias = constant(module, name)
        if (alias.shape, alias.stride()) == (first.shape, first.stride()):
            kept, shared = held.kept, coded.shared
        else:  # the same weights, seen transposed
            classes = each.seen_as(alias, classes_of(coded.shared))
            kept = None if held.kept is None else each.seen_as(alias, held.kept)
            shared = Codebook.of(classes, coded.shared.classes)
        if kept is not None:
            keep_zeros(module, name, kept)
        share(module, name, shared)


def _rounded(number: float) -> float:
    """For the report: later digits differ between machines."""
    return float(f"{number:.6g}")


_DEMANDS: Mapping[str, tuple[Any, str]] = {
    "clusters": (lambda n: isinstance(n, int) and 1 <= n <= 1 << MOST_BITS,
                 f"an integer from 1 to {1 << MOST_BITS}"),
    "bits": (lambda n: isinstance(n, int) and 1 <= n <= MOST_BITS,
             f"an integer from 1 to {MOST_BITS}"),
    "error": (lambda x: 0 < x < 1, "a number between 0 and 1"),
    "budget": (lambda x: 0 < x < 1e6, "a number above 0"),
    "ratio": (lambda x: 1 <= x < 1e12, "a number of at least 1"),
    "dim": (lambda n: isinstance(n, int) and n >= 1, "an integer of at least 1"),
    "groups": (lambda n: n >= 1, "at least 1"),
    "centroid_bits": (lambda n: 2 <= n <= 32, "2 to 32 bits"),
    "seed": (lambda n: 0 <= n < 2**32, "a number from 0 to 2**32 - 1"),
}  # fmt: skip
