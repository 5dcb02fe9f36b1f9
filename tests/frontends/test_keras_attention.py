"""Attention, embeddings and products of tensors, in Keras 2 and Keras 3."""

from typing import Any

import pytest
import torch

from fxloom.errors import CaptureError
from fxloom.keras.model import network_of
from tests.frontends.keras_agreement import assert_agrees, randomise

keras = pytest.importorskip("keras", reason="needs TensorFlow and Keras: make test-keras")
tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow and Keras: make test-keras")
both = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras 3", "keras 2"])


@both
def test_heads_of_many_shapes(k: Any) -> None:
    layers = k.layers
    x, memory = layers.Input((4, 6)), layers.Input((5, 3))
    outputs = [
        layers.MultiHeadAttention(2, 3)(x, x),
        layers.MultiHeadAttention(2, 3, value_dim=2, use_bias=False, dropout=0.5)(x, memory),
        layers.MultiHeadAttention(1, 2, output_shape=7)(x, memory, use_causal_mask=True),
        *layers.MultiHeadAttention(2, 2)(x, memory, return_attention_scores=True),
    ]
    if k is keras:
        outputs.append(layers.MultiHeadAttention(2, 3, use_gate=True)(x, memory))
        outputs.append(layers.MultiHeadAttention(2, 3, sliding_window=2)(x, x))
    assert_agrees(randomise(k.Model([x, memory], outputs)))


@both
def test_attention_over_some_axes_of_images(k: Any) -> None:
    layers = k.layers
    x = layers.Input((3, 4, 5))
    outputs = [
        layers.MultiHeadAttention(2, 3)(x, x),
        layers.MultiHeadAttention(2, 3, attention_axes=2)(x, x),
        layers.MultiHeadAttention(2, 3, attention_axes=(1,))(x, x),
    ]
    assert_agrees(randomise(k.Model(x, outputs)))


@both
def test_masks_that_are_inputs(k: Any) -> None:
    layers = k.layers
    x, mask = layers.Input((4, 6)), layers.Input((4, 4), dtype="bool")
    outputs = [
        layers.MultiHeadAttention(2, 3)(x, x, attention_mask=mask),
        layers.MultiHeadAttention(2, 3)(x, x, attention_mask=mask, use_causal_mask=True),
        layers.Softmax()(layers.Dense(4)(x), mask=mask),
    ]
    seen = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.4
    seen |= torch.eye(4, dtype=torch.bool)
    seen[0, 1] = False  # of which Keras takes the mean
    given = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    assert_agrees(randomise(k.Model([x, mask], outputs)), given, seen)


@both
def test_attention_of_one_head(k: Any) -> None:
    layers = k.layers
    q, v = layers.Input((4, 3)), layers.Input((5, 3))
    outputs = [
        layers.Attention()([q, v]),
        layers.Attention(use_scale=True, dropout=0.3)([q, v, v], use_causal_mask=True),
        layers.Attention(use_scale=True, score_mode="concat")([q, v]),
        layers.AdditiveAttention()([q, v]),
        *layers.AdditiveAttention(use_scale=False)([q, v], return_attention_scores=True),
    ]
    assert_agrees(randomise(k.Model([q, v], outputs)))


@both
def test_products_of_two_tensors(k: Any) -> None:
    layers = k.layers
    x, y, u = layers.Input((4, 3)), layers.Input((5, 3)), layers.Input((3,))
    image = layers.Reshape((5, 3, 1))(y)
    outputs = [
        layers.Dot(axes=2)([x, y]),
        layers.Dot(axes=-1, normalize=True)([x, y]),
        layers.Dot(axes=(2, 1))([x, u]),
        layers.Dot(axes=1)([u, layers.Dense(3)(u)]),
        layers.Dot(axes=(2, 2))([x, image]),
    ]
    assert_agrees(randomise(k.Model([x, y, u], outputs)))


@both
def test_embeddings_take_integers(k: Any) -> None:
    layers = k.layers
    words, x = layers.Input((5,)), layers.Input((2,), dtype="int32")
    inner = k.Sequential([layers.Input((2,), dtype="int32"), layers.Embedding(4, 2)])
    model = randomise(k.Model([words, x], [layers.Embedding(9, 3)(words), inner(x)]))
    first, second = network_of(model).example_inputs(50)
    assert first.dtype == torch.int64
    assert first.max() > 4
    assert set(second.unique().tolist()) == {0, 1, 2, 3}
    assert_agrees(model, first, second)
    with pytest.raises(CaptureError, match="an Embedding needs integers"):
        assert_agrees(model, first.float(), second)
