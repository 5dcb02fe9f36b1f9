"""Layers that compute with weights, join, pool and move: the captured graph equals model.predict.

All layers of a family are outputs of one model, so that TensorFlow and capture run once for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fxloom
from fxloom.errors import UnsupportedLayer
from fxloom.keras.memory import describe
from fxloom.keras.network import Network
from tests.frontends.keras_agreement import assert_agrees, inputs_of, randomise

keras = pytest.importorskip("keras", reason="needs TensorFlow and Keras: make test-keras")
tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow and Keras: make test-keras")
both = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras 3", "keras 2"])

Make = Callable[[Any], Any]
"""The layer, given keras.layers."""


def conv2d(*sizes: Any, **config: Any) -> Make:
    return lambda layers: layers.Conv2D(*sizes, **config)


IMAGE = (7, 6, 4)
SIGNAL = (9, 4)
FAMILIES: dict[str, tuple[tuple[int, ...], Sequence[Make]]] = {
    "dense": (
        (5,),
        [
            lambda layers: layers.Dense(3),
            lambda layers: layers.Dense(3, use_bias=False, activation="relu"),
            lambda layers: layers.Dense(3, activation="softmax"),
            lambda layers: layers.RepeatVector(4),
            lambda layers: layers.Reshape((5, 1)),
            lambda layers: layers.Flatten(),
            lambda layers: layers.BatchNormalization(),
        ],
    ),
    "dense of any rank": (
        IMAGE,
        [
            lambda layers: layers.Dense(3),
            lambda layers: layers.Dense(3, activation="softmax"),
            lambda layers: layers.Dense(2, activation="sigmoid", use_bias=False),
        ],
    ),
    "conv1d": (
        SIGNAL,
        [
            lambda layers, padding=padding, stride=stride, dilation=dilation: layers.Conv1D(
                3, 4, strides=stride, dilation_rate=dilation, padding=padding, activation="tanh"
            )
            for padding in ("valid", "same", "causal")
            for stride, dilation in ((1, 1), (2, 1), (3, 1), (1, 2))
        ]
        + [
            lambda layers: layers.Conv1D(6, 3, groups=2, padding="same"),
            lambda layers: layers.Conv1D(3, 3, use_bias=False, activation="softmax"),
        ],
    ),
    "conv2d": (
        IMAGE,
        [
            conv2d(3, size, strides=stride, dilation_rate=dilation, padding=padding)
            for padding in ("valid", "same")
            for size, stride, dilation in (
                (1, 1, 1),
                (2, 1, 1),
                ((2, 3), (3, 2), 1),
                ((3, 4), (1, 2), 1),
                ((3, 2), 1, (2, 1)),
                (3, 1, 2),
                ((5, 1), (4, 1), 1),
                (2, 5, 1),
            )
        ]
        + [
            conv2d(6, 3, groups=2),
            conv2d(4, 3, groups=4, strides=2, padding="same", use_bias=False),
            conv2d(3, 3, activation="relu", padding="same"),
            conv2d(3, 3, activation="softmax"),
        ],
    ),
    "depthwise": (
        IMAGE,
        [
            lambda layers: layers.DepthwiseConv2D(3),
            lambda layers: layers.DepthwiseConv2D((2, 3), depth_multiplier=3, padding="same"),
            lambda layers: layers.DepthwiseConv2D(4, strides=2, padding="same", use_bias=False),
            lambda layers: layers.DepthwiseConv2D(2, dilation_rate=2, activation="relu"),
            lambda layers: layers.SeparableConv2D(5, 3),
            lambda layers: layers.SeparableConv2D(
                5, (2, 3), depth_multiplier=2, padding="same", activation="relu"
            ),
            lambda layers: layers.SeparableConv2D(3, 2, strides=3, padding="same", use_bias=False),
            lambda layers: layers.SeparableConv2D(3, 2, dilation_rate=2, activation="softmax"),
        ],
    ),
    "depthwise of signals": (
        SIGNAL,
        [
            lambda layers: layers.DepthwiseConv1D(3),
            lambda layers: layers.DepthwiseConv1D(4, depth_multiplier=2, padding="same", strides=2),
            lambda layers: layers.DepthwiseConv1D(2, dilation_rate=3, use_bias=False),
            lambda layers: layers.SeparableConv1D(5, 3),
            lambda layers: layers.SeparableConv1D(5, 4, depth_multiplier=3, padding="same"),
        ],
    ),
    "transposed": (
        (4, 3, 2),
        [
            lambda layers, size=size, stride=stride, padding=padding: layers.Conv2DTranspose(
                3, size, strides=stride, padding=padding
            )
            for padding in ("valid", "same")
            for size, stride in ((3, 2), (2, 2), ((4, 3), (1, 3)), (2, 3), ((1, 5), (2, 1)), (4, 2))
        ]
        + [
            lambda layers: layers.Conv2DTranspose(
                3, 3, strides=2, output_padding=1, padding="same", activation="relu"
            ),
            lambda layers: layers.Conv2DTranspose(3, 3, strides=3, output_padding=(0, 2)),
            lambda layers: layers.Conv2DTranspose(
                3, (4, 5), strides=(2, 3), output_padding=1, padding="same", use_bias=False
            ),
        ],
    ),
    "transposed signals": (
        (5, 2),
        [
            lambda layers: layers.Conv1DTranspose(3, 3, strides=2, padding="same"),
            lambda layers: layers.Conv1DTranspose(3, 4, strides=3),
            lambda layers: layers.Conv1DTranspose(3, 2, strides=3, activation="relu"),
        ],
    ),
    "batch norm": (
        IMAGE,
        [
            lambda layers: layers.BatchNormalization(),
            lambda layers: layers.BatchNormalization(scale=False, epsilon=0.1),
            lambda layers: layers.BatchNormalization(center=False),
            lambda layers: layers.BatchNormalization(center=False, scale=False),
            lambda layers: layers.BatchNormalization(axis=1),
            lambda layers: layers.BatchNormalization(axis=-2),
            lambda layers: layers.BatchNormalization(axis=3),
        ],
    ),
    "pools": (
        IMAGE,
        [
            lambda layers, kind=kind, size=size, stride=stride, padding=padding: getattr(
                layers, f"{kind}Pooling2D"
            )(size, strides=stride, padding=padding)
            for kind in ("Max", "Average")
            for padding in ("valid", "same")
            for size, stride in (
                (2, None),
                (2, 1),
                (3, 2),
                ((2, 4), (1, 2)),
                ((4, 3), (1, 1)),
                ((1, 2), (3, 5)),
                ((5, 2), (4, 1)),
            )
        ]
        + [
            lambda layers, kind=kind, keepdims=keepdims: getattr(layers, f"Global{kind}Pooling2D")(
                keepdims=keepdims
            )
            for kind in ("Max", "Average")
            for keepdims in (False, True)
        ],
    ),
    "pools of signals": (
        SIGNAL,
        [
            lambda layers, kind=kind, size=size, stride=stride, padding=padding: getattr(
                layers, f"{kind}Pooling1D"
            )(size, strides=stride, padding=padding)
            for kind in ("Max", "Average")
            for padding in ("valid", "same")
            for size, stride in ((2, None), (4, 1), (3, 2), (2, 3), (4, 3))
        ]
        + [
            lambda layers, kind=kind, keepdims=keepdims: getattr(layers, f"Global{kind}Pooling1D")(
                keepdims=keepdims
            )
            for kind in ("Max", "Average")
            for keepdims in (False, True)
        ],
    ),
    "moves of images": (
        IMAGE,
        [
            lambda layers: layers.Flatten(),
            lambda layers: layers.Reshape((6, -1)),
            lambda layers: layers.Reshape((4, 2, 21)),
            lambda layers: layers.Permute((3, 1, 2)),
            lambda layers: layers.ZeroPadding2D(),
            lambda layers: layers.ZeroPadding2D((2, 0)),
            lambda layers: layers.ZeroPadding2D(((1, 2), (0, 3))),
            lambda layers: layers.Cropping2D(1),
            lambda layers: layers.Cropping2D((2, 1)),
            lambda layers: layers.Cropping2D(((0, 3), (1, 0))),
            lambda layers: layers.UpSampling2D(),
            lambda layers: layers.UpSampling2D((1, 3)),
            lambda layers: layers.UpSampling2D((3, 2), interpolation="bilinear"),
        ],
    ),
    "moves of signals": (
        SIGNAL,
        [
            lambda layers: layers.Permute((2, 1)),
            lambda layers: layers.ZeroPadding1D(),
            lambda layers: layers.ZeroPadding1D((0, 2)),
            lambda layers: layers.Cropping1D((1, 2)),
            lambda layers: layers.UpSampling1D(3),
            lambda layers: layers.Reshape((3, 3, 4)),
        ],
    ),
}


@both
@pytest.mark.parametrize("family", FAMILIES)
def test_layer_computes_what_keras_predicts(k: Any, family: str) -> None:
    shape, makes = FAMILIES[family]
    x = k.layers.Input(shape)
    model = k.Model(x, [make(k.layers)(x) for make in makes])
    assert_agrees(randomise(model))


def test_what_keras_2_alone_computes_here() -> None:
    """Keras 3 has no causal separable convolution, and no dilated transposed one on a CPU."""
    layers = tf_keras.layers
    signal, image = layers.Input(SIGNAL), layers.Input((4, 3, 2))
    outputs = [
        layers.SeparableConv1D(3, 3, padding="causal", dilation_rate=2)(signal),
        layers.SeparableConv1D(3, 2, strides=2, padding="causal")(signal),
        layers.Conv2DTranspose(3, 3, dilation_rate=2)(image),
        layers.Conv2DTranspose(3, (2, 3), dilation_rate=2, padding="same")(image),
    ]
    assert_agrees(randomise(tf_keras.Model([signal, image], outputs)))


@both
def test_merges_compute_what_keras_predicts(k: Any) -> None:
    layers = k.layers
    image, other, row = layers.Input((3, 4, 2)), layers.Input((3, 4, 2)), layers.Input((1, 4, 1))
    signal, vector = layers.Input((4, 2)), layers.Input((2,))
    third = layers.Conv2D(2, 3, padding="same")(image)  # its channels are not where Keras has them
    outputs = [
        *(
            getattr(layers, name)()([image, third, other])
            for name in ("Add", "Multiply", "Average", "Maximum", "Minimum")
        ),
        layers.Subtract()([third, image]),
        layers.Subtract()([image, row]),
        layers.Multiply()([third, row]),
        layers.Add()([third, signal]),
        layers.Add()([signal, image, vector]),
        layers.Multiply()([third, vector]),
        layers.Maximum()([signal, vector]),
        *(layers.Concatenate(axis=axis)([image, third]) for axis in (-1, 1, 2, 3, -2)),
        layers.Concatenate()([third, layers.Conv2D(5, 1)(other), other]),
        layers.Concatenate(axis=1)([layers.Flatten()(third), vector]),
    ]
    model = k.Model([image, other, row, signal, vector], outputs)
    assert_agrees(randomise(model))


@both
def test_nested_and_shared_models_keep_their_axes(k: Any) -> None:
    layers = k.layers
    inner_in = layers.Input((8, 8, 3))
    y = layers.Conv2D(3, 3, padding="same", name="conv")(inner_in)
    inner = k.Model(inner_in, [y, layers.MaxPooling2D()(y)], name="inner")
    chain = k.Sequential([layers.Input((4, 4, 3)), layers.Conv2D(2, 2), layers.Flatten()])
    image = layers.Input((8, 8, 3))
    first, small = inner(image)
    second, smaller = inner(first)
    shared = layers.Dense(4)
    model = k.Model(image, [chain(small), shared(second), shared(first), chain(smaller)])
    assert_agrees(randomise(model))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda layers: layers.UpSampling2D(interpolation="bicubic"), "interpolation='bicubic'"),
        (lambda layers: layers.Conv2D(2, 2, dtype="float16"), "dtype policy float32, got .float16"),
    ],
)
def test_what_would_compute_something_else_is_refused(layer: Make, reason: str) -> None:
    x = keras.layers.Input(IMAGE)
    model = keras.Model(x, layer(keras.layers)(x))
    with pytest.raises(UnsupportedLayer, match=reason):
        fxloom.capture(model, torch.zeros(1, *IMAGE))


@both
def test_dropout_that_drops_at_inference_is_refused(k: Any) -> None:
    x = k.layers.Input((4,))
    model = k.Model(x, k.layers.Dropout(0.5)(x, training=True))
    with pytest.raises(UnsupportedLayer, match="training=True"):
        fxloom.capture(model, torch.zeros(1, 4))


@both
def test_inputs_and_layers_bear_their_names(k: Any) -> None:
    layers = k.layers
    image, angle = layers.Input((4, 4, 2), name="image"), layers.Input((3,), name="class")
    y = layers.Conv2D(2, 3, activation="relu", name="conv.first")(image)
    y = layers.Concatenate(name="joined")([layers.Flatten(name="flat")(y), angle])
    outputs = [layers.Dense(2, name="head", activation="softmax")(y), y]
    model = k.Model([image, angle], outputs)
    graph = assert_agrees(randomise(model))
    placeholders = graph.graph.find_nodes(op="placeholder")
    assert [node.target for node in placeholders] == ["image", "class_"]
    origins = [node.meta["origin"] for node in graph.graph.nodes if "origin" in node.meta]
    named = ["conv_first", "conv_first.activation", "flat", "joined", "head", "head.activation"]
    assert [origin for origin in origins if "permute" not in origin] == named


OF_CHANNELS_FIRST: list[Make] = [
    lambda layers: layers.Conv2D(3, (2, 3), strides=(2, 1), padding="same", activation="relu"),
    lambda layers: layers.Conv2D(3, 3, dilation_rate=2),
    lambda layers: layers.DepthwiseConv2D(2, depth_multiplier=2),
    lambda layers: layers.SeparableConv2D(3, 2, padding="same"),
    lambda layers: layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
    lambda layers: layers.MaxPooling2D(2, padding="same"),
    lambda layers: layers.AveragePooling2D((2, 3), strides=1, padding="same"),
    lambda layers: layers.GlobalMaxPooling2D(),
    lambda layers: layers.GlobalAveragePooling2D(keepdims=True),
    lambda layers: layers.ZeroPadding2D(((1, 0), (2, 1))),
    lambda layers: layers.Cropping2D(((1, 0), (2, 1))),
    lambda layers: layers.UpSampling2D((2, 3)),
    lambda layers: layers.UpSampling2D((2, 3), interpolation="bilinear"),
    lambda layers: layers.Flatten(),
]


@both
def test_channels_first_is_channels_last_on_moved_images(k: Any) -> None:
    """TensorFlow runs it on accelerators alone: what it says of channels last is the reference."""
    x = k.layers.Input(IMAGE)
    model = randomise(k.Model(x, [make(k.layers)(x) for make in OF_CHANNELS_FIRST]))
    described = describe(model)
    layers = []
    for layer in described.layers:
        config = dict(layer.config)
        if "data_format" in config:
            config["data_format"] = "channels_first"
        if "batch_shape" in config:
            config["batch_shape"] = (None, IMAGE[2], *IMAGE[:2])
        if "batch_input_shape" in config:
            config["batch_input_shape"] = (None, IMAGE[2], *IMAGE[:2])
        layers.append(replace(layer, config=config))
    (images,) = inputs_of(model)
    found = Network(replace(described, layers=tuple(layers))).eval()(images.permute(0, 3, 1, 2))
    for result, expected in zip(found, model.predict(images.numpy(), verbose=0), strict=True):
        moved = result.permute(0, 2, 3, 1) if result.dim() == 4 else result
        np.testing.assert_allclose(moved.detach().numpy(), expected, rtol=0, atol=1e-5)
