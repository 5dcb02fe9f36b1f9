"""Every operation: definition and fast path against exact rational arithmetic, bounds respected."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxloom import ops
from fxloom.backends.carriers import RULES
from fxloom.backends.simulator import Simulator, reference, trace_all
from fxloom.fixed_point import FixedPoint
from fxloom.ops import OPS
from fxloom.program import Program, ProgramBuilder
from tests.oracle import MEANING, as_fractions, run_exactly
from tests.strategies import PROGRAMS, graphs, random_inputs


def test_every_operation_is_enrolled() -> None:
    assert set(OPS) == set(PROGRAMS) == set(MEANING) == set(RULES)


@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.parametrize("width", [6, 16, 22])
def test_definition_and_fast_path_equal_exact_arithmetic(name: str, width: int) -> None:
    @given(PROGRAMS[name](width), st.integers(0, 2**32 - 1))
    def check(program: Program, seed: int) -> None:
        program.verify()
        inputs = random_inputs(program, 3, seed)
        values = trace_all(program, inputs)
        exact = run_exactly(program, [array[1] for array in inputs])
        for instr in program.instrs:
            result = instr.result
            computed = values[result.name]
            assert computed.shape == (3, *result.shape)
            assert result.lo <= computed.min()
            assert computed.max() <= result.hi
            got = as_fractions(computed[1], result.type.fraction)
            assert (got == exact[result.name]).all()
        fast = Simulator(program).run_mantissas(inputs)
        for a, b in zip(fast, reference(program, inputs), strict=True):
            np.testing.assert_array_equal(a, b)

    check()


@pytest.mark.parametrize("name", ["matmul", "conv", "add", "mul", "pool", "reduce_sum"])
def test_wide_operands_leave_floats_and_stay_exact(name: str) -> None:
    @given(PROGRAMS[name](28), st.integers(0, 2**32 - 1))
    def check(program: Program, seed: int) -> None:
        inputs = random_inputs(program, 2, seed)
        for a, b in zip(
            Simulator(program).run_mantissas(inputs), reference(program, inputs), strict=True
        ):
            np.testing.assert_array_equal(a, b)

    check()


@given(graphs(), st.integers(0, 2**32 - 1))
def test_fast_path_never_overwrites_a_value_that_is_still_needed(
    program: Program, seed: int
) -> None:
    inputs = random_inputs(program, 3, seed)
    before = [array.copy() for array in inputs]
    for a, b in zip(
        Simulator(program).run_mantissas(inputs), reference(program, inputs), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    for array, copy in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_two_views_of_one_value_are_not_computed_in_place() -> None:
    """A bug once: both shifts shared memory, and aligning one of them changed the other."""
    b = ProgramBuilder()
    x = b.input("x", (4,), FixedPoint(6, 3))
    y = b.emit(ops.Sub(), [b.emit(ops.Shift(-1), [x], "a"), b.emit(ops.Shift(-2), [x], "b")], "y")
    b.output(y, "y")
    inputs = [np.array([[1, -7, 30, 5]])]
    assert Simulator(b.build()).run_mantissas(inputs)[0].tolist() == [[1, -7, 30, 5]]


@pytest.mark.parametrize("stride", [(1, 3), (1, 2), (2, 3)])
def test_convolution_that_torch_itself_gets_wrong_is_right(stride: tuple[int, int]) -> None:
    """One input channel, unequal strides, output width 1: oneDNN uses the wrong stride."""
    b = ProgramBuilder()
    x = b.input("x", (5, 5, 1), FixedPoint(5, 5))
    rng = np.random.default_rng(0)
    w = b.constant("w", rng.integers(-8, 8, (3, 3, 1, 2)), FixedPoint(4, 4))
    b.output(b.emit(ops.Conv(stride), [x, w], "conv"), "y")
    program = b.build()
    inputs = random_inputs(program, 4, 0)
    for got, wanted in zip(
        Simulator(program).run_mantissas(inputs), reference(program, inputs), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)
