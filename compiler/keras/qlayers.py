"""QDense and QActivation."""

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.description import Layer
from fxloom.keras.qformats import Product, quantized_of
from fxloom.keras.quantizer_functions import function_of
from fxloom.keras.registry import Refused, activated, builds, ordered


class QDense(Product):
    """qkeras.QDense: a product over the last axis."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.take(*quantized_of(layer, "kernel"), np.transpose)
        self.activation = function_of(layer.config["activation"], layer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(functional.linear, x)
        return activated(self.activation, y, channels_first=False)


@builds("QDense", package="qkeras")
def _dense(layer: Layer) -> nn.Module:
    return QDense(layer)


@builds("QActivation", package="qkeras")
def _activation(layer: Layer) -> nn.Module:
    return function_of(layer.config["activation"], layer) or ordered(nn.Identity(), "pointwise")


@builds("QAdaptiveActivation", package="qkeras")
def _adaptive(layer: Layer) -> nn.Module:
    raise Refused(
        "its range is a running average that files and get_weights() leave out. Use QActivation "
        "with the integer bits that it has found"
    )


@builds("QLSTM", "QGRU", "QSimpleRNN", "QBidirectional", package="qkeras")
def _recurrent(layer: Layer) -> nn.Module:
    raise Refused(
        "its cell quantizes kernels, state and gates in every step, which is not known here. Use "
        "an LSTM, GRU or SimpleRNN of Keras, which the quantize pass gives formats"
    )


@builds("QConv2DTranspose", package="qkeras")
def _transposed(layer: Layer) -> nn.Module:
    raise Refused(
        "its scales lie along the inputs of a sum and cannot stand behind it. Use UpSampling2D and "
        "QConv2D, or Conv2DTranspose, which the quantize pass gives formats"
    )
