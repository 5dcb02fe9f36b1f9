"""Operations between layers: what Keras 3 and Keras 2 write for x + y, x[:, 1:], keras.ops."""

from typing import Any

import pytest
import torch

import fxloom
from fxloom.errors import UnsupportedLayer
from tests.frontends.keras_agreement import assert_agrees, randomise

keras = pytest.importorskip("keras", reason="needs TensorFlow and Keras: make test-keras")
tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow and Keras: make test-keras")
both = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras 3", "keras 2"])


@both
def test_operators_between_layers(k: Any) -> None:
    x = k.layers.Input((4, 4, 2))
    y = k.layers.Conv2D(2, 3, padding="same")(x)  # channels are not where Keras has them
    row = k.layers.Dense(2)(x[:, :1])
    outputs = [
        *(y + 1.5, 2 - y, y + x, x - y, y * x, y / 2, -y, abs(y), y * 0.5, y + row),
        *(y[:, 1:3, ::2], y[:, 1], y[:, -1, :, 1:]),
    ]
    assert_agrees(randomise(k.Model(x, outputs)))


def test_operations_of_keras_3() -> None:
    ops = keras.ops
    x = keras.layers.Input((4, 6, 2))
    y = keras.layers.Conv2D(2, 3, padding="same")(x)
    first, *others = ops.split(y, [1, 4], axis=2)
    outputs = [
        *(ops.relu(y), ops.sigmoid(y), ops.silu(y), ops.hard_sigmoid(y), ops.tanh(y)),
        *(ops.gelu(y), ops.gelu(y, approximate=False), ops.elu(y, 0.5), ops.leaky_relu(y, 0.1)),
        *(ops.maximum(y, x), ops.minimum(y, 0.25), ops.clip(y, -0.5, 0.75), ops.square(y), y**2),
        *(ops.concatenate([x, y], axis=-1), ops.concatenate([x, y], axis=1)),
        *(ops.mean(y, axis=(1, 2)), ops.sum(y, axis=-1), ops.max(y, axis=1, keepdims=True)),
        *(ops.reshape(y, (-1, 8, 6)), ops.reshape(y, (-1, 4, 12)), ops.transpose(y, (0, 3, 1, 2))),
        *(ops.expand_dims(y, 1), ops.squeeze(ops.expand_dims(y, 2), 2), first, others[1]),
        *(ops.pad(y, [[0, 0], [1, 0], [0, 2], [0, 0]]), ops.softmax(y), ops.softmax(y, axis=1)),
        ops.matmul(y, ops.transpose(y, (0, 1, 3, 2))),
    ]
    assert_agrees(randomise(keras.Model(x, outputs)))


def test_operations_that_nobody_knows_are_refused_by_name() -> None:
    x = keras.layers.Input((4,))
    model = keras.Model(x, keras.ops.sort(x))
    with pytest.raises(UnsupportedLayer, match=r"sort \(Sort\): no such"):
        fxloom.capture(model, torch.zeros(1, 4))
    x = tf_keras.layers.Input((4,))
    model = tf_keras.Model(x, tf_keras.backend.sum(x, axis=1))
    with pytest.raises(UnsupportedLayer, match=r"'math.reduce_sum' of TensorFlow is not known"):
        fxloom.capture(model, torch.zeros(1, 4))
