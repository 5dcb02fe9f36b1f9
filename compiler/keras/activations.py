"""The functions behind `activation=` and the layers that are activations."""

from collections.abc import Callable
from typing import Any

from torch import nn

from fxloom.keras.description import Layer
from fxloom.keras.registry import Refused, builds, ordered

NAMED: dict[str, Callable[[Layer], nn.Module]] = {
    "relu": lambda layer: ordered(nn.ReLU(), "pointwise"),
    "sigmoid": lambda layer: ordered(nn.Sigmoid(), "pointwise"),
    "tanh": lambda layer: ordered(nn.Tanh(), "pointwise"),
    "softmax": lambda layer: nn.Softmax(dim=-1),
}


def named(name: Any, layer: Layer) -> nn.Module | None:
    """The module of an activation; None where it is linear. Raises Refused for an unknown one."""
    if name in (None, "linear"):
        return None
    if name not in NAMED:
        raise Refused(f"activation {name!r} is not known here")
    return NAMED[name](layer)


@builds("Activation")
def _activation(layer: Layer) -> nn.Module:
    return named(layer.config["activation"], layer) or ordered(nn.Identity(), "pointwise")
