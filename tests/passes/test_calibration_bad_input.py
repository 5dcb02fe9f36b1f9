"""Data and settings that calibration cannot use are refused; the odd ones give right results."""

from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.errors import DataError, RecipeError
from fxloom.exact import exact_forward
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize
from fxloom.program import Program

METHODS = get_args(get_type_hints(Quantize)["method"])


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def program_of(model: nn.Module, x: torch.Tensor, **options: Any) -> Program:
    """The program, whose simulation is what the quantized graph computes."""
    graph = Quantize(**options)(capture(model, x[:1].repeat(2, 1)), Data(x_train=x)).graph
    program = lower(graph)
    np.testing.assert_array_equal(simulate(program, x.numpy()), exact_forward(graph, x).numpy())
    return program


def widest(program: Program) -> float:
    port = program.value(program.outputs[0].value).type
    return 2.0 ** (port.integer - port.signed)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_data_with_a_number_that_is_none_are_refused(method: str, wrong: float) -> None:
    x = torch.randn(40, 4)
    x[17, 2] = wrong
    graph = capture(small(), torch.randn(2, 4))
    with pytest.raises(DataError, match=r"x_train: sample 17 holds .* at index \(2,\)"):
        Quantize(method=method)(graph, Data(x_train=x))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [4, 8])
def test_constant_and_dead_inputs_and_channels(method: str, bits: int) -> None:
    model, x = small(), torch.randn(60, 4)
    x[:, 1], x[:, 2] = 0.75, 0.0
    with torch.no_grad():
        model[0].bias[3] = -100.0  # never active
        model[0].weight[4] = 0.0
        model[0].bias[4] = 0.5  # always the same
    wanted = model(x).detach().numpy()
    for options in ({}, {"per_channel": True}, {"weight_rounding": "second_order"}):
        program = program_of(model, x, method=method, weights=bits, activations=bits, **options)
        error = np.abs(simulate(program, x.numpy()) - wanted).mean()
        assert error < (0.25 if bits == 4 else 0.03)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_data_that_are_one_number(method: str, value: float) -> None:
    model, x = small(), torch.full((30, 4), value)
    got = simulate(program_of(model, x, method=method), x.numpy())
    np.testing.assert_allclose(got, model(x).detach().numpy(), atol=0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weight_rounding", ["nearest", "second_order"])
def test_all_weights_zero(method: str, weight_rounding: str) -> None:
    model, x = small(), torch.randn(30, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    program = program_of(model, x, method=method, weight_rounding=weight_rounding)
    assert not np.any(simulate(program, x.numpy()))


@pytest.mark.parametrize("method", METHODS)
def test_one_sample_calibrates(method: str) -> None:
    model, x = small(), torch.randn(1, 4)
    got = simulate(program_of(model, x, method=method), x.numpy())
    np.testing.assert_allclose(got, model(x).detach().numpy(), atol=0.1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [2.0**40, 2.0**-40])
def test_ranges_far_from_one_are_covered(method: str, scale: float) -> None:
    model, x = small(), torch.randn(200, 4) * scale
    with torch.no_grad():
        model[0].bias.zero_()
        model[2].bias.zero_()
    wanted = model(x).detach().numpy()
    got = simulate(program_of(model, x, method=method), x.numpy())
    assert np.abs(got - wanted).mean() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("method", METHODS)
def test_beyond_what_was_seen_values_saturate_and_keep_their_sign(method: str) -> None:
    """One input of 2**40 among small ones, then inputs far beyond: never a wrap."""
    x = torch.cat([torch.randn(300, 1), torch.tensor([[2.0**40]])])
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.zero_()
    program = program_of(model, x, method=method)
    far = np.array([[2.0**50], [-(2.0**50)], [2.0**45]], dtype=np.float32)
    got = simulate(program, far)
    assert got[0] > 0
    assert got[1] < 0
    assert got[0] == got[2]
    assert np.abs(got).max() <= widest(program)


@pytest.mark.parametrize("key", ["weights", "activations", "inputs", "outputs", "table_bits"])
@pytest.mark.parametrize("bits", [0, 33, -1])
def test_widths_that_no_format_has(key: str, bits: int) -> None:
    with pytest.raises(RecipeError, match=rf"{key}: required 1 to \d+ bits, got {bits}"):
        Quantize(**{key: bits})  # type: ignore[arg-type]
    if key in ("weights", "activations"):
        with pytest.raises(RecipeError, match=rf'layers."0".{key}: required 1 to 32 bits'):
            Quantize(layers={"0": {key: bits}})


def test_of_rules_that_contradict_each_other_the_last_holds() -> None:
    model, x = small(), torch.randn(30, 4)
    for rules, bits in (
        ({"0": {"weights": 3}, "*": {"weights": 9}}, 9),
        ({"*": {"weights": 9}, "0": {"weights": 3}}, 3),
    ):
        program = program_of(model, x, layers=rules)
        assert program.constants["0.weight"].value.type.width == bits


def test_rules_for_layers_that_are_not_there() -> None:
    with pytest.raises(RecipeError, match=r'layers."9" matches no layer. Layers: 0, 1, 2'):
        program_of(small(), torch.randn(30, 4), layers={"0": {"weights": 3}, "9": {"weights": 4}})


def test_no_samples_at_all() -> None:
    with pytest.raises(DataError, match="x_train"):
        Data(x_train=torch.zeros(0, 4))
