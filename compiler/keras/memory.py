"""Models of Keras, tf.keras and QKeras that are in memory: their config and weights, no more."""

from collections.abc import Sequence
from typing import Any

from fxloom.keras.config import model_of
from fxloom.keras.description import Array, Model

_GENERATIONS = {"keras": 3, "tf_keras": 2}


def is_keras_model(model: object) -> bool:
    """Whether an object is a model of Keras 2 or 3, told by its classes and without an import."""
    return _generation(model) is not None


def _generation(model: object) -> int | None:
    for base in type(model).__mro__:
        package = base.__module__.partition(".")[0]
        if package in _GENERATIONS and base.__name__ in ("Model", "Sequential", "Functional"):
            return _GENERATIONS[package]
    return None


def describe(model: Any) -> Model:
    """What a model in memory consists of; its arrays are copies."""
    generation = _generation(model)
    assert generation is not None

    def weights(path: tuple[str, ...]) -> Sequence[Array]:
        found = model
        for name in path:
            found = found.get_layer(name)
        arrays: Sequence[Array] = found.get_weights()
        return arrays

    config = {"class_name": type(model).__name__, "config": model.get_config()}
    return model_of(config, generation, weights)
