"""Numbers that stand for hidden scores: masks where nothing is left of them, scores elsewhere."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.exact import exact_forward
from fxloom.fixed_point import FixedPoint
from fxloom.frontend import capture
from fxloom.functions import exponential, table_values
from fxloom.lowering import lower
from fxloom.passes.masks import NOTHING
from fxloom.passes.quantize import Quantize
from fxloom.passes.softmaxes import MOST_FRACTION_BITS, softmax_formats
from fxloom.recipe import PassResult
from tests.models import Buffers

Model = Callable[[Any, Tensor, Tensor], Tensor]
CONSTANT = torch.tensor([0.0, -1.0, 0.25, -1.0, 0.0, -1.0])


def quantized(function: Model, *x: Tensor, **buffers: Tensor) -> PassResult:
    graph = capture(Buffers(function, **buffers), tuple(t[:2] for t in x))
    return Quantize()(graph, Data(x_train=x))


def answers(result: PassResult, *x: Tensor) -> np.ndarray:
    values = simulate(lower(result.graph), [t.numpy() for t in x])
    assert isinstance(values, np.ndarray)
    np.testing.assert_array_equal(values, exact_forward(result.graph, *x).numpy())
    return values


def scores(reach: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(64, 6) * 2 * reach - reach
    return x, torch.randn(64, 6)


MASKS: dict[str, Callable[[float], Model]] = {
    "chosen": lambda n: lambda m, x, y: torch.where(y > 0, x, n).softmax(1),
    "filled": lambda n: lambda m, x, y: x.masked_fill(y > 0, n).softmax(1),
    "scaled": lambda n: lambda m, x, y: (x.masked_fill(y > 0, n) / 2).softmax(1),
    "negated": lambda n: lambda m, x, y: (-x.masked_fill(y > 0, -n)).softmax(1),
    "added": lambda n: lambda m, x, y: (x + (1 - (y > y.amin(1, True)).float()) * n).softmax(1),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_number_that_leaves_nothing_is_as_good_as_infinity(name: str) -> None:
    x = scores(6.0)
    with_number = quantized(MASKS[name](-400.0), *x)
    (record,) = with_number.summary["masks"].values()  # type: ignore[attr-defined]
    assert record["mask"] == (-200 if name == "scaled" else -400)
    with_infinity = quantized(MASKS[name](-1e9 if name == "added" else -torch.inf), *x)
    assert with_infinity.summary["masks"] == {}
    np.testing.assert_array_equal(answers(with_number, *x), answers(with_infinity, *x))


def test_a_constant_that_is_added_keeps_what_is_no_mask() -> None:
    x = scores(6.0)
    results = [
        quantized(
            lambda m, x, y: (x * y.sign() + m.added).softmax(1),
            *x,
            added=torch.where(CONSTANT < 0, hidden, CONSTANT),
        )
        for hidden in (-400.0, -torch.inf)
    ]
    assert results[0].summary["masks"] == {
        "masked_softmax": {"mask": -400.0, "reach": 2 * float(x[0].abs().max())}
    }
    np.testing.assert_array_equal(answers(results[0], *x), answers(results[1], *x))


@pytest.mark.parametrize("number", [-100.0, -9999.0])
def test_constant_conditions_become_masks(number: float) -> None:
    x, _ = scores(6.0)
    conditions: dict[str, Callable[[Any], Tensor]] = {
        "buffer": lambda m: m.hidden > 0.5,
        "compared": lambda m: (m.hidden == 0).logical_not(),
        "made": lambda m: torch.arange(6) % 2 == 1,
    }
    for condition in conditions.values():
        models = [
            lambda m, x, n=n, c=condition: x.masked_fill(c(m), n).softmax(1)
            for n in (number, -torch.inf)
        ]
        results = [quantized(model, x, hidden=torch.arange(6) % 2.0) for model in models]
        (record,) = results[0].summary["masks"].values()  # type: ignore[attr-defined]
        assert record["mask"] == number
        np.testing.assert_array_equal(*(answers(result, x) for result in results))


def test_a_constant_that_hides_all_of_a_row_stays_a_score() -> None:
    x = torch.rand(64, 3, 6) * 4 - 2
    seen = torch.tensor([[True] * 6, [False] * 6, [True, False] * 3])
    result = quantized(lambda m, x: torch.where(m.seen, x, -100.0).softmax(2), x, seen=seen)
    assert result.summary["masks"] == {}
    assert np.abs(answers(result, x)[:, 1] - 1 / 6).max() < 1 / 128


@pytest.mark.parametrize("name", MASKS)
def test_a_number_within_reach_of_the_scores_stays_one(name: str) -> None:
    x = scores(90.0)
    x[0][0] = torch.tensor([-90.0, -89, -90, -90, -90, -90])
    x[1][0] = torch.tensor([-1.0, -1, 1, 1, 1, -1])
    result = quantized(MASKS[name](-100.0), *x)
    assert result.summary["masks"] == {}
    answers(result, *x)


def test_a_row_of_which_nothing_is_left_stays_what_it_was() -> None:
    x, y = scores(3.0)
    y[:8] = -1
    result = quantized(MASKS["chosen"](-200.0), x, y)
    assert result.summary["masks"]
    got = answers(result, x, y)[:8]
    assert (got == got[0, 0]).all()
    assert abs(got[0, 0] - 1 / 6) < 1 / 128

    def whole(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return (x + (y < 0).float() * -200).softmax(1)

    result = quantized(whole, x, y)
    assert result.summary["masks"]
    wanted = x[:8].softmax(1).numpy()
    assert np.abs(answers(result, x, y)[:8] - wanted).max() < 0.02


def test_what_a_logarithm_shows_of_hidden_scores_is_kept() -> None:
    x, y = scores(3.0)
    for read in (torch.log_softmax, torch.logsumexp):
        result = quantized(lambda m, x, y, read=read: read(torch.where(y > 0, x, -90.0), 1), x, y)
        assert result.summary["masks"] == {}
    y[:8] = -1
    result = quantized(lambda m, x, y: torch.where(y > 0, x, -90.0).logsumexp(1), x, y)
    assert np.abs(answers(result, x, y)[:8] + 90 - np.log(6)).max() < 0.5


def test_nothing_is_zero_in_the_finest_table() -> None:
    formats = softmax_formats(FixedPoint(8, 7), 2**14, MOST_FRACTION_BITS + 1, 10)
    fraction = formats.exponential.fraction
    assert fraction >= MOST_FRACTION_BITS
    (entry,) = table_values(exponential, [Decimal(-NOTHING)], fraction)
    assert entry == 0
    assert 2**14 * np.exp(-NOTHING) < 2.0 ** -(MOST_FRACTION_BITS + 8)
