"""LSTM, GRU, SimpleRNN and what wraps them, in Keras 2 and Keras 3."""

from typing import Any

import pytest

from fxloom.errors import UnsupportedLayer
from tests.frontends.keras_agreement import assert_agrees, randomise

keras = pytest.importorskip("keras", reason="needs TensorFlow and Keras: make test-keras")
tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow and Keras: make test-keras")
both = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras 3", "keras 2"])
KINDS = pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])


def all_of(k: Any, *layers: Any) -> Any:
    """A model with every output of every layer."""
    x = k.layers.Input((4, 3))
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
            layer(2),
            layer(2, return_sequences=True, use_bias=False),
            layer(3, return_state=True, go_backwards=True),
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
            layers.GRU(2, reset_after=False),
            layers.GRU(2, reset_after=False, activation="elu", use_bias=False),
            layers.SimpleRNN(3, activation="relu"),
            layers.SimpleRNN(3, activation="linear", return_state=True),
        )
    )


@both
@KINDS
def test_initial_states_that_are_computed(k: Any, kind: str) -> None:
    x, h = k.layers.Input((4, 3)), k.layers.Input((2,))
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
