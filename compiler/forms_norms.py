"""Canonical forms of norms, roots and attention."""

import math

from torch import fx
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX
from fxloom.graph import aten, insert_like
from fxloom.rewriting import input_of, is_constant, make, rewrites

MASKING = -1e4
"""Numbers up to here mask where they are added before a softmax: beside any other its exponential
is zero in float32."""


@rewrites(aten.instance_norm.default)
def _instance_norm(graph: fx.Graph, node: Node) -> Node | None:
    """With running statistics it is batch norm."""
    source, weight, bias, mean, variance, by_sample, momentum, eps, _ = node.args
    if by_sample:
        return None
    args = (source, weight, bias, mean, variance, False, momentum, eps, False)
    return insert_like(graph, node, aten.batch_norm.default, args)


@rewrites(aten.var.dim, aten.std.dim)
def _variance(graph: fx.Graph, node: Node) -> Node:
    source, dims, unbiased, keep = node.args
    target = aten.var.correction if node.target is aten.var.dim else aten.std.correction
    result = insert_like(graph, node, target, (source, dims))
    result.kwargs = {"correction": int(bool(unbiased)), "keepdim": keep}
    return result


@rewrites(aten._softmax.default, aten._log_softmax.default)
def _decomposed_softmax(graph: fx.Graph, node: Node) -> Node | None:
    """As ExportedProgram.run_decompositions leaves them."""
    source, dim, to_float = node.args
    if to_float:
        return None
    is_log = node.target is aten._log_softmax.default
    target = aten.log_softmax.int if is_log else aten.softmax.int
    result = insert_like(graph, node, target, (source, dim, None))
    masked = None if is_log else _softmax(graph, result)
    if masked is None:
        return result
    graph.erase_node(result)
    return masked


@rewrites(aten.softmax.int)
def _softmax(graph: fx.Graph, node: Node) -> Node | None:
    """Softmax of masked scores: the mask becomes an argument, for no format holds infinity."""
    source, dim, dtype = node.args
    assert isinstance(source, Node)
    if dtype not in (None, source.meta["val"].dtype) or len(source.users) > 1:
        return None
    scores, mask = _unmasked(graph, node, source)
    if mask is None:
        return None
    return insert_like(graph, node, MASKED_SOFTMAX, (scores, mask, dim, 1.0))


def _unmasked(graph: fx.Graph, node: Node, source: Node) -> tuple[Node | None, Node | None]:
    """Scores and constant mask behind `source`: a boolean one keeps where it is true."""
    if source.target is aten.where.ScalarSelf and _masks(source.args[1]):
        hidden = input_of(source)
        if is_constant(hidden):
            return input_of(source, 2), make(graph, node, aten.logical_not.default, hidden)
    if source.target is aten.where.ScalarOther and _masks(source.args[2]):
        shown = input_of(source)
        if is_constant(shown):
            return input_of(source, 1), shown
    if source.target is aten.add.Tensor and all(isinstance(arg, Node) for arg in source.args):
        first, second = input_of(source), input_of(source, 1)
        if is_constant(first) != is_constant(second):
            return (second, first) if is_constant(first) else (first, second)
    return None, None


def _masks(number: object) -> bool:
    return isinstance(number, int | float) and (number <= MASKING or number == -math.inf)
