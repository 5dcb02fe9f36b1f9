"""Layers with weights: linear and convolution."""

from math import prod
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from fxloom import ops
from fxloom.fixed_point import FixedPoint
from fxloom.graph import arguments
from fxloom.lowering.core import Lowered, Lowering, NotLowered, Quantized, lowers
from fxloom.program import Value

aten = torch.ops.aten


@lowers(aten.linear.default)
def _linear(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    weight = lowering.weight(node, 1)
    matrix = weight.data.T
    if x.flattened is not None:
        # Read the weights in the order in which the values lie instead of moving the values.
        order = np.arange(prod(x.flattened)).reshape(
            tuple(x.flattened[x.layout.index(axis)] for axis in range(len(x.layout)))
        )
        matrix = matrix[order.transpose(x.layout).reshape(-1)]
        value = x.value
    else:
        value = lowering.in_order(x, node)
    kernel = lowering.constant(weight.name, matrix, weight.type)
    product = lowering.emit(ops.MatMul(), [value, kernel], node)
    product = _with_points(lowering, node, product, weight)
    return Lowered(_biased(lowering, node, product), tuple(range(len(product.shape))))


def _with_points(lowering: Lowering, node: Node, product: Value, weight: Quantized) -> Value:
    """A product of narrow weights with every channel's own binary point: powers of two, wires."""
    if not weight.shifts:
        return product
    finest = max(weight.shifts)
    powers = np.array([1 << (finest - shift) for shift in weight.shifts])
    kind = FixedPoint.holding(1, int(powers.max()), finest)
    points = lowering.constant(f"{weight.name}.points", powers, kind)
    return lowering.emit(ops.Mul(), [product, points], node)


def _biased(lowering: Lowering, node: Node, product: Value) -> Value:
    if arguments(node)[2] is None:
        return product
    bias = lowering.weight(node, 2)
    offset = lowering.constant(bias.name, bias.data, bias.type)
    return lowering.emit(ops.Add(), [product, offset], node)


@lowers(aten.convolution.default)
def _convolution(lowering: Lowering, node: Node) -> Lowered:
    stride, padding, dilation, transposed, _, groups = arguments(node)[3:]
    if transposed:
        raise NotLowered("a transposed convolution must be rewritten. Run the quantize pass")
    image = lowering.image(node)
    weight = lowering.weight(node, 1)
    if weight.data.ndim not in (3, 4):
        raise NotLowered(
            f"only 1-D and 2-D convolution have a lowering, got {weight.data.ndim - 2}-D"
        )
    data = weight.data[:, :, None] if weight.data.ndim == 3 else weight.data
    kernel = lowering.constant(weight.name, data.transpose(2, 3, 1, 0), weight.type)
    height, width = pair(padding, 0)
    op = ops.Conv(pair(stride), ((height, height), (width, width)), pair(dilation), groups)
    product = lowering.emit(op, [image, kernel], node)
    product = _with_points(lowering, node, product, weight)
    return lowering.from_image(_biased(lowering, node, product), node)


def pair(numbers: Any, height: int = 1) -> tuple[int, int]:
    """Attributes along height and width; a signal's have none along its height of 1."""
    first, second = (height, *numbers) if len(numbers) == 1 else numbers
    return int(first), int(second)
