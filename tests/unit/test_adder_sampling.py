"""Costs of large adder graphs from samples."""

import numpy as np
import pytest

from fxloom.adder_graph import adder_cost
from fxloom.adder_sampling import estimated_cost
from fxloom.errors import VerifyError


@pytest.mark.parametrize(
    ("shape", "bits", "zeros"),
    [((300, 120), 8, 0.0), ((120, 300), 8, 0.5), ((40, 700), 3, 0.0), ((90, 90), 18, 0.2)],
)
def test_a_sample_is_near_the_whole(shape: tuple[int, int], bits: int, zeros: float) -> None:
    rng = np.random.default_rng(0)
    matrix = np.round(rng.normal(0, 2 ** (bits - 1) / 3.5, shape)).astype(np.int64)
    matrix[rng.random(shape) < zeros] = 0
    exact, sampled = adder_cost(matrix, 0, 255), estimated_cost(matrix, 0, 255, sampled=1500)
    assert sampled != exact
    assert sampled.adders == pytest.approx(exact.adders, rel=1e-3)
    assert sampled.fa_bits == pytest.approx(exact.fa_bits, rel=0.01)
    assert sampled.luts == pytest.approx(exact.luts, rel=0.01)
    assert abs(sampled.depth - exact.depth) <= 1


def test_inputs_keep_their_own_intervals_in_a_sample() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.integers(-127, 128, (200, 50))
    lo, hi = np.repeat([-128, 0], 100), np.repeat([127, 15], 100)
    exact, sampled = adder_cost(matrix, lo, hi), estimated_cost(matrix, lo, hi, sampled=1500)
    assert sampled.fa_bits == pytest.approx(exact.fa_bits, rel=0.01)
    assert sampled.luts == pytest.approx(exact.luts, rel=0.01)


def test_zero_rows_and_columns_and_few_weights_are_fine() -> None:
    matrix = np.zeros((600, 40), np.int8)
    matrix[7::9, 3:9] = np.arange(1, 7)
    assert estimated_cost(matrix, -4, 3) == adder_cost(matrix, -4, 3)
    sampled = estimated_cost(matrix, -4, 3, sampled=60)
    assert sampled.adders == pytest.approx(adder_cost(matrix, -4, 3).adders, rel=0.01)
    assert estimated_cost(np.zeros((600, 40), np.int8), -4, 3, sampled=1) == (0, 0, 0, 0)


def test_sums_that_are_too_wide_are_refused() -> None:
    with pytest.raises(VerifyError, match="62 are possible"):
        estimated_cost(np.full((300, 300), 2**50), 0, 2**10)


def test_empty_and_crowded_parts_are_not_mistaken_for_the_whole() -> None:
    rng = np.random.default_rng(2)
    matrix = np.zeros((3000, 120), np.int8)
    matrix[:40, ::3] = rng.integers(-127, 128, (40, 40))
    exact, sampled = adder_cost(matrix, 0, 255), estimated_cost(matrix, 0, 255, sampled=300)
    assert sampled.adders == pytest.approx(exact.adders, rel=0.01)
    assert sampled.luts == pytest.approx(exact.luts, rel=0.05)
