"""Norms, roots and softmax's relatives."""

import math

import torch
from torch.fx.node import Node

from fxloom.graph import arguments
from fxloom.support.core import checks, weights
from fxloom.support.masks import masking_behind

aten = torch.ops.aten


def _epsilon(eps: float | None) -> str | None:
    if eps is not None and not (math.isfinite(eps) and eps >= 0):
        return f"its eps must be finite and not negative, got {eps}"
    return None


@checks(aten.layer_norm.default)
def _layer_norm(node: Node) -> str | None:
    return _epsilon(arguments(node)[4]) or weights(node, (2, 3), rounded=False)


@checks(aten.rms_norm.default)
def _rms_norm(node: Node) -> str | None:
    return _epsilon(arguments(node)[3]) or weights(node, (2,), rounded=False)


@checks(aten.group_norm.default)
def _group_norm(node: Node) -> str | None:
    return _epsilon(arguments(node)[4]) or weights(node, (2, 3), rounded=False)


@checks(aten.instance_norm.default)
def _instance_norm(node: Node) -> str | None:
    if not arguments(node)[5]:
        return "it keeps running statistics. Capture it again: it is a batch norm"
    return _epsilon(arguments(node)[7]) or weights(node, (1, 2), rounded=False)


@checks(aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default)
def _root(node: Node) -> str | None:
    return None


@checks(aten.log_softmax.int)
def _log_softmax(node: Node) -> str | None:
    if arguments(node)[2] not in (None, arguments(node)[0].meta["val"].dtype):
        return f"dtype={arguments(node)[2]} has no lowering. Leave the dtype out"
    return masking_behind(arguments(node)[0])


@checks(aten.logsumexp.default)
def _logsumexp(node: Node) -> str | None:
    if not arguments(node)[1]:
        return "needs the dimensions to reduce; none means all, the batch among them"
    return masking_behind(arguments(node)[0])


@checks(aten.glu.default)
def _gated(node: Node) -> str | None:
    return None


@checks(aten.linalg_vector_norm.default)
def _vector_norm(node: Node) -> str | None:
    order, dims = arguments(node)[1:3]
    if order not in (1, 2):
        return f"only norms of order 1 and 2 have a lowering, got {order}"
    if not dims:
        return "needs the dimensions to reduce; none means all, the batch among them"
    return None


@checks(aten.var.correction, aten.std.correction)
def _variance(node: Node) -> str | None:
    x, dims = arguments(node)
    if not dims:
        return "needs the dimensions to reduce; none means all, the batch among them"
    unknown = set(node.kwargs) - {"correction", "keepdim"}
    if unknown:
        return f"arguments {', '.join(sorted(unknown))} have no lowering"
    count = math.prod(x.meta["val"].shape[dim] for dim in dims)
    correction = correction_of(node)
    if count - correction <= 0:
        return f"{count} values with a correction of {correction} have no variance"
    return None


def correction_of(node: Node) -> float:
    """What a variance subtracts from its number of values: one where nothing is said."""
    correction = node.kwargs.get("correction")
    assert correction is None or isinstance(correction, int | float)
    return 1 if correction is None else correction
