"""Networks of Keras 2 and Keras 3 with random weights: the captured graph is what they predict."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import fxloom
from fxloom.keras.description import Layer, Model
from fxloom.keras.memory import describe
from fxloom.passes import Quantize
from tests.frontends.keras_agreement import assert_agrees, inputs_of, randomise
from tests.frontends.keras_networks import ARCHITECTURES

keras = pytest.importorskip("keras", reason="needs TensorFlow and Keras: make test-keras")
tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow and Keras: make test-keras")

# What issue 10 asks for, and what the README says.
LAYERS = [
    "Activation", "ActivityRegularization", "Add", "AdditiveAttention", "AlphaDropout",
    "Attention", "Average", "AveragePooling1D", "AveragePooling2D", "BatchNormalization",
    "Bidirectional", "Concatenate", "Conv1D", "Conv2D", "Conv2DTranspose", "Cropping1D",
    "Cropping2D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "Dot", "Dropout", "ELU",
    "Embedding", "Flatten", "Functional", "GRU", "GaussianDropout", "GaussianNoise",
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "GroupNormalization", "InputLayer", "LSTM", "LayerNormalization",
    "LeakyReLU", "MaxPooling1D", "MaxPooling2D", "Maximum", "Minimum", "MultiHeadAttention",
    "Multiply", "Normalization", "PReLU", "Permute", "ReLU", "RepeatVector", "Rescaling",
    "Reshape", "SeparableConv1D", "SeparableConv2D", "Sequential", "SimpleRNN", "Softmax",
    "SpatialDropout1D", "SpatialDropout2D", "Subtract", "TimeDistributed", "UnitNormalization",
    "UpSampling1D", "UpSampling2D", "ZeroPadding1D", "ZeroPadding2D",
]  # fmt: skip


# Many steps: one generation each; test_keras_recurrent.py has every layer of both.
IN_ONE = {
    "convolution_before_recurrence": "keras 3",
    "gated_classifier": "keras 2",
    "hard_gates": "keras 3",
    "recurrent_over_images": "keras 2",
    "sequence_autoencoder": "keras 3",
    "sequence_to_sequence": "keras 2",
    "simple_recurrence": "keras 2",
    "tagger": "keras 3",
    "tagger_of_both_directions": "keras 2",
}


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        (name, generation)
        for name in ARCHITECTURES
        for generation in ("keras 3", "keras 2")
        if IN_ONE.get(name, generation) == generation
    ],
)
def test_computes_what_keras_predicts(name: str, generation: str) -> None:
    k = keras if generation == "keras 3" else tf_keras
    assert_agrees(randomise(ARCHITECTURES[name](k)))


def test_there_are_enough_of_them_and_every_layer_occurs() -> None:
    models = [describe(build(keras)) for build in ARCHITECTURES.values()]
    found = {kind for model in models for kind in _classes(model)}
    assert len(ARCHITECTURES) >= 40
    assert set(LAYERS) - found == set()


def _classes(model: Model) -> Iterator[str]:
    for layer in model.layers:
        yield from _classes_of(layer)


def _classes_of(layer: Layer) -> Iterator[str]:
    yield layer.class_name
    for inner in layer.inner.values():
        yield from _classes_of(inner)
    if layer.model is not None:
        yield from _classes(layer.model)


@pytest.mark.parametrize(
    "name",
    [
        "lenet",
        "mobilenet",
        "residual",
        "unet",
        "squeeze_and_excitation",
        "temporal_convolutions",
        "hard_gates",
        "transformer_encoder",
        "text_by_convolutions",
    ],
)
def test_quantized_and_lowered_it_stays_near(name: str) -> None:
    """16 bits leave little of the error; what is left is that of few fraction bits."""
    model = randomise(ARCHITECTURES[name](keras))
    x = inputs_of(model, samples=32)
    given = x if len(x) > 1 else x[0]
    graph = fxloom.capture(model, given)
    recipe = fxloom.Recipe([Quantize(weights=16, activations=16)])
    quantized = recipe.run(graph, fxloom.Data(given)).graph
    found = fxloom.simulate(fxloom.lower(quantized), given)
    with torch.no_grad():
        expected = graph(*x).numpy()
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() < 0.02 * max(np.abs(expected).max(), 1)
