"""The functions behind `activation=` and the layers that are activations.

Sources: activations/activations.py, layers/activations and backend/tensorflow/nn.py of Keras 3,
activations.py, backend.py and layers/activation of Keras 2 (tf_keras). The two agree but for what
_KERAS_2 says.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.description import Layer
from fxloom.keras.registry import Order, Refused, builds, built, number, parameters

Function = Callable[[Tensor], Tensor]


class Pointwise(nn.Module):
    """A function of every number."""

    order: Order = "pointwise"

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Along(nn.Module):
    """A function along the last axis of Keras; `channels_first` says where that is."""

    order: Order = "any"

    def __init__(self, function: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, channels_first: bool = False) -> Tensor:
        return self.function(x, 1 if channels_first and x.dim() > 2 else -1)


# Functions ---------------------------------------------------------------------------------------


def relu(
    max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0
) -> Function:
    """x above the threshold, but no more than max_value; below it slope * (x - threshold)."""
    if negative_slope < 0 or threshold < 0 or (max_value is not None and max_value < 0):
        raise Refused("its slope, threshold and max_value must not be negative")
    if threshold == 0:
        plain = (
            partial(functional.leaky_relu, negative_slope=negative_slope)
            if negative_slope
            else functional.relu
        )
        if max_value is None:
            return plain
        if not negative_slope:
            return partial(torch.clamp, min=0.0, max=max_value)
        return lambda x: plain(x).clamp(max=max_value)

    def function(x: Tensor) -> Tensor:
        above = x if max_value is None else x.clamp(max=max_value)
        below = negative_slope * (x - threshold) if negative_slope else 0.0
        return torch.where(x > threshold, above, below)

    return function


def _sparse_plus(x: Tensor) -> Tensor:
    """0 up to -1, x from 1 on, and (x + 1)**2 / 4 between."""
    rising = (x + 1).clamp(0, 2)
    return 0.25 * (rising * rising) + functional.relu(x - 1)


POINTWISE: dict[str, Function] = {
    "relu": functional.relu,
    "relu6": relu(max_value=6.0),
    "leaky_relu": relu(negative_slope=0.2),
    "elu": functional.elu,
    "selu": functional.selu,
    "celu": functional.celu,
    "gelu": functional.gelu,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": functional.logsigmoid,
    "hard_sigmoid": functional.hardsigmoid,
    "sparse_sigmoid": lambda x: (0.5 * x + 0.5).clamp(0, 1),
    "tanh": torch.tanh,
    "hard_tanh": partial(torch.clamp, min=-1.0, max=1.0),
    "softplus": functional.softplus,
    "sparse_plus": _sparse_plus,
    "squareplus": lambda x: 0.5 * (x + torch.sqrt(x * x + 4)),
    "softsign": lambda x: x / (1 + x.abs()),
    "silu": functional.silu,
    "swish": functional.silu,
    "hard_silu": functional.hardswish,
    "hard_swish": functional.hardswish,
    "mish": functional.mish,
    "exponential": torch.exp,
    "soft_shrink": lambda x: functional.relu(x - 0.5) - functional.relu(-x - 0.5),
    "hard_shrink": lambda x: torch.where(x.abs() > 0.5, x, 0.0),
    "tanh_shrink": lambda x: x - torch.tanh(x),
}
"""By the names of Keras 3, with the parameters that a name alone stands for."""
_KERAS_2: dict[str, Function] = {"hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1)}
ALONG: dict[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": torch.softmax,
    "softmax_v2": torch.softmax,
    "log_softmax": torch.log_softmax,
    "glu": functional.glu,
}
"""Along the last axis, where a name alone says it."""
_UNKNOWN = {
    "sparsemax": "sorts its values, for which there is no lowering",
    "threshold": "has parameters, which a name does not tell",
}
_AS_FUNCTIONS = ("ELU", "LeakyReLU", "ReLU", "Softmax", "ThresholdedReLU")
"""Layers without weights, which may stand where a function may."""


def named(name: Any, layer: Layer) -> nn.Module | None:
    """The module of an activation; None where it is linear. Raises Refused for an unknown one."""
    if name in (None, "linear"):
        return None
    if isinstance(name, Mapping):
        return _layer(name, layer)
    if layer.generation == 2 and name in _KERAS_2:
        return Pointwise(_KERAS_2[name])
    if name in POINTWISE:
        return Pointwise(POINTWISE[name])
    if name in ALONG:
        return Along(ALONG[name])
    if name in _UNKNOWN:
        raise Refused(f"activation {name!r} {_UNKNOWN[name]}")
    known = ", ".join(sorted({*POINTWISE, *ALONG}))
    raise Refused(f"activation {name!r} is not known here. Known are {known}")


def _layer(described: Mapping[str, Any], layer: Layer) -> nn.Module:
    kind, config = described.get("class_name"), described.get("config")
    module = described.get("module") or "keras.layers"
    ours = str(module).split(".")[0] in ("keras", "tf_keras")
    if kind not in _AS_FUNCTIONS or not ours or not isinstance(config, Mapping):
        raise Refused(
            f"activation {config if isinstance(config, str) else kind!r} is code of the model's "
            f"own. Known are names of functions, and the layers {', '.join(_AS_FUNCTIONS)}"
        )
    return built(Layer(kind, layer.name, config, generation=layer.generation))


# Layers ------------------------------------------------------------------------------------------


@builds("Activation")
def _activation(layer: Layer) -> nn.Module:
    return named(layer.config["activation"], layer) or Pointwise(lambda x: x)


@builds("ReLU")
def _relu(layer: Layer) -> nn.Module:
    most = layer.config.get("max_value")
    slope, threshold = number(layer, "negative_slope", 0.0), number(layer, "threshold", 0.0)
    return Pointwise(relu(None if most is None else float(most), slope, threshold))


@builds("LeakyReLU")
def _leaky_relu(layer: Layer) -> nn.Module:
    key = "negative_slope" if "negative_slope" in layer.config else "alpha"
    slope = number(layer, key, 0.3)
    return Pointwise(partial(functional.leaky_relu, negative_slope=slope))


@builds("ELU")
def _elu(layer: Layer) -> nn.Module:
    return Pointwise(partial(functional.elu, alpha=number(layer, "alpha", 1.0)))


@builds("ThresholdedReLU")
def _thresholded_relu(layer: Layer) -> nn.Module:
    return Pointwise(relu(threshold=number(layer, "theta", 1.0)))


class Softmax(nn.Module):
    """keras.layers.Softmax, along one axis or several at once. What a mask hides gets no share."""

    def __init__(self, axes: list[int], generation: int) -> None:
        super().__init__()
        self.axes, self.generation = axes, generation

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return self._shares(x)
        if mask.dtype != torch.bool:
            mask = mask > 0.5
        shares = self._shares(torch.where(mask, x, HIDDEN))
        # A row in which nothing is left is all zeros in Keras 3, and uniform in Keras 2.
        return torch.where(mask, shares, 0.0) if self.generation == 3 else shares

    def _shares(self, x: Tensor) -> Tensor:
        if len(self.axes) == 1:
            return torch.softmax(x, self.axes[0])
        return torch.exp(x - torch.logsumexp(x, self.axes, keepdim=True))


HIDDEN = -1e9
"""What stands for a score that a mask hides."""


@builds("Softmax")
def _softmax(layer: Layer) -> nn.Module:
    axis = layer.config.get("axis", -1)
    return Softmax([axis] if isinstance(axis, int) else list(axis), layer.generation)


class PReLU(nn.Module):
    """keras.layers.PReLU: a slope below zero for every number of a sample, or shared along axes."""

    order: Order = "any"

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        (self.alpha,) = parameters(layer, 1)

    def forward(self, x: Tensor, channels_first: bool = False) -> Tensor:
        slopes = self.alpha[None]
        if channels_first and x.dim() > 2:
            slopes = slopes.movedim(-1, 1)
        if slopes.numel() == slopes.shape[1]:
            return functional.prelu(x, slopes.flatten())
        return functional.relu(x) - slopes * functional.relu(-x)


@builds("PReLU")
def _prelu(layer: Layer) -> nn.Module:
    return PReLU(layer)
