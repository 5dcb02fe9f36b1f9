"""LUTs of rounding and saturation: what is free, and what a report says of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxloom import ops
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.program import Program, ProgramBuilder
from fxloom.requantize_cost import NONE, Luts, conversion_luts
from fxloom.target import Target

FORMATS = st.builds(FixedPoint, st.integers(1, 24), st.integers(-8, 24), st.booleans())


@given(FORMATS, FORMATS, st.sampled_from(Rounding), st.sampled_from(Overflow))
def test_the_likely_number_lies_within_its_interval(
    source: FixedPoint, to: FixedPoint, rounding: Rounding, overflow: Overflow
) -> None:
    for luts in conversion_luts(source, to, rounding, overflow):
        assert 0 <= luts.least <= luts.likely <= luts.most


@given(FORMATS, FORMATS)
def test_truncating_and_wrapping_are_wires(source: FixedPoint, to: FixedPoint) -> None:
    assert conversion_luts(source, to, Rounding.TRN, Overflow.WRAP) == (NONE, NONE)


@given(FORMATS, st.integers(0, 5), st.integers(0, 5), st.sampled_from(Rounding))
def test_what_fits_costs_nothing(
    source: FixedPoint, above: int, below: int, rounding: Rounding
) -> None:
    to = FixedPoint(source.width + above + below, source.integer + above, source.signed)
    assert conversion_luts(source, to, rounding, Overflow.SAT) == (NONE, NONE)


def test_figures_of_one_conversion() -> None:
    """A sum of 16 bits into 8, unsigned: 11 bits are kept of it, one for the sign."""
    rounding, saturation = conversion_luts(
        FixedPoint(16, 6), FixedPoint(8, 3, False), Rounding.RND, Overflow.SAT
    )
    assert rounding == Luts(11, 1, 12)
    assert saturation == Luts(8, 6, 17)


def layer(rounding: Rounding, overflow: Overflow, weight: int = 31) -> Program:
    b = ProgramBuilder()
    x = b.input("x", (4, 4, 2), FixedPoint(6, 2))
    w = b.constant("w", np.full((1, 1, 2, 3), weight), FixedPoint(6, 2))
    y = b.emit(ops.Conv((1, 1), ((0, 0), (0, 0)), (1, 1), 1), [x, w], "conv")
    y = b.emit(ops.Requantize(FixedPoint(8, 2), rounding, overflow), [y], "conv")
    zero = b.constant("zero", np.array([0]), FixedPoint(1, 1))
    y = b.emit(ops.Max(), [y, zero], "relu")
    b.output(b.emit(ops.Requantize(FixedPoint(4, 2), rounding, overflow), [y], "relu"), "y")
    return b.build()


@pytest.mark.parametrize("io", ["parallel", "stream"])
def test_a_layer_rounds_one_position_and_a_kernel_all(io: str) -> None:
    target = Target(io=io)  # type: ignore[arg-type]
    conv, relu = estimate(layer(Rounding.TRN, Overflow.SAT), target).layers
    assert conv.rounding is not None
    assert relu.rounding is None or relu.rounding.value == 0
    assert conv.rounding.value == 3 * 8
    conv, relu = estimate(layer(Rounding.RND, Overflow.SAT), target).layers
    assert relu.rounding is not None
    assert relu.rounding.value == (3 if io == "stream" else 48) * (3 + 4)


def test_modes_that_are_wires_cost_nothing() -> None:
    report = estimate(layer(Rounding.TRN, Overflow.WRAP), Target())
    assert report.total.rounding is not None
    assert report.total.rounding.value == 0


def test_a_proof_saves_the_saturation_that_formats_would_need() -> None:
    """63, the largest number of six bits, would be rounded up to 16; the largest value is 60."""
    b = ProgramBuilder()
    x = b.input("x", (1,), FixedPoint(4, 4, False))
    w = b.constant("w", np.array([[4]]), FixedPoint(4, 4))
    y = b.emit(ops.MatMul(), [x, w], "fc")  # 0 to 60, of six bits: 60 / 4 = 15 fits four
    op = ops.Requantize(FixedPoint(4, 6, False), Rounding.RND, Overflow.SAT)
    b.output(b.emit(op, [y], "fc"), "y")
    (fc,) = estimate(b.build(), Target()).layers
    assert fc.rounding is not None
    assert fc.rounding.value == 4  # rounding alone
    assert fc.rounding_saved == 4
    text = estimate(b.build(), Target()).to_text()
    assert "rounding LUTs: 4 fewer, for proofs that some values cannot overflow" in text


def test_other_vendors_have_no_figure() -> None:
    report = estimate(layer(Rounding.RND, Overflow.SAT), Target(backend="Catapult"))
    assert all(each.rounding is None for each in report.layers)
    assert report.total.rounding is None
