"""What moves values."""

from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch.fx.node import Node

from fxloom import ops
from fxloom.batch_axis import sample_axis, sample_shape
from fxloom.graph import arguments, origin
from fxloom.lowering.core import (
    Lowered,
    Lowering,
    NotLowered,
    lowers,
    short_mantissa,
)
from fxloom.lowering.layouts import USUAL, usual_layout
from fxloom.moves import GATHER
from fxloom.ops import Shape
from fxloom.program import Value

aten = torch.ops.aten


@lowers(aten.reshape.default, aten.view.default)
def _view(lowering: Lowering, node: Node) -> Lowered:
    """Axes that are split or merged stay where they lie; a transpose only where they must meet."""
    x = lowering.tensor(node, 0)
    shape = sample_shape(node)
    held = x.flattened or x.value.shape[x.lifted :]
    old = tuple(held[x.layout.index(axis)] for axis in range(len(x.layout)))
    groups = _groups(old, shape)
    order = [axis for axis in x.layout if old[axis] != 1]
    if len(shape) == 1 and order != sorted(order):  # the next layer may read them as they lie
        flat = lowering.emit(ops.Reshape(shape), [x.value], node)
        return Lowered(flat, x.layout, flattened=held)
    # Groups of axes in the order in which the first of each lies.
    groups.sort(key=lambda group: order.index(group[0][0]))
    value = x.value
    if [axis for before, _ in groups for axis in before] != order:
        layout = _usual_layout(node, groups, shape)
        groups.sort(key=lambda group: layout.index(group[1][0]))
        wanted = [axis for before, _ in groups for axis in before]
        if value.shape != held:
            value = lowering.emit(ops.Reshape(held), [value], node)
        ones = [axis for axis in x.layout if old[axis] == 1]
        value = lowering.permuted(value, x.layout, (*ones, *wanted), origin(node))
    layout = _with_ones(shape, [axis for _, after in groups for axis in after])
    inner = tuple(shape[axis] for axis in layout)
    if layout == (1, 0) and value.shape == (1, *inner):
        return Lowered(value, layout, lifted=True)
    if inner != value.shape:
        value = lowering.emit(ops.Reshape(inner), [value], node)
    return Lowered(value, layout)


_Group = tuple[list[int], list[int]]


def _groups(old: Shape, new: Shape) -> list[_Group]:
    """Which axes of the old shape hold what which axes of the new one hold, axes of length 1
    left out: the shortest runs whose lengths multiply to the same."""
    before = [axis for axis, n in enumerate(old) if n != 1]
    after = [axis for axis, n in enumerate(new) if n != 1]
    groups = []
    while before:
        group: _Group = ([before.pop(0)], [after.pop(0)])
        while (have := prod(old[a] for a in group[0])) != (want := prod(new[a] for a in group[1])):
            if have < want:
                group[0].append(before.pop(0))
            else:
                group[1].append(after.pop(0))
        groups.append(group)
    return groups


def _usual_layout(node: Node, groups: list[_Group], shape: Shape) -> tuple[int, ...]:
    """Channels last where that is usual and keeps each group of axes together, else as they are."""
    plain = tuple(range(len(shape)))
    usual = usual_layout(node)
    order = [axis for axis in usual if shape[axis] != 1]
    for _, after in groups:
        start = order.index(after[0])
        if order[start : start + len(after)] != after:
            return plain
    return usual


def _with_ones(shape: Shape, order: list[int]) -> tuple[int, ...]:
    """The layout of axes in that order, those of length 1 put where they are of use."""
    usual = USUAL.get(len(shape), ())
    if order != sorted(order) and [axis for axis in usual if shape[axis] != 1] == order:
        return usual
    layout = list(order)
    for axis, n in enumerate(shape):
        if n == 1:  # right behind the axis before it
            layout.insert(layout.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(layout)


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
    if min(amounts) < 0:
        raise NotLowered("negative padding must be written as slices. Run the quantize pass")
    x = lowering.tensor(node, 0)
    if x.flattened is not None:
        x = lowering.unflatten(x, origin(node))
    rank = source.meta["val"].dim()
    pairs = [(0, 0)] * rank
    for index in range(len(amounts) // 2):
        pairs[rank - 1 - index] = (amounts[2 * index], amounts[2 * index + 1])
    if isinstance(source.meta["batch_axis"], int):
        del pairs[source.meta["batch_axis"]]
    lengths = [*[(0, 0)] * x.lifted, *(pairs[axis] for axis in x.layout)]
    if fill == 0:
        return replace(x, value=lowering.emit(ops.Pad(tuple(lengths)), [x.value], node))
    value = x.value
    for axis, pair in enumerate(lengths):
        if any(pair):
            value = _between(lowering, node, value, axis, pair)
    return replace(x, value=value)


def _between(
    lowering: Lowering, node: Node, value: Value, axis: int, pair: tuple[int, int]
) -> Value:
    """A value between constants along an axis; it is never added to, so its type stays narrow."""
    mantissa, kind = short_mantissa(arguments(node)[2], value)
    parts = [value]
    for position, length in ((0, pair[0]), (2, pair[1])):
        if length:
            shape = (*value.shape[:axis], length, *value.shape[axis + 1 :])
            parts.insert(position, lowering.constant("padding", np.full(shape, mantissa), kind))
    return lowering.emit(ops.Concat(axis), parts, node)
