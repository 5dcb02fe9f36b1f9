"""Comparisons, conditions, choices, indices."""

import functools
from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch.fx.node import Node

from fxloom.graph import arguments, constant, range_of
from fxloom.support.core import ON_INTEGERS, checks, is_constant, too_large, weights
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


@checks(*_RELATIONS)
def _relation(node: Node) -> str | None:
    return _beyond_type(node, arguments(node)[:2])


def _beyond_type(node: Node, operands: Sequence[Any]) -> str | None:
    """Whether torch would wrap a number to fit the integers beside it: 300 is 44 in uint8."""
    types = [
        each.meta["val"].dtype
        for each in operands
        if isinstance(each, Node) and each.meta["val"].dim() > 0
    ]
    module = node.graph.owning_module
    if module is None or not types or any(dtype.is_floating_point for dtype in types):
        return None
    least, most = range_of(functools.reduce(torch.promote_types, types))
    for each in operands:
        number = each
        if is_constant(each) and each.meta["val"].dim() == 0:
            number = constant(module, each.target).item()
        if isinstance(number, int) and not least <= number <= most:
            return f"{number} is no {types[0]}, torch would wrap it. Convert with .int() first"
    return None


@checks(*_CONDITIONS)
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
            return f"hardware has no {branch}. Use a number just beyond what the values reach"
    mixed = [n for n in branches if isinstance(n, Node) and not is_constant(n)]
    if any(n.meta["val"].dtype != node.meta["val"].dtype for n in mixed):
        return "it mixes types. Convert what it chooses from to one type first"
    return _beyond_type(node, branches) or too_large(node, (1, 2))


@checks(aten.maximum.default, aten.minimum.default)
def _extreme(node: Node) -> str | None:
    return too_large(node, (0, 1))


@checks(aten._to_copy.default)
def _cast(node: Node) -> str | None:
    source, target = arguments(node)[0].meta["val"].dtype, node.meta["val"].dtype
    if list(node.kwargs) != ["dtype"]:
        return f"arguments {', '.join(node.kwargs)} have no lowering. Leave them out"
    if source.is_floating_point and not target.is_floating_point:
        return f"a conversion of {source} to {target} drops fractions and has no lowering"
    if not target.is_floating_point and not source.is_floating_point:
        (least, most), (low, high) = range_of(target), range_of(source)
        if target not in (torch.int32, torch.int64) and (low < least or high > most):
            return f"a conversion of {source} to {target} drops bits and has no lowering"
    return None


@checks(aten.argmax.default, aten.argmin.default)
def _index(node: Node) -> str | None:
    if arguments(node)[1] is None:
        return "needs a dimension; none means all, the batch among them"
    return None


@checks(aten.prelu.default)
def _prelu(node: Node) -> str | None:
    return weights(node, (1,))


@checks(aten.embedding.default)
def _embedding(node: Node) -> str | None:
    return weights(node, (0,))


@checks(aten.matmul.default, aten.bmm.default)
def _matmul(node: Node) -> str | None:
    for side in arguments(node)[:2]:
        if is_constant(side):
            return (
                f"a constant of shape {list(side.meta['val'].shape)} must have the leading "
                "dimensions of what it is multiplied with, or that none but the batch"
            )
    return None
