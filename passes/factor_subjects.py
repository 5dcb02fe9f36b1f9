"""The layers of a graph that can be factored, and what they and their factors cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor, fx
from torch.fx.node import Node
from torch.nn import functional

from fxloom.graph import BATCH, arguments
from fxloom.layer_figures import multiply_adds
from fxloom.passes.decompositions import positions
from fxloom.passes.factor_writing import readers_of
from fxloom.passes.factorable import Layer, Method, Ranks, outline
from fxloom.passes.factors import Chain, macs, parameters
from fxloom.passes.layerwise import own_bias
from fxloom.passes.part_running import run_chain
from fxloom.passes.prunable import EMBEDDING, Prunable
from fxloom.recipe import count_parameters

Cost = Literal["parameters", "macs"]
"""What is counted of a chain before it is written: weights, or multiply-adds of one sample."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One tensor of weights, to be factored wherever it is read.

    readers: the layers that do, in the order of the graph. layer: of an embedding [rows, features]
    the linear layer whose input is 1 at the row that is wanted. bias: the name of the layer's bias
    where that is its own and may move. norms: whether there are batch norms between its parts.
    """

    prunable: Prunable
    readers: Sequence[Node]
    layer: Layer
    bias: str | None
    norms: bool = False

    @classmethod
    def of(cls, module: fx.GraphModule, each: Prunable, norms: bool = False) -> Subject:
        """A tensor that `factor_writing.obstacles` has nothing against."""
        readers = readers_of(module, each)
        bias = own_bias(module, each) if each.readers else None
        return cls(each, readers, layer_of(each, readers[0]), bias, norms)

    @property
    def name(self) -> str:
        """The name of the layer."""
        return self.prunable.name

    @property
    def is_embedding(self) -> bool:
        """Whether its input is numbers of rows."""
        return not self.prunable.readers

    def cost_of(self, chain: Chain, cost: Cost) -> int:
        """What a chain in the layer's place costs, without the bias."""
        if cost == "parameters":
            between = sum(len(part.weight) for part in chain[:-1])
            return parameters(chain) + (2 * between if self.norms else 0)
        computed = chain[1:] if self.is_embedding else chain
        return sum(
            count * macs(computed, positions(computed, sizes))
            for sizes, count in self._sizes.items()
        )

    def cost(self, method: Method, ranks: Ranks, cost: Cost) -> int:
        """The same of a method at these ranks, before anything is computed."""
        return self.cost_of(outline(method, self.layer, ranks), cost)

    def dense(self, cost: Cost) -> int:
        """What the layer costs as it is."""
        return self.cost_of(self.layer.dense, cost)

    def run(self, chain: Chain, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """What a chain in its place gives."""
        if not self.is_embedding:
            return run_chain(chain, x, bias)
        return run_chain(chain[1:], functional.embedding(x, chain[0].weight.T))

    @cached_property
    def _sizes(self) -> Mapping[tuple[int, ...], int]:
        """Sizes of what the layers read, as `positions` takes them, and how many read such."""
        return Counter(self._sizes_of(reader) for reader in self.readers)

    def _sizes_of(self, reader: Node) -> tuple[int, ...]:
        shape = read_by(reader).meta["val"].shape
        sizes = [size // BATCH if size and size % BATCH == 0 else size for size in shape]
        if self.is_embedding:
            return tuple(sizes)
        return tuple(sizes[:-1] if self.layer.is_linear else sizes[2:])


def layer_of(each: Prunable, reader: Node) -> Layer:
    """A tensor of weights as a layer reads it."""
    if reader.target is EMBEDDING:
        return Layer(each.values.T)
    if each.values.dim() == 2:
        return Layer(each.values)
    stride, padding, dilation, transposed = arguments(reader)[3:7]
    return Layer(
        each.values,
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        groups=arguments(reader)[8],
        transposed=transposed,
    )


def read_by(reader: Node) -> Node:
    """What a layer reads beside its weights."""
    found = arguments(reader)[1 if reader.target is EMBEDDING else 0]
    assert isinstance(found, Node)
    return found


def whole(module: fx.GraphModule, cost: Cost) -> int:
    """What all layers of a graph cost together, biases and all."""
    if cost == "parameters":
        return count_parameters(module)["parameters"]
    return sum(multiply_adds(node) for node in module.graph.nodes)
