"""Layers that scale and shift, and those that do nothing at inference.

Sources: layers/preprocessing, layers/regularization and layers/core/masking.py of Keras 3.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxloom.keras.activations import Pointwise
from fxloom.keras.description import Array, Layer
from fxloom.keras.registry import Order, Refused, builds, number, read_all

Statistics = npt.NDArray[np.float64]
_EPSILON = 1e-7
"""keras.config.epsilon() as it is unless someone sets it."""


@builds(
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "RandomContrast",
    "RandomFlip",
    "RandomRotation",
    "RandomTranslation",
    "RandomZoom",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
)
def _nothing(layer: Layer) -> nn.Module:
    """They act in training alone."""
    read_all(layer)
    return Pointwise(lambda x: x)


class Rescaling(nn.Module):
    """keras.layers.Rescaling: x * scale + offset, each a number or one for every last index."""

    def __init__(self, scale: Array, offset: Array) -> None:
        super().__init__()
        self.order: Order = "pointwise" if scale.ndim == offset.ndim == 0 else "keras"
        self.scale, self.offset = constant(scale), constant(offset)
        self.is_shifted = bool(offset.any())

    def forward(self, x: Tensor) -> Tensor:
        scaled = _in_floating_point(x) * self.scale
        return scaled + self.offset if self.is_shifted else scaled


@builds("Rescaling")
def _rescaling(layer: Layer) -> nn.Module:
    return Rescaling(_numbers(layer, "scale", 1.0), _numbers(layer, "offset", 0.0))


class Normalization(nn.Module):
    """keras.layers.Normalization: (x - mean) / deviation along some axes, or back again."""

    def __init__(
        self, mean: Statistics, deviation: Statistics, axes: list[int], invert: bool
    ) -> None:
        super().__init__()
        self.axes, self.invert = axes, invert
        self.mean = constant(mean)
        self.scale = constant(deviation if invert else 1 / deviation)

    def forward(self, x: Tensor) -> Tensor:
        x = _in_floating_point(x)
        mean, scale = self._shaped(self.mean, x), self._shaped(self.scale, x)
        return x * scale + mean if self.invert else (x - mean) * scale

    def _shaped(self, constant: Tensor, x: Tensor) -> Tensor:
        if constant.dim() == 0:
            return constant
        kept = {axis % x.dim() for axis in self.axes}
        return constant.reshape([x.shape[axis] if axis in kept else 1 for axis in range(x.dim())])


@builds("Normalization")
def _normalization(layer: Layer) -> nn.Module:
    """The statistics are in the config, or among the weights: mean, variance and a count."""
    axis = layer.config.get("axis", -1)
    axes = [] if axis is None else [axis] if isinstance(axis, int) else list(axis)
    if layer.config.get("mean") is not None:
        mean, variance = _numbers(layer, "mean", 0.0), _numbers(layer, "variance", 1.0)
    elif len(layer.weights) == 3:
        mean, variance = (each.astype(np.float64) for each in layer.weights[:2])
    else:
        raise Refused(f"required mean, variance and count, {len(layer.weights)} weights arrived")
    if len(axes) > 1 and mean.ndim not in (0, len(axes)):
        raise Refused(f"its mean has {mean.ndim} axes, required {len(axes)}")
    deviation = np.maximum(np.sqrt(variance), _EPSILON)
    return Normalization(mean, deviation, axes, bool(layer.config.get("invert")))


def _numbers(layer: Layer, key: str, default: float) -> Statistics:
    try:
        return np.asarray(layer.config.get(key, default), np.float64)
    except (TypeError, ValueError):
        raise Refused(f"{key} is {layer.config[key]!r}, required numbers") from None


def constant(array: Array) -> nn.Buffer:
    """A constant of a module, in float32."""
    return nn.Buffer(torch.from_numpy(np.array(array, np.float32)))


def _in_floating_point(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.float()


class Masking(nn.Module):
    """keras.layers.Masking: zeros where all of a point in time is one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.where((x != self.value).any(-1, keepdim=True), x, 0.0)


@builds("Masking")
def _masking(layer: Layer) -> nn.Module:
    value = number(layer, "mask_value", 0.0)
    return Masking(value) if value else Pointwise(lambda x: x)
