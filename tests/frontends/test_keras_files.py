"""Files that the real Keras 2 and Keras 3 write, against what these predict."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxloom
from fxloom import FxloomError
from fxloom.keras.description import Layer, Model
from fxloom.keras.files import read_model
from fxloom.keras.memory import describe
from fxloom.keras.weights import leaves

keras = pytest.importorskip("keras", reason="needs TensorFlow and Keras: make test-keras")
tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow and Keras: make test-keras")
both = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras 3", "keras 2"])


def images(k: Any) -> Any:
    x = k.layers.Input((8, 8, 3))
    y = k.layers.Conv2D(4, 3, padding="same", strides=2, activation="relu")(x)
    y = k.layers.BatchNormalization()(y)
    y = k.layers.SeparableConv2D(5, 2)(k.layers.DepthwiseConv2D(2)(y))
    y = k.layers.Flatten()(k.layers.Conv2DTranspose(3, 2)(y))
    return k.Model(x, k.layers.Dense(3, activation="softmax")(k.layers.Dropout(0.5)(y)))


def nested(k: Any) -> Any:
    """A functional model with a frozen layer and one without names, both called twice."""
    i = k.layers.Input((6,))
    inner_layers = k.layers.Dense(6), k.layers.BatchNormalization(), k.layers.BatchNormalization()
    inner_layers[1].trainable = False
    y = i
    for each in inner_layers:
        y = each(y)
    inner = k.Model(i, y, name="inner")
    chain = k.Sequential([k.layers.Input((6,)), k.layers.Dense(6), k.layers.BatchNormalization()])
    a, b = k.layers.Input((6,), name="b"), k.layers.Input((6,), name="a")
    pre = k.layers.Dense(6)
    x, y = inner(pre(a)), inner(pre(b))
    z = k.layers.Concatenate()([chain(x), chain(y)])
    return k.Model([a, b], [k.layers.Dense(2)(z), y, chain(y)])


def deferred(k: Any) -> Any:
    model = k.Sequential([k.layers.Dense(3, activation="relu"), k.layers.Dense(2)])
    model(np.zeros((2, 4), np.float32))
    return model


def dictionaries(k: Any) -> Any:
    a, b = k.layers.Input((3,), name="zz"), k.layers.Input((4,), name="aa")
    return k.Model({"zz": a, "aa": b}, {"q": k.layers.Dense(2)(a), "c": k.layers.Dense(3)(b)})


def constants(k: Any) -> Any:
    x = k.layers.Input((4,))
    return k.Model(x, k.layers.Dense(2)(k.layers.Add()([x, np.float32([[1, 2, 3, 4]])])))


def recurrent(k: Any) -> Any:
    x, state = k.layers.Input((5, 3)), k.layers.Input((4,))
    y, h, c = k.layers.LSTM(4, return_sequences=True, return_state=True)(
        x, initial_state=[state, state]
    )
    both = k.layers.Bidirectional(k.layers.GRU(3, return_sequences=True))(y)
    dense = k.layers.TimeDistributed(k.layers.Dense(2, activation="relu"))(both)
    chain = k.Sequential([k.layers.Input((6,)), k.layers.Dense(3), k.layers.BatchNormalization()])
    return k.Model([x, state], [dense, k.layers.TimeDistributed(chain)(both), h, c])


def attention(k: Any) -> Any:
    a, b = k.layers.Input((5, 8)), k.layers.Input((7, 8))
    x = k.layers.MultiHeadAttention(2, 4)(a, b, key=b)
    return k.Model([a, b], k.layers.LayerNormalization()(k.layers.MultiHeadAttention(2, 4)(x, b)))


MODELS = [images, nested, deferred, dictionaries, constants, recurrent, attention]


def written(model: Any, folder: Path) -> dict[str, str]:
    """All files that Keras writes of a model."""
    for name in ("net.keras", "net.h5", "weights.weights.h5"):
        save = model.save_weights if name.startswith("weights") else model.save
        save(str(folder / name))
    (folder / "net.json").write_text(model.to_json())
    names = {
        "keras": "net.keras",
        "h5": "net.h5",
        "json": "net.json:" + str(folder / "weights.weights.h5"),
    }
    return {kind: str(folder / name) for kind, name in names.items()}


def with_random_weights(model: Any) -> Any:
    rng = np.random.default_rng(0)
    model.set_weights([rng.random(w.shape).astype(w.dtype) + 0.1 for w in model.get_weights()])
    return model


def arrays(model: Model) -> list[Any]:
    found: list[Any] = []
    for layer in model.layers:
        found += [array for leaf in leaves(layer) for array in leaf.weights]
    return found


@both
@pytest.mark.parametrize("build", MODELS)
def test_files_have_what_the_model_in_memory_has(
    build: Callable[[Any], Any], k: Any, tmp_path: Path
) -> None:
    model = with_random_weights(build(k))
    held = describe(model)
    for kind, spec in written(model, tmp_path).items():
        found = read_model(spec)
        names = [layer.label for layer in found.layers]
        assert names == [layer.label for layer in held.layers], kind
        assert (found.inputs, found.outputs) == (held.inputs, held.outputs)
        for one, other in zip(found.layers, held.layers, strict=True):
            assert str(one.calls) == str(other.calls)
        mine, theirs = arrays(found), arrays(held)
        assert len(mine) == len(theirs) == len(model.get_weights())
        assert all(map(np.array_equal, mine, theirs)), kind


@both
@pytest.mark.parametrize("build", [images, nested, deferred, constants])
def test_files_compute_what_keras_predicts(build: Any, k: Any, tmp_path: Path) -> None:
    model = with_random_weights(build(k))
    files = written(model, tmp_path)
    network = fxloom.load_model(files["keras"])
    inputs = network.example_inputs(samples=3)  # type: ignore[union-attr,operator]
    expected = model.predict([x.numpy() for x in inputs], verbose=0)
    expected = expected if isinstance(expected, list) else [expected]
    for kind, spec in files.items():
        with torch.no_grad():
            found = fxloom.load_model(spec)(*inputs)  # type: ignore[operator]
        found = found if isinstance(found, tuple) else (found,)
        for mine, theirs in zip(found, expected, strict=True):
            assert np.abs(mine.numpy() - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max()), kind


@both
def test_capture_and_simulation_of_a_file(k: Any, tmp_path: Path) -> None:
    model = with_random_weights(images(k))
    files = written(model, tmp_path)
    x = np.random.default_rng(1).random((64, 8, 8, 3), np.float32)
    build = fxloom.compile(files["keras"], data=x, out=tmp_path / "build")
    assert build.report.made_from is not None
    assert build.report.made_from.model == "net.keras"
    assert np.abs(build.simulate(x) - model.predict(x, verbose=0)).max() < 0.1


@both
def test_what_runs_code_is_refused_in_every_file(k: Any, tmp_path: Path) -> None:
    class Dense(k.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return x + 1

    x = k.layers.Input((4,))
    y = Dense(name="mine")(k.layers.Lambda(lambda x: x * 2, name="double")(x))
    model = k.Model(x, k.layers.Dense(2, dtype="mixed_float16", name="half")(y))
    for kind, spec in written(model, tmp_path).items():
        with pytest.raises(FxloomError) as fault:
            fxloom.capture(spec)
        assert "mine (Dense): " in str(fault.value)
        if kind != "h5":  # which does not tell whose a class is: this one lacks a Dense's kernel
            assert "a custom class" in str(fault.value)
            assert "double (Lambda): it holds Python code" in str(fault.value)
            assert "half (Dense): required dtype policy float32" in str(fault.value)


@both
def test_a_class_of_the_users_own_is_refused(k: Any) -> None:
    class Net(k.Model):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.fc = k.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.fc(x)

    model = Net()
    model(np.zeros((2, 3), np.float32))
    with pytest.raises(fxloom.CaptureError, match=r"the class Net.*keras.Model\(inputs, outputs\)"):
        fxloom.capture(model)


def test_qkeras_classes_are_known_by_their_module_or_name(tmp_path: Path) -> None:
    qkeras = pytest.importorskip("qkeras", reason="needs QKeras: make test-keras")
    x = tf_keras.layers.Input((4,))
    quantizers = {
        "kernel_quantizer": "quantized_bits(4, 0, 1)",
        "bias_quantizer": "quantized_po2(4)",
    }
    y = qkeras.QActivation("quantized_relu(4)")(qkeras.QDense(3, **quantizers)(x))
    model = tf_keras.Model(x, qkeras.QBatchNormalization()(y))
    held = describe(model)
    for spec in written(model, tmp_path).values():
        found = read_model(spec)
        assert [layer.package for layer in found.layers] == ["keras", *["qkeras"] * 3]
        assert not any(layer.refusal for layer in found.layers)
        assert all(map(np.array_equal, arrays(found), arrays(held)))


def test_folded_layers_of_qkeras_keep_the_order_of_their_arrays(tmp_path: Path) -> None:
    qkeras = pytest.importorskip("qkeras", reason="needs QKeras: make test-keras")
    x = tf_keras.layers.Input((6, 6, 2))
    y = qkeras.QConv2DBatchnorm(3, 3, kernel_quantizer="quantized_bits(4, 0, 1)", name="fold")(x)
    inner = tf_keras.Model(x, y, name="inner")
    outer = tf_keras.layers.Input((6, 6, 2))
    model = tf_keras.Model(outer, inner(outer))
    for trainable in (True, False):
        inner.get_layer("fold").trainable = trainable
        shapes = [(3, 3, 2, 3), (3,), (3,), (3,), (), (3,), (3,)]

        def fold(found: Model) -> Layer:
            inner = found["inner"].model
            assert inner is not None
            return inner["fold"]

        held = fold(describe(model))
        assert [array.shape for array in held.weights] == shapes
        for kind, spec in written(model, tmp_path).items():
            mine = fold(read_model(spec)).weights
            assert all(map(np.array_equal, mine, held.weights)), (kind, trainable)
