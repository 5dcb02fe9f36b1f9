"""QConv1D, QConv2D, QDepthwiseConv2D, QSeparableConv1D and QSeparableConv2D."""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.convolutions import convolved, depthwise_kernel, kernel_axes
from fxloom.keras.description import Array, Layer
from fxloom.keras.qformats import Product, Quantized, quantized_of, quantizer_of
from fxloom.keras.quantizer_functions import function_of
from fxloom.keras.registry import Order, activated, arrays, bias_name, builds
from fxloom.keras.windows import Windows, order_of


def _ordinary(kernel: Array) -> Array:
    return kernel.transpose(kernel_axes(kernel, (3, 4)))


def _by_channel(kernel: Array) -> Array:
    return _ordinary(depthwise_kernel(kernel))


class QConvolution(Product):
    """A convolution with a quantized kernel: [..., in, out], or [..., channels, multiplier]."""

    order: Order

    def __init__(
        self, layer: Layer, kernel: Quantized, bias: Quantized | None, depthwise: bool = False
    ) -> None:
        super().__init__()
        self.order = order_of(layer)
        shape = kernel[1].shape
        self.groups = int(shape[-2] if depthwise else layer.config.get("groups", 1))
        self.windows = Windows.of(layer, shape[:-2])
        self.take(kernel, bias, _by_channel if depthwise else _ordinary, len(shape) - 2)
        self.activation = function_of(layer.config.get("activation"), layer)

    def forward(self, x: Tensor) -> Tensor:
        compute = partial(convolved, windows=self.windows, groups=self.groups)
        return activated(self.activation, self.product(compute, x), self.order == "first")


class QSeparable(Product):
    """Channel by channel, then position by position; the first is "layer.depthwise"."""

    order: Order

    def __init__(
        self, layer: Layer, depthwise: Quantized, pointwise: Quantized, bias: Quantized | None
    ) -> None:
        super().__init__()
        self.order = order_of(layer)
        self.depthwise = _Depthwise(layer, depthwise)
        self.take(pointwise, bias, _ordinary, pointwise[1].ndim - 2)
        self.activation = function_of(layer.config.get("activation"), layer)

    def forward(self, x: Tensor) -> Tensor:
        function = functional.conv1d if self.weight.dim() == 3 else functional.conv2d
        y = self.product(function, self.depthwise(x))
        return activated(self.activation, y, self.order == "first")


class _Depthwise(Product):
    def __init__(self, layer: Layer, kernel: Quantized) -> None:
        super().__init__()
        self.groups = int(kernel[1].shape[-2])
        self.windows = Windows.of(layer, kernel[1].shape[:-2])
        self.take(kernel, None, _by_channel, kernel[1].ndim - 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(partial(convolved, windows=self.windows, groups=self.groups), x)


@builds("QConv1D", "QConv2D", package="qkeras")
def _convolution(layer: Layer) -> nn.Module:
    return QConvolution(layer, *quantized_of(layer, "kernel"))


@builds("QDepthwiseConv2D", package="qkeras")
def _depthwise(layer: Layer) -> nn.Module:
    kernel, bias = quantized_of(layer, "depthwise")
    return QConvolution(layer, kernel, bias, depthwise=True)


@builds("QSeparableConv1D", "QSeparableConv2D", package="qkeras")
def _separable(layer: Layer) -> nn.Module:
    depthwise, pointwise, *bias = arrays(
        layer, "depthwise kernel", "pointwise kernel", *bias_name(layer)
    )
    depthwise_quantizer, pointwise_quantizer, bias_quantizer = (
        quantizer_of(layer, f"{key}_quantizer") for key in ("depthwise", "pointwise", "bias")
    )
    return QSeparable(
        layer,
        (depthwise_quantizer, depthwise),
        (pointwise_quantizer, pointwise),
        (bias_quantizer, bias[0]) if bias else None,
    )
