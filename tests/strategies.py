"""Hypothesis strategies for formats and one-instruction programs, shared by all layers of tests.

``PROGRAMS`` has one strategy for every operation in fxloom.ops.OPS; a test asserts that none is
missing, so a new operation is enrolled in every matrix or the suite fails.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from fxloom import ops
from fxloom.errors import VerifyError
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.program import Program, ProgramBuilder, Value

roundings = st.sampled_from(Rounding)
overflows = st.sampled_from(Overflow)


@st.composite
def formats(draw: DrawFn, max_width: int = 18, spread: int = 6) -> FixedPoint:
    """A format whose binary point may lie outside the mantissa by up to spread bits."""
    width = draw(st.integers(1, max_width))
    integer = draw(st.integers(-spread, width + spread))
    return FixedPoint(width, integer, draw(st.booleans()))


def random_mantissas(kind: FixedPoint, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Mantissas over the whole range of a format, its ends and zero always among them."""
    rng = np.random.default_rng(seed)
    data = rng.integers(kind.lo, kind.hi, size=shape, endpoint=True, dtype=np.int64)
    flat = data.reshape(-1)
    corners = [kind.lo, kind.hi, 0, kind.hi // 2 + 1 if kind.hi > 1 else kind.hi]
    count = min(len(corners), flat.size // 2)
    flat[rng.permutation(flat.size)[:count]] = corners[:count]
    return data


def _constant(draw: DrawFn, builder: ProgramBuilder, shape: tuple[int, ...], width: int) -> Value:
    kind = draw(formats(width))
    data = random_mantissas(kind, shape, draw(st.integers(0, 2**32 - 1)))
    if draw(st.integers(0, 9)) == 0:
        data[...] = 0
    return builder.constant("w", data, kind)


def _input(
    draw: DrawFn, builder: ProgramBuilder, shape: tuple[int, ...], width: int, name: str = "x"
) -> Value:
    return builder.input(name, shape, draw(formats(width)))


def _finish(
    draw: DrawFn, builder: ProgramBuilder, value: Value, requantized: bool = True
) -> Program:
    """Half of the programs end in a Requantize, as real ones do."""
    if requantized and draw(st.booleans()):
        to = draw(formats(14))
        op = ops.Requantize(to, draw(roundings), draw(overflows))
        with contextlib.suppress(VerifyError):  # binary points too far apart: leave it exact
            value = builder.emit(op, [value], "requantize")
    builder.output(value, "y")
    return builder.build()


_small = st.integers(1, 5)


@st.composite
def _matmul(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    leading = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    inner, outer = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    x = _input(draw, b, (*leading, inner), width)
    if leading and draw(st.booleans()):
        w = _input(draw, b, (*leading[:-1], inner, outer), width, "w")
    else:
        w = _constant(draw, b, (inner, outer), width)
    return _finish(draw, b, b.emit(ops.MatMul(), [x, w], "matmul"))


@st.composite
def _conv(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    groups = draw(st.integers(1, 3))
    channels, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    pads = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(2))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [draw(st.integers(max(1, e - sum(p)), 6)) for e, p in zip(extent, pads, strict=True)]
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    x = _input(draw, b, (size[0], size[1], channels * groups), width)
    w = _constant(draw, b, (*kernel, channels, outputs * groups), width)
    op = ops.Conv(stride, (pads[0], pads[1]), dilation, groups)
    return _finish(draw, b, b.emit(op, [x, w], "conv"))


def _pair(op: Callable[[], ops.Op]) -> Callable[[int], SearchStrategy[Program]]:
    @st.composite
    def programs(draw: DrawFn, width: int) -> Program:
        b = ProgramBuilder()
        shape = tuple(draw(st.lists(_small, min_size=1, max_size=3)))
        # Every broadcast that numpy knows: lengths of one and missing leading axes.
        other = tuple(1 if draw(st.integers(0, 3)) == 0 else n for n in shape)
        other = other[draw(st.integers(0, len(other) - 1)) :]
        x = _input(draw, b, shape, width)
        match draw(st.sampled_from(["constant", "input", "self"])):
            case "constant":
                y = _constant(draw, b, other, width)
            case "input":
                y = _input(draw, b, other, width, "z")
            case _:
                y = x
        args = [x, y] if draw(st.booleans()) else [y, x]
        return _finish(draw, b, b.emit(op(), args, "pair"))

    return programs


@st.composite
def _shift(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    x = _input(draw, b, (draw(_small),), width)
    return _finish(draw, b, b.emit(ops.Shift(draw(st.integers(-6, 6))), [x], "shift"))


@st.composite
def _pool(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    pads = tuple((draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in kernel)
    dilation = (1, 1)
    if draw(st.integers(0, 3)) == 0:  # every window must hold a value: no padding then
        pads, dilation = ((0, 0), (0, 0)), (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [draw(st.integers(max(1, e - sum(p)), 7)) for e, p in zip(extent, pads, strict=True)]
    x = _input(draw, b, (size[0], size[1], draw(st.integers(1, 3))), width)
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    kind = draw(st.sampled_from(["sum", "max"]))
    op = ops.Pool(kind, kernel, stride, (pads[0], pads[1]), dilation)
    return _finish(draw, b, b.emit(op, [x], "pool"))


@st.composite
def _reduce_sum(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    shape = tuple(draw(st.lists(_small, min_size=1, max_size=3)))
    axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    x = _input(draw, b, shape, width)
    return _finish(draw, b, b.emit(ops.ReduceSum(tuple(sorted(axes))), [x], "reduce_sum"))


@st.composite
def _reshape(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    a, c, d = draw(_small), draw(_small), draw(_small)
    shape = draw(st.sampled_from([(a * c * d,), (a, c * d), (d, c, a), (1, a * d, c)]))
    x = _input(draw, b, (a, c, d), width)
    return _finish(draw, b, b.emit(ops.Reshape(shape), [x], "reshape"))


@st.composite
def _transpose(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    shape = tuple(draw(st.lists(_small, min_size=1, max_size=4)))
    axes = tuple(draw(st.permutations(range(len(shape)))))
    x = _input(draw, b, shape, width)
    return _finish(draw, b, b.emit(ops.Transpose(axes), [x], "transpose"))


@st.composite
def _concat(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    shape = draw(st.lists(_small, min_size=1, max_size=3))
    axis = draw(st.integers(0, len(shape) - 1))
    parts = []
    for index in range(draw(st.integers(1, 4))):
        part = [*shape[:axis], draw(_small), *shape[axis + 1 :]]
        constant = index > 0 and draw(st.integers(0, 3)) == 0
        parts.append(
            _constant(draw, b, tuple(part), width)
            if constant
            else _input(draw, b, tuple(part), width, f"x{index}")
        )
    return _finish(draw, b, b.emit(ops.Concat(axis), parts, "concat"))


@st.composite
def _pad(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    shape = tuple(draw(st.lists(_small, min_size=1, max_size=3)))
    pads = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in shape)
    x = _input(draw, b, shape, width)
    return _finish(draw, b, b.emit(ops.Pad(pads), [x], "pad"))


@st.composite
def _requantize(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    x = _input(draw, b, (16,), width)
    op = ops.Requantize(draw(formats(width)), draw(roundings), draw(overflows))
    return _finish(draw, b, b.emit(op, [x], "requantize"), requantized=False)


@st.composite
def _divide(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    x = _input(draw, b, (3, 4), width)
    shape = draw(st.sampled_from([(1,), (3, 1), (4,), (3, 4)]))
    divisors = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(1, 50, shape)
    d = b.constant("d", divisors, FixedPoint.holding(1, 49, 0))
    op = ops.Divide(draw(formats(width)), draw(roundings), draw(overflows))
    return _finish(draw, b, b.emit(op, [x, d], "divide"), requantized=False)


@st.composite
def _reduce_max(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    shape = tuple(draw(st.lists(_small, min_size=1, max_size=3)))
    axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    x = _input(draw, b, shape, width)
    return _finish(draw, b, b.emit(ops.ReduceMax(tuple(sorted(axes))), [x], "reduce_max"))


@st.composite
def _lookup(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    source = draw(formats(min(width, 10)))
    x = b.input("x", (12,), source)
    if draw(st.booleans()):  # an interval narrower than the format
        half = b.constant("half", np.array([0]), FixedPoint(1, 1 - source.fraction, False))
        x = b.emit(ops.Max(), [x, half], "max")
    table = _constant(draw, b, (1 << source.width,), width)
    return _finish(draw, b, b.emit(ops.Lookup(source), [x, table], "lookup"))


def _positive(draw: DrawFn, b: ProgramBuilder, shape: tuple[int, ...], width: int) -> Value:
    """A value of which a constant maximum proves that it is positive."""
    kind = draw(formats(width))
    least = draw(st.integers(1, max(kind.hi, 1)))
    x = b.input("p", shape, kind)
    floor = FixedPoint.holding(least, least, kind.fraction)
    return b.emit(ops.Max(), [x, b.constant("least", np.array([least]), floor)], "positive")


def _source_of(draw: DrawFn, x: Value) -> FixedPoint:
    width = x.hi.bit_length() + draw(st.integers(0, 3))
    return FixedPoint(width, width - x.type.fraction, False)


@st.composite
def _normalise(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    x = _positive(draw, b, (12,), width)
    op = ops.Normalise(_source_of(draw, x), draw(st.integers(1, 3)))
    return _finish(draw, b, b.emit(op, [x], "normalise"))


@st.composite
def _shift_like(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    shapes = draw(st.sampled_from([((3, 4), (3, 1)), ((12,), (12,)), ((4,), (3, 4))]))
    y = _input(draw, b, shapes[0], width)
    x = _positive(draw, b, shapes[1], min(width, 20))
    op = ops.ShiftLike(_source_of(draw, x), draw(st.integers(1, 3)))
    return _finish(draw, b, b.emit(op, [y, x], "shift_like"))


@st.composite
def _gather(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    shape = tuple(draw(st.lists(_small, min_size=1, max_size=3)))
    axis = draw(st.integers(0, len(shape) - 1))
    start, step = draw(st.integers(0, shape[axis] - 1)), draw(st.sampled_from([-2, -1, 0, 1, 2]))
    run = [start + step * i for i in range(draw(_small)) if 0 <= start + step * i < shape[axis]]
    any_order = st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=7)
    indices = tuple(run if draw(st.booleans()) else draw(any_order))
    x = _input(draw, b, shape, width)
    return _finish(draw, b, b.emit(ops.Gather(axis, indices), [x], "gather"))


@st.composite
def _compare(draw: DrawFn, width: int) -> Program:
    kind = draw(st.sampled_from(["lt", "le", "eq", "ne"]))
    return draw(_pair(lambda: ops.Compare(kind))(width))


@st.composite
def _select(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    shapes = draw(
        st.sampled_from(
            [((3, 4), (3, 4), (1,)), ((4,), (2, 1, 4), (1, 4)), ((2, 1), (2, 3), (2, 3))]
        )
    )
    c = b.input("c", shapes[0], FixedPoint(1, 1, False))
    x = _input(draw, b, shapes[1], width)
    if draw(st.booleans()):
        y = _input(draw, b, shapes[2], width, "y")
    else:
        y = _constant(draw, b, shapes[2], width)
    args = [c, x, y] if draw(st.booleans()) else [c, y, x]
    return _finish(draw, b, b.emit(ops.Select(), args, "select"))


@st.composite
def _argmax(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    shape = tuple(draw(st.lists(_small, min_size=1, max_size=3)))
    x = _input(draw, b, shape, draw(st.sampled_from([2, width])))  # two bits: equals occur
    op = ops.ArgMax(draw(st.integers(0, len(shape) - 1)))
    return _finish(draw, b, b.emit(op, [x], "argmax"))


@st.composite
def _embedding(draw: DrawFn, width: int) -> Program:
    b = ProgramBuilder()
    bits = draw(st.integers(1, 4))
    x = b.input("x", draw(st.sampled_from([(5,), (2, 3)])), FixedPoint(bits, bits, False))
    rows = (1 << bits) + draw(st.integers(0, 2))
    w = _constant(draw, b, (rows, draw(_small)), width)
    return _finish(draw, b, b.emit(ops.Embedding(), [x, w], "embedding"))


PROGRAMS: dict[str, Callable[[int], SearchStrategy[Program]]] = {
    "matmul": _matmul,
    "conv": _conv,
    "add": _pair(ops.Add),
    "sub": _pair(ops.Sub),
    "mul": _pair(ops.Mul),
    "max": _pair(ops.Max),
    "min": _pair(ops.Min),
    "shift": _shift,
    "pool": _pool,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce_max,
    "lookup": _lookup,
    "normalise": _normalise,
    "shift_like": _shift_like,
    "reshape": _reshape,
    "transpose": _transpose,
    "concat": _concat,
    "pad": _pad,
    "gather": _gather,
    "compare": _compare,
    "select": _select,
    "argmax": _argmax,
    "embedding": _embedding,
    "requantize": _requantize,
    "divide": _divide,
}


def random_inputs(program: Program, count: int, seed: int) -> list[np.ndarray[Any, Any]]:
    """Mantissas for every input over its whole range, ends included."""
    return [
        random_mantissas(port.value.type, (count, *port.value.shape), seed + index)
        for index, port in enumerate(program.inputs)
    ]


@st.composite
def graphs(draw: DrawFn, width: int = 8, length: int = 8) -> Program:
    """A program of several instructions whose values are shared, viewed and used again.

    All tensors have 12 elements in a few shapes, so that most operations fit most values.
    """
    b = ProgramBuilder()
    values = [_input(draw, b, draw(st.sampled_from([(12,), (2, 3, 2), (3, 4)])), width)]
    for _ in range(draw(st.integers(2, length))):
        x = draw(st.sampled_from(values))
        with contextlib.suppress(VerifyError):  # too wide by now: try something else
            values.append(_grow(draw, b, x, values, width))
    for index, value in enumerate(draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))):
        b.output(value, f"y{index}")
    return b.build()


def _grow(draw: DrawFn, b: ProgramBuilder, x: Value, values: list[Value], width: int) -> Value:
    kind = draw(
        st.sampled_from(
            ["pair", "pair", "shift", "reshape", "transpose", "requantize", "matmul", "concat"]
        )
    )
    match kind:
        case "pair":
            op = draw(st.sampled_from([ops.Add(), ops.Sub(), ops.Mul(), ops.Max(), ops.Min()]))
            y = draw(st.sampled_from([v for v in values if v.shape == x.shape]))
            return b.emit(op, [x, y], kind)
        case "shift":
            return b.emit(ops.Shift(draw(st.integers(-3, 3))), [x], kind)
        case "reshape":
            shapes = [s for s in [(12,), (2, 3, 2), (3, 4), (24,), (6, 4)] if np.prod(s) == x.size]
            return b.emit(ops.Reshape(draw(st.sampled_from([x.shape, *shapes]))), [x], kind)
        case "transpose":
            axes = tuple(draw(st.permutations(range(len(x.shape)))))
            return b.emit(ops.Transpose(axes), [x], kind)
        case "requantize":
            op = ops.Requantize(draw(formats(width)), draw(roundings), draw(overflows))
            return b.emit(op, [x], kind)
        case "matmul":
            w = _constant(draw, b, (x.shape[-1], x.shape[-1]), 4)
            return b.emit(ops.MatMul(), [x, w], kind)
        case _:
            return b.emit(ops.Concat(draw(st.integers(0, len(x.shape) - 1))), [x, x], kind)
