"""Which class of Keras becomes which module, and what a module tells about the axes it takes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fxloom.keras.description import Array, Layer

Order = Literal["keras", "first", "pointwise", "any"]
Builder = Callable[[Layer], nn.Module]
BUILDERS: dict[tuple[str, str], Builder] = {}
"""By package ("keras", "qkeras") and class."""
REFUSED: dict[tuple[str, str], str] = {}
"""Why a class has no builder, where there is more to say."""

_WITHOUT_EFFECT = frozenset(
    [
        *("name", "trainable", "dtype", "autocast", "module", "registered_name", "implementation"),
        *("batch_shape", "batch_input_shape", "input_shape", "build_config", "build_input_shape"),
        *("units", "filters", "kernel_size", "input_dim", "output_dim", "input_length"),
        *("depth_multiplier", "shared_axes", "momentum", "synchronized", "renorm_momentum"),
    ]
)
"""What a config may say without a word of the builder: it is seen in the arrays, or in training."""
_TRAINING_ONLY = ("_initializer", "_regularizer", "_constraint")


class Refused(Exception):
    """Why a layer cannot be had; the text follows the layer's name."""


def builds(*classes: str, package: str = "keras") -> Callable[[Builder], Builder]:
    """Register what makes a module of a layer of some classes; it raises Refused where it cannot.

    A builder reads every key of the config that it knows: what it has not read and what is neither
    None nor False is refused by name (see built).
    A module's `order` says which axes its forward takes tensors in and returns them in: "keras",
    those of Keras, which is what a module without `order` gets; "first", the channels as axis 1,
    where Keras has them last; "pointwise", either, with the same result (all arguments have the
    same); "any", either, and forward is told by `channels_first=`. It may be a function of how
    many dimensions each of them has.
    """

    def register(builder: Builder) -> Builder:
        BUILDERS.update({(package, name): builder for name in classes})
        return builder

    return register


def built(layer: Layer) -> nn.Module:
    """The module of a layer that is no model. Raises Refused where none computes what it does."""
    builder = BUILDERS.get((layer.package, layer.class_name))
    if builder is None:
        otherwise = "no such layer is known here. `fxloom list layers` shows those that are"
        raise Refused(REFUSED.get((layer.package, layer.class_name), otherwise))
    config = _Config(layer.config)
    module = builder(replace(layer, config=config))
    unknown = {
        key: layer.config[key]
        for key in layer.config
        if key not in layer.inner and config.matters(key)
    }
    if unknown:
        said = ", ".join(f"{key}={value!r}" for key, value in unknown.items())
        raise Refused(f"its config says {said}, which is not known here")
    return module


def read_all(layer: Layer) -> None:
    """For builders: nothing that the config says has an effect at inference."""
    dict(layer.config)


class _Config(Mapping[str, Any]):
    """A config that knows what was read of it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return self._config[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)

    def matters(self, key: str) -> bool:
        """Whether a key could change results and no one has looked at it."""
        if key in self._read | _WITHOUT_EFFECT or key.endswith(_TRAINING_ONLY):
            return False
        value = self._config[key]
        if key == "groups" and value == 1:  # Keras 2 says it of every convolution
            return False
        return value is not None and value is not False and value not in ((), [], {})


def ordered(module: nn.Module, order: Order) -> nn.Module:
    """A module of torch.nn with an `order`."""
    module.__dict__["order"] = order
    return module


def activation(name: Any, layer: Layer) -> nn.Module | None:
    """The module of an `activation` key of a config; None where it is linear."""
    from fxloom.keras.activations import named

    return named(name, layer)


def activated(function: nn.Module | None, y: Tensor, channels_first: bool) -> Tensor:
    """The activation of a layer's result. channels_first: Keras has them last, y as axis 1."""
    if function is None:
        return y
    order = getattr(function, "order", "keras")
    if order == "any":
        result = function(y, channels_first=channels_first)
    elif order == "pointwise" or not channels_first:
        result = function(y)
    else:
        result = Located(function(Located(y, True).moved(False))).moved(True)
    return tensor_of(result)


def tensor_of(result: Any) -> Tensor:
    """What a module returned, which is one tensor."""
    assert isinstance(result, Tensor)
    return result


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
    return [parameter(each) for each in layer.weights]


def arrays(layer: Layer, *names: str) -> tuple[Array, ...]:
    """A layer's arrays, one a name. Raises Refused where there are more or fewer."""
    if len(layer.weights) != len(names):
        raise Refused(
            f"required {len(names)} arrays ({', '.join(names)}), {len(layer.weights)} arrived"
        )
    return layer.weights


def bias_name(layer: Layer) -> tuple[str, ...]:
    """How a layer's bias is called, if it has one."""
    return ("bias",) if layer.config["use_bias"] else ()


def parameter(array: Array, axes: Sequence[int] | None = None) -> nn.Parameter:
    """A copy of an array, its axes permuted, to train or compress."""
    return nn.Parameter(tensor(array, axes))


def tensor(array: Array, axes: Sequence[int] | None = None) -> Tensor:
    """A copy of an array, its axes permuted."""
    moved = array if axes is None else array.transpose(axes)
    return torch.from_numpy(np.array(moved, np.float32, order="C"))


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
