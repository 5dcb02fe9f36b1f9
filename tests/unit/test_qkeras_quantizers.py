"""Quantizers of QKeras without TensorFlow: integers computed here with fractions."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from fxloom.keras.description import Layer
from fxloom.keras.quantizer_functions import function_of
from fxloom.keras.quantizer_weights import quantized_weights
from fxloom.keras.quantizers import Quantizer, parsed
from fxloom.keras.registry import Refused

LAYER = Layer("QActivation", "act", {})
HALF = Fraction(1, 2)


def clipped(x: Fraction, low: Fraction | int, high: Fraction | int) -> Fraction:
    return min(max(x, Fraction(low)), Fraction(high))


def bits(width: int, integer: int, low: int) -> Callable[[Fraction], Fraction]:
    """Steps of 2**(integer - width + 1), from `low` of them on."""
    step = Fraction(2) ** (integer - width + 1)
    return lambda x: clipped(Fraction(round(x / step)), low, 2 ** (width - 1) - 1) * step


def relu(width: int, integer: int) -> Callable[[Fraction], Fraction]:
    step = Fraction(2) ** (integer - width)
    return lambda x: clipped(Fraction(round(x / step)), 0, 2**width - 1) * step


def leaky(width: int, integer: int, slope: Fraction) -> Callable[[Fraction], Fraction]:
    step = Fraction(2) ** (integer - width + 1)

    def function(x: Fraction) -> Fraction:
        if x >= 0:
            return clipped(Fraction(round(x / step)), 0, 2 ** (width - 1) - 1) * step
        return max(Fraction(round(x * slope / step)) * step, -slope * 2**integer)

    return function


def sigmoid(width: int, low: int) -> Callable[[Fraction], Fraction]:
    def function(x: Fraction) -> Fraction:
        line = clipped(x / 2 + HALF, 0, 1) * 2**width
        return clipped(Fraction(round(line)), low, 2**width - 1) / 2**width

    return function


def hswish(x: Fraction) -> Fraction:
    return bits(6, 2, -32)(x * clipped(x + 3, 0, 6) / 6)


def power(low: int, high: int) -> Callable[[Fraction], Fraction]:
    """The nearest power of two by its logarithm: below sqrt(2) times it, squared."""

    def function(x: Fraction) -> Fraction:
        exponent = low
        while exponent < high and x * x >= Fraction(2) ** (2 * exponent + 1):
            exponent += 1
        return Fraction(2) ** exponent * (1 if x >= 0 else -1)

    return function


FUNCTIONS: dict[str, Callable[[Fraction], Fraction]] = {
    "quantized_bits(5,1)": bits(5, 1, -16),
    "quantized_bits(5,1,1)": bits(5, 1, -15),
    "quantized_bits(1)": lambda x: Fraction(1 if x >= 0 else -1),
    "quantized_bits(5,1,alpha=0.5)": lambda x: bits(5, 1, -16)(x) / 2,
    "quantized_bits(4,1,keep_negative=False)": relu(4, 1),
    "quantized_relu(4,1)": relu(4, 1),
    "quantized_relu(6,1,negative_slope=0.25)": leaky(6, 1, Fraction(1, 4)),
    "quantized_relu(4,1,negative_slope=0.03125)": leaky(4, 1, Fraction(1, 32)),
    "quantized_relu(6,2,relu_upper_bound=1.5,is_quantized_clip=False)": (
        lambda x: min(relu(6, 2)(x), Fraction(3, 2))
    ),
    "quantized_tanh(4)": lambda x: bits(4, 0, -8)(clipped(x, -1, 1)),
    "quantized_tanh(4,symmetric=True)": lambda x: bits(4, 0, -7)(clipped(x, -1, 1)),
    "quantized_sigmoid(4)": sigmoid(4, 0),
    "quantized_sigmoid(4,1)": sigmoid(4, 1),
    "quantized_hswish(6,2)": hswish,
    "binary(alpha=0.5)": lambda x: Fraction(1 if x >= 0 else -1, 2),
    "binary(use_01=True)": lambda x: Fraction(x >= 0),
    "ternary(threshold=0.5)": lambda x: Fraction((x >= HALF) - (x <= -HALF)),
    "quantized_po2(3)": lambda x: power(-2, 1)(abs(x)) * (1 if x >= 0 else -1),
    "quantized_relu_po2(3)": lambda x: power(-4, 3)(max(x, Fraction(0))),
}


@pytest.mark.parametrize("text", FUNCTIONS)
def test_values_are_what_fractions_give(text: str) -> None:
    numbers = [Fraction(n, 64) for n in range(-300, 301)]
    module = function_of(text, LAYER)
    assert module is not None
    found = module(torch.tensor([float(x) for x in numbers]))
    assert [Fraction(float(y)) for y in found] == [FUNCTIONS[text](x) for x in numbers]


def of(text: str) -> Quantizer:
    found = parsed(text)
    assert isinstance(found, Quantizer)
    return found


def test_a_scale_that_fits_best_is_a_power_of_two_by_channel() -> None:
    """Steps of 1/8 and of 1/64: integers up to 7 are exact in both."""
    integers = np.array([[7, -3], [-2, 7], [5, 1], [0, -6]], np.float32)
    weights = integers * np.float32([1 / 8, 1 / 64])
    found = quantized_weights(of("quantized_bits(4,0)").for_weights(), weights)
    np.testing.assert_array_equal(found.values, integers)
    np.testing.assert_array_equal(found.scale, [[1 / 8, 1 / 64]])


def test_a_scale_of_the_largest_weight() -> None:
    """alpha auto: steps of a seventh of it in 4 bits, rounded to float32 once."""
    weights = np.array([[0.3, 1.0], [-0.7, 0.25]], np.float32)
    found = quantized_weights(of("quantized_bits(4,0,alpha='auto')"), weights)
    np.testing.assert_array_equal(found.scale, np.abs(weights).max(0, keepdims=True) * 2 / 14)
    np.testing.assert_array_equal(found.values, [[3, 7], [-7, 2]])


def test_signs_with_the_mean_magnitude_for_a_scale() -> None:
    weights = np.array([[0.5, -0.25], [-1.0, 0.0]], np.float32)
    found = quantized_weights(of("binary(alpha='auto')"), weights)
    np.testing.assert_array_equal(found.values, [[1, -1], [-1, 1]])
    np.testing.assert_allclose(found.scale, [[0.75, 0.125]], rtol=2e-7)  # epsilon is 1e-7


def test_a_channel_of_zeros_has_zeros() -> None:
    for text in ("quantized_bits(4,0,alpha='auto')", "binary(alpha='auto')", "ternary()"):
        weights = np.array([[0.0, 0.5], [0.0, -0.5]], np.float32)
        found = quantized_weights(of(text).for_weights(), weights).product
        assert found[:, 0].tolist() == [0, 0]
        assert (found[:, 1] != 0).all()


def test_configs_and_texts_say_the_same() -> None:
    config = {"bits": 6, "integer": 1, "symmetric": 0, "alpha": None, "keep_negative": True}
    described = {"class_name": "quantized_bits", "config": config}
    assert parsed(described) == parsed("quantized_bits(6, integer=1)")


def test_scales_may_be_an_array_as_keras_writes_it() -> None:
    written = {"class_name": "__numpy__", "config": {"value": [0.5, 0.75], "dtype": "float32"}}
    described = {"class_name": "quantized_bits", "config": {"alpha": written}}
    assert parsed(described) == of("quantized_bits()").with_options(alpha=[0.5, 0.75])


def test_a_kernel_without_a_scale_gets_powers_of_two() -> None:
    kernel = of("quantized_bits(6,0)").for_weights()
    assert (kernel["alpha"], kernel["symmetric"]) == ("auto_po2", True)
    assert of("quantized_relu(6)").for_weights() == of("quantized_relu(6)")


REFUSED: dict[str, Any] = {
    "quantized_bits(6,alpha=None)": "None in a text",
    "quantized_bits(6,alpha=auto)": "quoted words",
    "quantized_bits(__import__('os').system('true'))": "must be numbers",
    "quantized_bits(**{'bits': 6})": "literals",
    "quantized_bits(6)(7)": "is no NAME",
    "quantized_bits(6": "is no NAME",
    "(" * 400: "is no NAME",
    "x" * 501: "501 characters",
    "quantized_bits(6,bits=7)": "given twice",
    "quantized_bits(1,2,3,4,5,6,7,8,9,10,11,12)": "more arguments",
    "quantized_bits(6,word=7)": "no option 'word'",
    "quantized_bits(33)": "bits=33 has no exact form",
    "quantized_bits(6,qnoise_factor=0.5)": "qnoise_factor=0.5",
    "quantized_bits(6,alpha='auto')": "what the batch holds",
    "quantized_relu(6,negative_slope=0.3)": "negative_slope=0.3",
    "quantized_bits(6,alpha=1" + "0" * 400 + ")": "alpha=1",
    "quantized_linear(6)": "is not known. Known are",
    "quantized_ulaw(6)": "no fixed-point grid",
    "bernoulli()": "draws random numbers",
    "quantized_po2(8)": "more than 63 bits",
    "quantized_po2(1)": "of 1 bit has none for an exponent",
    "quantized_tanh(13,use_real_tanh=1)": "12 are possible",
    # Their tables would take 32 GB each.
    "quantized_tanh(32,use_real_tanh=1)": "12 are possible",
    "quantized_sigmoid(32,use_real_sigmoid=1)": "12 are possible",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_has_no_exact_form_is_refused_by_name(text: str) -> None:
    with pytest.raises(Refused, match=REFUSED[text]):
        function_of(text, LAYER)


def test_random_weights_are_refused_for_what_they_are() -> None:
    with pytest.raises(Refused, match="draws random numbers"):
        quantized_weights(of("bernoulli()"), np.ones((2, 3), np.float32))


@pytest.mark.parametrize(
    "described",
    [7, [], {}, {"class_name": [], "config": {}}, {"class_name": "quantized_bits", "config": 8}],
)
def test_what_describes_no_quantizer_is_refused(described: object) -> None:
    with pytest.raises(Refused):
        function_of(described, LAYER)
    with pytest.raises(Refused):
        parsed(described)
