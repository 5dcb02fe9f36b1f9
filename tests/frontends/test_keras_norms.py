"""Norms and what scales inputs, in Keras 2 and Keras 3."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.frontends.keras_agreement import assert_agrees, randomise

keras = pytest.importorskip("keras", reason="needs TensorFlow and Keras: make test-keras")
tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow and Keras: make test-keras")
both = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras 3", "keras 2"])


def each_of(k: Any, shape: tuple[int, ...], *layers: Any) -> Any:
    """A model with the output of every layer."""
    x = k.layers.Input(shape)
    return k.Model(x, [layer(x) for layer in layers])


@both
def test_norms_of_one_sample(k: Any) -> None:
    layers = k.layers
    norms = [
        layers.LayerNormalization(),
        layers.LayerNormalization(axis=[1, 2, 3], epsilon=0.01),
        layers.LayerNormalization(axis=[1, -1], scale=False),
        layers.LayerNormalization(axis=1, center=False),
        layers.GroupNormalization(2),
        layers.GroupNormalization(-1, epsilon=0.1),
        layers.GroupNormalization(3, axis=2, scale=False, center=False),
        layers.GroupNormalization(4, axis=1),
        layers.UnitNormalization(),
        layers.UnitNormalization(axis=[1, 3]),
    ]
    if k is keras:
        norms += [layers.RMSNormalization(), layers.RMSNormalization(axis=[2, 3])]
        norms += [layers.RMSNormalization(axis=1)]
        norms += [layers.LayerNormalization(rms_scaling=True)]
    assert_agrees(randomise(each_of(k, (4, 6, 4), *norms)))


@both
def test_zeros_have_no_length_and_stay_zeros(k: Any) -> None:
    x = torch.tensor([[0.0, 0.0], [3e-7, 4e-7], [3.0, 4.0]])
    assert_agrees(each_of(k, (2,), k.layers.UnitNormalization()), x)


@both
def test_inputs_are_scaled(k: Any) -> None:
    layers = k.layers
    adapted = layers.Normalization()
    adapted.adapt(np.random.default_rng(0).normal(3, 2, (50, 5, 4)))
    scalings = [
        adapted,
        layers.Normalization(axis=1, mean=np.arange(5.0), variance=np.arange(1.0, 6.0)),
        layers.Normalization(axis=None, mean=1.5, variance=4.0, invert=True),
        layers.Rescaling(1 / 255),
        layers.Rescaling(2.0, offset=-1.0),
        layers.Rescaling([1.0, 2.0, 3.0, 4.0], offset=0.5),
        layers.Dropout(0.5),
        layers.GaussianNoise(1.0),
        layers.GaussianDropout(0.5),
        layers.AlphaDropout(0.5),
        layers.SpatialDropout1D(0.5),
        layers.ActivityRegularization(l2=0.1),
    ]
    x = layers.Input((5, 4))
    model = k.Model(x, [layers.ReLU()(layer(x)) for layer in scalings])
    assert_agrees(model)
