"""The weights of a graph that can be pruned, and the order in which the hardware stores them.

A weight tensor is one thing however many layers read it and under however many names: what is
pruned is zero for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fxloom.graph import arguments, constant, origin
from fxloom.passes.chains import ACTIVATIONS, LAYERS
from fxloom.passes.commuting import is_transposed

aten = torch.ops.aten

EMBEDDING = aten.embedding.default

_Identity = tuple[int, torch.dtype, tuple[tuple[int, int], ...]]

_IMAGES = (
    *(aten.convolution.default, aten.max_pool1d.default, aten.max_pool2d.default),
    *(aten.avg_pool1d.default, aten.avg_pool2d.default),
    *(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default),
)
"""What gives values that are stored with their channels last."""

_KEEPING = (
    *ACTIVATIONS,
    *(aten.dropout.default, aten.batch_norm.default, aten.sigmoid.default, aten.tanh.default),
    *(aten.gelu.default, aten.silu.default, aten.elu.default, aten.hardtanh.default),
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor),
)
"""What gives values in the order of its first computed argument."""


@dataclass(frozen=True, eq=False)
class Prunable:
    """One tensor of weights.

    name: of the first layer that reads it, or of the tensor where that layer reads others as well.
    layers: names of all that read it. readers: those of them that multiply by it as it lies, in the
    order of the graph; empty for an embedding. names: of the tensor, the first of them as the
    readers see it. values: as the graph has them.
    """

    name: str
    layers: tuple[str, ...]
    readers: tuple[Node, ...]
    names: tuple[str, ...]
    values: Tensor

    @property
    def size(self) -> int:
        """How many weights there are."""
        return self.values.numel()

    @property
    def groups(self) -> int:
        """Of a convolution, into which inputs and outputs are divided; else 1."""
        first = self.readers[0] if self.readers else None
        is_convolution = first is not None and first.target is aten.convolution.default
        return int(arguments(first)[8]) if first is not None and is_convolution else 1

    @property
    def inputs(self) -> int:
        """How many weights an output has."""
        channels = self.values.shape[0] // self.groups if self.transposed else self.values.shape[1]
        return int(channels * prod(self.values.shape[2:]))

    @property
    def transposed(self) -> bool:
        """Whether these are the weights of a transposed convolution."""
        return bool(self.readers) and is_transposed(self.readers[0])

    def rows(self, values: Tensor) -> Tensor:
        """[groups, outputs, inputs]: what every output is computed with, in the order in which it
        is stored: channels last. values: of the tensor's shape, any type."""
        kernel = values.shape[2:]
        if self.transposed:  # flipped: as the convolution of the spread-out input has it
            values = values.reshape(self.groups, -1, *values.shape[1:])
            values = values.flip(tuple(range(3, values.dim()))).transpose(1, 2)
            values = values.reshape(self.groups, values.shape[1], values.shape[2], -1)
        else:
            values = values.reshape(self.groups, -1, values.shape[1], prod(kernel))
        values = values.transpose(2, 3).flatten(2)
        return values if self._columns is None else values[:, :, self._columns]

    def from_rows(self, rows: Tensor) -> Tensor:
        """The tensor again, from `rows` of it."""
        if self._columns is not None:
            rows = rows[:, :, self._columns.argsort()]
        shape, kernel = self.values.shape, self.values.shape[2:]
        inputs = shape[0] // self.groups if self.transposed else shape[1]
        values = rows.reshape(self.groups, -1, prod(kernel), inputs).transpose(2, 3)
        if self.transposed:
            values = values.transpose(1, 2).reshape(self.groups, inputs, shape[1], *kernel)
            values = values.flip(tuple(range(3, values.dim())))
        return values.reshape(shape)

    @cached_property
    def columns(self) -> Tensor | None:
        """Where the columns of `rows` are among the rows of data of `input_rows`; None: there."""
        kernel = prod(self.values.shape[2:])
        if kernel == 1:
            return self._columns
        return torch.arange(self.inputs).reshape(-1, kernel).T.flatten()

    @cached_property
    def _columns(self) -> Tensor | None:
        if len(self.readers) != 1 or self.readers[0].target is not aten.linear.default:
            return None
        image = _flattened_image(self.readers[0])
        if image is None:
            return None
        channels = image[0]
        return torch.arange(prod(image)).reshape(channels, -1).T.flatten()

    @cached_property
    def positions(self) -> int:
        """Of an image that is flattened, channel by channel, to what a linear layer reads; else
        1."""
        image = _flattened_image(self.readers[0]) if self._columns is not None else None
        return 1 if image is None else prod(image[1:])

    @cached_property
    def kept(self) -> int:
        """How many weights are not zero."""
        return int(self.values.count_nonzero())

    def is_finite(self) -> bool:
        """Whether all weights are numbers."""
        # The sum is finite wherever all values are, overflow aside, and needs no second array.
        return bool(torch.isfinite(self.values.sum()) or torch.isfinite(self.values).all())

    def seen_as(self, alias: Tensor, values: Tensor) -> Tensor:
        """What an alias of the tensor would be if the tensor had these values."""
        old = self.values
        if (alias.shape, alias.stride()) == (old.shape, old.stride()):
            return values
        if values.stride() != old.stride():
            laid_out = torch.empty_strided(old.shape, old.stride(), dtype=values.dtype)
            values = laid_out.copy_(values)
        return values.as_strided(alias.shape, alias.stride())

    def reading(self, module: fx.GraphModule) -> set[Node]:
        """All that reads the tensor in a graph, layers or not."""
        sources = module.graph.find_nodes(op="get_attr")
        return {user for node in sources if node.target in self.names for user in node.users}

    def is_nonzero(self) -> Tensor:
        """Which weights are there, of the tensor's shape."""
        return self.values != 0

    def write(self, module: fx.GraphModule, values: Tensor) -> None:
        """Put other values in the place of the tensor in a graph, under all its names, without
        touching the old ones."""
        old = constant(module, self.names[0])
        overlaps = _overlaps(_memory(old))
        strides = values.contiguous().stride() if overlaps else old.stride()
        fresh = torch.empty_strided(old.shape, strides, dtype=old.dtype)
        fresh.copy_(values)
        for name in self.names:
            alias = constant(module, name)
            view = fresh if overlaps else fresh.as_strided(alias.shape, alias.stride())
            held = nn.Parameter(view, alias.requires_grad)
            *path, leaf = name.split(".")
            is_parameter = isinstance(alias, nn.Parameter)
            setattr(module.get_submodule(".".join(path)), leaf, held if is_parameter else view)


def find_prunable(module: fx.GraphModule, embeddings: bool = False) -> list[Prunable]:
    """The weights of linear layers and convolutions of any kind, in the order of the graph."""
    sources: dict[_Identity, list[Node]] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        sources.setdefault(_identity(constant(module, node.target)), []).append(node)
    found: dict[_Identity, list[Node]] = {}
    for node in module.graph.nodes:
        source = _weight_of(node, embeddings)
        if source is not None and constant(module, source.target).is_floating_point():
            found.setdefault(_identity(constant(module, source.target)), []).append(node)
    layers = {
        key: tuple(dict.fromkeys(origin(node) for node in nodes)) for key, nodes in found.items()
    }
    counts = Counter(name for names in layers.values() for name in names)
    result = []
    for key, nodes in found.items():
        matrices = [node for node in nodes if node.target in LAYERS]
        first = _weight_of((matrices or nodes)[0], embeddings)
        assert first is not None
        values = constant(module, first.target).detach()
        readers = [node for node in matrices if _reads_like(module, node, matrices[0], values)]
        names = dict.fromkeys([str(first.target), *(str(node.target) for node in sources[key])])
        is_alone = all(counts[name] == 1 for name in layers[key])
        name = layers[key][0] if is_alone else str(first.target)
        result.append(Prunable(name, layers[key], tuple(readers), tuple(names), values))
    return result


def _weight_of(node: Node, embeddings: bool) -> Node | None:
    """The tensor that a layer multiplies by."""
    position: Mapping[Any, int] = {
        **dict.fromkeys(LAYERS, 1),
        **({EMBEDDING: 0} if embeddings else {}),
    }
    source = arguments(node)[position[node.target]] if node.target in position else None
    return source if isinstance(source, Node) and source.op == "get_attr" else None


def _reads_like(module: fx.GraphModule, node: Node, first: Node, values: Tensor) -> bool:
    """Whether a layer reads a tensor as another does, so that their data say the same of it."""
    tensor = constant(module, arguments(node)[1].target)
    attributes = [(arguments(each)[6], arguments(each)[8]) if len(arguments(each)) > 3 else None
                  for each in (node, first)]  # fmt: skip
    same = tensor.shape == values.shape and tensor.stride() == values.stride()
    return same and node.target is first.target and attributes[0] == attributes[1]


def _identity(tensor: Tensor) -> _Identity:
    """The same for all tensors that are the same numbers, transposed ones included."""
    memory = _memory(tensor)
    if _overlaps(memory):  # its numbers become different ones when they are pruned
        memory = tuple(zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.dtype, memory


def _memory(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """Where a tensor's numbers lie: sizes and strides, the largest stride first, axes that follow
    each other without a gap taken together."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    axes = sorted(((n, step) for n, step in sizes if n != 1), key=lambda axis: -axis[1])
    found: list[tuple[int, int]] = []
    for size, step in axes:
        if found and found[-1][1] == size * step:
            size *= found.pop()[0]
        found.append((size, step))
    return tuple(found)


def _overlaps(memory: tuple[tuple[int, int], ...]) -> bool:
    """Whether several elements of a tensor may be one number in memory."""
    inner = [*((size - 1) * step for size, step in memory[1:]), 0]
    reach = [sum(inner[place:]) for place in range(len(memory))]
    return any(step <= below for (_, step), below in zip(memory, reach, strict=True))


def _flattened_image(layer: Node) -> tuple[int, ...] | None:
    """Channels and sizes of the image whose values, flattened, a linear layer reads; None where
    they come from elsewhere. The weights are stored in the order of the image's values then."""
    node = arguments(layer)[0]
    while node.target in _KEEPING:
        node = arguments(node)[0]
    if node.target is not aten.reshape.default or node.meta["val"].dim() != 2:
        return None
    source = arguments(node)[0]
    shape = tuple(source.meta["val"].shape[1:])
    if len(shape) < 2 or node.meta["val"].shape[1] != prod(shape):
        return None
    while source.target in _KEEPING:
        source = arguments(source)[0]
    return shape if source.target in _IMAGES else None
