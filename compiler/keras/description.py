"""What Keras says of a model: its layers, how they are called, and their arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class TensorRef:
    """An output of one of the calls of a layer."""

    layer: str
    call: int = 0
    output: int = 0


@dataclass(frozen=True)
class Call:
    """What a layer is called with: TensorRefs among numbers, arrays, lists and dictionaries."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """One layer, however often it is called.

    class_name: as Keras has it ("Dense"). package: "keras" or "qkeras"; what was registered
    elsewhere never becomes a Layer. generation: 2 or 3, of the Keras that wrote the config: names
    of keys and some functions differ. weights: in the order of Keras' layer.weights. model: of a
    layer that is a model itself. inner: layers that its config holds (wrappers), by their key, with
    their part of the weights. refusal: why it cannot be had, whatever it computes; "" where it can.
    input_shape: what Keras says it was built for, None where it does not; not checked.
    """

    class_name: str
    name: str
    config: Mapping[str, Any]
    weights: tuple[Array, ...] = ()
    calls: tuple[Call, ...] = ()
    package: str = "keras"
    generation: int = 3
    model: Model | None = None
    inner: Mapping[str, Layer] = field(default_factory=dict)
    refusal: str = ""
    input_shape: Any = None

    @property
    def label(self) -> str:
        """How errors name it."""
        return f"{self.name} ({self.class_name})"


@dataclass(frozen=True)
class Model:
    """A functional or sequential model. A Sequential is described as the chain that it is.

    Every input is an output of a layer of class InputLayer, whose config has `batch_shape` (Keras
    3) or `batch_input_shape` (Keras 2), with the batch first, and `dtype`.
    """

    name: str
    layers: tuple[Layer, ...]
    inputs: tuple[TensorRef, ...]
    outputs: tuple[TensorRef, ...]

    def __getitem__(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)


def references(argument: Any) -> Iterator[TensorRef]:
    """The tensors in an argument of a call."""
    if isinstance(argument, TensorRef):
        yield argument
    elif isinstance(argument, Mapping):
        for each in argument.values():
            yield from references(each)
    elif isinstance(argument, list | tuple):
        for each in argument:
            yield from references(each)


def without_arrays(model: Model) -> tuple[Model, dict[TensorRef, Array]]:
    """A model whose calls have references in place of arrays, and what these stand for."""
    arrays: dict[TensorRef, Array] = {}
    names = {layer.name for layer in model.layers}

    def replaced(argument: Any) -> Any:
        if isinstance(argument, np.ndarray):
            ref = TensorRef(f"constant_{len(arrays)}")
            while ref.layer in names:
                ref = TensorRef(f"{ref.layer}_")
            arrays[ref] = argument
            return ref
        if isinstance(argument, Mapping):
            return {key: replaced(each) for key, each in argument.items()}
        if isinstance(argument, list | tuple):
            return [replaced(each) for each in argument]
        return argument

    def called(call: Call) -> Call:
        return Call(tuple(map(replaced, call.args)), replaced(call.kwargs))

    layers = [replace(layer, calls=tuple(map(called, layer.calls))) for layer in model.layers]
    return replace(model, layers=tuple(layers)), arrays
