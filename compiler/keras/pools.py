"""Pools, with windows as TensorFlow lays them."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.description import Layer
from fxloom.keras.registry import Order, Refused, builds
from fxloom.keras.windows import Windows, order_of, per_axis


class Pool(nn.Module):
    """keras.layers.MaxPooling1D, MaxPooling2D, AveragePooling1D, AveragePooling2D.

    What 'same' pads takes no part, in averages neither. torch pads both sides alike and lets a last
    window hang over the end (ceil_mode), which is what an odd number behind comes to; but where the
    stride is 1 no window would begin there, so that one position more is padded on both sides
    and the first window is left out.
    """

    order: Order

    def __init__(self, layer: Layer, average: bool) -> None:
        super().__init__()
        self.order = order_of(layer)
        self.average = average
        axes = 1 if layer.class_name.endswith("1D") else 2
        self.windows = Windows.of(layer, per_axis(layer.config["pool_size"], axes))
        if self.windows.padding == "causal":
            raise Refused("padding='causal' is not known here")
        self.cut = _Cut()

    def forward(self, x: Tensor) -> Tensor:
        windows = self.windows
        pads = windows.pads(x.shape[2:])
        first = [
            stride == 1 and before != behind
            for stride, (before, behind) in zip(windows.strides, pads, strict=True)
        ]
        padding = [before + more for (before, _), more in zip(pads, first, strict=True)]
        ceil = windows.padding == "same"
        y = self._pooled(x, padding, ceil)
        return self.cut(y, first) if any(first) else y

    def _pooled(self, x: Tensor, padding: list[int], ceil: bool) -> Tensor:
        size, strides = self.windows.size, self.windows.strides
        if self.average:
            average = functional.avg_pool1d if x.dim() == 3 else functional.avg_pool2d
            return average(x, size, strides, padding, ceil, count_include_pad=False)
        largest = functional.max_pool1d if x.dim() == 3 else functional.max_pool2d
        return largest(x, size, strides, padding, ceil_mode=ceil)


class _Cut(nn.Module):
    """Leaves the first positions out along some axes."""

    def forward(self, x: Tensor, first: Sequence[bool]) -> Tensor:
        for axis, cut in enumerate(first, start=2):
            if cut:
                x = x.narrow(axis, 1, x.shape[axis] - 1)
        return x


class GlobalPool(nn.Module):
    """keras.layers.GlobalMaxPooling1D, 2D, GlobalAveragePooling1D, 2D."""

    order: Order

    def __init__(self, layer: Layer, average: bool) -> None:
        super().__init__()
        self.order = order_of(layer)
        self.average = average
        self.keepdims = bool(layer.config.get("keepdims", False))

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.dim()))
        return x.mean(axes, self.keepdims) if self.average else x.amax(axes, self.keepdims)


@builds("MaxPooling1D", "MaxPooling2D")
def _largest(layer: Layer) -> nn.Module:
    return Pool(layer, average=False)


@builds("AveragePooling1D", "AveragePooling2D")
def _average(layer: Layer) -> nn.Module:
    return Pool(layer, average=True)


@builds("GlobalMaxPooling1D", "GlobalMaxPooling2D")
def _global_largest(layer: Layer) -> nn.Module:
    return GlobalPool(layer, average=False)


@builds("GlobalAveragePooling1D", "GlobalAveragePooling2D")
def _global_average(layer: Layer) -> nn.Module:
    return GlobalPool(layer, average=True)
