"""Masks that are refused: numbers like -1e9 among scores, outside of what takes a mask."""

from typing import Any

import torch
from torch.fx.node import Node

from fxloom.forms_masks import MASKING, is_masking
from fxloom.graph import arguments, constant
from fxloom.moves import GATHER
from fxloom.support.core import is_constant

aten = torch.ops.aten

ADVICE = (
    "Mask what softmax reads, with torch.where(keep, x, -torch.inf) or masked_fill, or use a "
    "number just below the others, such as -30"
)


def masking_among(node: Node, values: Any) -> str | None:
    """Why a number or a constant that masks cannot stand among computed values."""
    if is_constant(values) and node.graph.owning_module is not None:
        tensor = constant(node.graph.owning_module, values.target)
        hides = tensor <= MASKING if tensor.is_floating_point() else torch.tensor(False)
        # An offset is no mask.
        if not bool(hides.any()) or (node.target not in _CHOICES and bool(hides.all())):
            return None
        return _refused(float(tensor.min()))
    if isinstance(values, Node):
        factor = _factor_of_condition(values)
        return _refused(-factor) if factor >= -MASKING else None
    return _refused(float(values)) if is_masking(values) else None


def _factor_of_condition(node: Node) -> float:
    """What a condition is multiplied with, as large as it gets; zero for what is no condition."""
    factor = 1.0
    while True:
        if node.target is aten._to_copy.default:
            is_condition = arguments(node)[0].meta["val"].dtype == torch.bool
            return factor if is_condition else 0.0
        if node.target not in (*_MOVES, *_SUMS, *_PRODUCTS) or len(_computed(node)) != 1:
            return 0.0
        if node.target is aten.mul.Tensor:
            numbers = [n for n in arguments(node)[:2] if isinstance(n, int | float)]
            factor *= max([1.0, *map(abs, numbers)])
        (node,) = _computed(node)


def _refused(number: float) -> str:
    return f"no format holds the mask {number:g} beside other values. {ADVICE}"


def masking_behind(x: Node) -> str | None:
    """Why a softmax cannot read x: to what lies behind it something large was added, a mask."""
    pending, seen = [(x, False)], set()
    while pending:
        node, added = pending.pop()
        if (node, added) in seen:
            continue
        seen.add((node, added))
        if node.target in _SUMS:
            pending += [(argument, True) for argument in _computed(node)]
        elif node.target in _MOVES:
            pending += [(argument, added) for argument in _computed(node)]
        elif node.target in _PRODUCTS:
            number = arguments(node)[1]
            factor = abs(number) if isinstance(number, int | float) else 0
            if added and node.target is aten.mul.Tensor and factor >= -MASKING:
                return (
                    f"something times {number:g} is added to its argument, which leaves no bits "
                    f"for the scores. {ADVICE}"
                )
            pending += [(argument, added) for argument in _computed(node)]
    return None


def _computed(node: Node) -> list[Node]:
    return [argument for argument in node.all_input_nodes if not is_constant(argument)]


_CHOICES = (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)
_SUMS = (aten.add.Tensor, aten.sub.Tensor)
_PRODUCTS = (aten.mul.Tensor, aten.div.Tensor)
_MOVES = (
    *(aten.reshape.default, aten.permute.default, aten.expand.default, aten.slice.Tensor),
    *(aten.select.int, aten.cat.default, aten.neg.default, GATHER),
)
