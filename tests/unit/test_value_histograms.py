"""Histograms of float values, and what of them a format holds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxloom.fixed_point import FixedPoint
from fxloom.pages.histogram_plot import WIDTH, plot
from fxloom.value_histograms import BINS, COUNTED, histogram

FORMAT = FixedPoint(8, 1)  # -1 to 0.992


def test_shares_outside_begin_beyond_half_a_step() -> None:
    step = FORMAT.step
    x = torch.tensor([-1 - 0.6 * step, -1 - 0.4 * step, 0, 1 - 0.6 * step, 1 - 0.4 * step, 5])
    found = histogram("x", x, FORMAT, 6)
    assert found is not None
    assert (found.below, found.above) == (pytest.approx(1 / 6, 1e-5), pytest.approx(2 / 6, 1e-5))
    assert (found.low, found.high) == (-1, 1 - step)
    assert sum(found.counts) == 6


def test_infinite_values_are_outside_and_not_drawn() -> None:
    found = histogram("x", torch.tensor([float("-inf"), 0.5, 0.25]), FORMAT, 3)
    assert found is not None
    assert found.below == pytest.approx(1 / 3, 1e-5)
    assert (found.least, found.largest, sum(found.counts)) == (0.25, 0.5, 2)
    assert histogram("x", torch.tensor([float("inf")]), FORMAT, 1) is None


def test_of_many_values_some_are_counted_and_all_judged() -> None:
    x = torch.zeros(3 * COUNTED)
    x[-1] = 7.0
    found = histogram("x", x, FORMAT, 1)
    assert found is not None
    assert sum(found.counts) == COUNTED
    assert found.largest == 7.0
    assert found.above > 0
    assert found == histogram("x", x, FORMAT, 1)


@given(
    st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=40),
    st.integers(-20, 20),
    st.booleans(),
)
def test_bins_hold_all_values_and_drawings_stay_within(
    values: list[float], integer: int, signed: bool
) -> None:
    found = histogram("x", torch.tensor(values), FixedPoint(8, integer, signed), 1)
    assert found is not None
    assert sum(found.counts) == len(values)
    assert 1 <= len(found.counts) <= BINS
    assert found.start <= min(values)
    assert max(values) <= found.start + found.width * BINS
    drawn = plot(found)
    assert 0 <= drawn.begin <= drawn.end <= WIDTH
    for column in drawn.columns:
        assert column.x >= -1
        assert column.x + column.width <= WIDTH + 1
    # A value within the range is never in a column that is drawn as outside.
    if all(found.low <= value <= found.high for value in values):
        assert all(column.inside for column in drawn.columns)
