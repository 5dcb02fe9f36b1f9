"""Every operation: definition and fast path against exact rational arithmetic, bounds respected."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxloom import ops
from fxloom.backends.carriers import RULES, Plan, carrier_for, largest
from fxloom.backends.simulator import VIEWS, Simulator, reference, trace_all
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.ops import OPS
from fxloom.program import Program, ProgramBuilder, Value
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


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in VIEWS])
def test_results_have_memory_of_their_own(name: str) -> None:
    """Else a step that works in place would change a value that is still needed."""

    @given(PROGRAMS[name](8), st.integers(0, 2**32 - 1))
    def check(program: Program, seed: int) -> None:
        values = trace_all(program, random_inputs(program, 3, seed))
        for instr in program.instrs:
            operands = tuple(program.operands(instr))
            plan = Plan(instr.op, operands, instr.result, (False,) * len(operands))
            arrays = [
                values[name].astype(carrier_for(largest(value.lo, value.hi)))
                for name, value in zip(instr.args, operands, strict=True)
                if name not in program.constants
            ]
            result = RULES[instr.op.name](plan)(arrays)
            assert instr.op.name in VIEWS or not any(
                np.may_share_memory(result, array) for array in arrays
            )

    check()


@st.composite
def dense_stacks(draw: st.DrawFn) -> Program:
    """Dense layers with biases, ReLUs and roundings; some results have several users."""
    b = ProgramBuilder()
    leading = draw(st.sampled_from([(), (2,)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=5))
    x = b.input("x", (*leading, sizes[0]), FixedPoint(draw(st.integers(4, 12)), 2))
    for index, size in enumerate(sizes[1:]):
        width = draw(st.sampled_from([3, 8, 20]))
        most = 2 ** (width - 1)
        shape = (x.shape[-1], size)
        w = b.constant("w", rng.integers(-most, most, shape), FixedPoint(width, 3))
        y = b.emit(ops.MatMul(), [x, w], "dense")
        if draw(st.booleans()):
            bias = b.constant("b", rng.integers(-40, 40, size), FixedPoint(8, 4))
            y = b.emit(ops.Add(), [y, bias], "dense")
        if draw(st.booleans()):
            zero = b.constant("zero", np.array(0), FixedPoint(1, 1))
            y = b.emit(ops.Max(), [y, zero], "relu")
        to = FixedPoint(draw(st.integers(2, 12)), draw(st.integers(0, 6)))
        rounding = draw(st.sampled_from([Rounding.TRN, Rounding.RND, Rounding.RND_CONV]))
        before, x = x, b.emit(ops.Requantize(to, rounding, Overflow.SAT), [y], "round")
        if draw(st.integers(0, 4)) == 0:
            b.output(x, f"tap_{index}")
        if before.shape == x.shape and draw(st.integers(0, 2)) == 0:
            x = b.emit(ops.Add(), [x, before], "residual")
            x = b.emit(ops.Requantize(to, Rounding.TRN, Overflow.SAT), [x], "residual")
    b.output(x, "y")
    return b.build()


@given(dense_stacks(), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_dense_layers_in_a_row_equal_the_definition(
    program: Program, count: int, seed: int
) -> None:
    simulator = Simulator(program)
    for samples in (count, 3, count):  # what is kept between runs must fit the next
        inputs = random_inputs(program, samples, seed)
        for a, b in zip(simulator.run_mantissas(inputs), reference(program, inputs), strict=True):
            np.testing.assert_array_equal(a, b)


def _classifier(b: ProgramBuilder) -> Program:
    """A convolution and two dense layers, with values of more than 8 bits."""
    rng = np.random.default_rng(0)
    x = b.input("x", (4, 4, 3), FixedPoint(12, 12))
    to = FixedPoint(12, 13)

    def rounded(y: Value, name: str) -> Value:
        return b.emit(ops.Requantize(to, Rounding.RND, Overflow.SAT), [y], name)

    w = b.constant("w", rng.integers(-8, 8, (3, 3, 3, 8)), FixedPoint(4, 4))
    y = rounded(b.emit(ops.Conv(), [x, w], "conv"), "conv")
    y = b.emit(ops.Reshape((32,)), [y], "flatten")
    for index, shape in enumerate([(32, 16), (16, 8)]):
        w = b.constant("w", rng.integers(-7, 8, shape), FixedPoint(4, 4))
        y = rounded(b.emit(ops.MatMul(), [y, w], f"dense_{index}"), f"dense_{index}")
    b.output(y, "y")
    return b.build()


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_reduced_precision_that_the_user_allows_does_not_reach_the_simulator(
    precision: str,
) -> None:
    """A bug once: with "medium" torch multiplies in bfloat16 where the processor can. The setting
    is one for all threads."""
    program = _classifier(ProgramBuilder())
    simulator = Simulator(program)
    inputs = [random_inputs(program, 1000, seed) for seed in range(8)]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(simulator.run_mantissas, inputs))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    for arrays, (got,) in zip(inputs, results, strict=True):
        np.testing.assert_array_equal(got, reference(program, arrays)[0])


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
