"""Sums modulo a power of two: which accumulators may wrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxloom import ops
from fxloom.accumulators import accumulators, needed_bits
from fxloom.fixed_point import FixedPoint, Overflow, Rounding, requantize
from fxloom.ops import Operand
from fxloom.program import Program, ProgramBuilder

SEES_THE_SIGN = (Rounding.TRN_ZERO, Rounding.RND_ZERO, Rounding.RND_INF)


@given(
    exact=st.builds(FixedPoint, st.integers(2, 14), st.integers(-3, 12), st.booleans()),
    to=st.builds(FixedPoint, st.integers(1, 9), st.integers(-4, 9), st.booleans()),
    rounding=st.sampled_from(Rounding),
)
def test_wrapping_on_the_way_changes_nothing(
    exact: FixedPoint, to: FixedPoint, rounding: Rounding
) -> None:
    """Every sum that the exact format holds, in every mode in which an accumulator is narrowed."""
    kept = needed_bits(exact, ops.Requantize(to, rounding, Overflow.WRAP))
    if kept is None:
        assert to.integer >= exact.integer or rounding in SEES_THE_SIGN or (
            to.integer + exact.fraction < 1
        )  # fmt: skip
        return
    assert kept.width < exact.width
    sums = np.arange(exact.lo, exact.hi + 1)
    wrapped = requantize(sums, exact.fraction, kept, Rounding.TRN, Overflow.WRAP)
    modes = (to, rounding, Overflow.WRAP)
    np.testing.assert_array_equal(
        requantize(sums, exact.fraction, *modes), requantize(wrapped, kept.fraction, *modes)
    )


@pytest.mark.parametrize("overflow", [each for each in Overflow if each is not Overflow.WRAP])
def test_what_saturates_needs_the_whole_sum(overflow: Overflow) -> None:
    op = ops.Requantize(FixedPoint(4, 2), Rounding.TRN, overflow)
    assert needed_bits(FixedPoint(12, 6), op) is None


@pytest.mark.parametrize("rounding", SEES_THE_SIGN)
def test_rounding_that_sees_the_sign_needs_the_whole_sum(rounding: Rounding) -> None:
    """There are sums for which the wrapped one would round differently."""
    exact, to = FixedPoint(8, 6), FixedPoint(3, 2)
    assert needed_bits(exact, ops.Requantize(to, rounding, Overflow.WRAP)) is None
    sums = np.arange(exact.lo, exact.hi + 1)
    wrapped = requantize(sums, 2, FixedPoint(4, 2), Rounding.TRN, Overflow.WRAP)
    modes = (to, rounding, Overflow.WRAP)
    assert (requantize(sums, 2, *modes) != requantize(wrapped, 2, *modes)).any()


def layer(*, read_twice: bool = False, handed_out: bool = False) -> Program:
    b = ProgramBuilder()
    x = b.input("x", (8,), FixedPoint(6, 2))
    w = b.constant("w", np.full((8, 3), 31), FixedPoint(6, 2))
    product = b.emit(ops.MatMul(), [x, w], "fc", "product")
    bias = b.constant("bias", np.array([1, 2, 3]), FixedPoint(6, 2))
    y = b.emit(ops.Add(), [product, bias], "fc", "sum")
    b.output(b.emit(ops.Requantize(FixedPoint(9, 1)), [y], "fc"), "y")
    if read_twice:
        zero = b.constant("zero", np.array([0]), FixedPoint(1, 1))
        b.output(b.emit(ops.Max(), [y, zero], "relu"), "z")
    if handed_out:
        b.output(y, "sum")
    return b.build()


def test_product_and_sum_share_the_accumulator() -> None:
    assert accumulators(layer()) == {"product": FixedPoint(9, 1), "sum": FixedPoint(9, 1)}


@pytest.mark.parametrize("other", [{"read_twice": True}, {"handed_out": True}])
def test_a_sum_that_something_else_reads_is_added_up_exactly(other: dict[str, bool]) -> None:
    program = layer(**other)
    for name, to in accumulators(program).items():
        assert to == program.value(name).type


@given(
    source=st.builds(FixedPoint, st.integers(2, 9), st.integers(-3, 8), st.booleans()),
    to=st.builds(FixedPoint, st.integers(1, 9), st.integers(-4, 9), st.booleans()),
    rounding=st.sampled_from(Rounding),
    overflow=st.sampled_from(Overflow),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_overflow_is_idle_exactly_where_no_value_overflows(
    source: FixedPoint,
    to: FixedPoint,
    rounding: Rounding,
    overflow: Overflow,
    ends: tuple[float, float],
) -> None:
    """Every value of the interval keeps its result, and WRAP is chosen wherever it may be."""
    low, high = (source.lo + round(end * (source.hi - source.lo)) for end in sorted(ends))
    op = ops.Requantize(to, rounding, overflow)
    x = Operand((1,), source.fraction, low, high)
    found = op.without_idle_overflow(x)
    values = np.arange(low, high + 1)
    wanted = requantize(values, source.fraction, to, rounding, overflow)
    got = requantize(values, source.fraction, to, rounding, found.overflow)
    np.testing.assert_array_equal(got, wanted)
    # A value beyond the format may wrap to where it saturates: that is luck, and no proof.
    wide = FixedPoint(48, 48 - to.fraction, True)
    rounded = requantize(values, source.fraction, wide, rounding, Overflow.WRAP)
    if overflow is Overflow.SAT and to.lo <= rounded.min() and rounded.max() <= to.hi:
        assert found.overflow is Overflow.WRAP
