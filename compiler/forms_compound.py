"""Canonical forms of functions that are a few others: triangles, differences, similarities."""

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.forms_joins import joined
from fxloom.graph import aten, insert_like
from fxloom.rewriting import filled, input_of, is_constant, make, numbered, rewrites, sizes_of


@rewrites(aten.tril.default, aten.triu.default)
def _triangle(graph: fx.Graph, node: Node) -> Node | None:
    """A choice between the values and zero."""
    x, diagonal = node.args
    assert isinstance(x, Node)
    shape = x.meta["val"].shape[-2:]
    if is_constant(x) or not all(isinstance(size, int) for size in shape):
        return None
    ones = filled(graph, node, list(shape), True, torch.bool)
    keep = make(graph, node, node.target, ones, diagonal)
    dtype = x.meta["val"].dtype
    if dtype == torch.bool:
        return insert_like(graph, node, aten.logical_and.default, (x, keep))
    zero = 0.0 if dtype.is_floating_point else 0
    return insert_like(graph, node, aten.where.ScalarOther, (keep, x, zero))


@rewrites(aten.diag_embed.default)
def _matrices(graph: fx.Graph, node: Node) -> Node | None:
    """The values of the last dimension along the diagonals of square matrices."""
    x, offset, first, second = node.args
    assert isinstance(x, Node)
    assert isinstance(first, int)
    assert isinstance(second, int)
    rank, size = node.meta["val"].dim(), x.meta["val"].shape[-1]
    last = [first % rank, second % rank] == [rank - 2, rank - 1]
    dtype = x.meta["val"].dtype
    if is_constant(x) or offset or not last or not isinstance(size, int) or dtype == torch.bool:
        return None
    ones = filled(graph, node, [size], True, torch.bool)
    keep = make(graph, node, aten.diag_embed.default, ones, 0, 0, 1)
    column = make(graph, node, aten.reshape.default, x, [*sizes_of(x, -1), 1])
    zero = 0.0 if dtype.is_floating_point else 0
    return insert_like(graph, node, aten.where.ScalarOther, (keep, column, zero))


@rewrites(aten.diff.default)
def _differences(graph: fx.Graph, node: Node) -> Node | None:
    """Every entry less the one before, n times."""
    x, times, dim, before, behind = node.args
    assert isinstance(x, Node)
    assert isinstance(times, int)
    assert isinstance(dim, int)
    if is_constant(x) or x.meta["val"].dtype == torch.bool:
        return None
    parts = [part for part in (before, x, behind) if isinstance(part, Node)]
    lengths = [part.meta["val"].shape[dim] for part in parts]
    if not all(isinstance(length, int) for length in lengths):
        return None
    if len(parts) > 1:
        shape = list(x.meta["val"].shape)
        shape[dim] = sum(lengths)
        x = joined(graph, node, parts, dim)
        x.meta["val"] = node.meta["val"].new_empty(shape)
    for size in range(sum(lengths), sum(lengths) - times, -1):
        later = make(graph, node, aten.slice.Tensor, x, dim, 1, size, 1)
        earlier = make(graph, node, aten.slice.Tensor, x, dim, 0, size - 1, 1)
        x = make(graph, node, aten.sub.Tensor, later, earlier)
    return x


@rewrites(aten.one_hot.default)
def _one_hot(graph: fx.Graph, node: Node) -> Node | None:
    """An integer compared with all that it may be."""
    x, classes = node.args
    assert isinstance(x, Node)
    assert isinstance(classes, int)
    if is_constant(x) or classes < 1:
        return None
    column = make(graph, node, aten.reshape.default, x, [*sizes_of(x, -1), 1])
    found = make(graph, node, aten.eq.Tensor, column, numbered(graph, node, 0, classes))
    result = insert_like(graph, node, aten._to_copy.default, (found,))
    result.kwargs = {"dtype": node.meta["val"].dtype}
    return result


@rewrites(aten.cosine_similarity.default)
def _cosine_similarity(graph: fx.Graph, node: Node) -> Node | None:
    """The product of two tensors, each divided by its length along dim, as F.normalize does."""
    dim, eps = node.args[2:]
    assert isinstance(dim, int)
    if input_of(node).meta["val"].dim() != input_of(node, 1).meta["val"].dim():
        return None
    units = []
    for x in (input_of(node), input_of(node, 1)):
        length = make(graph, node, aten.linalg_vector_norm.default, x, 2, [dim], True)
        length = make(graph, node, aten.clamp.default, length, eps, None)
        units.append(make(graph, node, aten.div.Tensor, x, length))
    product = make(graph, node, aten.mul.Tensor, *units)
    return insert_like(graph, node, aten.sum.dim_IntList, (product, [dim], False))


@rewrites(aten.rrelu.default)
def _randomized_relu(graph: fx.Graph, node: Node) -> Node | None:
    """Outside of training the slope is the mean of its bounds."""
    x, lower, upper, training = node.args[:4]
    assert isinstance(lower, int | float)
    assert isinstance(upper, int | float)
    if training:
        return None
    return insert_like(graph, node, aten.leaky_relu.default, (x, (lower + upper) / 2))
