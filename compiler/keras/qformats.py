"""Layers of QKeras: weights that bring their formats along, and what stands behind a product."""

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from fxloom.given_constants import QuantizerRefused, constant
from fxloom.keras.description import Array, Layer
from fxloom.keras.number_formats import narrowest
from fxloom.keras.quantizer_weights import quantized_weights
from fxloom.keras.quantizers import Quantizer, parsed
from fxloom.keras.registry import Refused, arrays, bias_name, tensor
from fxloom.uniform import Weight, weight_of

Move = Callable[[Array], Array]
Quantized = tuple[Quantizer | None, Array]
"""A layer's weights, and what quantizes them."""


def quantizer_of(layer: Layer, key: str) -> Quantizer | None:
    """The quantizer under a key of a layer's config. Raises Refused for what is none."""
    found = parsed(layer.config.get(key))
    if isinstance(found, str):
        raise Refused(f"{key} {found!r} is no quantizer that is known here")
    return found


def quantized_of(layer: Layer, kernel: str) -> tuple[Quantized, Quantized | None]:
    """The kernel and the bias, if it has one, of a layer with one kernel; `kernel` is its name in
    the config."""
    quantizer = quantizer_of(layer, f"{kernel}_quantizer")
    bias_quantizer = quantizer_of(layer, "bias_quantizer")
    values, *bias = arrays(layer, "kernel", *bias_name(layer))
    return (quantizer, values), (bias_quantizer, bias[0]) if bias else None


def formatted(quantizer: Quantizer, weights: Array, move: Move, by_channel: bool = True) -> Weight:
    """Quantized weights in torch's order of axes, output channels first, in their format.

    by_channel: scales that are no powers of two may stand behind the layer; else they are in the
    weights, as float32 holds the products. Raises Refused where no format holds them.
    """
    found = quantized_weights(quantizer, np.asarray(weights, np.float32))
    values = move(found.values)
    scale = move(np.broadcast_to(found.scale, found.values.shape))
    first = scale.reshape(len(scale), -1)[:, :1]
    along_outputs = bool((scale.reshape(len(scale), -1) == first).all())
    if by_channel and along_outputs:
        scale = first.reshape(-1, *(1,) * (values.ndim - 1))
    elif by_channel and not found.has_point_scale:
        raise Refused(f"{quantizer.name} has other scales than one for each output")
    else:
        values, scale = move(found.product), np.ones((), np.float32)
    real = values.astype(np.float64)
    to = narrowest(real)
    steps = np.ldexp(real, to.fraction)
    limits = (min(int(steps.min()), 0), max(int(steps.max()), 0))
    try:
        return weight_of(steps, np.asarray(scale, np.float64) * to.step, limits)
    except QuantizerRefused as refused:
        raise Refused(str(refused)) from None


class Product(nn.Module):
    """A layer with one product: its kernel, what scales the product, and its bias.

    A kernel whose scales are powers of two has them in its format; others multiply the product,
    each as float32 holds it.
    """

    weight: Tensor
    bias: Tensor | None
    scale: nn.Module | None

    def take(self, kernel: Quantized, bias: Quantized | None, move: Move, behind: int = 0) -> None:
        """Quantize the weights of a layer: its kernel, and its bias if it has one.

        move: brings an array of the kernel's shape into torch's order, output channels first.
        behind: how many axes the layer's result has behind that of its channels.
        """
        quantizer, values = kernel
        found = formatted(quantizer.for_weights(), values, move) if quantizer else None
        self.formats = {"weight": found}
        self.weight = nn.Parameter(found.values if found else tensor(move(values)))
        self.scale = self.bias = None
        shape: tuple[int, ...] = (-1,)
        if found is not None and found.scale is not None:
            shape = (-1, *(1,) * behind)
            self.scale = constant(found.scale.reshape(shape))
        if bias is not None:
            quantizer, values = bias[0], bias[1].reshape(shape)
            found = formatted(quantizer, values, np.array, False) if quantizer else None
            self.formats["bias"] = found
            self.bias = nn.Parameter(found.values if found else tensor(values))

    def rounded(self, name: str) -> Tensor | None:
        """A parameter in its format, if it has one; None where there is no such parameter."""
        parameter: Tensor | None = getattr(self, name)
        found = self.formats.get(name)
        return found.round(parameter) if found and parameter is not None else parameter

    def product(self, compute: Callable[..., Tensor], x: Tensor) -> Tensor:
        """The layer's result before its activation. compute(x, weight, bias)."""
        weight, bias = self.rounded("weight"), self.rounded("bias")
        if self.scale is None:
            y: Tensor = compute(x, weight, bias)
            return y
        y = compute(x, weight, None) * self.scale()
        return y if bias is None else y + bias
