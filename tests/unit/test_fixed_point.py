"""FixedPoint and its arithmetic against fractions.Fraction, an oracle that shares no code."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxloom.errors import VerifyError
from fxloom.fixed_point import (
    FixedPoint,
    Overflow,
    Rounding,
    quantize_values,
    requantize,
    to_values,
)
from tests.oracle import fit_exactly, round_exactly
from tests.strategies import formats, overflows, roundings


@given(
    st.integers(-(2**61), 2**61),
    st.integers(-40, 80),
    formats(max_width=20, spread=12),
    roundings,
    overflows,
)
def test_requantize_equals_exact_arithmetic(
    mantissa: int, fraction: int, to: FixedPoint, rounding: Rounding, overflow: Overflow
) -> None:
    exact = Fraction(mantissa) / Fraction(2) ** fraction * Fraction(2) ** to.fraction
    try:
        result = requantize(np.array([mantissa]), fraction, to, rounding, overflow)
    except VerifyError:
        assert abs(exact) >= 2**62
        return
    assert int(result[0]) == fit_exactly(round_exactly(exact, rounding), to, overflow)


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    formats(max_width=30, spread=12),
    roundings,
    overflows,
)
def test_quantizing_any_float_is_exact(
    value: float, to: FixedPoint, rounding: Rounding, overflow: Overflow
) -> None:
    exact = Fraction(value) * Fraction(2) ** to.fraction
    result = quantize_values(np.array([value]), to, rounding, overflow)
    assert int(result[0]) == fit_exactly(round_exactly(exact, rounding), to, overflow)


@given(st.floats(-4, 4), formats(max_width=12, spread=3), roundings)
def test_quantizing_floats_near_ties_is_exact(
    offset: float, to: FixedPoint, rounding: Rounding
) -> None:
    value = (round(offset * 2) / 2 + offset * 2.0**-60) * to.step
    exact = Fraction(value) * Fraction(2) ** to.fraction
    result = quantize_values(np.array([value]), to, rounding, Overflow.WRAP)
    assert int(result[0]) == fit_exactly(round_exactly(exact, rounding), to, Overflow.WRAP)


@given(st.integers(-(2**62), 2**62 - 1), st.integers(0, 2**62), st.integers(-20, 20))
def test_holding_is_the_narrowest_format(lo: int, length: int, fraction: int) -> None:
    hi = min(lo + length, 2**62 - 1)
    kind = FixedPoint.holding(lo, hi, fraction)
    assert kind.lo <= lo <= hi <= kind.hi
    assert kind.fraction == fraction
    assert kind.signed == (lo < 0)
    if kind.width > 1:
        narrower = FixedPoint(kind.width - 1, kind.integer - 1, kind.signed)
        assert not narrower.lo <= lo <= hi <= narrower.hi


def test_text_names_the_format_as_hls_does() -> None:
    assert str(FixedPoint(8, 3)) == "fixed<8,3>"
    assert str(FixedPoint(4, -2, signed=False)) == "ufixed<4,-2>"


@pytest.mark.parametrize("width", [0, -1, 64])
def test_impossible_width_is_refused(width: int) -> None:
    with pytest.raises(VerifyError, match=r"1 to 63 bits, got"):
        FixedPoint(width, 1)


def test_a_shift_beyond_63_bits_is_refused() -> None:
    with pytest.raises(VerifyError, match="exceeds 63 bits"):
        requantize(np.array([2**40]), 0, FixedPoint(60, 2), Rounding.TRN, Overflow.SAT)


def test_values_of_mantissas() -> None:
    assert to_values(np.array([-3, 4]), 2).tolist() == [-0.75, 1.0]


def test_oracle_knows_a_tie() -> None:
    """The oracle itself, on the one case in which all seven modes differ most."""
    tie = Fraction(-5, 2)
    results = {mode: round_exactly(tie, mode) for mode in Rounding}
    assert results == {
        Rounding.TRN: -3,
        Rounding.TRN_ZERO: -2,
        Rounding.RND: -2,
        Rounding.RND_ZERO: -2,
        Rounding.RND_INF: -3,
        Rounding.RND_MIN_INF: -3,
        Rounding.RND_CONV: -2,
    }
    assert floor(tie) == -3


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20),
    formats(max_width=24, spread=12),
    roundings,
    overflows,
)
def test_quantizing_float32_is_exact(
    values: list[float], to: FixedPoint, rounding: Rounding, overflow: Overflow
) -> None:
    array = np.array(values, dtype=np.float32)
    got = quantize_values(array, to, rounding, overflow)
    for value, mantissa in zip(array, got, strict=True):
        exact = Fraction(float(value)) * Fraction(2) ** to.fraction
        assert int(mantissa) == fit_exactly(round_exactly(exact, rounding), to, overflow)


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(54, 63),
    st.integers(-5, 60),
    st.booleans(),
    roundings,
    overflows,
)
def test_quantizing_into_wide_formats_is_exact(
    value: float, width: int, integer: int, signed: bool, rounding: Rounding, overflow: Overflow
) -> None:
    to = FixedPoint(width, integer, signed)
    exact = Fraction(value) * Fraction(2) ** to.fraction
    got = quantize_values(np.array([value]), to, rounding, overflow)
    assert int(got[0]) == fit_exactly(round_exactly(exact, rounding), to, overflow)
