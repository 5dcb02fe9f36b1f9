"""Canonical forms of what moves or copies values: views, slices, pads, constants, identities."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.graph import aten, insert_like
from fxloom.moves import GATHER
from fxloom.rewriting import input_of, is_constant, make, rewrites, same_shape, sizes_of

# Nothing happens ---------------------------------------------------------------------------------


@rewrites(
    aten.alias.default, aten.clone.default, aten.detach.default, aten.contiguous.default,
    aten.lift_fresh.default, aten.lift_fresh_copy.default, aten._to_copy.default,
    aten.to.dtype, aten.positive.default,
    aten.nan_to_num.default,  # a format has no NaN and no infinity
)  # fmt: skip
def _identity(graph: fx.Graph, node: Node) -> Node | None:
    source, dtype = input_of(node), node.meta["val"].dtype
    if source.meta["val"].dtype == dtype:
        return source
    if dtype == torch.bool:
        return insert_like(graph, node, aten.ne.Scalar, (source, 0))
    cast = insert_like(graph, node, aten._to_copy.default, (source,))
    cast.kwargs = {"dtype": dtype}
    return cast


@rewrites(
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
)  # fmt: skip
def _dropout(graph: fx.Graph, node: Node) -> Node | None:
    return None if node.args[2] else input_of(node)


# Views -------------------------------------------------------------------------------------------


@rewrites(
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default,
)  # fmt: skip
def _reshape(graph: fx.Graph, node: Node) -> Node:
    if same_shape(node, input_of(node)):
        return input_of(node)
    return insert_like(graph, node, aten.reshape.default, (input_of(node), sizes_of(node, -1)))


@rewrites(aten.transpose.int, aten.t.default, aten.permute.default, aten.numpy_T.default)
def _permute(graph: fx.Graph, node: Node) -> Node:
    rank = node.meta["val"].dim()
    order = list(range(rank))
    if node.target is aten.transpose.int:
        first, second = node.args[1:]
        assert isinstance(first, int)
        assert isinstance(second, int)
        order[first], order[second] = second, first
    elif node.target is aten.permute.default:
        assert isinstance(node.args[1], Sequence)
        order = [dim for dim in node.args[1] if isinstance(dim, int)]
    else:
        order.reverse()
    if order == sorted(order):
        return input_of(node)
    return insert_like(graph, node, aten.permute.default, (input_of(node), order))


@rewrites(aten.expand.default)
def _expand(graph: fx.Graph, node: Node) -> Node:
    return expanded(graph, node, input_of(node))


def expanded(graph: fx.Graph, node: Node, source: Node) -> Node:
    """source in the shape of node."""
    sizes = sizes_of(node, -1)
    lead = len(sizes) - source.meta["val"].dim()
    for dim, size in enumerate(sizes):
        held = source.meta["val"].shape[dim - lead] if dim >= lead else 1
        if size == -1 and isinstance(held, int):
            sizes[dim] = 1
    if not lead and sizes == sizes_of(source, -1):
        return source
    return insert_like(graph, node, aten.expand.default, (source, sizes))


@rewrites(aten.diagonal.default)
def _diagonal(graph: fx.Graph, node: Node) -> Node | None:
    source, offset, first, second = node.args
    assert isinstance(source, Node)
    assert isinstance(offset, int)
    assert isinstance(first, int)
    assert isinstance(second, int)
    rank = source.meta["val"].dim()
    if is_constant(source):
        return None
    return diagonal(graph, node, source, offset, first % rank, second % rank)


def diagonal(
    graph: fx.Graph, node: Node, source: Node, offset: int, first: int, second: int
) -> Node | None:
    """The entries of two dimensions where the second index is the first plus offset, in a last
    dimension. None where one of the two holds the batch."""
    sizes = sizes_of(source, -1)
    rows, columns = sizes[first], sizes[second]
    if -1 in (rows, columns):
        return None
    rest = [dim for dim in range(len(sizes)) if dim not in (first, second)]
    x = make(graph, node, aten.permute.default, source, [*rest, first, second])
    x = make(graph, node, aten.reshape.default, x, [*(sizes[dim] for dim in rest), rows * columns])
    row, column = max(-offset, 0), max(offset, 0)
    start, count = row * columns + column, max(min(rows - row, columns - column), 0)
    places = [start + step * (columns + 1) for step in range(count)]
    return make(graph, node, GATHER, x, len(rest), places)


@rewrites(aten.slice.Tensor)
def _slice(graph: fx.Graph, node: Node) -> Node | None:
    if node.args[4] == 1 and same_shape(node, input_of(node)):
        return input_of(node)
    source, dim, start, end, step = node.args
    assert isinstance(dim, int)
    size = input_of(node).meta["val"].shape[dim]
    if isinstance(size, int):  # the batch keeps what was written, for the message
        bounds = [bound if isinstance(bound, int) else None for bound in (start, end)]
        start, end, _ = slice(*bounds).indices(size)
        written = _written(input_of(node), dim, range(start, end, step))  # type: ignore[arg-type]
        if written is not None:
            return written
    node.args = (source, dim, start, end, step)
    return None


def _written(source: Node, dim: int, place: object) -> Node | None:
    """What an assignment has put there last."""
    *found, value = source.meta.get("written", (None,))
    return value if [dim, place] == found and isinstance(value, Node) else None


@rewrites(aten.select.int)
def _select(graph: fx.Graph, node: Node) -> Node | None:
    source, dim, index = node.args
    assert isinstance(dim, int)
    size = input_of(node).meta["val"].shape[dim]
    if isinstance(size, int) and isinstance(index, int):
        along, steps = input_of(node).meta.get("steps", (None, []))
        if along == dim:  # one step of a recurrence
            step: Node = steps[index % size]
            return step
        written = _written(input_of(node), dim, index % size)
        if written is not None:
            return written
        node.args = (source, dim, index % size)
    return None


@rewrites(aten.fliplr.default, aten.flipud.default)
def _flip(graph: fx.Graph, node: Node) -> Node:
    dims = [1] if node.target is aten.fliplr.default else [0]
    return insert_like(graph, node, aten.flip.default, (input_of(node), dims))


@rewrites(aten.repeat.default, aten.tile.default)
def _repeat(graph: fx.Graph, node: Node) -> Node | None:
    times = node.args[1]
    assert isinstance(times, Sequence)
    source = input_of(node)
    held = source.meta["val"].shape
    times = [*[1] * (len(held) - len(times)), *times]
    if all(isinstance(size, int) for size in held):  # a constant, spread over the batch
        ones = [1] * (len(times) - len(held)) + list(held)
        for dim, size in enumerate(node.meta["val"].shape):
            if ones[dim] == 1 and _is_batch(size):
                times[dim] = 1
    return insert_like(graph, node, aten.repeat.default, (source, times))


def _is_batch(size: Any) -> bool:
    """Whether a size is the batch size itself, rather than computed from it."""
    return isinstance(size, torch.SymInt) and size.node.expr.is_Symbol


@rewrites(aten.pad.default, aten.constant_pad_nd.default)
def _pad(graph: fx.Graph, node: Node) -> Node | None:
    widths, value = node.args[1], node.args[-1]
    assert isinstance(widths, Sequence)
    if not any(widths):
        return input_of(node)
    if node.target is aten.pad.default and node.args[2] != "constant":
        return None
    widths = list(widths)
    while widths[-2:] == [0, 0]:  # of dimensions that stay as they are, the batch perhaps
        del widths[-2:]
    args = (input_of(node), widths, 0.0 if value is None else value)
    return insert_like(graph, node, aten.constant_pad_nd.default, args)


# Constants spread over the batch -----------------------------------------------------------------


@rewrites(
    aten.zeros.default, aten.ones.default, aten.full.default, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default, aten.zeros_like.default,
    aten.ones_like.default, aten.full_like.default,
)  # fmt: skip
def _filled(graph: fx.Graph, node: Node) -> Node:
    fill = 0 if "zeros" in str(node.target) else 1 if "ones" in str(node.target) else None
    value = node.args[-1] if fill is None else fill
    if node.target in (aten.full_like.default, aten.full.default):
        value = node.args[1]
    elif node.target is aten.new_full.default:
        value = node.args[2]
    filled = insert_like(graph, node, aten.full.default, (sizes_of(node, 1), value))
    filled.kwargs = {"dtype": node.meta["val"].dtype}
    return filled
