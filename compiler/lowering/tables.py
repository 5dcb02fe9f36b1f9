"""Functions by table."""

from dataclasses import replace

import torch
from torch.fx.node import Node

from fxloom import ops
from fxloom.fixed_point import FixedPoint
from fxloom.graph import arguments
from fxloom.lowering.core import Lowered, Lowering, lowers
from fxloom.lowering.operands import operands
from fxloom.quantized_ops import (
    LOOKUP,
    NORMALISE,
    SHIFT_LIKE,
)

aten = torch.ops.aten


@lowers(LOOKUP)
def _lookup(lowering: Lowering, node: Node) -> Lowered:
    x, table = lowering.tensor(node, 0), lowering.weight(node, 1)
    entries = lowering.constant(table.name, table.data, table.type)
    op = ops.Lookup(FixedPoint(*arguments(node)[2:]))
    return replace(x, value=lowering.emit(op, [x.value, entries], node))


@lowers(NORMALISE)
def _normalise(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    width, integer, *step = arguments(node)[1:]
    op = ops.Normalise(FixedPoint(width, integer, False), *step)
    return replace(x, value=lowering.emit(op, [x.value], node))


@lowers(SHIFT_LIKE)
def _shift_like(lowering: Lowering, node: Node) -> Lowered:
    width, integer, *step = arguments(node)[2:]
    op = ops.ShiftLike(FixedPoint(width, integer, False), *step)
    return operands(lowering, node, (0, 1)).emit(lowering, node, op)
