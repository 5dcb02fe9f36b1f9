"""Layers that only move values: shapes, pads, crops, repetitions, images of another size."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.description import Layer
from fxloom.keras.registry import Order, Refused, builds
from fxloom.keras.windows import order_of, per_axis


class Flatten(nn.Module):
    """keras.layers.Flatten: always with the channels last."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.channels_first = order_of(layer) == "keras"

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 1:
            return x.unsqueeze(1)
        return (x.movedim(1, -1) if self.channels_first else x).flatten(1)


class Reshape(nn.Module):
    """keras.layers.Reshape."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *_lengths(self.shape, x[0].numel()))


def _lengths(shape: Sequence[int], count: int) -> list[int]:
    """A shape with its -1 replaced: the batch must be the only length that is not known."""
    known = 1
    for n in shape:
        known *= n if n != -1 else 1
    return [count // known if n == -1 else n for n in shape]


class Permute(nn.Module):
    """keras.layers.Permute: axes counted from 1, behind the batch."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, *self.dims)


class RepeatVector(nn.Module):
    """keras.layers.RepeatVector: [batch, features] to [batch, n, features]."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1).repeat(1, self.n, 1)


class Pad(nn.Module):
    """keras.layers.ZeroPadding1D, ZeroPadding2D; negative lengths crop: Cropping1D, Cropping2D."""

    order: Order

    def __init__(self, layer: Layer, pads: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.channels_first = order_of(layer) == "keras"
        self.order = "keras" if self.channels_first else "any"
        self.pads = tuple(pads)

    def forward(self, x: Tensor, *, channels_first: bool = False) -> Tensor:
        if x.dim() != len(self.pads) + 2:
            raise ValueError(f"{len(self.pads) + 2} dimensions are required, got {x.dim()}")
        start = 2 if channels_first or self.channels_first else 1
        if all(before <= 0 and behind <= 0 for before, behind in self.pads):
            for axis, (before, behind) in enumerate(self.pads, start):
                x = x.narrow(axis, -before, x.shape[axis] + before + behind)
            return x
        flat = [length for pair in reversed(self.pads) for length in pair]
        return functional.pad(x, flat if start == 2 else [0, 0, *flat])


class UpSampling(nn.Module):
    """keras.layers.UpSampling1D, UpSampling2D: by whole factors."""

    order: Order

    def __init__(self, layer: Layer, size: Sequence[int], mode: str) -> None:
        super().__init__()
        self.order = order_of(layer)
        self.size, self.mode = tuple(map(float, size)), mode

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(
            x,
            scale_factor=list(self.size),
            mode=self.mode,
            align_corners=None if self.mode == "nearest" else False,
        )


def _pairs(given: Any, axes: int) -> list[tuple[int, int]]:
    """Lengths before and behind, however Keras writes them: one, one an axis, two an axis."""
    if isinstance(given, int):
        return [(given, given)] * axes
    if axes == 1 and len(given) == 2 and isinstance(given[0], int):
        return [(int(given[0]), int(given[1]))]
    if len(given) != axes:
        raise Refused(f"required {axes} pairs of lengths, got {given}")
    return [(each, each) if isinstance(each, int) else (each[0], each[1]) for each in given]


@builds("Flatten")
def _flatten(layer: Layer) -> nn.Module:
    return Flatten(layer)


@builds("Reshape")
def _reshape(layer: Layer) -> nn.Module:
    return Reshape(layer.config["target_shape"])


@builds("Permute")
def _permute(layer: Layer) -> nn.Module:
    return Permute(layer.config["dims"])


@builds("RepeatVector")
def _repeat(layer: Layer) -> nn.Module:
    return RepeatVector(int(layer.config["n"]))


@builds("ZeroPadding1D", "ZeroPadding2D")
def _zero_padding(layer: Layer) -> nn.Module:
    axes = 1 if layer.class_name.endswith("1D") else 2
    return Pad(layer, _pairs(layer.config["padding"], axes))


@builds("Cropping1D", "Cropping2D")
def _cropping(layer: Layer) -> nn.Module:
    axes = 1 if layer.class_name.endswith("1D") else 2
    pairs = _pairs(layer.config["cropping"], axes)
    return Pad(layer, [(-before, -behind) for before, behind in pairs])


@builds("UpSampling1D", "UpSampling2D")
def _up_sampling(layer: Layer) -> nn.Module:
    axes = 1 if layer.class_name.endswith("1D") else 2
    mode = str(layer.config.get("interpolation", "nearest"))
    if mode not in ("nearest", "bilinear"):
        raise Refused(f"interpolation={mode!r} is not known here: nearest and bilinear are")
    return UpSampling(layer, per_axis(layer.config["size"], axes), mode)
