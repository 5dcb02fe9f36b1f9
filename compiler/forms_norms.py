"""Canonical forms of norms."""

from torch import fx
from torch.fx.node import Node

from fxloom.graph import aten, insert_like
from fxloom.rewriting import rewrites


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
