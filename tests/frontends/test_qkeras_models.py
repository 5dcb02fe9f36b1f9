"""Whole models of QKeras, from memory and from files, simulated and compiled."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxloom
from fxloom.backends import get
from fxloom.backends.simulator import quantize_inputs
from fxloom.passes import Quantize
from tests.frontends.qkeras_agreement import OFF_GRID, Numbers, assert_same_integers, trained

tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow: make test-keras")
qkeras = pytest.importorskip("qkeras", reason="needs QKeras: make test-keras")
BITS = "quantized_bits(6,0,alpha=1)"


def inputs() -> Any:
    return qkeras.QActivation("quantized_bits(8,3)")


def dense(units: int, **keys: Any) -> Any:
    return qkeras.QDense(units, kernel_quantizer=BITS, bias_quantizer=BITS, **keys)


def relu() -> Any:
    return qkeras.QActivation("quantized_relu(6)")


@pytest.fixture(scope="module")
def jet_tagger() -> tuple[Any, Numbers]:
    """16-64-32-32-5 in 6 bits (Duarte et al. 2018, arXiv 1804.06913)."""
    hidden = [layer for units in (64, 32, 32) for layer in (dense(units), relu())]
    return trained(inputs(), *hidden, dense(5), shape=(16,))


@pytest.fixture(scope="module")
def images() -> tuple[Any, Numbers]:
    keys = {"kernel_quantizer": BITS, "bias_quantizer": BITS}
    return trained(
        inputs(),
        qkeras.QConv2D(4, 3, padding="same", activation="quantized_relu(6,2)", **keys),
        tf_keras.layers.MaxPooling2D(2),
        qkeras.QDepthwiseConv2D(2, depthwise_quantizer="quantized_bits(5,0)", bias_quantizer=BITS),
        qkeras.QActivation("quantized_tanh(6)"),
        qkeras.QAveragePooling2D(2, average_quantizer="quantized_bits(8,0)"),
        tf_keras.layers.Flatten(),
        dense(5, activation="quantized_bits(10,4)"),
        shape=(6, 6, 2),
        samples=200,
    )


def test_the_jet_tagger(jet_tagger: tuple[Any, Numbers]) -> None:
    assert_same_integers(*jet_tagger, 2**-11)


def test_the_network_of_images(images: tuple[Any, Numbers]) -> None:
    assert_same_integers(*images, 2**-5)


def normed() -> tuple[Any, Numbers]:
    """Batch norms, one of them folded, and separable convolutions."""
    keys = {"kernel_quantizer": "quantized_bits(6,1)", "bias_quantizer": "quantized_bits(8,2)"}
    both = {"depthwise_quantizer": BITS, "pointwise_quantizer": BITS, "bias_quantizer": BITS}
    return trained(
        inputs(),
        qkeras.QConv2DBatchnorm(4, 2, activation="quantized_relu(6,2)", **keys),
        qkeras.QSeparableConv2D(3, 2, **both),
        qkeras.QBatchNormalization(),
        qkeras.QActivation("quantized_relu(6,2)"),
        qkeras.QGlobalAveragePooling2D(average_quantizer="quantized_bits(8,0)"),
        dense(5, activation="quantized_bits(10,4)"),
        shape=(5, 5, 2),
        samples=200,
    )


READS = """
import sys, numpy, torch, fxloom
for name in sys.argv[1:]:
    x = torch.from_numpy(numpy.load(f"{name}.x.npy"))
    program = fxloom.lower(fxloom.capture(f"{name}.h5", x[:2]))
    numpy.save(f"{name}.found.npy", fxloom.simulate(program, x))
assert not {"tensorflow", "tf_keras", "qkeras"} & set(sys.modules)
"""


def test_files_give_what_memory_gives(
    jet_tagger: tuple[Any, Numbers], images: tuple[Any, Numbers], tmp_path: Path
) -> None:
    """In a process that has no TensorFlow."""
    models = {"jets": jet_tagger, "images": images, "normed": normed()}
    for name, (model, x) in models.items():
        model.save(tmp_path / f"{name}.h5")
        np.save(tmp_path / f"{name}.x.npy", x)
    subprocess.run([sys.executable, "-c", READS, *models], cwd=tmp_path, check=True)
    for name, (model, x) in models.items():
        expected = np.array(model(x))
        exact = np.rint(expected * 2**11) / 2**11
        assert np.abs(exact - expected).max() <= OFF_GRID
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.found.npy"), exact)


def test_what_is_float_gets_formats_and_the_rest_keeps_its_own(
    jet_tagger: tuple[Any, Numbers],
) -> None:
    """A softmax behind the scores: the greatest share is that of the greatest score."""
    model, x = jet_tagger
    classes = tf_keras.Model(model.input, tf_keras.layers.Softmax()(model.output))
    given = torch.from_numpy(x)
    quantized = Quantize()(fxloom.capture(classes, given[:2]), fxloom.Data(given)).graph
    shares = fxloom.simulate(fxloom.lower(quantized), given)
    scores = model(x).numpy()
    assert np.abs(shares - classes(x).numpy()).max() < 2**-9
    best = np.take_along_axis(scores, shares.argmax(1)[:, None], 1)[:, 0]
    assert (scores.max(1) - best).max() <= 2**-9


def mixed() -> tuple[Any, Numbers]:
    """Quantizers that become comparisons, tables and products with scales."""
    return trained(
        inputs(),
        qkeras.QDense(6, kernel_quantizer="quantized_bits(4,0,alpha='auto')", bias_quantizer=BITS),
        qkeras.QActivation("quantized_sigmoid(5,use_real_sigmoid=1)"),
        qkeras.QDense(6, kernel_quantizer="ternary()", bias_quantizer="quantized_po2(4)"),
        qkeras.QActivation("quantized_po2(3)"),
        qkeras.QDense(6, kernel_quantizer="quantized_po2(4)", bias_quantizer=BITS),
        qkeras.QActivation("quantized_relu(5,1,0,0.25)"),
        qkeras.QDense(6, kernel_quantizer="binary()", bias_quantizer=BITS),
        qkeras.QActivation("ternary()"),
        dense(3),
        shape=(8,),
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize("name", ["images", "mixed"])
def test_compiled_code_gives_the_same_bits(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model, x = mixed() if name == "mixed" else request.getfixturevalue(name)
    given = torch.from_numpy(x[:100])
    graph = fxloom.capture(model, given[:2])
    # Where all have formats, quantize leaves everything as it is.
    program = fxloom.lower(Quantize()(graph, fxloom.Data(given)).graph)
    build = get("hls4ml").emit(
        program, fxloom.Target(), tmp_path / "project", cache=tmp_path / "cache"
    )
    (found,) = build.run_mantissas(quantize_inputs(program, given))
    step = program.value(program.outputs[0].value).type.step
    expected = model(x[:100]).numpy()
    assert np.abs(np.rint(expected / step) * step - expected).max() <= OFF_GRID
    np.testing.assert_array_equal(found, np.rint(expected / step))
