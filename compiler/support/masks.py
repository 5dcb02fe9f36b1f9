"""Masks that are refused: numbers like -1e9 among scores, outside of what takes a mask."""

from typing import Any

import torch
from torch.fx.node import Node

from fxloom.forms_masks import MASKING
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
    number = _masking_number(node, values)
    return _refused(number) if number is not None and number < 0 else None


def _masking_number(node: Node, values: Any) -> float | None:
    """The largest number, of either sign, that hides others among the values of an argument."""
    if isinstance(values, int | float):
        return float(values) if abs(values) >= -MASKING else None
    if is_constant(values) and node.graph.owning_module is not None:
        tensor = constant(node.graph.owning_module, values.target).detach().flatten()
        if not tensor.is_floating_point() or not tensor.numel():
            return None
        hides = tensor.abs() >= -MASKING
        # An offset is no mask.
        if not bool(hides.any()) or (node.target not in _CHOICES and bool(hides.all())):
            return None
        return float(tensor[tensor.abs().argmax()])
    if isinstance(values, Node) and node.target in _SUMS:
        factor = _factor_of_condition(values)
        return factor if abs(factor) >= -MASKING else None
    return None


def _factor_of_condition(node: Node) -> float:
    """What a condition is multiplied with, with its sign; zero for what is no condition."""
    factor = 1.0
    while True:
        if node.target is aten._to_copy.default:
            is_condition = arguments(node)[0].meta["val"].dtype == torch.bool
            return factor if is_condition else 0.0
        if node.target not in (*_MOVES, *_SUMS, *_PRODUCTS) or len(_computed(node)) != 1:
            return 0.0
        if node.target is aten.mul.Tensor:
            factor *= next((n for n in arguments(node)[:2] if isinstance(n, int | float)), 1.0)
        (node,) = _computed(node)


def _refused(number: float) -> str:
    return f"no format holds the mask {number:g} beside other values. {ADVICE}"


def masking_behind(x: Node) -> str | None:
    """Why a table cannot read x: something large stands behind it, or was added: a mask."""
    pending, seen = [(x, False)], set()
    while pending:
        node, added = pending.pop()
        if (node, added) in seen:
            continue
        seen.add((node, added))
        if node.target in (*_SUMS, *_CHOICES):
            for argument in arguments(node)[:3]:
                number = _masking_number(node, argument)
                if number is not None and number > 0:  # others are refused where they stand
                    return _refused(number)
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
                    "for the scores. If that is a mask of zeros and ones, make it a condition, "
                    f"(mask > 0.5).float() * {number:g}, or pass it as bool. {ADVICE}"
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
