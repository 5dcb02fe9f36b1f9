"""Operations on tensors that are no layers: x + y, x[:, 1:], keras.ops.relu(x).

Keras 3 writes them with module keras.src.ops (keras, src/ops/numpy.py and nn.py), Keras 2 as
TFOpLambda and SlicingOpLambda with the name of a function of TensorFlow. Names stand for the
operations below and for nothing else; no function is looked up by its name.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.activations import POINTWISE, Pointwise
from fxloom.keras.description import Layer
from fxloom.keras.registry import Order, Refused, builds, number

OPERATIONS = "keras.ops"

Function = Callable[..., Any]


class Operation(nn.Module):
    """A function of tensors in Keras' own axes, and of numbers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.function(*arguments, **named)


class Binary(nn.Module):
    """An operation on two tensors, or on a tensor and a number, that broadcasts as NumPy does."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def order(self, dims: Sequence[int]) -> Order:
        """Broadcasting aligns the last axes: tensors of unlike ranks must have Keras' own."""
        return "pointwise" if len(set(dims)) == 1 else "keras"

    def forward(self, x1: Any, x2: Any = None, y: Any = None) -> Any:
        """y: as TensorFlow calls the second."""
        second = y if x2 is None else x2
        if not isinstance(x1, Tensor):  # torch wants a tensor first
            assert isinstance(second, Tensor)
            x1 = torch.full((), x1, dtype=second.dtype)
        return self.function(x1, second)


def _larger(x: Tensor, y: Any) -> Tensor:
    return torch.maximum(x, y) if isinstance(y, Tensor) else torch.clamp(x, min=y)


def _smaller(x: Tensor, y: Any) -> Tensor:
    return torch.minimum(x, y) if isinstance(y, Tensor) else torch.clamp(x, max=y)


_BINARY: dict[str, Function] = {
    "Add": torch.add,
    "Subtract": torch.sub,
    "Multiply": torch.mul,
    "Divide": torch.div,
    "TrueDivide": torch.div,
    "Maximum": _larger,
    "Minimum": _smaller,
}
_UNARY: dict[str, Function] = {
    "Absolute": torch.abs,
    "Abs": torch.abs,
    "Negative": torch.neg,
    "Square": torch.square,
    "Sqrt": torch.sqrt,
    "Rsqrt": torch.rsqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Reciprocal": torch.reciprocal,
}
_WITH_PARAMETERS = ("leaky_relu", "elu", "gelu", "celu", "soft_shrink", "hard_shrink", "squareplus")


@builds(*_BINARY, package=OPERATIONS)
def _binary(layer: Layer) -> nn.Module:
    return Binary(_BINARY[layer.class_name])


@builds(*_UNARY, package=OPERATIONS)
def _unary(layer: Layer) -> nn.Module:
    return Pointwise(_UNARY[layer.class_name])


_ACTIVATIONS = {
    "".join(part.capitalize() for part in name.split("_")): function
    for name, function in POINTWISE.items()
    if name not in _WITH_PARAMETERS
}
"""Relu, HardSigmoid, ...: those without parameters, which the functions here would not see."""


@builds(*_ACTIVATIONS, package=OPERATIONS)
def _activation(layer: Layer) -> nn.Module:
    return Pointwise(_ACTIVATIONS[layer.class_name])


@builds("LeakyRelu", package=OPERATIONS)
def _leaky_relu(layer: Layer) -> nn.Module:
    slope = number(layer, "negative_slope", 0.2)
    return Pointwise(partial(functional.leaky_relu, negative_slope=slope))


@builds("Elu", package=OPERATIONS)
def _elu(layer: Layer) -> nn.Module:
    return Pointwise(partial(functional.elu, alpha=number(layer, "alpha", 1.0)))


@builds("Gelu", package=OPERATIONS)
def _gelu(layer: Layer) -> nn.Module:
    kind = "tanh" if layer.config.get("approximate", True) else "none"
    return Pointwise(partial(functional.gelu, approximate=kind))


@builds("Clip", package=OPERATIONS)
def _clip(layer: Layer) -> nn.Module:
    least, most = number(layer, "x_min", 0.0), number(layer, "x_max", 0.0)
    return Pointwise(partial(torch.clamp, min=least, max=most))


@builds("Power", package=OPERATIONS)
def _power(layer: Layer) -> nn.Module:
    return Operation(torch.pow)


@builds("Softmax", "LogSoftmax", package=OPERATIONS)
def _softmax(layer: Layer) -> nn.Module:
    function = torch.softmax if layer.class_name == "Softmax" else torch.log_softmax
    return Operation(partial(function, dim=_axis(layer, -1)))


@builds("Concatenate", "Stack", package=OPERATIONS)
def _joined(layer: Layer) -> nn.Module:
    function = torch.cat if layer.class_name == "Concatenate" else torch.stack
    default = -1 if layer.class_name == "Concatenate" else 0
    return Operation(partial(function, dim=_axis(layer, default)))


_REDUCTIONS: dict[str, Function] = {
    "Mean": torch.mean,
    "Sum": torch.sum,
    "Max": torch.amax,
    "Min": torch.amin,
    "Amax": torch.amax,
    "Amin": torch.amin,
}


@builds(*_REDUCTIONS, package=OPERATIONS)
def _reduced(layer: Layer) -> nn.Module:
    axis = layer.config.get("axis")
    if axis is None:
        raise Refused("axis=None takes the samples of a batch together. Name the axes")
    axes = [axis] if isinstance(axis, int) else list(axis)
    keep = bool(layer.config.get("keepdims", False))
    function = _REDUCTIONS[layer.class_name]
    return Operation(lambda x: function(x, axes, keep))


@builds("ExpandDims", "Squeeze", package=OPERATIONS)
def _ones(layer: Layer) -> nn.Module:
    axis = layer.config.get("axis")
    if axis is None:
        raise Refused("axis=None depends on the size of the batch. Name the axes")
    axes = [axis] if isinstance(axis, int) else list(axis)
    if layer.class_name == "Squeeze":
        return Operation(lambda x: x.squeeze(axes))
    if len(axes) > 1:
        raise Refused(f"axis={axis}: required one axis")
    return Operation(lambda x: x.unsqueeze(axes[0]))


@builds("Transpose", package=OPERATIONS)
def _transposed(layer: Layer) -> nn.Module:
    axes = layer.config.get("axes")
    return Operation(lambda x: x.permute(axes or [*range(x.dim())][::-1]))


@builds("Reshape", package=OPERATIONS)
def _reshaped(layer: Layer) -> nn.Module:
    shape = [-1 if n is None else n for n in layer.config["newshape"]]
    if not shape or shape[0] != -1:
        raise Refused(f"newshape={shape}: required the batch in front, as -1")

    def reshaped(x: Tensor) -> Tensor:
        known = abs(torch.Size(shape[1:]).numel())
        if known and x[0].numel() % known == 0 and (-1 in shape[1:] or x[0].numel() == known):
            shape_ = [x[0].numel() // known if n == -1 else n for n in shape[1:]]
            return x.reshape(x.shape[0], *shape_)
        raise ValueError(f"{list(x.shape)} becomes {shape}, which mixes the samples of a batch")

    return Operation(reshaped)


@builds("Split", package=OPERATIONS)
def _split(layer: Layer) -> nn.Module:
    parts, axis = layer.config["indices_or_sections"], _axis(layer, 0)
    return Operation(lambda x: torch.tensor_split(x, parts, axis))


@builds("Pad", package=OPERATIONS)
def _padded(layer: Layer) -> nn.Module:
    if layer.config.get("mode", "constant") != "constant":
        raise Refused(f"mode={layer.config['mode']!r} is not known here, constant is")
    flat = [int(n) for pair in reversed(layer.config["pad_width"]) for n in pair]

    def padded(x: Tensor, constant_values: float = 0.0) -> Tensor:
        return functional.pad(x, flat, value=constant_values)

    return Operation(padded)


@builds("Matmul", package=OPERATIONS)
def _matmul(layer: Layer) -> nn.Module:
    return Operation(torch.matmul)


@builds("GetItem", package=OPERATIONS)
def _item(layer: Layer) -> nn.Module:
    return Operation(_at)


def _at(x: Tensor, key: Any) -> Tensor:
    if isinstance(key, Tensor):
        raise ValueError("an index that is computed is not known here")
    return x[tuple(key) if isinstance(key, list) else key]


def _axis(layer: Layer, default: int) -> int:
    axis = layer.config.get("axis", default)
    if not isinstance(axis, int):
        raise Refused(f"axis={axis}: required one axis")
    return axis


# Keras 2 -----------------------------------------------------------------------------------------

_OF_TENSORFLOW: dict[str, Callable[[], nn.Module]] = {
    "__operators__.add": lambda: Binary(torch.add),
    "math.add": lambda: Binary(torch.add),
    "math.subtract": lambda: Binary(torch.sub),
    "math.multiply": lambda: Binary(torch.mul),
    "math.truediv": lambda: Binary(torch.div),
    "math.divide": lambda: Binary(torch.div),
    "math.maximum": lambda: Binary(_larger),
    "math.minimum": lambda: Binary(_smaller),
    "math.negative": lambda: Pointwise(torch.neg),
    "math.abs": lambda: Pointwise(torch.abs),
    "math.square": lambda: Pointwise(torch.square),
    "nn.relu": lambda: _Features(functional.relu),
    "math.sigmoid": lambda: Pointwise(torch.sigmoid),
    "math.tanh": lambda: Pointwise(torch.tanh),
}


class _Features(Pointwise):
    """A pointwise function whose argument TensorFlow calls features."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features)


@builds("TFOpLambda")
def _of_tensorflow(layer: Layer) -> nn.Module:
    name = layer.config.get("function")
    if name not in _OF_TENSORFLOW:
        known = ", ".join(_OF_TENSORFLOW)
        raise Refused(
            f"the function {name!r} of TensorFlow is not known here. Use a layer of Keras in its "
            f"place. Known are {known}"
        )
    return _OF_TENSORFLOW[name]()


@builds("SlicingOpLambda")
def _slice_of_tensorflow(layer: Layer) -> nn.Module:
    if layer.config.get("function") != "__operators__.getitem":
        raise Refused(f"the function {layer.config.get('function')!r} is not known here")
    return Operation(_at_spec)


def _at_spec(x: Tensor, slice_spec: Sequence[Any]) -> Tensor:
    """slice_spec: for each axis a number, or a dictionary with start, stop and step."""
    key = [
        slice(each.get("start"), each.get("stop"), each.get("step"))
        if isinstance(each, Mapping)
        else each
        for each in slice_spec
    ]
    return _at(x, key)
