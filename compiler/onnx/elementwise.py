"""Operators on each value by itself, comparisons and conditions."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import BUILDERS, Function, builds, pointwise
from fxloom.onnx.tensors import TORCH_TYPES, type_name

_PLAIN: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Reciprocal": torch.reciprocal,
    "Erf": torch.erf,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Not": torch.logical_not,
    "Relu": functional.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softplus": functional.softplus,
    "HardSwish": functional.hardswish,
    "Mish": functional.mish,
    "Softsign": lambda x: x / (1 + torch.abs(x)),
    "Identity": lambda x: x,
    "Add": lambda x, y: x + y,
    "Sub": lambda x, y: x - y,
    "Mul": lambda x, y: x * y,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": lambda x, y: x == y,
    "Greater": lambda x, y: x > y,
    "GreaterOrEqual": lambda x, y: x >= y,
    "Less": lambda x, y: x < y,
    "LessOrEqual": lambda x, y: x <= y,
}
"""Operators without attributes."""


def _plain(node: Node) -> Function:
    function = _PLAIN[node.kind]
    return pointwise(lambda *x: function(*x))


for _kind in _PLAIN:
    BUILDERS["", _kind] = _plain


@builds("Div")
def _div(node: Node) -> Function:
    if node.value(0).first.is_floating_point():
        return pointwise(lambda x, y: x / y)
    return pointwise(lambda x, y: torch.div(x, y, rounding_mode="trunc"))


@builds("Mod")
def _mod(node: Node) -> Function:
    like_c = node.flag("fmod")
    if not like_c and node.value(0).first.is_floating_point():
        raise Refused("fmod=0 is for integers only")
    return torch.fmod if like_c else torch.remainder


@builds("Pow")
def _pow(node: Node) -> Function:
    return pointwise(lambda x, y: x**y)


@builds("Max", "Min")
def _extreme(node: Node) -> Function:
    function = _larger if node.kind == "Max" else _smaller
    # Tensors first: two numbers would be no tensor.
    return pointwise(lambda *x: reduce(function, sorted(x, key=_is_number)))


def _is_number(operand: object) -> bool:
    return not isinstance(operand, Tensor)


def _larger(x: Tensor, y: Any) -> Tensor:
    return torch.maximum(x, y) if isinstance(y, Tensor) else torch.clamp(x, min=y)


def _smaller(x: Tensor, y: Any) -> Tensor:
    return torch.minimum(x, y) if isinstance(y, Tensor) else torch.clamp(x, max=y)


@builds("Sum")
def _sum(node: Node) -> Function:
    return pointwise(lambda *x: reduce(lambda one, other: one + other, x))


@builds("Mean")
def _mean(node: Node) -> Function:
    return pointwise(lambda *x: reduce(lambda one, other: one + other, x) / len(x))


@builds("Where")
def _where(node: Node) -> Function:
    return pointwise(lambda condition, x, y: torch.where(condition, x, y))


@builds("LeakyRelu")
def _leaky_relu(node: Node) -> Function:
    alpha = node.number("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, alpha)


@builds("Elu")
def _elu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


@builds("Celu")
def _celu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    if alpha == 0:
        raise Refused("alpha is 0, by which it divides")
    return lambda x: functional.celu(x, alpha)


@builds("Selu")
def _selu(node: Node) -> Function:
    alpha, gamma = node.number("alpha", 1.6732632), node.number("gamma", 1.0507010)
    if abs(alpha - 1.6732632) < 1e-6 and abs(gamma - 1.0507010) < 1e-6:
        return torch.selu
    return lambda x: gamma * functional.elu(x, alpha)


@builds("ThresholdedRelu")
def _thresholded_relu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, 0.0)


@builds("HardSigmoid")
def _hard_sigmoid(node: Node) -> Function:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return lambda x: torch.clamp(x * alpha + beta, 0, 1)


@builds("Gelu")
def _gelu(node: Node) -> Function:
    approximate = node.text("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


@builds("Swish")
def _swish(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return functional.silu if alpha == 1 else lambda x: x * torch.sigmoid(alpha * x)


@builds("PRelu")
def _prelu(node: Node) -> Function:
    slope, rank = node.value(1), node.rank()
    shape = (1,) * (rank - len(slope.shapes[0])) + slope.shapes[0]
    if slope.constant and rank > 1 and all(size == 1 for dim, size in enumerate(shape) if dim != 1):
        return lambda x, weight: functional.prelu(x, weight.reshape(-1))
    return lambda x, weight: torch.where(x < 0, x * weight, x)


@builds("Clip")
def _clip(node: Node) -> Function:
    if node.version < 11:
        low: float | None = node.attribute("min", None)
        high: float | None = node.attribute("max", None)
    else:
        low, high = (_number(node.optional(place, "limits")) for place in (1, 2))
    if low is None and high is None:
        return lambda x: x
    # Limits of all float32 numbers, as version 6 has them by default, are none.
    low = None if low is not None and low <= -3.4e38 else low
    high = None if high is not None and high >= 3.4e38 else high
    return lambda x: torch.clamp(x, low, high) if (low, high) != (None, None) else x


def _number(tensor: Tensor | None) -> float | None:
    return None if tensor is None else tensor.item()


@builds("Softmax", "LogSoftmax")
def _softmax(node: Node) -> Function:
    function = torch.softmax if node.kind == "Softmax" else torch.log_softmax
    if node.version >= 13:
        axis = node.axis(-1)
        return lambda x: function(x, axis)
    # Until version 12 over all dimensions from `axis` on together.
    axis, shape = node.axis(1), node.shape()
    batch = node.value(0).batch_axis
    if batch is not None and batch >= axis:
        raise Refused("it is over the samples of the batch, too")
    if all(size == 1 for size in shape[axis + 1 :]):
        return lambda x: function(x, axis)
    rest = shape[axis:]
    return lambda x: function(x.flatten(axis), axis).reshape(*x.shape[:axis], *rest)


@builds("Dropout")
def _dropout(node: Node) -> Function:
    node.refuse_outputs(1)
    for name in ("ratio", "seed"):
        node.attribute(name, None)
    node.optional(1, "ratio")
    training = node.optional(2, "training_mode")
    if training is not None and bool(training):
        raise Refused("training_mode is set. Export the model for inference")
    return lambda x: x


@builds("Cast")
def _cast(node: Node) -> Function:
    kind = node.integer("to")
    node.attribute("saturate", 1)  # of the 8-bit floats alone
    if kind not in TORCH_TYPES:
        raise Refused(f"a conversion to {type_name(kind)} is not supported")
    return lambda x: x.to(TORCH_TYPES[kind])


@builds("CastLike")
def _cast_like(node: Node) -> Function:
    node.attribute("saturate", 1)
    kind = node.value(1).first.dtype
    node.consumed.add(1)
    return lambda x: x.to(kind)
