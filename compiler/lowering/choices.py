"""Comparisons, conditions, and what is chosen: no value is rounded."""

from dataclasses import replace

import torch
from torch.fx.node import Node

from fxloom import ops
from fxloom.batch_axis import sample_axis
from fxloom.graph import arguments, origin
from fxloom.lowering.core import LOWERINGS, Lowered, Lowering, Rule, lowers
from fxloom.lowering.operands import Operands, operands, without
from fxloom.ops import Op
from fxloom.program import Value
from fxloom.quantized_ops import EMBEDDING

aten = torch.ops.aten

_RELATIONS = {"lt": "lt", "le": "le", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
"""A larger value is compared as a smaller one, the other way round."""


def _compare(name: str) -> Rule:
    def rule(lowering: Lowering, node: Node) -> Lowered:
        found = operands(lowering, node, (0, 1), thresholds=True)
        if name.startswith("g"):
            found = Operands(found.values[::-1], found.like)
        return found.emit(lowering, node, ops.Compare(_RELATIONS[name]))

    return rule


for _name in _RELATIONS:
    for _overload in ("Tensor", "Scalar"):
        LOWERINGS[getattr(getattr(aten, _name), _overload)] = _compare(_name)


def _of_two(op: Op) -> Rule:
    return lambda lowering, node: operands(lowering, node, (0, 1)).emit(lowering, node, op)


LOWERINGS |= {
    aten.maximum.default: _of_two(ops.Max()),
    aten.minimum.default: _of_two(ops.Min()),
    # Conditions are zero or one.
    aten.logical_and.default: _of_two(ops.Min()),
    aten.logical_or.default: _of_two(ops.Max()),
    aten.logical_xor.default: _of_two(ops.Compare("ne")),
}


@lowers(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)
def _where(lowering: Lowering, node: Node) -> Lowered:
    return operands(lowering, node, (0, 1, 2)).emit(lowering, node, ops.Select())


@lowers(aten.logical_not.default)
def _not(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    one = lowering.literal(1.0, "one", x.value)
    return replace(x, value=lowering.emit(ops.Sub(), [one, x.value], node))


@lowers(aten._to_copy.default)
def _number(lowering: Lowering, node: Node) -> Lowered:
    """A condition or an integer as a number."""
    return lowering.tensor(node, 0)


def _negated(lowering: Lowering, node: Node, value: Value) -> Value:
    return lowering.emit(ops.Sub(), [lowering.literal(0.0, "zero", value), value], node)


@lowers(aten.neg.default)
def _neg(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    return replace(x, value=_negated(lowering, node, x.value))


@lowers(aten.abs.default)
def _abs(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    pair = [x.value, _negated(lowering, node, x.value)]
    return replace(x, value=lowering.emit(ops.Max(), pair, node))


@lowers(aten.sign.default)
def _sign(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    zero = lowering.literal(0.0, "zero", x.value)
    positive = lowering.emit(ops.Compare("lt"), [zero, x.value], node)
    negative = lowering.emit(ops.Compare("lt"), [x.value, zero], node)
    return replace(x, value=lowering.emit(ops.Sub(), [positive, negative], node))


@lowers(aten.argmax.default, aten.argmin.default)
def _argmax(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.unflatten(lowering.tensor(node, 0), origin(node))
    source, dim, keep = arguments(node)[:3]
    assert isinstance(source, Node)
    axis = x.layout.index(sample_axis(source, dim))
    value = x.value
    if node.target is aten.argmin.default:
        value = _negated(lowering, node, value)
    value = lowering.emit(ops.ArgMax(axis), [value], node)
    return Lowered(value, x.layout) if keep else without(lowering, node, x, (axis,), value)


@lowers(aten.prelu.default)
def _prelu(lowering: Lowering, node: Node) -> Lowered:
    """x, or x times the slope of its channel where it is negative."""
    x = lowering.unflatten(lowering.tensor(node, 0), origin(node))
    slope = lowering.weight(node, 1)
    source = arguments(node)[0]
    assert isinstance(source, Node)
    shape = [1] * len(x.layout)
    if slope.data.size > 1:
        shape[sample_axis(source, 1)] = slope.data.size
    data = slope.data.reshape(shape).transpose(x.layout)
    slopes = lowering.constant(slope.name, data, slope.type)
    scaled = lowering.emit(ops.Mul(), [x.value, slopes], node)
    real = slope.data * slope.type.step
    if real.max() <= 1:
        return replace(x, value=lowering.emit(ops.Max(), [x.value, scaled], node))
    if real.min() >= 1:
        return replace(x, value=lowering.emit(ops.Min(), [x.value, scaled], node))
    negative = lowering.emit(
        ops.Compare("lt"), [x.value, lowering.literal(0.0, "zero", x.value)], node
    )
    value = lowering.emit(ops.Select(), [negative, scaled, x.value], node)
    return replace(x, value=value)


@lowers(EMBEDDING)
def _embedding(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.unflatten(lowering.tensor(node, 0), origin(node))
    weight = lowering.weight(node, 1)
    rows, value = len(weight.data), x.value
    if value.lo < 0:
        value = lowering.emit(ops.Max(), [value, lowering.literal(0, "first", value)], node)
    if value.hi >= rows:
        last = lowering.literal(rows - 1, "last", value)
        value = lowering.emit(ops.Min(), [value, last], node)
    table = lowering.constant(weight.name, weight.data, weight.type)
    found = lowering.emit(ops.Embedding(), [value, table], node)
    return Lowered(found, (*x.layout, len(x.layout)))
