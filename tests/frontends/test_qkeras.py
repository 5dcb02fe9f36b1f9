"""Models of QKeras: the Program gives the integers that QKeras gives."""

from typing import Any

import numpy as np
import pytest
import torch

import fxloom
from fxloom.errors import UnsupportedLayer
from tests.frontends.qkeras_agreement import (
    Branches,
    assert_same_integers,
    trained,
    trained_branches,
)

tf_keras = pytest.importorskip("tf_keras", reason="needs TensorFlow: make test-keras")
qkeras = pytest.importorskip("qkeras", reason="needs QKeras: make test-keras")

KERNELS = [
    "quantized_bits(6,0,alpha=1)",
    "quantized_bits(6,1,1,alpha=1)",
    "quantized_bits(4,0,0,keep_negative=0,alpha=1)",
    "quantized_bits(1,0,alpha=1)",
    "quantized_bits(5,0,alpha=0.5)",
    "quantized_bits(5,0,alpha=0.6875)",
    "quantized_bits(6,0)",
    "quantized_bits(6,0,alpha='auto_po2')",
    "quantized_bits(6,0,alpha='auto')",
    "binary(alpha=1)",
    "binary(use_01=1,alpha=1)",
    "binary()",
    "binary(alpha='auto')",
    "stochastic_binary(alpha=1)",
    "stochastic_binary()",
    "stochastic_binary(alpha='auto')",
    "ternary(alpha=1)",
    "ternary(alpha=0.5,threshold=0.2)",
    "ternary()",
    "ternary(alpha='auto')",
    "stochastic_ternary(alpha=1)",
    "stochastic_ternary()",
    "stochastic_ternary(alpha='auto')",
    "quantized_po2(4)",
    "quantized_po2(8)",
    "quantized_po2(4,1)",
    "quantized_po2(4,quadratic_approximation=1)",
    "quantized_po2(4,log2_rounding='floor')",
    "quantized_relu_po2(4)",
    "quantized_relu_po2(4,negative_slope=0.5)",
    "quantized_relu(6,0)",
    "quantized_tanh(5)",
    "quantized_sigmoid(5)",
    "quantized_hswish(6,1,alpha=1)",
]

ACTIVATIONS = {
    "quantized_bits(6,2)": 2**-3,
    "quantized_bits(6,2,1)": 2**-3,
    "quantized_bits(6,2,keep_negative=0)": 2**-4,
    "quantized_bits(1,0)": 1,
    "quantized_bits(4,1,alpha=0.25)": 2**-4,
    "quantized_relu(6,2)": 2**-4,
    "quantized_relu(6,2,0,0.25)": 2**-3,
    "quantized_relu(4,2,0,0.015625)": 2**-6,
    "quantized_relu(6,2,1)": 2**-4,
    "quantized_relu(6,1,1,0.25)": 2**-6,
    "quantized_relu(6,2,relu_upper_bound=1.5,is_quantized_clip=0)": 2**-4,
    "quantized_tanh(6)": 2**-5,
    "quantized_tanh(6,symmetric=1)": 2**-5,
    "quantized_tanh(4,use_real_tanh=1)": 2**-3,
    "quantized_tanh(7,use_real_tanh=1)": 2**-6,
    "quantized_sigmoid(6)": 2**-6,
    "quantized_sigmoid(6,1)": 2**-6,
    "quantized_sigmoid(4,use_real_sigmoid=1)": 2**-4,
    "quantized_sigmoid(7,use_real_sigmoid=1)": 2**-7,
    "quantized_hswish(6,2)": 2**-3,
    "binary()": 1,
    "binary(use_01=1)": 1,
    "binary(alpha=0.5)": 0.5,
    "stochastic_binary()": 1,
    "ternary()": 1,
    "ternary(alpha=2,threshold=0.75)": 1,
    "stochastic_ternary()": 1,
    "quantized_po2(4)": 2**-4,
    "quantized_po2(6,1)": 2**-32,
    "quantized_po2(4,log2_rounding='floor')": 2**-4,
    "quantized_po2(4,2,quadratic_approximation=1)": 2**-8,
    "quantized_relu_po2(4)": 2**-8,
    "quantized_relu_po2(4,4)": 2**-8,
    "quantized_relu_po2(4,negative_slope=0.25)": 2**-8,
}
"""Quantizers of values, and steps of which what they give is multiples."""


def inputs() -> Any:
    return qkeras.QActivation(qkeras.quantized_bits(8, 3, alpha=1))


def dense(kernel: str, bias: str = "quantized_bits(4,0,alpha=1)", units: int = 6) -> Any:
    return qkeras.QDense(units, kernel_quantizer=kernel, bias_quantizer=bias)


@pytest.fixture(scope="module")
def of_weights() -> Branches:
    ends = {
        kernel: [dense(kernel), qkeras.QActivation("quantized_bits(10,4)")] for kernel in KERNELS
    }
    return trained_branches([inputs()], ends)


@pytest.fixture(scope="module")
def of_values() -> Branches:
    first = [inputs(), dense("quantized_bits(6,0,alpha=1)", "quantized_bits(6,1,alpha=1)")]
    return trained_branches(first, {name: [qkeras.QActivation(name)] for name in ACTIVATIONS})


@pytest.mark.parametrize("quantizer", KERNELS)
def test_every_quantizer_of_weights(of_weights: Branches, quantizer: str) -> None:
    models, x = of_weights
    assert_same_integers(models[quantizer], x, 2**-5)


@pytest.mark.parametrize("quantizer", ACTIVATIONS)
def test_every_quantizer_of_values(of_values: Branches, quantizer: str) -> None:
    models, x = of_values
    assert_same_integers(models[quantizer], x, ACTIVATIONS[quantizer])


IMAGES = {
    "kernel_quantizer": "quantized_bits(5,0)",
    "bias_quantizer": "quantized_bits(5,0,alpha=1)",
}
BY_CHANNEL = {"depthwise_quantizer": "quantized_bits(5,0)", "bias_quantizer": "quantized_bits(5,0)"}
BOTH = BY_CHANNEL | {"pointwise_quantizer": "quantized_bits(5,0)"}


def layers_of_images() -> dict[str, Any]:
    return {
        "conv2d": qkeras.QConv2D(4, 3, activation="quantized_relu(6,2)", **IMAGES),
        "same": qkeras.QConv2D(4, 3, strides=2, padding="same", **IMAGES),
        "dilated": qkeras.QConv2D(4, 2, dilation_rate=2, use_bias=False, **IMAGES),
        "channel": qkeras.QDepthwiseConv2D(3, depth_multiplier=2, **BY_CHANNEL),
        "separable": qkeras.QSeparableConv2D(4, 3, depth_multiplier=2, padding="same", **BOTH),
        "auto": qkeras.QConv2D(4, 3, kernel_quantizer="quantized_bits(5,0,alpha='auto')",
                               bias_quantizer="quantized_bits(4,0,alpha=1)"),
        "channel auto": qkeras.QDepthwiseConv2D(
            3, depth_multiplier=2, depthwise_quantizer="quantized_bits(5,0,alpha='auto')",
            bias_quantizer="quantized_bits(4,0,alpha=1)"),
    }  # fmt: skip


@pytest.mark.parametrize("name", layers_of_images())
def test_convolutions(name: str) -> None:
    layer = layers_of_images()[name]
    rounded = qkeras.QActivation("quantized_bits(12,5)")
    model, x = trained(inputs(), layer, rounded, shape=(6, 5, 3), samples=60)
    assert_same_integers(model, x, 2**-6)


@pytest.mark.parametrize("name", ["plain", "causal", "separable"])
def test_convolutions_of_signals(name: str) -> None:
    layer = {
        "plain": lambda: qkeras.QConv1D(4, 3, strides=2, **IMAGES),
        "causal": lambda: qkeras.QConv1D(4, 3, padding="causal", dilation_rate=2, **IMAGES),
        "separable": lambda: qkeras.QSeparableConv1D(4, 3, **BOTH),
    }[name]()
    model, x = trained(inputs(), layer, qkeras.QActivation("quantized_bits(12,5)"), shape=(8, 3))
    assert_same_integers(model, x, 2**-6)


def layers_with_norms() -> dict[str, list[Any]]:
    conv = qkeras.QConv2D(4, 3, **IMAGES)
    folded = {"kernel_quantizer": "quantized_bits(6,1)", "bias_quantizer": "quantized_bits(8,2)"}
    by_channel = {
        "depthwise_quantizer": folded["kernel_quantizer"],
        "bias_quantizer": folded["bias_quantizer"],
    }
    relu = qkeras.QActivation("quantized_relu(6,2)")
    third = "quantized_bits(6,0,alpha=1)"
    return {
        "norm": [conv, qkeras.QBatchNormalization()],
        "norm of bits": [conv, qkeras.QBatchNormalization(
            gamma_quantizer="quantized_bits(6,1,alpha=1)", beta_quantizer="quantized_bits(6,1)",
            mean_quantizer="quantized_bits(6,1)", variance_quantizer="quantized_relu(6,2)")],
        "norm alone": [conv, qkeras.QBatchNormalization(center=False, scale=False)],
        "folded": [qkeras.QConv2DBatchnorm(4, 3, **folded)],
        "folded, no bias": [qkeras.QConv2DBatchnorm(
            4, 3, use_bias=False, folding_mode="batch_stats_folding", **folded)],
        "folded channel": [qkeras.QDepthwiseConv2DBatchnorm(
            3, depth_multiplier=2, activation="quantized_relu(6,2)", **by_channel)],
        "pool": [relu, qkeras.QAveragePooling2D(3, 2, average_quantizer=third)],
        "pool, activation": [relu, qkeras.QAveragePooling2D(
            2, average_quantizer="quantized_bits(4,0)", activation="quantized_bits(6,2)")],
        "pool, same": [relu, qkeras.QAveragePooling2D(2, padding="same", average_quantizer=third)],
        "pool, plain": [relu, qkeras.QAveragePooling2D(3, activation="quantized_bits(6,2)")],
        "pool, float": [relu, qkeras.QAveragePooling2D(2)],
        "global": [relu, qkeras.QGlobalAveragePooling2D(average_quantizer="quantized_bits(8,0)")],
        "global, plain": [relu, qkeras.QGlobalAveragePooling2D(activation="quantized_bits(6,2)")],
    }  # fmt: skip


@pytest.mark.parametrize("name", layers_with_norms())
def test_norms_and_pools(name: str) -> None:
    layers = [inputs(), *layers_with_norms()[name], qkeras.QActivation("quantized_bits(12,5)")]
    model, x = trained(*layers, shape=(7, 5, 3), samples=100)
    assert_same_integers(model, x, 2**-6)


def test_where_the_rounding_of_float32_decides_the_exact_number_is_given() -> None:
    """0.7 is no power of two: of sums that are multiples of 5 the product lies next to a half of
    the next step, on which QKeras' own rounding to float32 may put it."""
    layer = dense("quantized_bits(5,0,alpha=0.7)", "quantized_bits(4,0,alpha=1)")
    models, x = trained_branches(
        [inputs(), layer], {"sums": [], "rounded": [qkeras.QActivation("quantized_bits(10,4)")]}
    )
    program = fxloom.lower(fxloom.capture(models["rounded"], torch.from_numpy(x[:2])))
    found = fxloom.simulate(program, torch.from_numpy(x))
    sums = np.array(models["sums"](x), np.float64) * 2**5
    near = np.abs(sums - np.floor(sums) - 0.5) < 2**-15
    assert 0 < near.sum() < near.size / 20
    expected = np.array(models["rounded"](x))
    np.testing.assert_array_equal(found[~near], expected[~near])


def test_what_a_config_leaves_out_is_refused() -> None:
    quantizers = {
        "is_quantized_clip=False": {
            "activation": "quantized_relu(6,2,relu_upper_bound=3,is_quantized_clip=False)"
        },
        "scale_axis=0": {
            "kernel_quantizer": qkeras.quantized_bits(6, 0, alpha="auto", scale_axis=0)
        },
    }
    for words, keys in quantizers.items():
        model, x = trained(inputs(), qkeras.QDense(3, **keys))
        with pytest.raises(UnsupportedLayer, match=words):
            fxloom.capture(model, torch.from_numpy(x[:2]))


@pytest.mark.parametrize("mode", ["smooth", "real"])
def test_the_internal_sigmoid_is_that_of_the_process(mode: str) -> None:
    names = ["quantized_tanh(5)", "quantized_sigmoid(5)"]
    if mode == "smooth":
        names.append("quantized_relu(6,1,1)")
    qkeras.quantizers.set_internal_sigmoid(mode)
    try:
        for name in names:
            model, x = trained(inputs(), dense("quantized_bits(6,0,alpha=1)"),
                               qkeras.QActivation(name))  # fmt: skip
            assert_same_integers(model, x, 2**-6)
    finally:
        qkeras.quantizers.set_internal_sigmoid("hard")


FUNCTIONS = ["hard_sigmoid", "smooth_sigmoid", "binary_sigmoid", "hard_tanh", "smooth_tanh"]


@pytest.mark.parametrize("name", [*FUNCTIONS, "binary_tanh", "relu", "linear"])
def test_functions_by_name(name: str) -> None:
    """Some of which have the names of others in Keras."""
    layers = [qkeras.QActivation(name), qkeras.QActivation("quantized_bits(12,4)")]
    model, x = trained(inputs(), *layers)
    assert_same_integers(model, x, 2**-7)


@pytest.mark.parametrize("name", ["QLSTM", "QAdaptiveActivation"])
def test_layers_that_are_refused_by_name(name: str) -> None:
    layer, shape = {
        "QLSTM": (lambda: qkeras.QLSTM(3), (4, 3)),
        "QAdaptiveActivation": (lambda: qkeras.QAdaptiveActivation("quantized_relu", 6), (4,)),
    }[name]
    model = tf_keras.Sequential([tf_keras.layers.Input(shape), layer()])
    with pytest.raises(UnsupportedLayer, match=rf"\({name}\): its "):
        fxloom.capture(model, torch.zeros(2, *shape))
