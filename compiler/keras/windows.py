"""Windows of convolutions and pools: sizes, strides, dilation, and padding as TensorFlow pads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from fxloom.keras.description import Layer
from fxloom.keras.registry import Order, Refused

Pads = list[tuple[int, int]]


@dataclass(frozen=True)
class Windows:
    """One number each along every axis of a signal or image. padding: "valid", "same", "causal"."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str

    @classmethod
    def of(cls, layer: Layer, size: Sequence[int]) -> Windows:
        """The windows of a layer's config; strides of None are as long as the windows.

        Raises Refused for a padding that is not known.
        """
        config, axes = layer.config, len(size)
        strides = config["strides"]
        padding = str(config["padding"]).lower()
        if padding not in ("valid", "same", "causal") or (padding == "causal" and axes != 1):
            raise Refused(f"padding={config['padding']!r} is not known here")
        return cls(
            tuple(map(int, size)),
            per_axis(size if strides is None else strides, axes),
            per_axis(config.get("dilation_rate", 1), axes),
            padding,
        )

    @property
    def reach(self) -> tuple[int, ...]:
        """From the first to the last position of a window."""
        return tuple(d * (n - 1) + 1 for n, d in zip(self.size, self.dilation, strict=True))

    def pads(self, lengths: Sequence[int]) -> Pads:
        """Positions before and behind, along each axis of an image of these lengths.

        'same' makes ceil(length / stride) windows and pads behind what is odd (tf.nn.convolution).
        """
        if self.padding == "valid":
            return [(0, 0)] * len(self.size)
        if self.padding == "causal":
            return [(reach - 1, 0) for reach in self.reach]
        pads = []
        for length, reach, stride in zip(lengths, self.reach, self.strides, strict=True):
            total = max((-(-length // stride) - 1) * stride + reach - length, 0)
            pads.append((total // 2, total - total // 2))
        return pads


def padded(x: Tensor, pads: Pads) -> tuple[Tensor, list[int]]:
    """The tensor and the padding on both sides that a convolution of it is left to do."""
    if all(before == behind for before, behind in pads):
        return x, [before for before, _ in pads]
    flat = [length for pair in reversed(pads) for length in pair]
    return functional.pad(x, flat), [0] * len(pads)


def per_axis(numbers: Any, axes: int) -> tuple[int, ...]:
    """A number for each axis; Keras may write one for all."""
    if isinstance(numbers, int):
        return (numbers,) * axes
    if len(numbers) != axes:
        raise Refused(f"required {axes} numbers, one an axis, got {list(numbers)}")
    return tuple(map(int, numbers))


def order_of(layer: Layer) -> Order:
    """Where a layer that works on channels-first tensors wants them: Keras' own axes are such where
    its data_format says so."""
    data_format = layer.config.get("data_format") or "channels_last"
    if data_format not in ("channels_last", "channels_first"):
        raise Refused(f"data_format={data_format!r} is not known here")
    return "keras" if data_format == "channels_first" else "first"
