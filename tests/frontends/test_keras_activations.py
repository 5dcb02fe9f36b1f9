"""Every activation of Keras 2 and Keras 3, by name and as a layer."""

from typing import Any

import pytest

from fxloom.errors import UnsupportedLayer
from fxloom.keras.activations import ALONG, POINTWISE
from tests.frontends.keras_agreement import assert_agrees, randomise

keras = pytest.importorskip("keras", reason="needs TensorFlow and Keras: make test-keras")
tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow and Keras: make test-keras")
both = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras 3", "keras 2"])

NAMES = sorted({*POINTWISE, *ALONG} - {"softmax_v2"})
IN_KERAS_2 = [
    "elu", "exponential", "gelu", "hard_sigmoid", "leaky_relu", "log_softmax", "mish", "relu",
    "relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "swish", "tanh",
]  # fmt: skip


def of_layers(k: Any, shape: tuple[int, ...], *layers: Any) -> Any:
    return randomise(k.Sequential([k.layers.Input(shape), *layers]))


def of_names(k: Any, names: list[str]) -> Any:
    x = k.layers.Input((3, 4))
    scaled = k.layers.Rescaling(2.0)(x)
    return k.Model(x, [k.layers.Activation(name)(scaled) for name in names])


def test_every_name_of_keras_3() -> None:
    assert_agrees(of_names(keras, NAMES))


def test_every_name_of_keras_2() -> None:
    assert_agrees(of_names(tf_keras, IN_KERAS_2))


@both
def test_layers_with_parameters(k: Any) -> None:
    layers = k.layers
    x = layers.Input((5, 6, 4))
    found = [
        layers.ReLU(),
        layers.ReLU(max_value=0.7),
        layers.ReLU(max_value=6.0, negative_slope=0.1),
        layers.ReLU(threshold=0.5),
        layers.ReLU(max_value=1.0, negative_slope=0.25, threshold=0.5),
        layers.LeakyReLU(),
        layers.LeakyReLU(0.05),
        layers.ELU(),
        layers.ELU(alpha=0.4),
        layers.Softmax(),
        layers.Softmax(axis=1),
        layers.Softmax(axis=-2),
        layers.Softmax(axis=[1, 3]),
        layers.PReLU(),
        layers.PReLU(shared_axes=[1, 2]),
        layers.PReLU(shared_axes=[3]),
        layers.Activation(layers.LeakyReLU(0.5)),
    ]
    model = k.Model(x, [layer(x) for layer in found])
    assert_agrees(randomise(model))


def test_thresholded_relu_of_keras_2() -> None:
    assert_agrees(of_layers(tf_keras, (4,), tf_keras.layers.ThresholdedReLU(0.3)))


@both
def test_a_softmax_inside_a_layer_and_a_layer_as_activation(k: Any) -> None:
    layers = k.layers
    dense = [layers.Dense(4, activation="softmax"), layers.Dense(3, activation=layers.ReLU(1.0))]
    assert_agrees(of_layers(k, (5, 4), *dense))


@both
def test_prelu_of_vectors_is_one_operation(k: Any) -> None:
    graph = assert_agrees(of_layers(k, (4,), k.layers.PReLU()))
    assert [node.op for node in graph.graph.nodes].count("call_function") == 1


@both
def test_the_name_of_a_layer_is_the_name_of_its_node(k: Any) -> None:
    graph = assert_agrees(of_layers(k, (4,), k.layers.Dense(3, activation="elu", name="head")))
    origins = [node.meta["origin"] for node in graph.graph.nodes if node.op == "call_function"]
    assert origins == ["head", "head.activation"]


@pytest.mark.parametrize(
    ("name", "reason"), [("sparsemax", "sorts"), ("threshold", "has parameters")]
)
def test_what_has_no_lowering_is_refused_by_name(name: str, reason: str) -> None:
    x = keras.layers.Input((4,))
    model = keras.Model(x, keras.layers.Dense(2, name="head")(x))
    model.get_layer("head").activation = getattr(keras.activations, name)
    with pytest.raises(UnsupportedLayer, match=rf"head \(Dense\): activation '{name}' {reason}"):
        assert_agrees(model)


def test_a_function_of_the_user_is_refused_by_name() -> None:
    def cubed(x: Any) -> Any:
        return x**3

    model = of_layers(keras, (4,), keras.layers.Dense(2, activation=cubed, name="head"))
    with pytest.raises(UnsupportedLayer, match=r"head.*'cubed' is a function.*code"):
        assert_agrees(model)


@both
def test_a_function_of_the_user_that_has_the_name_of_one_of_keras_is_refused(k: Any) -> None:
    def relu(x: Any) -> Any:
        return x * x * x

    model = of_layers(k, (2, 3), k.layers.LSTM(2, activation=relu, name="memory"))
    with pytest.raises(UnsupportedLayer, match=r"memory \(LSTM\): its activation 'relu' is a func"):
        assert_agrees(model)
    inner = of_layers(k, (3,), k.layers.Dense(2, activation=relu, name="head"))
    outer = k.Sequential([k.layers.Input((3,)), inner])
    with pytest.raises(UnsupportedLayer, match=r"\.head \(Dense\): its activation 'relu'"):
        assert_agrees(outer)


@both
def test_a_class_of_the_user_that_has_the_name_of_one_of_keras_is_refused(k: Any) -> None:
    class Dense(k.layers.Dense):  # type: ignore[misc, name-defined]
        def call(self, inputs: Any) -> Any:
            return 2 * super().call(inputs)

    # As in a script: Keras writes no module for what is in __main__.
    Dense.__module__ = "__main__"
    for layer in (Dense(2), k.layers.TimeDistributed(Dense(2))):
        with pytest.raises(UnsupportedLayer, match="custom class, 'Dense'"):
            assert_agrees(of_layers(k, (2, 3), layer))
