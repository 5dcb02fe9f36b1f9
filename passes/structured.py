"""Linear layers as chains of diagonals that train and transforms that never change.

ACDC (Moczulski et al. 2015, arXiv 1511.05946) and Adaptive Fastfood (Yang et al. 2015, arXiv
1412.7149): instead of a matrix a layer has a few vectors. They begin where random inputs come out
most like those of the matrix, and `finetune` trains them. Afterwards these are ordinary products:
vectors are parameters, transforms constants beside them. The entries of fastfood's Hadamard
transforms are 1 and -1, which need no multipliers; those of ACDC's cosine transforms are rounded
and multiplied as any weight is, so that ACDC has fewer numbers to train
and no smaller hardware or file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.editing import copy_graph, finish, tensor_node
from fxloom.errors import RecipeError
from fxloom.facts import has_facts, share
from fxloom.graph import arguments
from fxloom.passes.goals import keys_of
from fxloom.passes.legalize.core import insert
from fxloom.passes.prunable import Prunable
from fxloom.passes.replacing import (
    is_read_otherwise,
    key_problems,
    replaceable,
    require_float,
    trained,
)
from fxloom.passes.transforms import Chain, Kind, chain_of, fit, numbers_of
from fxloom.recipe import PassResult, progress_of_pass
from fxloom.settings import typed_keys
from fxloom.sharing import Codebook

if TYPE_CHECKING:
    from fxloom.data import Data

aten = torch.ops.aten


@typed_keys(RecipeError)
@dataclass(frozen=True)
class Structured:
    """Linear layers replaced by chains of trained vectors and fixed transforms; biases stay.

    kind: acdc (two vectors and two cosine transforms a block) or fastfood (three vectors and two
    Hadamard transforms of a power of two). depth: blocks in a chain. include, exclude: layers by
    name (fnmatch patterns); the last layer, which decides, is best left out. What cannot be
    replaced, or has no more weights than the chain numbers, stays as it is, and the summary says
    why; if a pattern other than "*" names it, that is an error. layers: another depth for the
    layers that match a pattern (the last match wins). steps: of the search for vectors with which
    the chain is most like the matrix; 0 leaves them random. seed: of what is random. finetune: keys
    of the finetune pass, which then runs.
    """

    name: ClassVar[str] = "structured"
    compresses: ClassVar[bool] = True

    kind: Kind = "fastfood"
    depth: int = 1
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    steps: int = 300
    seed: int = 0
    finetune: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = list(key_problems("depth", self.depth, 1, self.layers, self.finetune))
        for key, value in (("steps", self.steps), ("seed", self.seed)):
            if not 0 <= value < 2**32:
                problems.append(f"{key}: required a number from 0 to 2**32 - 1, got {value}")
        if problems:
            raise RecipeError("\n".join(problems))

    @property
    def needs_data(self) -> bool:
        """Whether there must be data."""
        return bool(self.finetune)

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        require_float(graph, self.name, data, self.needs_data)
        module = copy_graph(graph)
        chosen, notes = replaceable(
            module,
            self.name,
            self.include,
            self.exclude,
            self.layers,
            lambda each: self._problems(module, each),
        )
        layers: dict[str, dict[str, object]] = {}
        for number, each in enumerate(chosen):
            if (tell := progress_of_pass()) is not None:
                tell(each.name)
            n_out, n_in = each.values.shape
            depth = self._depth(each)
            chain = chain_of(self.kind, depth, n_in, n_out, self.seed + number)
            chain, error = fit(chain, each.values, self.steps, self.seed + number)
            _replace(module, each.readers, chain, self.kind)
            layers[each.name] = {
                "weights": each.size,
                "trained": chain.numbers,
                "depth": depth,
                "error": float(f"{error:.4g}"),
            }
        module = finish(module)
        weights, numbers = (
            sum(int(str(each[key])) for each in layers.values()) for key in ("weights", "trained")
        )
        summary: dict[str, object] = {
            "layers": layers,
            "notes": notes,
            "remarks": [
                f"{weights:,} weights of {len(layers)} layers are {numbers:,} numbers beside fixed "
                f"transforms ({weights / numbers:.2f}x fewer)",
                *(f"{name}: {note}" for name, note in notes.items()),
            ],
        }
        if self.finetune:
            module, summary["finetune"] = trained(module, data, self.finetune)
        return PassResult(module, True, summary)

    def _depth(self, each: Prunable) -> int:
        return int(keys_of(each, self.layers).get("depth", self.depth))

    def _problems(self, module: fx.GraphModule, each: Prunable) -> Iterator[str]:
        """What stands against a chain in a layer's place."""
        if is_read_otherwise(module, each):
            yield "its weights are read in other ways as well"
            return
        if each.readers[0].target is not aten.linear.default:
            yield "it is no linear layer"
            return
        if has_facts(module, each.names):
            yield "its weights were pruned or shared: a chain has none of them"
        if not each.kept:
            yield "all of its weights are zero"
        n_out, n_in = each.values.shape
        depth = self._depth(each)
        numbers = numbers_of(self.kind, depth, n_in, n_out)
        if numbers >= each.size:
            yield (
                f"a chain of depth {depth} has {numbers:,} numbers for {n_in} inputs and {n_out} "
                f"outputs, and the matrix {each.size:,}"
            )


def _replace(module: fx.GraphModule, layers: Sequence[Node], chain: Chain, kind: Kind) -> None:
    """The chain in the place of a layer wherever it is called, its bias behind the last transform
    or vector."""
    first = layers[0]
    name = str(arguments(first)[1].target)
    vectors = [
        tensor_node(module, first, f"{name}_scale{number}", diagonal)
        for number, diagonal in enumerate(chain.diagonals)
    ]
    transforms = []
    for number, transform in enumerate(chain.transforms):
        fixed = tensor_node(module, first, f"{name}_{kind}{number}", transform, trained=False)
        if kind == "fastfood":  # rounded as what it is, not fitted
            signs = Codebook.of((transform < 0).to(torch.int64), 2)
            share(module, str(fixed.target), signs)
        transforms.append(fixed)
    for layer in layers:
        with module.graph.inserting_before(layer):
            value = _called(module, layer, vectors, transforms)
        layer.replace_all_uses_with(value)
        module.graph.erase_node(layer)


def _called(
    module: fx.GraphModule, layer: Node, vectors: Sequence[Node], transforms: Sequence[Node]
) -> Node:
    """The result of a chain, at the graph's insertion point."""
    value, _, bias = (*arguments(layer), None)[:3]
    for vector, transform in zip(vectors, transforms, strict=False):
        value = insert(module, layer, aten.mul.Tensor, value, vector)
        is_last = transform is transforms[-1] and len(vectors) == len(transforms)
        added = bias if is_last else None
        value = insert(module, layer, aten.linear.default, value, transform, added)
    for vector in vectors[len(transforms) :]:
        value = insert(module, layer, aten.mul.Tensor, value, vector)
        value = value if bias is None else insert(module, layer, aten.add.Tensor, value, bias)
    assert isinstance(value, Node)
    return value
