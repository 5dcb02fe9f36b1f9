"""Norms over the numbers of one sample: layer, RMS, group and unit norm.

Sources: layers/normalization and ops/nn.py of Keras 3, layers/normalization of Keras 2 (tf_keras).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.description import Layer
from fxloom.keras.registry import Order, builds, number, parameters


class Trailing(nn.Module):
    """A norm over some axes, which are moved behind the others for it and back again.

    weight, bias: None, or as many numbers as these axes in rising order have. Keras 3 sorts
    axes before it knows the rank, so that [1, -1] makes weights of another shape, and reshapes.
    """

    def __init__(
        self, axes: Sequence[int], weight: nn.Parameter | None, bias: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.axes = list(axes)
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        rank = x.dim()
        axes = sorted(axis % rank for axis in self.axes)
        if axes == list(range(rank - len(axes), rank)):
            return self.normalised(x, len(axes))
        order = [axis for axis in range(rank) if axis not in axes] + axes
        back = sorted(range(rank), key=order.__getitem__)
        return self.normalised(x.permute(order), len(axes)).permute(back)

    def normalised(self, x: Tensor, dims: int) -> Tensor:
        """The norm over the last dims."""
        raise NotImplementedError

    @staticmethod
    def shaped(weight: Tensor | None, shape: Sequence[int]) -> Tensor | None:
        """A weight in the shape of what is normalised."""
        return weight if weight is None or weight.shape == shape else weight.reshape(list(shape))


class LayerNorm(Trailing):
    """keras.layers.LayerNormalization."""

    eps = 1e-3

    def normalised(self, x: Tensor, dims: int) -> Tensor:
        shape = x.shape[-dims:]
        weight, bias = self.shaped(self.weight, shape), self.shaped(self.bias, shape)
        return functional.layer_norm(x, shape, weight, bias, self.eps)


class VarianceScaled(LayerNorm):
    """LayerNormalization(rms_scaling=True): divided by the deviation, the mean not taken off."""

    def normalised(self, x: Tensor, dims: int) -> Tensor:
        variance = x.var(list(range(-dims, 0)), correction=0, keepdim=True)
        y = x * torch.rsqrt(variance + self.eps)
        weight = self.shaped(self.weight, x.shape[-dims:])
        return y if weight is None else y * weight


class RMSNorm(LayerNorm):
    """keras.layers.RMSNormalization: divided by the root of the mean square.

    Keras multiplies by the scale along the last axes, whatever the axes of the norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        first = x.dim() - len(self.axes)
        if sorted(axis % x.dim() for axis in self.axes) == list(range(first, x.dim())):
            return super().forward(x)
        mean_square = (x * x).mean(self.axes, keepdim=True)
        y = x * torch.rsqrt(mean_square + self.eps)
        return y if self.weight is None else y * self.weight

    def normalised(self, x: Tensor, dims: int) -> Tensor:
        return functional.rms_norm(x, x.shape[-dims:], self.weight, self.eps)


def _axes(layer: Layer) -> list[int]:
    axis = layer.config.get("axis", -1)
    return [axis] if isinstance(axis, int) else list(axis)


def _weight_and_bias(layer: Layer, weight: str, bias: str) -> list[nn.Parameter | None]:
    """gamma and beta, where the config says that they are there."""
    wanted = [bool(layer.config.get(weight, True)), bool(layer.config.get(bias, True))]
    given = iter(parameters(layer, sum(wanted)))
    return [next(given) if there else None for there in wanted]


@builds("LayerNormalization")
def _layer_norm(layer: Layer) -> nn.Module:
    if layer.config.get("rms_scaling"):
        layer.config["scale"], layer.config["center"]  # not looked at by Keras
        norm: LayerNorm = VarianceScaled(_axes(layer), parameters(layer, 1)[0], None)
    else:
        norm = LayerNorm(_axes(layer), *_weight_and_bias(layer, "scale", "center"))
    norm.eps = number(layer, "epsilon", 1e-3)
    return norm


@builds("RMSNormalization")
def _rms_norm(layer: Layer) -> nn.Module:
    norm = RMSNorm(_axes(layer), parameters(layer, 1)[0], None)
    norm.eps = number(layer, "epsilon", 1e-6)
    return norm


class GroupNorm(nn.Module):
    """keras.layers.GroupNormalization. groups: -1 is one for every channel."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.axis, self.groups = int(layer.config.get("axis", -1)), int(layer.config["groups"])
        self.order: Order = "first" if self.axis == -1 else "keras"
        self.weight, self.bias = _weight_and_bias(layer, "scale", "center")
        self.eps = number(layer, "epsilon", 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "first" or self.axis % x.dim() == 1:
            return self._normalised(x)
        return self._normalised(x.transpose(1, self.axis)).transpose(1, self.axis)

    def _normalised(self, x: Tensor) -> Tensor:
        groups = x.shape[1] if self.groups == -1 else self.groups
        return functional.group_norm(x, groups, self.weight, self.bias, self.eps)


@builds("GroupNormalization")
def _group_norm(layer: Layer) -> nn.Module:
    return GroupNorm(layer)


class UnitNorm(nn.Module):
    """keras.layers.UnitNormalization: divided by the length along some axes, at least `least`."""

    def __init__(self, axes: Sequence[int], least: float) -> None:
        super().__init__()
        self.axes, self.least = list(axes), least

    def forward(self, x: Tensor) -> Tensor:
        return unit(x, self.axes, self.least)


def unit(x: Tensor, axes: Sequence[int], least: float) -> Tensor:
    """x over its length along some axes."""
    if len(axes) == 1:
        y: Tensor = functional.normalize(x, dim=axes[0], eps=least)
        return y
    length: Tensor = torch.linalg.vector_norm(x, dim=list(axes), keepdim=True)
    return x / length.clamp(min=least)


@builds("UnitNormalization")
def _unit_norm(layer: Layer) -> nn.Module:
    # tf.linalg.l2_normalize bounds the square by 1e-12, Keras 3 the length itself
    return UnitNorm(_axes(layer), 1e-6 if layer.generation == 2 else 1e-12)
