"""Activations, sums, products and roundings."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from fxloom import ops
from fxloom.fixed_point import FixedPoint
from fxloom.graph import arguments, constant, origin
from fxloom.lowering.core import (
    LOWERINGS,
    Lowered,
    Lowering,
    NotLowered,
    Rule,
    constant_of,
    constant_sample,
    lowers,
)
from fxloom.lowering.operands import operands
from fxloom.ops import Op
from fxloom.quantized_ops import DIVIDE, REQUANTIZE, requantize_modes

aten = torch.ops.aten


@lowers(aten.relu.default)
def _relu(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    zero = lowering.literal(0.0, "zero", x.value)
    return replace(x, value=lowering.emit(ops.Max(), [x.value, zero], node))


@lowers(aten.clamp.default)
def _clamp(lowering: Lowering, node: Node) -> Lowered:
    """A bound that no value passes is none: in the steps of the values it might be too long."""
    x = lowering.tensor(node, 0)
    low, high = arguments(node)[1:3]
    value = x.value
    if low is not None and low > value.lo * value.type.step:
        value = lowering.emit(ops.Max(), [value, lowering.literal(low, "low", value)], node)
    if high is not None and high < value.hi * value.type.step:
        value = lowering.emit(ops.Min(), [value, lowering.literal(high, "high", value)], node)
    return replace(x, value=value)


@lowers(aten.leaky_relu.default)
def _leaky_relu(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    slope = arguments(node)[1]
    scaled = lowering.emit(ops.Mul(), [x.value, lowering.literal(slope, "slope", x.value)], node)
    # Up to a slope of one the function is the larger of x and slope * x, beyond it the smaller.
    pick: Op = ops.Max() if slope <= 1 else ops.Min()
    return replace(x, value=lowering.emit(pick, [x.value, scaled], node))


def _merge(op: Op) -> Rule:
    def rule(lowering: Lowering, node: Node) -> Lowered:
        if node.kwargs:
            raise NotLowered(f"arguments {dict(node.kwargs)} have no lowering")
        for position, other in enumerate(arguments(node)[:2]):
            if isinstance(op, ops.Mul) and _is_power_of_two(other):
                x = lowering.tensor(node, 1 - position)
                shift = ops.Shift(int(np.log2(other)))
                return replace(x, value=lowering.emit(shift, [x.value], node))
        return operands(lowering, node, (0, 1)).emit(lowering, node, op)

    return rule


def _is_power_of_two(number: Any) -> bool:
    return isinstance(number, int | float) and number > 0 and float(np.log2(number)).is_integer()


LOWERINGS[aten.add.Tensor] = _merge(ops.Add())
LOWERINGS[aten.sub.Tensor] = _merge(ops.Sub())
LOWERINGS[aten.mul.Tensor] = _merge(ops.Mul())


@lowers(REQUANTIZE)
def _requantize(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    return replace(x, value=lowering.emit(ops.Requantize(*requantize_modes(node)), [x.value], node))


@lowers(DIVIDE)
def _divide(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.unflatten(lowering.tensor(node, 0), origin(node))
    divisor = arguments(node)[1]
    assert isinstance(divisor, Node)
    values = constant_of(constant(lowering.module, divisor.target))
    data = constant_sample(values, node).transpose(x.layout)
    integers = data.astype(np.int64)
    if (integers != data).any() or integers.min() < 1:
        raise NotLowered("a divisor must be positive integers")
    kind = FixedPoint.holding(0, int(integers.max()), 0)
    d = lowering.constant(f"{origin(node)}.divisor", integers, kind)
    op = ops.Divide(*requantize_modes(node))
    return replace(x, value=lowering.emit(op, [x.value, d], node))
