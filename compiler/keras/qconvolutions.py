"""QConv1D, QConv2D, QDepthwiseConv2D, QSeparableConv1D and QSeparableConv2D."""

from torch import Tensor

from fxloom.keras.convolutions import convolved, depthwise_kernel, kernel_axes
from fxloom.keras.description import Array, Layer
from fxloom.keras.qformats import Product, Quantized
from fxloom.keras.quantizer_functions import function_of
from fxloom.keras.registry import Order, activated
from fxloom.keras.windows import Windows, order_of


def _ordinary(kernel: Array) -> Array:
    return kernel.transpose(kernel_axes(kernel, (3, 4)))


def _by_channel(kernel: Array) -> Array:
    return _ordinary(depthwise_kernel(kernel))


class QConvolution(Product):
    """A convolution of a quantized kernel [..., in, out]; depthwise, [..., channels, multiplier]."""

    order: Order

    def __init__(
        self, layer: Layer, kernel: Quantized, bias: Quantized | None, depthwise: bool = False
    ) -> None:
        super().__init__()
        self.order = order_of(layer)
        values = kernel[1]
        given = layer.config.get("groups", 1)
        self.groups = int(values.shape[-2]) if depthwise else given
        self.windows = Windows.of(layer, values.shape[:-2])
        self.take(kernel, bias, _by_channel if depthwise else _ordinary, values.ndim - 2)
        self.activation = function_of(layer.config["activation"], layer)

    def forward(self, x: Tensor) -> Tensor:
        return activated(self.activation, self.convolved(x), self.order == "first")

    def convolved(self, x: Tensor) -> Tensor:
        """The result before the activation."""

        def compute(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return convolved(x, weight, bias, self.windows, self.groups)

        return self.product(compute, x)
