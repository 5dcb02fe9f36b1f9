"""Second-order rounding: local optima, on the grid, at least as good as rounding to nearest."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.encodings import Encoding
from fxloom.fixed_point import FixedPoint
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes import second_order
from fxloom.passes.fitting import input_rows, output_rows
from fxloom.passes.quantize import Quantize
from fxloom.passes.second_order import Moments, Nearest, Problem, best_steps, refit, round_weights
from tests.models import make


def to_nearest(to: FixedPoint) -> Nearest:
    return lambda x: Encoding.FIXED.nearest(x, to)


def problem_of(groups: int, outputs: int, inputs: int, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 3 * inputs, inputs, generator=generator, dtype=torch.float64)
    mixed = x @ torch.randn(groups, inputs, inputs, generator=generator, dtype=torch.float64)
    moments = Moments()
    weights = torch.randn(groups, outputs, inputs, generator=generator, dtype=torch.float64)
    moments.see(mixed, mixed @ weights.transpose(1, 2))
    return refit(weights, moments)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(0))
def test_no_single_step_of_a_weight_makes_the_error_less(
    groups: int, outputs: int, inputs: int, width: int, seed: int
) -> None:
    problem, to = problem_of(groups, outputs, inputs, seed % 2**32), FixedPoint(width, 1)
    step = torch.full((groups, outputs, 1), 0.5, dtype=torch.float64)
    mantissas = round_weights(problem, step, to_nearest(to))
    assert (mantissas == mantissas.round()).all()
    assert to.lo <= mantissas.min()
    assert mantissas.max() <= to.hi
    least = problem.errors(mantissas * step)
    for index in range(inputs):
        for move in (-1, 1):
            other = mantissas.clone()
            other[:, :, index] = (other[:, :, index] + move).clamp(to.lo, to.hi)
            assert (problem.errors(other * step) >= least - 1e-9 * (1 + least)).all()


@pytest.mark.parametrize("width", [2, 3, 5])
def test_it_is_better_than_rounding_to_nearest(width: int) -> None:
    problem = problem_of(2, 24, 40, 7)
    steps = [torch.full((2, 24, 1), 2.0**-f, dtype=torch.float64) for f in range(-2, 4)]
    to = FixedPoint(width, 1)
    mantissas, step = best_steps(problem, steps, to_nearest(to), by_output=False)
    fitted = problem.errors(mantissas * step).sum()
    nearest = min(
        problem.errors((problem.target / s).round().clamp(to.lo, to.hi) * s).sum() for s in steps
    )
    own, own_step = best_steps(problem, steps, to_nearest(to), by_output=True)
    assert fitted < 0.5 * nearest
    assert problem.errors(own * own_step).sum() <= fitted


def test_blocks_give_what_all_columns_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, to = problem_of(1, 5, 37, 3), FixedPoint(4, 1)
    step = torch.full((1, 5, 1), 0.25, dtype=torch.float64)
    whole = round_weights(problem, step, to_nearest(to))
    monkeypatch.setattr(second_order, "BLOCK", 5)
    assert torch.equal(round_weights(problem, step, to_nearest(to)), whole)


def test_inputs_that_are_constant_but_for_the_rounding_of_sums_leave_weights_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    row = 2 * torch.rand(1, 1, 64, generator=generator, dtype=torch.float64)
    weights = torch.randn(1, 4, 64, generator=generator, dtype=torch.float64)
    moments = Moments()
    rows = row.expand(1, 9, -1)
    for _ in range(3):
        moments.see(rows, rows @ weights.transpose(1, 2))
    assert 0 < moments.covariance("x").diagonal(dim1=1, dim2=2).mean() < 1e-14
    torch.testing.assert_close(refit(weights, moments).target, weights, rtol=0, atol=1e-9)


def test_weights_that_are_right_stay_and_those_of_dead_inputs_too() -> None:
    weights = torch.randn(1, 4, 6, dtype=torch.float64)
    x = torch.randn(1, 5000, 6, dtype=torch.float64)
    x[:, :, 2] = 0.7  # says nothing
    moments = Moments()
    moments.see(x, x @ weights.transpose(1, 2))
    assert (refit(weights, moments).target - weights).abs().max() < 1e-9


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 3),
        nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
        nn.Conv2d(4, 8, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1), groups=4),
    ],
    ids=str,
)
def test_rows_of_inputs_times_weights_are_the_rows_of_outputs(layer: nn.Module) -> None:
    shapes = {nn.Linear: (2, 7, 5), nn.Conv1d: (2, 4, 9), nn.Conv2d: (2, 4, 8, 5)}
    x = torch.randn(shapes[type(layer)])
    (node,) = (n for n in capture(layer, x).graph.nodes if n.op == "call_function")
    rows, y = input_rows(node, x), output_rows(node, layer(x))
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    groups = len(rows)
    computed = rows @ weight.reshape(groups, len(weight) // groups, -1).transpose(1, 2)
    torch.testing.assert_close(computed + bias.reshape(groups, 1, -1), y)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", ["signals", "separable"])
def test_narrow_weights_lose_less(name: str, per_channel: bool) -> None:
    model, inputs = make(name)
    x = torch.cat([t + 0.1 * torch.randn_like(t) for t in inputs * 8])
    wanted = model(x)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    errors = []
    for rounding in ("nearest", "second_order"):
        step = Quantize(
            weights=3, activations=12, weight_rounding=rounding, per_channel=per_channel
        )
        got = simulate(lower(step(capture(model, x[:2]), Data(x_train=x)).graph), x.numpy())
        got = got if isinstance(got, tuple) else (got,)
        pairs = zip(got, wanted, strict=True)
        errors.append(sum(float(np.square(a - b.detach().numpy()).mean()) for a, b in pairs))
    assert errors[1] < 0.8 * errors[0]
