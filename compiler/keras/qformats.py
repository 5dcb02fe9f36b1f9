"""Layers of QKeras: weights that bring their formats along, and what stands behind a product."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxloom.fixed_point import FixedPoint
from fxloom.keras.description import Layer
from fxloom.keras.number_formats import narrowest
from fxloom.keras.quantizer_functions import function_of
from fxloom.keras.quantizer_weights import Floats, quantized_weights
from fxloom.keras.quantizers import Quantizer, parsed
from fxloom.keras.registry import Refused
from fxloom.quantized_ops import REQUANTIZE_WEIGHTS

Format = tuple[Any, ...]
"""The arguments of fxloom.requantize_weights behind its tensor."""
Move = Callable[[Floats], Floats]


class Formatted(nn.Module):
    """A layer whose parameters have formats: numbers of those formats, rounded to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: dict[str, Format] = {}

    def give(self, name: str, values: Floats, to: Format | None = None) -> None:
        """Make values a parameter; to: its format, None where it has none."""
        self.register_parameter(name, nn.Parameter(torch.from_numpy(np.array(values, np.float32))))
        if to is not None:
            self.formats[name] = to

    def rounded(self, name: str) -> Tensor | None:
        """A parameter in its format; None where the layer has no such parameter."""
        values: Tensor | None = getattr(self, name, None)
        if values is None or name not in self.formats:
            return values
        found: Tensor = REQUANTIZE_WEIGHTS(values, *self.formats[name])
        return found


def fixed(to: FixedPoint, shifts: tuple[int, ...] = ()) -> Format:
    """A format, its binary point further left by some bits in every channel (first axis)."""
    modes = ("RND_CONV", "SAT")
    return (list(shifts), "fixed", [], to.width, to.integer, to.signed, *modes)


def quantizer_of(layer: Layer, key: str) -> Quantizer | None:
    """The quantizer under a key of a layer's config. Raises Refused for what is none."""
    found = parsed(layer.config.get(key))
    if isinstance(found, str):
        raise Refused(f"{key} {found!r} is no quantizer that is known here")
    return found


class Product(Formatted):
    """A layer with one product: its kernel, what scales the product, its bias, its activation.

    A kernel whose scales are powers of two has them in its format; others multiply the product,
    each as float32 holds it. behind: how many axes its result has behind that of the outputs.
    """

    behind = 0

    def take(self, layer: Layer, kernel: str, move: Move, bias: Floats | None) -> None:
        """Quantize the weights of a layer: its first array, and a bias.

        kernel: under which key the config has its quantizer. move: brings an array of the kernel's
        shape into torch's order, output channels first.
        """
        quantizer = quantizer_of(layer, kernel)
        self.take_kernel(quantizer and quantizer.for_weights(), layer.weights[0], move)
        if bias is not None:
            self.take_bias(quantizer_of(layer, "bias_quantizer"), bias)
        self.activation = function_of(layer.config.get("activation"), layer)

    def take_kernel(self, quantizer: Quantizer | None, kernel: Floats, move: Move) -> None:
        """Make the quantized kernel a parameter, and the scales one that are not in its format."""
        found = quantized_weights(quantizer, kernel)
        values, scales = move(found.values), move(np.broadcast_to(found.scale, kernel.shape))
        scales = scales.reshape(len(values), -1)
        product = move(found.product)
        if quantizer is None:
            self.give("weight", values)
        elif found.scale.size == 1 and found.has_point_scale:
            self.give("weight", product, fixed(narrowest(product)))
        elif (scales != scales[:, :1]).any():
            if not found.has_point_scale:
                raise Refused(f"{quantizer.name} has scales along another axis than its outputs")
            self.give("weight", product, fixed(narrowest(product)))
        elif found.has_point_scale:
            shifts = tuple((1 - np.frexp(scales[:, 0])[1]).tolist())
            self.give("weight", product, fixed(narrowest(values), shifts))
        else:
            self.give("weight", values, fixed(narrowest(values)))
            self.give("scale", self._behind(scales[:, 0]), fixed(narrowest(scales[:, 0])))

    def take_bias(self, quantizer: Quantizer | None, bias: Floats) -> None:
        """Make the quantized bias a parameter."""
        found = quantized_weights(quantizer, bias).product
        found = self._behind(found) if "scale" in self.formats else found
        self.give("bias", found, None if quantizer is None else fixed(narrowest(found)))

    def _behind(self, values: Floats) -> Floats:
        """One number for each output, as it meets a product."""
        return values.reshape(-1, *(1,) * self.behind)

    def finished(self, product: Callable[..., Tensor], x: Tensor) -> Tensor:
        """The layer's result. product(x, weight, bias)."""
        weight, scale, bias = map(self.rounded, ("weight", "scale", "bias"))
        if scale is None:
            y: Tensor = product(x, weight, bias)
        else:
            y = product(x, weight, None) * scale
            y = y if bias is None else y + bias
        return y if self.activation is None else self.activation(y)
