"""Activations, sums, products and roundings."""

from dataclasses import replace

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
    requantize_format,
)
from fxloom.ops import Op
from fxloom.program import Value
from fxloom.quantized_ops import (
    DIVIDE,
    REQUANTIZE,
)

aten = torch.ops.aten


@lowers(aten.relu.default)
def _relu(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    zero = lowering.literal(0.0, "zero", x.value)
    return replace(x, value=lowering.emit(ops.Max(), [x.value, zero], node))


@lowers(aten.clamp.default)
def _clamp(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    low, high = arguments(node)[1:3]
    value = x.value
    if low is not None:
        value = lowering.emit(ops.Max(), [value, lowering.literal(low, "low", value)], node)
    if high is not None:
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
        first, second = arguments(node)[:2]
        if node.kwargs:
            raise NotLowered(f"arguments {dict(node.kwargs)} have no lowering")
        computed = [
            isinstance(arg, Node) and isinstance(lowering.known.get(arg), Lowered)
            for arg in (first, second)
        ]
        if all(computed):
            return merge_computed(lowering, node, op)
        position = 0 if computed[0] else 1
        x = lowering.tensor(node, position)
        other = arguments(node)[1 - position]
        if isinstance(other, int | float):
            if isinstance(op, ops.Mul) and _is_power_of_two(float(other)):
                bits = int(np.log2(float(other)))
                return replace(x, value=lowering.emit(ops.Shift(bits), [x.value], node))
            y = lowering.literal(float(other), "number", x.value)
        else:
            x, y = _with_constant(lowering, node, x, 1 - position)
        pair = [x.value, y] if position == 0 else [y, x.value]
        return replace(x, value=lowering.emit(op, pair, node))

    return rule


def _is_power_of_two(number: float) -> bool:
    return number > 0 and float(np.log2(number)).is_integer()


def merge_computed(lowering: Lowering, node: Node, op: Op) -> Lowered:
    a, b = lowering.tensor(node, 0), lowering.tensor(node, 1)
    if (a.layout, a.flattened, a.lifted) == (b.layout, b.flattened, b.lifted):
        return replace(a, value=lowering.emit(op, [a.value, b.value], node))
    if len(a.layout) == len(b.layout):
        a = lowering.unflatten(a, origin(node))
        pair = [a.value, lowering.in_layout(b, a.layout, node)]
        return replace(a, value=lowering.emit(op, pair, node))
    # Ranks differ: broadcasting aligns the user's last axes.
    plain = [lowering.in_order(x, node) for x in (a, b)]
    value = lowering.emit(op, plain, node)
    return Lowered(value, tuple(range(len(value.shape))))


def _with_constant(
    lowering: Lowering, node: Node, x: Lowered, position: int
) -> tuple[Lowered, Value]:
    """x and the constant argument, brought to x's layout."""
    weight = lowering.weight(node, position)
    x = lowering.unflatten(x, origin(node))
    data = constant_sample(weight.data, node)
    rank = data.ndim
    if rank > len(x.layout):
        raise NotLowered(
            f"{weight.name} of shape {weight.data.shape} has more dimensions than its input"
        )
    return x, lowering.constant(weight.name, data.transpose(x.layout), weight.type)


LOWERINGS[aten.add.Tensor] = _merge(ops.Add())
LOWERINGS[aten.sub.Tensor] = _merge(ops.Sub())
LOWERINGS[aten.mul.Tensor] = _merge(ops.Mul())
LOWERINGS[aten.maximum.default] = _merge(ops.Max())
LOWERINGS[aten.minimum.default] = _merge(ops.Min())


@lowers(REQUANTIZE)
def _requantize(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    return replace(
        x, value=lowering.emit(ops.Requantize(*requantize_format(node)), [x.value], node)
    )


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
    op = ops.Divide(*requantize_format(node))
    return replace(x, value=lowering.emit(op, [x.value, d], node))
