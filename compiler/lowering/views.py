"""What moves values."""

from dataclasses import replace

import numpy as np
import torch
from torch.fx.node import Node

from fxloom import ops
from fxloom.batch_axis import sample_shape
from fxloom.graph import arguments, origin
from fxloom.lowering.core import (
    Lowered,
    Lowering,
    NotLowered,
    lowers,
    sample_axis,
)
from fxloom.moves import GATHER
from fxloom.ops import Shape

aten = torch.ops.aten


@lowers(aten.reshape.default, aten.view.default)
def _view(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    if x.flattened is None:
        x = lowering.unflatten(x, origin(node))
    shape = sample_shape(node)
    identity = tuple(range(len(shape)))
    layout = _layout_after_ones(x, shape)
    if layout is not None:
        inner = tuple(shape[axis] for axis in layout)
        if inner == x.value.shape:
            return Lowered(x.value, layout)
        return Lowered(lowering.emit(ops.Reshape(inner), [x.value], node), layout)
    if len(shape) == 1 and x.flattened is None and x.layout != tuple(range(len(x.layout))):
        moved = [axis for axis in x.layout if x.value.shape[x.layout.index(axis)] != 1]
        value = lowering.emit(ops.Reshape(shape), [x.value], node)
        if moved == sorted(moved):
            return Lowered(value, identity)
        return Lowered(value, x.layout, flattened=x.value.shape)
    value = lowering.in_order(x, node)
    if value.shape == shape:
        return Lowered(value, identity)
    return Lowered(lowering.emit(ops.Reshape(shape), [value], node), identity)


def _layout_after_ones(x: Lowered, shape: Shape) -> tuple[int, ...] | None:
    """The layout that leaves values where they are if shape only adds or drops axes of length 1."""
    if x.flattened is not None or len(shape) < 2:
        return None
    extent = dict(zip(x.layout, x.value.shape, strict=True))
    before = [axis for axis in sorted(extent) if extent[axis] != 1]
    after = [axis for axis, n in enumerate(shape) if n != 1]
    if [extent[axis] for axis in before] != [shape[axis] for axis in after]:
        return None
    moved = dict(zip(before, after, strict=True))
    ones = [axis for axis, n in enumerate(shape) if n == 1]
    return (*ones, *(moved[axis] for axis in x.layout if axis in moved))


@lowers(aten.permute.default)
def _permute(lowering: Lowering, node: Node) -> Lowered:
    source, dims = arguments(node)
    assert isinstance(source, Node)
    x = lowering.unflatten(lowering.tensor(node, 0), origin(node))
    # new[i] = old[dims[i]]: no value moves, only the bookkeeping of axes.
    order = [sample_axis(source, dim) for dim in dims if dim != source.meta["batch_axis"]]
    layout = tuple(order.index(axis) for axis in x.layout)
    return Lowered(x.value, layout)


@lowers(GATHER)
def _gather(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    source, dim, indices = arguments(node)
    assert isinstance(source, Node)
    if x.flattened is not None:
        # Where the values lie is known: they need not be moved into the user's order first.
        places = np.arange(x.value.shape[0]).reshape(x.flattened)
        places = places.transpose(np.argsort(x.layout)).reshape(-1)
        op = ops.Gather(0, tuple(places[list(indices)].tolist()))
        return Lowered(lowering.emit(op, [x.value], node), (0,))
    axis = x.layout.index(sample_axis(source, dim)) + x.lifted
    return replace(x, value=lowering.emit(ops.Gather(axis, tuple(indices)), [x.value], node))


@lowers(aten.cat.default)
def _cat(lowering: Lowering, node: Node) -> Lowered:
    tensors, dim = arguments(node)
    parts = [lowering.known.get(part) for part in tensors]
    computed = [part for part in parts if isinstance(part, Lowered)]
    if len(computed) < len(parts):
        raise NotLowered("only tensors computed from an input can be concatenated")
    first = lowering.unflatten(computed[0], origin(node))
    axis = first.layout.index(sample_axis(node, dim))
    rest = [lowering.in_layout(part, first.layout, node) for part in computed[1:]]
    return Lowered(lowering.emit(ops.Concat(axis), [first.value, *rest], node), first.layout)


@lowers(aten.constant_pad_nd.default)
def _pad(lowering: Lowering, node: Node) -> Lowered:
    source, amounts, fill = arguments(node)[:3]
    assert isinstance(source, Node)
    if fill != 0:
        raise NotLowered(f"padding with {fill} has no lowering yet, only with 0")
    if min(amounts) < 0:
        raise NotLowered("negative padding (cropping) has no lowering yet")
    x = lowering.unflatten(lowering.tensor(node, 0), origin(node))
    rank = source.meta["val"].dim()
    pairs = [(0, 0)] * rank
    for index in range(len(amounts) // 2):
        pairs[rank - 1 - index] = (amounts[2 * index], amounts[2 * index + 1])
    if isinstance(source.meta["batch_axis"], int):
        del pairs[source.meta["batch_axis"]]
    op = ops.Pad(tuple(pairs[axis] for axis in x.layout))
    return replace(x, value=lowering.emit(op, [x.value], node))
