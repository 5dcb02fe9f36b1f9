"""LSTM, GRU, SimpleRNN and what wraps them, in Keras 2 and Keras 3."""

from typing import Any

import pytest
import torch

from fxloom.errors import UnsupportedLayer
from tests.frontends.keras_agreement import assert_agrees, randomise

keras = pytest.importorskip("keras", reason="needs TensorFlow and Keras: make test-keras")
tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow and Keras: make test-keras")
both = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras 3", "keras 2"])
KINDS = pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])


def all_of(k: Any, *layers: Any) -> Any:
    """A model with every output of every layer."""
    x = k.layers.Input((2, 3))
    outputs = [layer(x) for layer in layers]
    flat = [one for each in outputs for one in (each if isinstance(each, list | tuple) else [each])]
    return randomise(k.Model(x, flat))


@both
@KINDS
def test_outputs_states_and_directions(k: Any, kind: str) -> None:
    layer = getattr(k.layers, kind)
    assert_agrees(
        all_of(
            k,
            layer(2, return_sequences=True, use_bias=False),
            layer(3, return_state=True),
            layer(2, return_sequences=True, return_state=True, go_backwards=True, unroll=True),
        )
    )


@both
def test_other_activations_are_written_out(k: Any) -> None:
    layers = k.layers
    assert_agrees(
        all_of(
            k,
            layers.LSTM(2, activation="relu", return_state=True),
            layers.LSTM(2, recurrent_activation="hard_sigmoid", use_bias=False),
            layers.GRU(2, activation="softsign", return_sequences=True),
            layers.GRU(2, recurrent_activation="hard_sigmoid", use_bias=False),
            layers.GRU(2, reset_after=False, activation="elu"),
            layers.SimpleRNN(3, activation="relu"),
            layers.SimpleRNN(3, activation="linear", return_state=True),
        )
    )


@both
@KINDS
def test_initial_states_that_are_computed(k: Any, kind: str) -> None:
    x, h = k.layers.Input((3, 3)), k.layers.Input((2,))
    states = [h, k.layers.Dense(2)(h)] if kind == "LSTM" else [h]
    layer = getattr(k.layers, kind)(2, return_state=True)
    assert_agrees(randomise(k.Model([x, h], layer(x, initial_state=states))))


@both
def test_layers_of_cells(k: Any) -> None:
    layers = k.layers
    stacked = [layers.LSTMCell(3), layers.GRUCell(2, reset_after=False), layers.SimpleRNNCell(2)]
    assert_agrees(
        all_of(
            k,
            layers.RNN(layers.LSTMCell(2), return_state=True),
            layers.RNN(layers.GRUCell(2), return_sequences=True),
            layers.RNN(stacked, return_sequences=True, go_backwards=True),
        )
    )


@both
def test_the_steps_of_torchs_own_layers_share_roles(k: Any) -> None:
    graph = assert_agrees(all_of(k, k.layers.LSTM(2, name="memory")))
    tied = {node.meta["origin"] for node in graph.graph.nodes if "tied" in node.meta}
    assert {"memory.l0.gates", "memory.l0.cell", "memory.l0.hidden"} <= tied


@both
def test_what_keeps_state_between_batches_is_refused(k: Any) -> None:
    x = k.layers.Input(batch_shape=(2, 4, 3))
    model = k.Model(x, k.layers.LSTM(2, stateful=True, name="memory")(x))
    with pytest.raises(UnsupportedLayer, match=r"memory \(LSTM\): stateful=True.*initial_state"):
        assert_agrees(model)


@both
def test_both_directions(k: Any) -> None:
    layers = k.layers
    assert_agrees(
        all_of(
            k,
            layers.Bidirectional(layers.LSTM(2, return_sequences=True)),
            layers.Bidirectional(layers.GRU(2), merge_mode="sum"),
            layers.Bidirectional(layers.SimpleRNN(2, return_state=True), merge_mode="ave"),
            layers.Bidirectional(layers.GRU(2, return_sequences=True), merge_mode=None),
            layers.Bidirectional(
                layers.LSTM(2), merge_mode="mul", backward_layer=layers.GRU(2, go_backwards=True)
            ),
        )
    )


@both
def test_initial_states_of_both_directions(k: Any) -> None:
    x, h, g = k.layers.Input((3, 3)), k.layers.Input((2,)), k.layers.Input((2,))
    layer = k.layers.Bidirectional(k.layers.GRU(2, return_state=True))
    assert_agrees(randomise(k.Model([x, h, g], layer(x, initial_state=[h, g]))))


@both
def test_layers_on_every_point_in_time(k: Any) -> None:
    layers = k.layers
    x = layers.Input((2, 6, 5, 2))
    image = layers.Input((6, 5, 2))
    y = layers.Flatten()(layers.MaxPooling2D()(layers.Conv2D(2, 3, activation="relu")(image)))
    encoder = k.Model(image, y, name="encoder")
    outputs = [
        layers.TimeDistributed(layers.Dense(2, activation="softmax"))(x),
        layers.TimeDistributed(layers.Conv2D(3, 2, padding="same", activation="softmax"))(x),
        layers.TimeDistributed(layers.BatchNormalization())(x),
        layers.LSTM(2)(layers.TimeDistributed(encoder)(x)),
        layers.TimeDistributed(layers.GRU(2))(layers.TimeDistributed(layers.Reshape((2, 30)))(x)),
    ]
    assert_agrees(randomise(k.Model(x, outputs)))


@both
def test_a_mask_that_someone_reads_is_refused_by_name(k: Any) -> None:
    layers = k.layers
    x = layers.Input((5,), dtype="int32")
    y = layers.Dense(3)(layers.Embedding(7, 4, mask_zero=True, name="words")(x))
    read = k.Model(x, layers.GRU(2, name="memory")(y))
    with pytest.raises(UnsupportedLayer, match=r"memory \(GRU\): the mask of words reaches it"):
        assert_agrees(read)
    assert_agrees(randomise(k.Model(x, layers.Flatten()(layers.Activation("relu")(y)))))


@both
def test_masking_makes_zeros(k: Any) -> None:
    x = k.layers.Input((4, 2))
    rounded = k.layers.Masking(1.0)(k.layers.Activation("relu6")(k.layers.Rescaling(4.0)(x)))
    model = k.Model(x, k.layers.Flatten()(rounded))
    given = torch.tensor([[[0.25, 0.25], [0.25, 1], [2, 2], [0.1, 0]]])
    assert_agrees(model, given)
