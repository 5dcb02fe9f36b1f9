"""QAveragePooling2D and QGlobalAveragePooling2D: sums times a quantized share of each position.

QKeras averages, multiplies by the number of positions and then by the quantized reciprocal of it;
that of what 'same' pads counts too, though an average leaves it out. Source: qkeras/qpooling.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.given_constants import rounded
from fxloom.keras.description import Layer
from fxloom.keras.number_formats import narrowest
from fxloom.keras.qformats import quantizer_of
from fxloom.keras.quantizer_functions import function_of
from fxloom.keras.quantizer_weights import PLAIN, quantized_weights
from fxloom.keras.quantizers import Quantizer
from fxloom.keras.registry import Order, Refused, activated, builds
from fxloom.keras.windows import Windows, order_of, per_axis


class _Average(nn.Module):
    """A sum of numbers as an average: times the quantized reciprocal, or divided."""

    def __init__(self, quantizer: Quantizer | None) -> None:
        super().__init__()
        self.quantizer = quantizer
        alpha = None if quantizer is None else quantizer.options.get("alpha")
        if quantizer and (quantizer.name not in PLAIN or isinstance(alpha, str | list | tuple)):
            raise Refused(
                f"average_quantizer {quantizer.name} with alpha={alpha!r} is not known here. Use "
                f"one of {', '.join(PLAIN)}, with a number for alpha"
            )

    def forward(self, total: Tensor, area: int) -> Tensor:
        if self.quantizer is None:
            return total / area
        share = quantized_weights(self.quantizer, np.full((), 1 / area, np.float32)).product
        return total * float(share)


class QPool(nn.Module):
    """qkeras.QAveragePooling2D."""

    order: Order

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        config = layer.config
        self.order = order_of(layer)
        size = per_axis(config["pool_size"], 2)
        given = {"padding": config["padding"], "strides": config.get("strides") or size}
        self.windows = Windows.of(replace(layer, config=given), size)
        self.average = _Average(quantizer_of(layer, "average_quantizer"))
        self.activation = function_of(layer.config.get("activation"), layer)

    def forward(self, x: Tensor) -> Tensor:
        windows, area = self.windows, prod(self.windows.size)
        pads = windows.pads(x.shape[2:])
        flat = [length for pair in reversed(pads) for length in pair]
        padded = functional.pad(x, flat) if any(flat) else x
        total = functional.avg_pool2d(padded, windows.size, windows.strides, divisor_override=1)
        y: Tensor = self.average(total, area)
        if any(flat):
            y = y * self._missing(x.shape[2:])
        return activated(self.activation, y, self.order == "first")

    def _missing(self, lengths: Sequence[int]) -> Tensor:
        """By how much more a window's positions count where it hangs over the edge."""
        windows = self.windows
        shares = []
        for length, size, stride, (before, behind) in zip(
            lengths, windows.size, windows.strides, windows.pads(lengths), strict=True
        ):
            starts = np.arange(-before, length + behind - size + 1, stride)
            counts = np.minimum(starts + size, length) - np.maximum(starts, 0)
            shares.append(size / counts)
        factors = np.outer(*shares).astype(np.float32)
        return rounded(torch.tensor(factors.tolist()), narrowest(factors))


class QGlobalPool(nn.Module):
    """qkeras.QGlobalAveragePooling2D."""

    order: Order

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.order = order_of(layer)
        self.keepdims = bool(layer.config.get("keepdims", False))
        self.average = _Average(quantizer_of(layer, "average_quantizer"))
        self.activation = function_of(layer.config.get("activation"), layer)

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum((2, 3), self.keepdims)
        y: Tensor = self.average(total, x.shape[2] * x.shape[3])
        return activated(self.activation, y, self.order == "first")


@builds("QAveragePooling2D", package="qkeras")
def _average(layer: Layer) -> nn.Module:
    return QPool(layer)


@builds("QGlobalAveragePooling2D", package="qkeras")
def _global_average(layer: Layer) -> nn.Module:
    return QGlobalPool(layer)
