"""Norms over the values of one sample: all are standardise nodes, written out by quantize."""

from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.composite_ops import QUOTIENT, ROOT, STANDARDISE, Scale
from fxloom.editing import tensor_node
from fxloom.graph import arguments, constant
from fxloom.passes.legalize.core import insert, legalizes

aten = torch.ops.aten


@legalizes(aten.layer_norm.default)
def _layer_norm(module: GraphModule, node: Node) -> Node:
    x, shape, weight, bias, eps = arguments(node)[:5]
    return _over_last(module, node, x, weight, bias, len(shape), eps, Scale.DEVIATION)


@legalizes(aten.rms_norm.default)
def _rms_norm(module: GraphModule, node: Node) -> Node:
    x, shape, weight, eps = arguments(node)
    eps = torch.finfo(x.meta["val"].dtype).eps if eps is None else eps
    return _over_last(module, node, x, weight, None, len(shape), eps, Scale.MEAN_SQUARE)


def _over_last(
    module: GraphModule, node: Node, x: Node, weight: Any, bias: Any, count: int, eps: float,
    by: Scale,
) -> Node:  # fmt: skip
    rank = x.meta["val"].dim()
    dims = list(range(rank - count, rank))
    return insert(module, node, STANDARDISE, x, weight, bias, dims, eps, str(by))


@legalizes(aten.instance_norm.default)
def _instance_norm(module: GraphModule, node: Node) -> Node:
    x, weight, bias, _, _, _, _, eps = arguments(node)[:8]
    spatial = list(range(2, x.meta["val"].dim()))
    weight, bias = (_shaped(module, node, each, (-1, *(1,) * len(spatial))) for each in (weight, bias))
    return insert(module, node, STANDARDISE, x, weight, bias, spatial, eps, str(Scale.DEVIATION))


@legalizes(aten.group_norm.default)
def _group_norm(module: GraphModule, node: Node) -> Node:
    """Groups become an axis of their own: the norm and its factors need no other."""
    x, groups, weight, bias, eps = arguments(node)[:5]
    _, channels, *spatial = x.meta["val"].shape
    split = [-1, groups, channels // groups, *spatial]
    dims = list(range(2, len(split)))
    shape = (groups, channels // groups, *(1,) * len(spatial))
    weight, bias = (_shaped(module, node, each, shape) for each in (weight, bias))
    grouped = insert(module, node, aten.reshape.default, x, split)
    args = (grouped, weight, bias, dims, eps, str(Scale.DEVIATION))
    normal = insert(module, node, STANDARDISE, *args)
    return insert(module, node, aten.reshape.default, normal, [-1, channels, *spatial])


def _shaped(module: GraphModule, node: Node, source: Any, shape: tuple[int, ...]) -> Any:
    """A constant of one value a channel in another shape, None where there is none."""
    if source is None:
        return None
    values = constant(module, source.target).detach().reshape(shape)
    return tensor_node(module, node, f"{source.target}.shaped", values)


# Statistics and lengths


@legalizes(aten.linalg_vector_norm.default)
def _vector_norm(module: GraphModule, node: Node) -> Node:
    x, order, dims, keep = arguments(node)[:4]
    dims = list(range(1, x.meta["val"].dim())) if dims is None else list(dims)
    if order == 1:
        return insert(module, node, aten.sum.dim_IntList, insert(module, node, aten.abs.default, x), dims, keep)
    square = insert(module, node, aten.mul.Tensor, x, x)
    total = insert(module, node, aten.sum.dim_IntList, square, dims, keep)
    return insert(module, node, ROOT, total, 0.5)


@legalizes(aten.var.correction, aten.std.correction)
def _variance(module: GraphModule, node: Node) -> Node:
    """The mean of squared differences from the mean, with the divisor that correction asks for."""
    raise NotImplementedError
