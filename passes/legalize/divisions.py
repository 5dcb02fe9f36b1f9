"""Divisions: exact by integers, else multiplications."""

from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.composite_ops import QUOTIENT
from fxloom.editing import tensor_node
from fxloom.graph import arguments, constant
from fxloom.passes.legalize.core import insert, legalizes
from fxloom.support.core import is_constant

aten = torch.ops.aten


MAX_DIVISOR = 2**24
"""Integers up to here are divided by exactly; by others it is a multiplication."""


@legalizes(aten.div.Tensor)
def _division(module: GraphModule, node: Node) -> Node | None:
    dividend, divisor = arguments(node)[:2]
    if isinstance(divisor, Node) and not is_constant(divisor):
        return _division_by_computed(module, node, dividend, divisor)
    if isinstance(divisor, Node):
        return _division_by_tensor(module, node, divisor)
    number = float(divisor)
    whole = number.is_integer() and 0 < number < MAX_DIVISOR
    if whole and int(number) & (int(number) - 1):
        return None  # an exact division; by a power of two it is a product
    return insert(module, node, aten.mul.Tensor, dividend, 1.0 / number)


def _division_by_computed(module: GraphModule, node: Node, dividend: Any, divisor: Node) -> Node:
    if isinstance(dividend, Node) and not is_constant(dividend):
        return insert(module, node, QUOTIENT, dividend, divisor)
    inverse = insert(module, node, QUOTIENT, None, divisor)
    return insert(module, node, aten.mul.Tensor, inverse, dividend)


def _division_by_tensor(module: GraphModule, node: Node, divisor: Node) -> Node | None:
    values = constant(module, divisor.target).detach()
    if not values.is_floating_point():
        values = values.to(node.meta["val"].dtype)
    if ((values > 0) & (values < MAX_DIVISOR) & (values == values.round())).all():
        return None
    inverse = tensor_node(module, node, f"{divisor.target}.inverse", 1 / values)
    return insert(module, node, aten.mul.Tensor, arguments(node)[0], inverse)
