"""Keras has channels last, as hardware does: what lies so is not moved."""

from collections.abc import Callable

import numpy as np
import pytest

from fxloom import capture, lower, simulate
from fxloom.data import Data
from fxloom.exact import exact_forward
from fxloom.keras.network import Network
from fxloom.passes import Quantize
from fxloom.program import Program
from tests.keras_descriptions import classifier, signals, u_net


def compiled(network: Network) -> tuple[Program, np.ndarray, np.ndarray]:
    """The program, inputs, and what the quantized graph makes of them."""
    (x,) = network.example_inputs(16)
    graph = Quantize()(capture(network, x), Data(x_train=x)).graph
    return lower(graph), x.numpy(), exact_forward(graph, x).numpy()


@pytest.mark.parametrize("build", [classifier, u_net, signals])
def test_keras_images_and_signals_are_not_transposed(build: Callable[[], Network]) -> None:
    program, x, expected = compiled(build())
    assert [type(instr.op).__name__ for instr in program.instrs].count("Transpose") == 0
    np.testing.assert_array_equal(simulate(program, x), expected)
