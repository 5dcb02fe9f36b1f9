"""Models of Keras in memory, Keras 2 and Keras 3."""

from typing import Any

import pytest
import torch

import fxloom
from fxloom.keras.model import network_of

keras = pytest.importorskip("keras", reason="needs TensorFlow and Keras: make test-keras")
tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow and Keras: make test-keras")
both = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras 3", "keras 2"])


def functional(k: Any) -> Any:
    x = k.layers.Input((5, 4))
    y = k.layers.Flatten()(k.layers.Dense(3, activation="relu")(x))
    return k.Model(x, k.layers.Dense(2, activation="softmax", name="forward")(y))


def sequential(k: Any) -> Any:
    layers = [k.layers.Input((5, 4)), k.layers.Dense(3), k.layers.Flatten(), k.layers.Dense(2)]
    return k.Sequential(layers)


@both
@pytest.mark.parametrize("build", [functional, sequential])
def test_computes_what_keras_predicts(build: Any, k: Any) -> None:
    model = build(k)
    (x,) = network_of(model).example_inputs(samples=4)
    graph = fxloom.capture(model, x)
    expected = torch.from_numpy(model.predict(x.numpy(), verbose=0))
    torch.testing.assert_close(graph(x), expected, atol=1e-5, rtol=0)
