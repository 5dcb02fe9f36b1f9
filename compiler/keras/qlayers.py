"""QDense and QActivation."""

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.description import Layer
from fxloom.keras.qformats import Product, quantized_of
from fxloom.keras.quantizer_functions import function_of
from fxloom.keras.registry import REFUSED, Refused, activated, builds, ordered


class QDense(Product):
    """qkeras.QDense: a product over the last axis."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        kernel, bias = quantized_of(layer, "kernel")
        if kernel[1].ndim != 2:
            raise Refused(f"its kernel has shape {list(kernel[1].shape)}, required 2 dimensions")
        self.take(kernel, bias, np.transpose)
        self.activation = function_of(layer.config.get("activation"), layer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(functional.linear, x)
        return activated(self.activation, y, channels_first=False)


@builds("QDense", package="qkeras")
def _dense(layer: Layer) -> nn.Module:
    return QDense(layer)


@builds("QActivation", package="qkeras")
def _activation(layer: Layer) -> nn.Module:
    described = layer.config.get("activation")
    if described is None:
        raise Refused("its config has no activation")
    return function_of(described, layer) or ordered(nn.Identity(), "pointwise")


_RECURRENT = (
    "its cell quantizes kernels, state and gates in every step, which is not known here. Use an "
    "LSTM, GRU or SimpleRNN of Keras, which the quantize pass gives formats"
)
REFUSED |= {("qkeras", f"Q{name}"): _RECURRENT for name in ("LSTM", "GRU", "SimpleRNN")}
REFUSED |= {
    ("qkeras", "QBidirectional"): _RECURRENT,
    ("qkeras", "QAdaptiveActivation"): (
        "its range is a running average that get_weights() and files leave out. Use QActivation "
        "with the integer bits that it has found"
    ),
    ("qkeras", "QConv2DTranspose"): (
        "its scales lie along the inputs of a sum and cannot stand behind it. Use UpSampling2D and "
        "QConv2D, or Conv2DTranspose, which the quantize pass gives formats"
    ),
}
