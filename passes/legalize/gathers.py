"""What chooses and repeats entries: gathers along one dimension after another."""

from collections.abc import Sequence
from math import prod

import torch
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.graph import BATCH, arguments, constant
from fxloom.moves import GATHER
from fxloom.passes.legalize.core import insert, legalizes

aten = torch.ops.aten


def gathered(module: GraphModule, like: Node, x: Node, dim: int, indices: Sequence[int]) -> Node:
    """x at indices along dim; a gather of a gather is one, a gather of everything is none."""
    if list(indices) == list(range(x.meta["val"].shape[dim])):
        return x
    if x.target is GATHER and arguments(x)[1] == dim:
        before = arguments(x)[2]
        return gathered(module, like, arguments(x)[0], dim, [before[i] for i in indices])
    return insert(module, like, GATHER, x, dim, list(indices))


def reshaped(module: GraphModule, like: Node, x: Node, shape: Sequence[int]) -> Node:
    """x in a shape as `meta["val"]` has it, with BATCH in it."""
    if list(shape) == list(x.meta["val"].shape):
        return x
    sizes = [size if size % BATCH else -1 for size in shape]
    return insert(module, like, aten.reshape.default, x, sizes)


@legalizes(aten.slice.Tensor)
def _slice(module: GraphModule, node: Node) -> Node:
    x, dim, start, end, step = arguments(node)
    return gathered(module, node, x, dim, range(x.meta["val"].shape[dim])[start:end:step])


@legalizes(aten.select.int)
def _select(module: GraphModule, node: Node) -> Node:
    x, dim, index = arguments(node)
    one = gathered(module, node, x, dim, [index % x.meta["val"].shape[dim]])
    return reshaped(module, node, one, node.meta["val"].shape)


@legalizes(aten.flip.default)
def _flip(module: GraphModule, node: Node) -> Node:
    x: Node
    x, dims = arguments(node)
    for dim in dims:
        x = gathered(module, node, x, dim, range(x.meta["val"].shape[dim])[::-1])
    return x


@legalizes(aten.roll.default)
def _roll(module: GraphModule, node: Node) -> Node:
    x: Node
    x, shifts, dims = arguments(node)
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.meta["val"].shape[dim]
        x = gathered(module, node, x, dim, [(i - shift) % size for i in range(size)])
    return x


@legalizes(aten.expand.default)
def _expand(module: GraphModule, node: Node) -> Node:
    x, shape = arguments(node)[0], node.meta["val"].shape
    held = x.meta["val"].shape
    x = reshaped(module, node, x, (*(1,) * (len(shape) - len(held)), *held))
    for dim, size in enumerate(shape):
        if x.meta["val"].shape[dim] != size:
            x = gathered(module, node, x, dim, [0] * size)
    return x


@legalizes(aten.repeat.default)
def _repeat(module: GraphModule, node: Node) -> Node:
    x, times = arguments(node)
    held = x.meta["val"].shape
    x = reshaped(module, node, x, (*(1,) * (len(times) - len(held)), *held))
    for dim, count in enumerate(times):
        if count != 1:
            x = gathered(module, node, x, dim, [*range(x.meta["val"].shape[dim])] * count)
    return x


@legalizes(aten.repeat_interleave.self_int)
def _repeat_interleave(module: GraphModule, node: Node) -> Node:
    x, count, dim = arguments(node)[:3]
    size = x.meta["val"].shape[dim]
    return gathered(module, node, x, dim, [i for i in range(size) for _ in range(count)])


@legalizes(aten.index_select.default)
def _index_select(module: GraphModule, node: Node) -> Node:
    x, dim, index = arguments(node)
    return gathered(module, node, x, dim, constant(module, index.target).reshape(-1).tolist())


@legalizes(aten.index.Tensor)
def _index(module: GraphModule, node: Node) -> Node:
    """One index tensor: entries along its dimension. Several: entries of those dimensions merged.

    Several must meet as one dimension first, so that dimension is moved where the first stands.
    """
    x, indices = arguments(node)
    held = [dim for dim, index in enumerate(indices) if index is not None]
    shape = x.meta["val"].shape
    tensors = [constant(module, indices[dim].target) for dim in held]
    sizes = [shape[dim] for dim in held]
    flat = torch.zeros((), dtype=torch.int64)
    for index, size in zip(tensors, sizes, strict=True):
        flat = flat * size + index % size
    beside = held == list(range(held[0], held[-1] + 1))
    if not beside:  # PyTorch puts the dimensions of the indices first
        rest = [dim for dim in range(len(shape)) if dim not in held]
        x = insert(module, node, aten.permute.default, x, [*held, *rest])
    first = held[0] if beside else 0
    shape = x.meta["val"].shape
    merged = (*shape[:first], prod(sizes), *shape[first + len(held) :])
    x = reshaped(module, node, x, merged)
    chosen = gathered(module, node, x, first, flat.reshape(-1).tolist())
    return reshaped(module, node, chosen, node.meta["val"].shape)
