"""QKeras models through hls4ml's own converter, and through fxloom: who gives what QKeras gives.

hls4ml 1.3 reads models of Keras 2 where `import keras` gives Keras 2, and those of Keras 3 else;
beside Keras 3 it is told by what that import gives while it converts.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import fxloom

WHY = "needs TensorFlow and QKeras: make test-keras"
tf_keras = pytest.importorskip("tf_keras", reason=WHY)
qkeras = pytest.importorskip("qkeras", reason=WHY)
hls4ml = pytest.importorskip("hls4ml", reason="needs hls4ml")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

Numbers = npt.NDArray[Any]
SAMPLES = 300
CLOSE = 1e-5
"""What float32 makes of the same numbers; the steps of all outputs are larger by far."""


def bits(width: int, integer: int, alpha: object = 1) -> Any:
    return qkeras.quantized_bits(width, integer, alpha=alpha)


def dense(units: int, name: str, alpha: object = 1) -> Any:
    return qkeras.QDense(
        units, kernel_quantizer=bits(6, 0, alpha), bias_quantizer=bits(6, 0), name=name
    )


def convolution(filters: int, name: str, **keys: Any) -> Any:
    quantizers = {"kernel_quantizer": bits(6, 0), "bias_quantizer": bits(6, 0)}
    return qkeras.QConv2D(filters, (3, 3), name=name, **quantizers, **keys)


def relu(name: str) -> Any:
    return qkeras.QActivation(qkeras.quantized_relu(6, 2), name=name)


def jet_tagger() -> Any:
    """The MLP of Duarte et al. 2018 (arXiv 1804.06913) in 6 bits, with two heads: one whose scales
    are 1, one whose scales are fitted and no powers of two."""
    x = h = tf_keras.layers.Input((16,), name="x")
    h = qkeras.QActivation(bits(8, 3), name="rounded")(h)
    for index, units in enumerate((64, 32, 32)):
        h = relu(f"relu{index}")(dense(units, f"fc{index}")(h))
    return tf_keras.Model(x, [dense(5, "plain")(h), dense(5, "scaled", alpha="auto")(h)])


def image_classifier() -> Any:
    """Two convolutions, with two heads: one behind a quantized ReLU, one behind quantized_bits."""
    x = h = tf_keras.layers.Input((8, 8, 3), name="x")
    h = qkeras.QActivation(bits(8, 2), name="rounded")(h)
    h = relu("relu1")(convolution(6, "conv1", padding="same")(h))
    h = tf_keras.layers.MaxPooling2D(2, name="pool")(h)
    flat = tf_keras.layers.Flatten(name="flat")
    positive = relu("relu2")(convolution(4, "conv2")(h))
    signed = qkeras.QActivation(bits(6, 2), name="signed")(convolution(4, "conv3")(h))
    flat2 = tf_keras.layers.Flatten(name="flat2")
    return tf_keras.Model(x, [dense(5, "fc2")(flat(positive)), dense(5, "fc3")(flat2(signed))])


def trained(make: Callable[[], Any]) -> tuple[Any, Numbers, list[Numbers]]:
    """A model after two epochs, samples, and what QKeras makes of them."""
    tf_keras.utils.set_random_seed(1)
    model = make()
    random = np.random.default_rng(1)
    x = random.normal(0, 1.5, (SAMPLES, *model.input_shape[1:])).astype(np.float32)
    goals = [random.normal(0, 1, (SAMPLES, 5)) for _ in model.outputs]
    model.compile(tf_keras.optimizers.Adam(0.001), "mse")
    model.fit(x, goals, epochs=2, verbose=0)
    return model, x, [np.asarray(y) for y in model(x)]


def by_hls4ml(
    model: Any, x: Numbers, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Numbers]:
    """Outputs of hls4ml's own project, with input bits enough for what the first layer rounds."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "keras", tf_keras)
        config = hls4ml.utils.config_from_keras_model(
            model, granularity="name", default_precision="fixed<24,12>"
        )
        config["LayerName"]["x"]["Precision"]["result"] = "fixed<32,8>"
        project = hls4ml.converters.convert_from_keras_model(
            model, hls_config=config, output_dir=str(folder), backend="Vitis"
        )
    project.compile()
    outputs = project.predict(x)
    return [y.reshape(SAMPLES, 5) for y in outputs]


def by_fxloom(model: Any, x: Numbers) -> list[Numbers]:
    given = torch.from_numpy(x)
    return list(fxloom.simulate(fxloom.lower(fxloom.capture(model, given[:2])), given))


def differing(found: list[Numbers], expected: list[Numbers]) -> list[int]:
    """How many values of each output are not those of QKeras."""
    return [int((np.abs(a - b) > CLOSE).sum()) for a, b in zip(found, expected, strict=True)]


CASES = {"jet tagger": jet_tagger, "image classifier": image_classifier}


@pytest.mark.parametrize("name", CASES)
def test_fxloom_equals_qkeras_where_hls4ml_does_and_where_it_does_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """hls4ml 1.3 rounds fitted scales to its default precision, and leaves quantized_bits behind a
    layer with an automatic result type out (optimizer/passes/linear.py, MergeLinearActivation)."""
    model, x, expected = trained(CASES[name])
    ours = differing(by_fxloom(model, x), expected)
    theirs = differing(by_hls4ml(model, x, tmp_path, monkeypatch), expected)
    with capsys.disabled():
        values = SAMPLES * 5
        print(f"\n{name}: of {values} values, not QKeras's: fxloom {ours}, hls4ml {theirs}")
    assert min(len(np.unique(y)) for y in expected) > 500
    assert ours == [0, 0]
    assert theirs[0] == 0
    assert theirs[1] > SAMPLES
