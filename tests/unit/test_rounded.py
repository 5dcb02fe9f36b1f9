"""Steps in which a narrow accumulator wraps before the rounding."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fxloom import ops
from fxloom.backends.rounded import rounded_sums
from fxloom.backends.simulator import Simulator, reference
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.program import Program, ProgramBuilder
from tests.strategies import random_inputs


def program_of(
    bits: int, signed: bool, relu: bool, rounding: Rounding, to: FixedPoint, after: str = ""
) -> Program:
    """Two dense layers; the sums of the first wrap at a number of bits. after: what comes between
    that and the rounding."""
    rng = np.random.default_rng(bits)
    b = ProgramBuilder()
    y = b.input("x", (9,), FixedPoint(6, 2))
    y = b.emit(
        ops.MatMul(), [y, b.constant("w", rng.integers(-32, 32, (9, 7)), FixedPoint(6, 1))], "fc"
    )
    bias = b.constant("b", rng.integers(-999, 999, 7), FixedPoint(11, 2))
    y = b.emit(ops.Add(), [y, bias], "bias")
    narrow = FixedPoint(bits, bits - y.type.fraction, signed)
    y = b.emit(ops.Requantize(narrow, Rounding.TRN, Overflow.WRAP), [y], "wrap")
    if after == "bias":
        y = b.emit(ops.Add(), [y, bias], "again")
    if relu:
        y = b.emit(ops.Max(), [y, b.constant("zero", np.array(0), FixedPoint(1, 1))], "relu")
    y = b.emit(ops.Requantize(to, rounding, Overflow.SAT), [y], "round")
    y = b.emit(
        ops.MatMul(), [y, b.constant("v", rng.integers(-8, 8, (7, 3)), FixedPoint(4, 1))], "last"
    )
    y = b.emit(ops.Requantize(FixedPoint(8, 5), Rounding.RND, Overflow.SAT), [y], "y")
    b.output(y, "y")
    return b.build()


def check(program: Program) -> None:
    inputs = random_inputs(program, 200, 0)
    (got,), (wanted,) = Simulator(program).run_mantissas(inputs), reference(program, inputs)
    np.testing.assert_array_equal(got, wanted)


@given(
    st.integers(1, 18),
    st.booleans(),
    st.booleans(),
    st.sampled_from([Rounding.TRN, Rounding.RND]),
    st.builds(FixedPoint, st.integers(1, 9), st.integers(-2, 8), st.booleans()),
)
@example(8, True, False, Rounding.RND, FixedPoint(4, 2))
@example(8, False, True, Rounding.RND, FixedPoint(4, 2, signed=False))
def test_sums_that_wrap_are_those_of_the_definition(
    bits: int, signed: bool, relu: bool, rounding: Rounding, to: FixedPoint
) -> None:
    check(program_of(bits, signed, relu, rounding, to))


@pytest.mark.parametrize("bits", [8, 17])
def test_a_sum_that_may_wrap_is_one_step_with_its_rounding(bits: int) -> None:
    program = program_of(bits, True, True, Rounding.RND, FixedPoint(5, 3))
    (first, second) = rounded_sums(program).values()
    assert [instr.op.name for instr in first.instrs][-3:] == ["requantize", "max", "requantize"]
    assert (first.wrap is None) == (bits == 17)  # the sum of products and bias needs 16 bits
    assert second.wrap is None


def test_a_bias_behind_the_wrap_ends_the_step() -> None:
    idle = program_of(17, True, False, Rounding.RND, FixedPoint(5, 3), after="bias")
    check(idle)
    wrapping = program_of(8, True, False, Rounding.RND, FixedPoint(5, 3), after="bias")
    check(wrapping)
    assert all(step.wrap is None for step in rounded_sums(wrapping).values())
