"""Biases of few bits."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.errors import RecipeError
from fxloom.exact import exact_forward
from fxloom.fixed_point import FixedPoint
from fxloom.frontend import capture
from fxloom.graph import arguments, constant
from fxloom.lowering import lower
from fxloom.passes import Finetune, Quantize
from fxloom.passes.chains import LAYERS, fraction_of
from fxloom.recipe import Recipe

STEPS: list[list[Any]] = [
    [Quantize(biases=4)],
    [Quantize(biases=4, weights=4, activations=5)],
    [Quantize(biases=4), Finetune(epochs=2)],
    [Quantize(biases=4), Finetune(epochs=4, ranges=True, narrowing=1)],
]


@pytest.fixture
def data() -> Data:
    torch.manual_seed(0)
    return Data(torch.randn(64, 1, 4, 4).numpy(), torch.randint(0, 3, (64,)).numpy())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def biases(graph: fx.GraphModule) -> list[tuple[FixedPoint, Any, int]]:
    """Of every layer the bias's format and values, and the fraction of its products."""
    found = []
    for node in graph.graph.nodes:
        if node.target in LAYERS:
            x, weight, bias = arguments(node)[:3]
            values = constant(graph, arguments(bias)[0].target).detach().double().numpy()
            to = FixedPoint(*arguments(bias)[1:4])
            found.append((to, values, fraction_of(x) + fraction_of(weight)))
    return found


@pytest.mark.parametrize("steps", STEPS)
def test_biases_are_no_wider_than_they_may_be_and_as_fine_as_that_lets_them(
    data: Data, steps: list[Any]
) -> None:
    graph = Recipe(steps).run(capture(network(), torch.from_numpy(data.x_train[:2])), data).graph
    found = biases(graph)
    assert len(found) == 3
    for to, values, fraction in found:
        assert to.width <= 4
        assert to.fraction < fraction  # 4 bits are too few for the steps of the products
        assert np.abs(values - to.step * np.round(values / to.step)).max() <= to.step / 2
        assert to.lo <= np.round(values.min() / to.step)
        assert np.round(values.max() / to.step) <= to.hi
        finer = np.round(values * 2.0 ** (to.fraction + 1))
        low, high = (-8, 7) if finer.min() < 0 else (0, 15)
        assert finer.min() < low or finer.max() > high
    expected = exact_forward(graph, torch.from_numpy(data.x_train)).numpy()
    np.testing.assert_array_equal(simulate(lower(graph), data.x_train), expected)


def test_a_bias_that_fits_keeps_the_steps_of_its_products(data: Data) -> None:
    x = torch.from_numpy(data.x_train[:2])
    wide, limited = (Quantize(biases=bits)(capture(network(), x), data) for bits in (None, 32))
    assert [each[0] for each in biases(wide.graph)] == [each[0] for each in biases(limited.graph)]
    assert all(to.fraction == fraction for to, _, fraction in biases(limited.graph))


def test_a_bias_of_one_bit_and_one_of_zeros_have_formats(data: Data) -> None:
    model = network()
    with torch.no_grad():
        model[3].bias.zero_()
    graph = capture(model, torch.from_numpy(data.x_train[:2]))
    graph = Quantize(biases=1, bias_correction=False)(graph, data).graph
    assert all(to.width == 1 for to, _, _ in biases(graph))


@pytest.mark.parametrize("bits", [0, 33])
def test_impossible_widths_are_refused(bits: int) -> None:
    with pytest.raises(RecipeError, match=f"biases: required 1 to 32 bits, got {bits}"):
        Quantize(biases=bits)
