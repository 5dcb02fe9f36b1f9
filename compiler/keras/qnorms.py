"""QBatchNormalization, and the convolutions of QKeras that have a batch norm folded into them.

Source: qkeras/qnormalization.py, qconv2d_batchnorm.py, qdepthwiseconv2d_batchnorm.py, 0.9, at
inference. TensorFlow's reciprocal square root may be an ulp away from the float32 nearest to it,
which is what is computed here.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from fxloom.given_constants import rounded
from fxloom.keras.description import Layer
from fxloom.keras.number_formats import narrowest
from fxloom.keras.qconvolutions import QConvolution
from fxloom.keras.qformats import quantizer_of
from fxloom.keras.quantizer_weights import Floats, quantized_weights
from fxloom.keras.registry import Order, Refused, arrays, builds, number, tensor


def _inverse(variance: Floats, epsilon: float, gamma: Floats | None) -> Floats:
    """gamma / sqrt(variance + epsilon), as float32 has it."""
    shifted = (variance + np.float32(epsilon)).astype(np.float64)
    if not (shifted > 0).all():
        raise Refused("its variances must be positive")
    root = np.sqrt(shifted)
    inverse: Floats = (1 / root).astype(np.float32)
    return inverse if gamma is None else inverse * gamma


class QBatchNormalization(nn.Module):
    """x * inverse + offset: what tf.nn.batch_normalization makes of quantized statistics, which
    are float32 numbers for a positive epsilon, and are kept with all their bits."""

    inverse: Tensor
    offset: Tensor

    def __init__(self, axis: int, inverse: Floats, offset: Floats) -> None:
        super().__init__()
        self.axis = axis
        self.formats = {"inverse": narrowest(inverse), "offset": narrowest(offset)}
        self.register_buffer("inverse", tensor(inverse))
        self.register_buffer("offset", tensor(offset))

    def order(self, dims: Sequence[int]) -> Order:
        """Channels first where Keras' axis is the last, else as Keras has them."""
        return "first" if self.axis in (-1, dims[0] - 1) else "keras"

    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if self.order([x.dim()]) == "first" else self.axis
        shape = [1] * x.dim()
        shape[axis] = -1
        inverse, offset = (
            rounded(getattr(self, name).reshape(shape), to) for name, to in self.formats.items()
        )
        return x * inverse + offset


@builds("QBatchNormalization", package="qkeras")
def _batch_normalization(layer: Layer) -> nn.Module:
    config = layer.config
    scale, center = bool(config["scale"]), bool(config["center"])
    names = [*["gamma"] * scale, *["beta"] * center, "mean", "variance"]
    quantizers = {
        name: quantizer_of(layer, f"{name}_quantizer") for name in ("gamma", "beta", *names[-2:])
    }
    found: dict[str, Floats] = {}
    for name, values in zip(names, arrays(layer, *names), strict=True):
        quantizer = quantizers[name]
        if quantizer is not None and name in ("gamma", "variance"):
            quantizer = quantizer.for_weights()
        found[name] = quantized_weights(quantizer, np.asarray(values, np.float32)).product
    inverse = _inverse(found["variance"], number(layer, "epsilon", 0.001), found.get("gamma"))
    shift = found["mean"] * inverse
    offset = found["beta"] - shift if center else -shift
    return QBatchNormalization(_axis(layer), inverse, offset)


def _axis(layer: Layer) -> int:
    axis = layer.config["axis"]
    axes = [axis] if isinstance(axis, int) else list(axis)
    if len(axes) != 1 or not isinstance(axes[0], int) or axes[0] == 0:
        raise Refused(f"axis={axis}: required one axis that is not the batch")
    return int(axes[0])


def _folded(layer: Layer, kernel: str, depthwise: bool) -> nn.Module:
    """A convolution whose kernel and bias hold a batch norm, and are quantized then."""
    config = layer.config
    if config["folding_mode"] not in ("ema_stats_folding", "batch_stats_folding"):
        raise Refused(f"folding_mode={config['folding_mode']!r} is not known here")
    config.get("ema_freeze_delay")  # of training
    if _axis(layer) not in (-1, 3):
        raise Refused(f"axis={config['axis']}: required that of the channels, the last")
    optional = [
        name
        for name, key in (("bias", "use_bias"), ("gamma", "scale"), ("beta", "center"))
        if config[key]
    ]
    names = ("kernel", *optional, "mean", "variance")
    # Beside them, QKeras counts steps of training.
    kept = replace(layer, weights=tuple(each for each in layer.weights if each.ndim))
    named = {
        name: np.asarray(values, np.float32)
        for name, values in zip(names, arrays(kept, *names), strict=True)
    }
    if "beta" not in named:
        raise Refused("center=False, with which QKeras itself has no result")
    inverse = _inverse(named["variance"], number(layer, "epsilon", 0.001), named.get("gamma"))
    bias = inverse * (named.get("bias", np.zeros((), np.float32)) - named["mean"]) + named["beta"]
    weights = named["kernel"] * inverse.reshape(named["kernel"].shape[-2:] if depthwise else (-1,))
    return QConvolution(
        layer,
        (quantizer_of(layer, f"{kernel}_quantizer"), weights),
        (quantizer_of(layer, "bias_quantizer"), bias),
        depthwise,
    )


@builds("QConv2DBatchnorm", package="qkeras")
def _convolution(layer: Layer) -> nn.Module:
    return _folded(layer, "kernel", depthwise=False)


@builds("QDepthwiseConv2DBatchnorm", package="qkeras")
def _depthwise(layer: Layer) -> nn.Module:
    return _folded(layer, "depthwise", depthwise=True)
