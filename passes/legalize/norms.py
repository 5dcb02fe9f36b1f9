"""Norms over the values of one sample: all are standardise nodes, written out by quantize."""

from math import prod
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.composite_ops import QUOTIENT, ROOT, STANDARDISE, Scale
from fxloom.editing import tensor_node
from fxloom.graph import BATCH, arguments, constant
from fxloom.passes.legalize.core import insert, legalizes
from fxloom.support.norms import correction_of

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
    weight, bias = (
        _shaped(module, node, each, (-1, *(1,) * len(spatial))) for each in (weight, bias)
    )
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
def _vector_norm(module: GraphModule, node: Node) -> Node | None:
    x, order, dims, keep = arguments(node)
    divisions = _normalizing(node) if order == 2 and keep else {}
    for division, eps in divisions.items():
        args = (x, None, None, dims, eps, str(Scale.LENGTH))
        with module.graph.inserting_before(division):
            division.replace_all_uses_with(insert(module, division, STANDARDISE, *args))
    if order == 1:
        parts = insert(module, node, aten.abs.default, x)
        return insert(module, node, aten.sum.dim_IntList, parts, dims, keep)
    square = insert(module, node, aten.mul.Tensor, x, x)
    total = insert(module, node, aten.sum.dim_IntList, square, dims, keep)
    return insert(module, node, ROOT, total, 0.5)


def _normalizing(node: Node) -> dict[Node, float]:
    """The divisions x / max(length of x, eps) that read a length, as F.normalize writes them."""
    found: dict[Node, float] = {}
    pending = [(user, node, 0.0) for user in node.users]
    while pending:
        user, source, eps = pending.pop()
        if user.target is aten.clamp.default and arguments(user)[2] is None:
            eps = max(eps, float(arguments(user)[1]))
        elif user.target is aten.div.Tensor:
            if arguments(user)[:2] == (arguments(node)[0], source):
                found[user] = eps
            continue
        elif user.target is not aten.expand.default:
            continue
        pending += [(reader, user, eps) for reader in user.users]
    return found


@legalizes(aten.var.correction, aten.std.correction)
def _variance(module: GraphModule, node: Node) -> Node:
    """The sum of squared differences from the mean, over one number less as a rule."""
    x, dims = arguments(node)
    keep = bool(node.kwargs.get("keepdim", False))
    mean = insert(module, node, aten.mean.dim, x, dims, True)
    centred = insert(module, node, aten.sub.Tensor, x, mean)
    square = insert(module, node, aten.mul.Tensor, centred, centred)
    total = insert(module, node, aten.sum.dim_IntList, square, dims, keep)
    count = prod(int(x.meta["val"].shape[dim]) for dim in dims) - correction_of(node)
    variance = insert(module, node, aten.div.Tensor, total, count)
    if node.target is aten.var.correction:
        return variance
    return insert(module, node, ROOT, variance, 0.5)


@legalizes(aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default)
def _root(module: GraphModule, node: Node) -> Node:
    (x,) = arguments(node)
    if node.target is aten.reciprocal.default:
        return insert(module, node, QUOTIENT, None, x)
    return insert(module, node, ROOT, x, 0.5 if node.target is aten.sqrt.default else -0.5)


@legalizes(aten.logsumexp.default)
def _logsumexp(module: GraphModule, node: Node) -> Node | None:
    x, dims, keep = arguments(node)
    if keep:
        return None
    kept = insert(module, node, aten.logsumexp.default, x, dims, True)
    sizes = [size if size % BATCH else -1 for size in node.meta["val"].shape]
    return insert(module, node, aten.reshape.default, kept, sizes)


@legalizes(aten.glu.default)
def _gated(module: GraphModule, node: Node) -> Node:
    x, dim = arguments(node)
    half = x.meta["val"].shape[dim] // 2
    value = insert(module, node, aten.slice.Tensor, x, dim, 0, half, 1)
    gate = insert(module, node, aten.slice.Tensor, x, dim, half, 2 * half, 1)
    gate = insert(module, node, aten.sigmoid.default, gate)
    return insert(module, node, aten.mul.Tensor, value, gate)
