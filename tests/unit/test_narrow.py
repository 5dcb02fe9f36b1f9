"""Steps on bytes give the integers of the definition, and of the steps on floats."""

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from fxloom import ops
from fxloom.backends import narrow
from fxloom.backends.rounded import rounded_sums, users_of
from fxloom.backends.simulator import Simulator, reference
from fxloom.errors import VerifyError
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.program import Program, ProgramBuilder, Value
from tests.strategies import random_inputs

FORMATS = [
    FixedPoint(8, 3),
    FixedPoint(8, 3, signed=False),
    FixedPoint(7, 2, signed=False),
    FixedPoint(5, 2),
    FixedPoint(1, 1, signed=False),
    FixedPoint(9, 4),
]


@st.composite
def convolutions(draw: st.DrawFn) -> Program:
    """Convolutions with biases, ReLUs and roundings; sums of them; pools and outputs between."""
    try:
        return _convolutions(draw)
    except VerifyError:  # binary points so far apart that 63 bits do not hold a sum
        reject()


def _convolutions(draw: st.DrawFn) -> Program:
    b = ProgramBuilder()
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = draw(st.sampled_from([1, 2, 3, 8, 16, 17, 64]))
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)), channels)
    x = b.input("x", shape, draw(st.sampled_from(FORMATS)))
    for index in range(draw(st.integers(1, 3))):
        before, x = x, _rounded(draw, b, _layer(draw, b, rng, x), rng)
        if draw(st.booleans()):
            other = _same_shape(draw, b, rng, before, x)
            if other is not None:
                pair = [x, other] if draw(st.booleans()) else [other, x]
                x = _rounded(draw, b, b.emit(ops.Add(), pair, "sum"), None)
        if draw(st.integers(0, 3)) == 0:
            b.output(x, f"tap_{index}")
    if draw(st.booleans()):
        x = b.emit(ops.Pool("sum", (1, 1), (1, 1)), [x], "pool")
    b.output(x, "y")
    return b.build()


def _layer(draw: st.DrawFn, b: ProgramBuilder, rng: np.random.Generator, x: Value) -> Value:
    height, width, channels = x.shape
    groups = draw(st.sampled_from(sorted({1, channels, np.gcd(channels, 4).item()})))
    kernel = [draw(st.integers(1, min(3, n))) for n in (height, width)]
    fits = [2 * k - 1 <= n for k, n in zip(kernel, (height, width), strict=True)]
    dilation = [draw(st.integers(1, 2)) if fit else 1 for fit in fits]
    pads = [tuple(draw(st.sampled_from([(0, 0), (1, 1), (0, 1), (2, 0)]))) for _ in range(2)]
    strides = [draw(st.integers(1, 3)) for _ in range(2)]
    outputs = groups * draw(st.sampled_from([1, 2, 8] if groups < 8 else [1]))
    most = 2 ** (draw(st.sampled_from([2, 8, 8, 9])) - 1)
    shape = (*kernel, channels // groups, outputs)
    data = rng.integers(-most, most, shape)
    if draw(st.booleans()):
        data = np.where(data < 0, -most, most - 1)
    w = b.constant("w", data, FixedPoint(most.bit_length(), 1))
    op = ops.Conv(tuple(strides), tuple(pads), tuple(dilation), groups)
    return b.emit(op, [x, w], "conv")


def _same_shape(
    draw: st.DrawFn, b: ProgramBuilder, rng: np.random.Generator, before: Value, x: Value
) -> Value | None:
    """What x may be added to: the value before it, or a product of x."""
    if before.shape == x.shape and draw(st.booleans()):
        return before
    shape = (1, 1, x.shape[2], x.shape[2])
    w = b.constant("w", rng.integers(-128, 128, shape), FixedPoint(8, 2))
    return _rounded(draw, b, b.emit(ops.Conv(), [x, w], "shortcut"), rng)


def _rounded(
    draw: st.DrawFn, b: ProgramBuilder, y: Value, rng: np.random.Generator | None
) -> Value:
    if rng is not None and draw(st.booleans()):
        bias = b.constant("b", rng.integers(-(2**9), 2**9, y.shape[-1]), FixedPoint(10, 4))
        y = b.emit(ops.Add(), [y, bias], "bias")
    if draw(st.integers(0, 3)) == 0:  # an accumulator that is too narrow, or just wide enough
        width = max(y.type.width - draw(st.integers(-1, 6)), 1)
        narrow = FixedPoint(width, width - y.type.fraction, signed=draw(st.booleans()))
        y = b.emit(ops.Requantize(narrow, Rounding.TRN, Overflow.WRAP), [y], "wrap")
    if draw(st.booleans()):
        y = b.emit(ops.Max(), [y, b.constant("zero", np.array(0), FixedPoint(1, 1))], "relu")
    kind = draw(st.sampled_from(FORMATS))
    # Some saturate much, some little, some have bits below the last place.
    integer = y.type.integer - draw(st.integers(-1, 5))
    to = FixedPoint(kind.width, integer, signed=kind.signed)
    rounding = draw(st.sampled_from([Rounding.TRN, Rounding.RND, Rounding.RND, Rounding.RND_CONV]))
    overflow = draw(st.sampled_from([Overflow.SAT, Overflow.SAT, Overflow.SAT, Overflow.WRAP]))
    return b.emit(ops.Requantize(to, rounding, overflow), [y], "round")


def _check(program: Program, count: int, seed: int) -> None:
    inputs = random_inputs(program, count, seed)
    corners = [
        np.where(np.random.default_rng(seed).random(x.shape) < 0.5, port.value.lo, port.value.hi)
        for port, x in zip(program.inputs, inputs, strict=True)
    ]
    simulator = Simulator(program)
    for arrays in (inputs, corners, [np.full_like(x, x.max()) for x in corners]):
        copies = [x.copy() for x in arrays]
        for a, b in zip(simulator.run_mantissas(arrays), reference(program, arrays), strict=True):
            np.testing.assert_array_equal(a, b)
        for x, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(x, copy)


@given(convolutions(), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_convolutions_and_sums_equal_the_definition(
    program: Program, count: int, seed: int
) -> None:
    _check(program, count, seed)


def _sum_of_two(
    first: FixedPoint, second: FixedPoint, to: FixedPoint, rounding: Rounding
) -> Program:
    b = ProgramBuilder()
    rng = np.random.default_rng(0)
    x = b.input("x", (4, 4, 8), FixedPoint(8, 4))
    parts = []
    for index, kind in enumerate((first, second)):
        w = b.constant("w", rng.integers(-128, 128, (1, 1, 8, 8)), FixedPoint(8, 2))
        y = b.emit(ops.Conv(), [x, w], f"conv_{index}")
        parts.append(b.emit(ops.Requantize(kind, rounding, Overflow.SAT), [y], f"round_{index}"))
    y = b.emit(ops.Requantize(to, rounding, Overflow.SAT), [b.emit(ops.Add(), parts, "sum")], "y")
    b.output(y, "y")
    return b.build()


KINDS = [FixedPoint(8, 6), FixedPoint(8, 7, signed=False), FixedPoint(6, 5)]


@pytest.mark.parametrize("rounding", [Rounding.TRN, Rounding.RND])
@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("to", [*KINDS, FixedPoint(8, 4), FixedPoint(12, 8)])
def test_sums_of_bytes_of_any_sign_equal_the_definition(
    first: FixedPoint, second: FixedPoint, to: FixedPoint, rounding: Rounding
) -> None:
    program = _sum_of_two(first, second, to, rounding)
    if narrow.available():
        types = narrow.narrow_results(rounded_sums(program), users_of(program))
        assert ("y" in types) == (to.width <= 8)
    _check(program, 3, 0)


@pytest.mark.parametrize("available", [False, True])
@pytest.mark.parametrize(
    "op",
    [
        ops.Conv((2, 2), ((0, 0), (1, 1)), (1, 2)),  # output width 1: oneDNN takes a wrong stride
        ops.Conv((2, 2), ((5, 5), (2, 2)), (1, 1)),  # windows in the padding alone: it crashes
        ops.Conv((1, 2), ((1, 1), (1, 1)), (1, 2)),
    ],
)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2), (5, 3)])
def test_convolutions_that_torch_gets_wrong_are_right(
    op: ops.Conv, kernel: tuple[int, int], available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not available:
        monkeypatch.setattr(narrow, "available", lambda: False)
    rng = np.random.default_rng(0)
    for shape in ((7, 3, 32), (1, 5, 3), (16, 1, 2), (4, 1, 17)):
        b = ProgramBuilder()
        x = b.input("x", shape, FixedPoint(8, 2, signed=False))
        data = rng.integers(-128, 128, (*kernel, shape[2], 8))
        try:
            y = b.emit(op, [x, b.constant("w", data, FixedPoint(8, 1))], "conv")
        except VerifyError:  # the kernel is larger than the image
            continue
        to = FixedPoint(8, y.type.integer - 2)
        b.output(b.emit(ops.Requantize(to, Rounding.RND, Overflow.SAT), [y], "round"), "y")
        _check(b.build(), 2, 0)
