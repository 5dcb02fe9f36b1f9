"""Models of Keras, tf.keras and QKeras that are in memory: their config and weights, no more."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from fxloom.errors import CaptureError, UnsupportedLayer
from fxloom.keras.config import MODELS, model_of
from fxloom.keras.description import Array, Layer, Model
from fxloom.keras.qmemory import refuse_unsaved
from fxloom.keras.variables import Variable
from fxloom.keras.weights import attached, divided

_KERAS_2 = ("tf_keras", "tensorflow")
_KNOWN = (*_KERAS_2, "keras", "qkeras")
"""Whose functions a config knows by name."""
_PARTS = {"layer": "forward_layer", "backward_layer": "backward_layer"}
"""What a Bidirectional calls the layers that its config holds."""


def is_keras_model(model: object) -> bool:
    """Whether an object is a model of Keras 2 or 3, told by its classes and without an import."""
    return _generation(model) is not None


def _generation(model: object) -> int | None:
    for base in type(model).__mro__:
        package = base.__module__.partition(".")[0]
        if base.__name__ not in MODELS:
            continue
        if package in _KERAS_2:
            return 2
        if package == "keras":  # which was Keras 2 before TensorFlow 2.16
            version = str(getattr(sys.modules.get("keras"), "__version__", "3"))
            return 2 if version.startswith("2.") else 3
    return None


def describe(model: Any) -> Model:
    """What a model in memory consists of; its arrays are copies.

    Raises CaptureError for a class of the user's own, whose computation is code, and for a model
    that is not built; UnsupportedLayer where its config does not say what it computes, as with an
    activation of the user's own, of which it has the name.
    """
    generation = _generation(model)
    assert generation is not None
    own = type(model)
    if own.__name__ not in MODELS or not _is_of_keras(own):
        raise CaptureError(
            f"a model of the class {own.__name__}: what a class of its own computes is code. Build "
            "the model as keras.Model(inputs, outputs) of layers of Keras, which may be its own"
        )
    try:
        config = model.get_config()
    except (NotImplementedError, OSError, TypeError, ValueError) as fault:
        raise CaptureError(f"model {model.name} has no config: {fault}") from fault
    if not model.built:
        raise CaptureError(f"model {model.name} is not built: call it with an example first")
    problems = [problem for layer in model.layers for problem in _own_code(layer)]
    if problems:
        raise UnsupportedLayer(problems)
    refuse_unsaved(model)
    return attached(
        model_of({"class_name": own.__name__, "config": config}, generation), _Held(model)
    )


def _own_code(held: Any, path: str = "") -> Iterator[str]:
    """A line for each activation that is a function of the user's, in a layer or within one."""
    name = f"{path}{held.name}"
    for key in ("activation", "recurrent_activation"):
        function = getattr(held, key, None)
        whose = getattr(function, "__module__", None) or type(function).__module__
        if callable(function) and whose.partition(".")[0] not in _KNOWN:
            called = getattr(function, "__name__", type(function).__name__)
            yield (
                f"{name} ({type(held).__name__}): its {key} {called!r} is a function of module "
                f"{whose}: code, which is never read. Use a function of Keras"
            )
    parts = [getattr(held, key, None) for key in ("layer", "forward_layer", "backward_layer")]
    parts += [getattr(held, "cell", None), *getattr(held, "cells", ())]
    inside = [*getattr(held, "layers", ()), *(part for part in parts if part is not None)]
    for each in {id(part): part for part in inside}.values():
        yield from _own_code(each, f"{name}.")


def _is_of_keras(kind: type) -> bool:
    """Whether a class of models is one of Keras' own."""
    return kind.__module__.partition(".")[0] in ("keras", *_KERAS_2)


class _Held:
    """The arrays of an object of Keras."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def of_layer(self, model: Model, layer: Layer) -> "_Held":
        return _Held(self._held.get_layer(layer.name))

    def of_part(self, layer: Layer, key: str) -> "_Held":
        two = layer.class_name in ("Bidirectional", "QBidirectional")
        return _Held(getattr(self._held, _PARTS[key] if two else key))

    def arrays(self, layer: Layer, variables: Sequence[Variable] | None) -> Sequence[Array]:
        weights: Sequence[Array] = self._held.get_weights()
        if variables is None or len(variables) != len(weights):
            return weights
        return divided(layer, weights)[id(layer)]
