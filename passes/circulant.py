"""Weights whose blocks are circulant: of a block of k inputs by k outputs k numbers are left.

Each matrix becomes the nearest block-circulant one in least squares, whose diagonals, wrapped
around in their blocks, are their means (Cheng et al. 2015, arXiv 1502.03436; Ding et al. 2017,
CirCNN, arXiv 1708.08917). Trained networks are not nearly circulant: `finetune` afterwards trains
the numbers that are left, and `quantize` rounds them as such, so that the integers are
block-circulant to the last bit and the hardware stores one value a diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import fx

from fxloom.editing import copy_graph
from fxloom.errors import RecipeError
from fxloom.facts import facts, share, sharing
from fxloom.graph import constant
from fxloom.passes.fold_batchnorm import FoldBatchnorm
from fxloom.passes.goals import keys_of
from fxloom.passes.prunable import Prunable
from fxloom.passes.replacing import key_problems, replaceable, require_float, trained
from fxloom.recipe import PassResult
from fxloom.settings import typed_keys
from fxloom.sharing import Circulant as Blocks
from fxloom.sharing import expanded, holds, means

if TYPE_CHECKING:
    from fxloom.data import Data


@typed_keys(RecipeError)
@dataclass(frozen=True)
class Circulant:
    """Block-circulant weights of linear layers and convolutions; biases stay.

    block: inputs and outputs of a block, of which as many numbers are left as it has inputs; of a
    convolution every position of its kernel is a matrix of its own. include, exclude: layers by
    name (fnmatch patterns); the last layer, which decides, is best left out. What cannot be
    block-circulant stays as it is, and the summary says why; if a pattern other than "*" names it,
    that is an error. layers: another block for the layers that match a pattern (the last match
    wins). finetune: keys of the finetune pass, which then runs. Batch norms are folded before.
    """

    name: ClassVar[str] = "circulant"
    compresses: ClassVar[bool] = True

    block: int = 4
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = list(key_problems("block", self.block, 2, self.layers, self.finetune))
        if problems:
            raise RecipeError("\n".join(problems))

    @property
    def needs_data(self) -> bool:
        """Whether there must be data."""
        return bool(self.finetune)

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        require_float(graph, self.name, data, self.needs_data)
        folded = FoldBatchnorm()(graph)
        module = copy_graph(folded.graph)
        chosen, notes = replaceable(
            module,
            self.name,
            self.include,
            self.exclude,
            self.layers,
            lambda each: _problems(module, each, self._block(each)),
        )
        layers = {each.name: self._made(module, each) for each in chosen}
        summary: dict[str, object] = {
            "layers": layers,
            "folded": folded.summary["folded"],
            "notes": notes,
            "remarks": [_total(layers), *(f"{name}: {note}" for name, note in notes.items())],
        }
        if self.finetune:
            module, summary["finetune"] = trained(module, data, self.finetune)
        return PassResult(module, True, summary)

    def _block(self, each: Prunable) -> int:
        return int(keys_of(each, self.layers).get("block", self.block))

    def _made(self, module: fx.GraphModule, each: Prunable) -> dict[str, object]:
        """Give a layer the nearest block-circulant weights, and state that they are. Returns what
        the summary says of it."""
        block = self._block(each)
        shared = Blocks(tuple(each.values.shape), block, each.positions)
        numbers = means(shared, each.values)
        values = expanded(shared, numbers.to(each.values.dtype))
        error = (values - each.values).square().sum() / each.values.square().sum()
        each.write(module, values)
        for name in each.names:
            tensor = constant(module, name)
            seen = Blocks(tuple(tensor.shape), block, each.positions)
            if not holds(seen, tensor):
                raise RecipeError(
                    f"circulant: {name}: required weights that all layers read in one shape, got "
                    f"{list(tensor.shape)} beside {list(each.values.shape)}. Exclude these layers: "
                    f"{', '.join(each.layers)}"
                )
            share(module, name, seen)
        return {
            "weights": each.size,
            "stored": shared.classes,
            "block": block,
            "error": float(f"{float(error):.4g}"),
        }


def _problems(module: fx.GraphModule, each: Prunable, block: int) -> Iterator[str]:
    """What stands against block-circulant weights."""
    if not each.readers:
        yield "no layer multiplies by these weights as they lie"
        return
    if each.transposed:
        yield "it is a transposed convolution"
    if each.groups > 1:
        yield f"it is a convolution with {each.groups} groups"
    inputs, outputs = each.values.shape[1], each.values.shape[0]
    if min(inputs, outputs) < block:
        yield (
            f"a block of {block} needs as many inputs and outputs, and there are {inputs} and "
            f"{outputs}"
        )
    if not each.kept:
        yield "all of its weights are zero"
    if any(name in facts(module) for name in each.names):
        yield "it was pruned, and zeros of its own cannot stay: put circulant in place of prune"
    if any(name in sharing(module) for name in each.names):
        yield "its weights are shared already"


def _total(layers: Mapping[str, Mapping[str, object]]) -> str:
    weights, stored = (
        sum(int(str(each[key])) for each in layers.values()) for key in ("weights", "stored")
    )
    return (
        f"{weights:,} weights of {len(layers)} layers are {stored:,} numbers "
        f"({weights / max(stored, 1):.2f}x fewer)"
    )
