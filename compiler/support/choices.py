"""Comparisons, conditions, choices, indices."""

from math import isfinite

import torch
from torch.fx.node import Node

from fxloom.graph import arguments
from fxloom.support.core import ON_INTEGERS, checks, is_constant
from fxloom.support.masks import masking_among

aten = torch.ops.aten

_RELATIONS = [
    getattr(getattr(aten, name), overload)
    for name in ("gt", "ge", "lt", "le", "eq", "ne")
    for overload in ("Tensor", "Scalar")
]
_CONDITIONS = (
    aten.logical_and.default,
    aten.logical_or.default,
    aten.logical_xor.default,
    aten.logical_not.default,
)
_WHERE = (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)
_INDICES = (aten.argmax.default, aten.argmin.default, aten.embedding.default)
ON_INTEGERS.update((*_RELATIONS, *_CONDITIONS, *_WHERE, *_INDICES))
ON_INTEGERS.update((aten._to_copy.default, aten.amax.default))


@checks(*_RELATIONS, *_CONDITIONS, aten.maximum.default, aten.minimum.default)
@checks(aten.neg.default, aten.abs.default, aten.sign.default)
def _anything(node: Node) -> str | None:
    return None


@checks(*_WHERE)
def _where(node: Node) -> str | None:
    _, *branches = arguments(node)
    for branch in branches:
        hidden = masking_among(node, branch)
        if hidden is not None:
            return hidden
        if isinstance(branch, int | float) and not isfinite(branch):
            return f"hardware has no {branch}. Use a finite number"
    mixed = [n for n in branches if isinstance(n, Node) and not is_constant(n)]
    if any(n.meta["val"].dtype != node.meta["val"].dtype for n in mixed):
        return "it mixes types. Convert what it chooses from to one type first"
    return None


@checks(aten._to_copy.default)
def _cast(node: Node) -> str | None:
    source, target = arguments(node)[0].meta["val"].dtype, node.meta["val"].dtype
    if list(node.kwargs) != ["dtype"]:
        return f"arguments {', '.join(node.kwargs)} have no lowering. Leave them out"
    if source.is_floating_point and not target.is_floating_point:
        return f"a conversion of {source} to {target} drops fractions and has no lowering"
    return None


@checks(aten.argmax.default, aten.argmin.default)
def _index(node: Node) -> str | None:
    if arguments(node)[1] is None:
        return "needs a dimension; none means all, the batch among them"
    return None


@checks(aten.prelu.default)
def _prelu(node: Node) -> str | None:
    if not is_constant(arguments(node)[1]):
        return "its weight is computed. Only weights that are constants have a lowering"
    return None


@checks(aten.embedding.default)
def _embedding(node: Node) -> str | None:
    if not is_constant(arguments(node)[0]):
        return "its weight is computed. Only weights that are constants have a lowering"
    return None


@checks(aten.matmul.default, aten.bmm.default)
def _matmul(node: Node) -> str | None:
    for side in arguments(node)[:2]:
        if is_constant(side):
            return (
                f"a constant of shape {list(side.meta['val'].shape)} must have the leading "
                "dimensions of what it is multiplied with, or that none but the batch"
            )
    return None
