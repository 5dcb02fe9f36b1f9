"""Convolutions: ordinary, depthwise, separable."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.description import Array, Layer
from fxloom.keras.registry import (
    Order,
    Refused,
    activated,
    activation,
    arrays,
    bias_name,
    builds,
    parameter,
)
from fxloom.keras.windows import Windows, order_of, padded


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int = 1
) -> Tensor:
    """A convolution of a signal or image [batch, channels, ...], padded as TensorFlow pads.

    weight: [out, in / groups, ...].
    """
    x, padding = padded(x, windows.pads(x.shape[2:]))
    function = functional.conv1d if weight.dim() == 3 else functional.conv2d
    return function(x, weight, bias, windows.strides, padding, windows.dilation, groups)


def kernel_axes(array: Array, dims: Sequence[int]) -> tuple[int, ...]:
    """Axes of Keras' kernel [..., in, out] as torch wants them. Raises Refused if not of `dims`."""
    if array.ndim not in dims:
        raise Refused(f"its kernel has shape {list(array.shape)}, required {min(dims)} dimensions")
    return (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))


def depthwise_kernel(array: Array) -> Array:
    """Keras' depthwise kernel [..., channels, multiplier] as one of a grouped convolution, in
    Keras' order of axes: result multiplier * channel + m is the m-th of a channel."""
    return array.reshape(*array.shape[:-2], 1, array.shape[-2] * array.shape[-1])


class Convolution(nn.Module):
    """keras.layers.Conv1D, Conv2D, DepthwiseConv1D, DepthwiseConv2D."""

    order: Order

    def __init__(self, layer: Layer, kernel: Array, bias: Array | None, groups: int) -> None:
        super().__init__()
        self.order = order_of(layer)
        self.groups = groups
        self.windows = Windows.of(layer, kernel.shape[:-2])
        self.weight = parameter(kernel, kernel_axes(kernel, (3, 4)))
        self.bias = None if bias is None else parameter(bias)
        self.activation = activation(layer.config["activation"], layer)

    def forward(self, x: Tensor) -> Tensor:
        y = convolved(x, self.weight, self.bias, self.windows, self.groups)
        return activated(self.activation, y, self.order == "first")


class Separable(nn.Module):
    """keras.layers.SeparableConv1D, SeparableConv2D: one channel by one, then one position by one.

    The first convolution is "layer.depthwise", the second bears the layer's name.
    """

    order: Order

    def __init__(
        self, layer: Layer, depthwise: Array, pointwise: Array, bias: Array | None
    ) -> None:
        super().__init__()
        self.order = order_of(layer)
        self.depthwise = _Depthwise(layer, depthwise)
        self.weight = parameter(pointwise, kernel_axes(pointwise, (3, 4)))
        self.bias = None if bias is None else parameter(bias)
        self.activation = activation(layer.config["activation"], layer)

    def forward(self, x: Tensor) -> Tensor:
        function = functional.conv1d if self.weight.dim() == 3 else functional.conv2d
        y = function(self.depthwise(x), self.weight, self.bias)
        return activated(self.activation, y, self.order == "first")


class _Depthwise(nn.Module):
    def __init__(self, layer: Layer, array: Array) -> None:
        super().__init__()
        kernel = depthwise_kernel(array)
        self.groups = array.shape[-2]
        self.windows = Windows.of(layer, kernel.shape[:-2])
        self.weight = parameter(kernel, kernel_axes(kernel, (3, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return convolved(x, self.weight, None, self.windows, self.groups)


@builds("Conv1D", "Conv2D")
def _convolution(layer: Layer) -> nn.Module:
    kernel, *bias = arrays(layer, "kernel", *bias_name(layer))
    groups = int(layer.config.get("groups", 1))
    return Convolution(layer, kernel, bias[0] if bias else None, groups)


@builds("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(layer: Layer) -> nn.Module:
    kernel, *bias = arrays(layer, "kernel", *bias_name(layer))
    groups = kernel.shape[-2]
    return Convolution(layer, depthwise_kernel(kernel), bias[0] if bias else None, groups)


@builds("SeparableConv1D", "SeparableConv2D")
def _separable(layer: Layer) -> nn.Module:
    depthwise, pointwise, *bias = arrays(
        layer, "depthwise kernel", "pointwise kernel", *bias_name(layer)
    )
    return Separable(layer, depthwise, pointwise, bias[0] if bias else None)
