"""Which class of Keras becomes which module, and what a module tells about the axes it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fxloom.keras.description import Layer

Order = Literal["keras", "first", "pointwise", "any"]
Builder = Callable[[Layer], nn.Module]
BUILDERS: dict[tuple[str, str], Builder] = {}
"""By package ("keras", "qkeras") and class."""


class Refused(Exception):
    """Why a layer cannot be had; the text follows the layer's name."""


def builds(*classes: str, package: str = "keras") -> Callable[[Builder], Builder]:
    """Register what makes a module of a layer of some classes; it raises Refused where it cannot.

    A module's `order` says which axes its forward takes tensors in and returns them in: "keras",
    those of Keras, which is what a module without `order` gets; "first", the channels as axis 1,
    where Keras has them last; "pointwise", either, with the same result (all arguments have the
    same); "any", either, and forward is told by `channels_first=`.
    """

    def register(builder: Builder) -> Builder:
        BUILDERS.update({(package, name): builder for name in classes})
        return builder

    return register


def activation(name: Any, layer: Layer) -> nn.Module | None:
    """The module of an `activation` key of a config; None where it is linear."""
    from fxloom.keras.activations import named

    return named(name, layer)


def number(layer: Layer, key: str, default: float) -> float:
    """A number of a config, which may be one of NumPy. Raises Refused where it is none."""
    found = layer.config.get(key, default)
    try:
        value = float(found)
    except (TypeError, ValueError):
        raise Refused(f"{key} is {found!r}, required a number") from None
    if not isfinite(value):
        raise Refused(f"{key} is {found!r}, required a finite number")
    return value


def parameters(layer: Layer, count: int) -> list[nn.Parameter]:
    """Copies of the weights of a layer, which must be so many. Raises Refused otherwise."""
    if len(layer.weights) != count:
        raise Refused(f"required {count} weights, {len(layer.weights)} arrived")
    return [nn.Parameter(torch.from_numpy(np.array(each, np.float32))) for each in layer.weights]


@dataclass(frozen=True)
class Located:
    """A tensor and where its channels are."""

    tensor: Tensor
    channels_first: bool = False

    def moved(self, channels_first: bool) -> Tensor:
        """The tensor with its channels as axis 1, or last."""
        dims = self.tensor.dim()
        if self.channels_first == channels_first or dims < 3:
            return self.tensor
        if channels_first:
            return self.tensor.permute(0, dims - 1, *range(1, dims - 1))
        return self.tensor.permute(0, *range(2, dims), 1)
