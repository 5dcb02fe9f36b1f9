"""AdaRound: neighbours on the grid, chosen by what they do to the outputs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.encodings import Encoding
from fxloom.errors import RecipeError
from fxloom.exact import exact_forward
from fxloom.fixed_point import FixedPoint
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes import Quantize
from fxloom.passes.adaround import best_neighbours
from fxloom.passes.grid import Grid, step_candidates
from fxloom.passes.second_order import Moments, refit


@pytest.mark.parametrize("by_output", [True, False])
@pytest.mark.parametrize("widths", [(), (2, 0, 3, 4, 2)])
def test_weights_go_to_neighbours_that_leave_less_error(by_output: bool, widths: Any) -> None:
    torch.manual_seed(0)
    weights = torch.randn(1, 5, 40, dtype=torch.float64) / 3
    x = torch.randn(1, 400, 40) @ torch.randn(40, 40)
    moments = Moments()
    moments.see(x, x @ weights[0].T.float())
    problem = refit(weights, moments)
    grid = Grid.of(FixedPoint(4, 4, True), Encoding.FIXED, widths, 1)
    tried = step_candidates(problem.target, grid, by_output)
    mantissas, steps = best_neighbours(problem, weights, tried, grid, by_output=by_output)
    assert bool((grid.nearest(mantissas) == mantissas).all())
    assert by_output or widths or len(steps.unique()) == 1
    scaled = weights / steps
    low, high = grid.limits or (torch.tensor(-8.0), torch.tensor(7.0))
    assert bool(((mantissas - scaled).abs() < 1)[(scaled > low) & (scaled < high)].all())
    found, nearest = (problem.errors(m * steps) for m in (mantissas, grid.nearest(scaled)))
    assert bool((found <= nearest + 1e-12).all())
    alive = torch.tensor([[bits > 0 for bits in widths or (4,) * 5]])
    assert float(found[alive].sum()) < 0.7 * float(nearest[alive].sum())


def test_a_quantized_model_is_exact_and_nearer_to_its_floats() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3, groups=2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(8 * 25, 16), nn.ReLU(), nn.Linear(16, 4)),
    ).eval()
    x = torch.randn(300, 2, 7, 7)
    errors = {}
    for rounding in ("nearest", "adaround"):
        step = Quantize(weights=3, activations=10, weight_rounding=rounding)  # type: ignore[arg-type]
        graph = step(capture(model, x[:2]), Data(x_train=x)).graph
        y = simulate(lower(graph), x.numpy())
        np.testing.assert_array_equal(y, exact_forward(graph, x).numpy())
        errors[rounding] = float(np.square(y - model(x).detach().numpy()).mean())
    assert errors["adaround"] < 0.5 * errors["nearest"]


def test_other_weights_than_fixed_ones_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    step = Quantize(weight_rounding="adaround", weight_format=Encoding.TERNARY)
    with pytest.raises(RecipeError, match=r"0 \(aten.linear\): adaround is for fixed weights"):
        step(capture(model, torch.zeros(2, 4)), Data(x_train=torch.randn(20, 4)))
