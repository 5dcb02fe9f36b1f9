"""Divisions: exact by integers, else multiplications."""

import torch
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.editing import tensor_node
from fxloom.graph import arguments, constant
from fxloom.passes.legalize.core import NotLegal, insert, legalizes

aten = torch.ops.aten


MAX_DIVISOR = 2**24
"""Integers up to here are divided by exactly; by others it is a multiplication."""


@legalizes(aten.div.Tensor)
def _division(module: GraphModule, node: Node) -> Node | None:
    dividend, divisor = arguments(node)[:2]
    if isinstance(divisor, Node):
        return _division_by_tensor(module, node, divisor)
    number = float(divisor)
    whole = number.is_integer() and 0 < number < MAX_DIVISOR
    if whole and int(number) & (int(number) - 1):
        return None  # an exact division; by a power of two it is a product
    return insert(module, node, aten.mul.Tensor, dividend, 1.0 / number)


def _division_by_tensor(module: GraphModule, node: Node, divisor: Node) -> Node | None:
    values = constant(module, divisor.target).detach()
    if not values.is_floating_point():
        values = values.to(node.meta["val"].dtype)
    if (values == 0).any():
        raise NotLegal(f"{divisor.target} holds a zero divisor")
    if ((values > 0) & (values < MAX_DIVISOR) & (values == values.round())).all():
        return None
    inverse = tensor_node(module, node, f"{divisor.target}.inverse", 1 / values)
    return insert(module, node, aten.mul.Tensor, arguments(node)[0], inverse)
