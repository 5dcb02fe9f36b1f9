"""Exact arithmetic on fractions.Fraction, an oracle that shares nothing with fxloom.ops."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np

from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.program import Instr, Program


def round_exactly(value: Fraction, rounding: Rounding) -> int:
    """value rounded to an integer by a mode of UG1399."""
    below = floor(value)
    rest = value - below
    half = Fraction(1, 2)
    if rest == 0 or rounding is Rounding.TRN:
        return below
    if rounding is Rounding.TRN_ZERO:
        return below + (value < 0)
    if rest != half:
        return below + (rest > half)
    tie_goes_up = {
        Rounding.RND: True,
        Rounding.RND_MIN_INF: False,
        Rounding.RND_ZERO: value < 0,
        Rounding.RND_INF: value > 0,
        Rounding.RND_CONV: below % 2 == 1,
    }
    return below + tie_goes_up[rounding]


def fit_exactly(value: int, to: FixedPoint, overflow: Overflow) -> int:
    """value brought into to's range by an overflow mode of UG1399."""
    lowest = -(2 ** (to.width - 1)) if to.signed else 0
    highest = 2 ** (to.width - 1) - 1 if to.signed else 2**to.width - 1
    if overflow is Overflow.WRAP:
        return (value - lowest) % 2**to.width + lowest
    if overflow is Overflow.SAT_SYM and to.signed:
        lowest = -highest
    if lowest <= value <= highest:
        return value
    if overflow is Overflow.SAT_ZERO:
        return 0
    return highest if value > highest else lowest


Tensor = np.ndarray[Any, Any]  # dtype object, elements Fraction


def as_fractions(mantissas: Tensor, fraction: int) -> Tensor:
    scale = Fraction(2) ** -fraction
    result = np.empty(mantissas.shape, dtype=object)
    for index, mantissa in np.ndenumerate(mantissas):
        result[index] = int(mantissa) * scale
    return result


def _quantized(values: Tensor, op: Any) -> Tensor:
    step = Fraction(2) ** -op.to.fraction
    result = np.empty(values.shape, dtype=object)
    for index, value in np.ndenumerate(values):
        result[index] = (
            fit_exactly(round_exactly(value / step, op.rounding), op.to, op.overflow) * step
        )
    return result


def _matmul(op: Any, x: Tensor, w: Tensor) -> Tensor:
    if w.ndim > 2:
        pairs = [_matmul(op, a, b) for a, b in zip(x, w, strict=True)]
        return np.stack(pairs)
    result = np.empty((*x.shape[:-1], w.shape[1]), dtype=object)
    for index in np.ndindex(*result.shape):
        result[index] = sum(x[(*index[:-1], k)] * w[k, index[-1]] for k in range(w.shape[0]))
    return result


def _window(op: Any, kernel: Any, dilation: Any, x: Tensor, row: int, column: int) -> Any:
    """Positions of one window that lie inside x: (kernel row, kernel column, row, column)."""
    for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
        r = row * op.stride[0] + i * dilation[0] - op.padding[0][0]
        c = column * op.stride[1] + j * dilation[1] - op.padding[1][0]
        if 0 <= r < x.shape[0] and 0 <= c < x.shape[1]:
            yield i, j, r, c


def _counts(op: Any, kernel: Any, dilation: Any, x: Tensor) -> tuple[int, int]:
    counts = []
    for axis in range(2):
        positions = x.shape[axis] + sum(op.padding[axis])
        counts.append(
            len(range(0, positions - dilation[axis] * (kernel[axis] - 1), op.stride[axis]))
        )
    return counts[0], counts[1]


def _conv(op: Any, x: Tensor, w: Tensor) -> Tensor:
    kernel, per_group, outputs = w.shape[:2], w.shape[2], w.shape[3]
    result = np.empty((*_counts(op, kernel, op.dilation, x), outputs), dtype=object)
    for row, column, out in np.ndindex(*result.shape):
        first = out // (outputs // op.groups) * per_group
        result[row, column, out] = sum(
            (
                x[r, c, first + k] * w[i, j, k, out]
                for i, j, r, c in _window(op, kernel, op.dilation, x, row, column)
                for k in range(per_group)
            ),
            Fraction(0),
        )
    return result


def _pool(op: Any, x: Tensor) -> Tensor:
    combine: Callable[[Any], Any] = max if op.kind == "max" else sum
    result = np.empty((*_counts(op, op.kernel, op.dilation, x), x.shape[2]), dtype=object)
    for row, column, channel in np.ndindex(*result.shape):
        result[row, column, channel] = combine(
            x[r, c, channel] for _, _, r, c in _window(op, op.kernel, op.dilation, x, row, column)
        )
    return result


def _pad(op: Any, x: Tensor) -> Tensor:
    shape = [n + before + after for n, (before, after) in zip(x.shape, op.padding, strict=True)]
    result = np.full(shape, Fraction(0), dtype=object)
    for index, value in np.ndenumerate(x):
        result[tuple(i + before for i, (before, _) in zip(index, op.padding, strict=True))] = value
    return result


def _reduce_sum(op: Any, x: Tensor) -> Tensor:
    shape = tuple(1 if axis in op.axes else n for axis, n in enumerate(x.shape))
    result = np.full(shape, Fraction(0), dtype=object)
    for index, value in np.ndenumerate(x):
        result[tuple(0 if axis in op.axes else i for axis, i in enumerate(index))] += value
    return result


def _reduce_max(op: Any, x: Tensor) -> Tensor:
    shape = tuple(1 if axis in op.axes else n for axis, n in enumerate(x.shape))
    result = np.full(shape, None, dtype=object)
    for index, value in np.ndenumerate(x):
        at = tuple(0 if axis in op.axes else i for axis, i in enumerate(index))
        if result[at] is None or value > result[at]:
            result[at] = value
    return result


def _lookup(op: Any, x: Tensor, table: Tensor) -> Tensor:
    step = Fraction(2) ** (op.source.integer - op.source.width)
    first = -(2 ** (op.source.width - 1)) if op.source.signed else 0
    result = np.empty(x.shape, dtype=object)
    for index, value in np.ndenumerate(x):
        result[index] = table[int(value / step) - first]
    return result


def _doublings(value: Fraction, op: Any) -> int:
    """How often value can be multiplied by 2**step without reaching 2**integer."""
    count = 0
    while value * 2 ** ((count + 1) * op.step) < Fraction(2) ** op.source.integer:
        count += 1
    return count


def _gather(op: Any, x: Tensor) -> Tensor:
    parts = [np.moveaxis(x, op.axis, 0)[index] for index in op.indices]
    return np.moveaxis(np.stack(parts), 0, op.axis)


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}


def _select(op: Any, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    condition, a, b = np.broadcast_arrays(condition, a, b)
    result = np.empty(a.shape, dtype=object)
    for index in np.ndindex(*a.shape):
        result[index] = a[index] if condition[index] == 1 else b[index]
    return result


def _argmax(op: Any, x: Tensor) -> Tensor:
    rows = np.moveaxis(x, op.axis, -1)
    result = np.empty(rows.shape[:-1], dtype=object)
    for index in np.ndindex(*result.shape):
        row = list(rows[index])
        result[index] = Fraction(row.index(max(row)))
    return np.expand_dims(result, op.axis)


def _embedding(op: Any, x: Tensor, w: Tensor) -> Tensor:
    result = np.empty((*x.shape, w.shape[1]), dtype=object)
    for index, row in np.ndenumerate(x):
        result[index] = w[int(row)]
    return result


def _pairwise(combine: Callable[[Any, Any], Any]) -> Callable[..., Tensor]:
    def run(op: Any, a: Tensor, b: Tensor) -> Tensor:
        a, b = np.broadcast_arrays(a, b)
        result = np.empty(a.shape, dtype=object)
        for index in np.ndindex(*a.shape):
            result[index] = combine(a[index], b[index])
        return result

    return run


MEANING: dict[str, Callable[..., Tensor]] = {
    "matmul": _matmul,
    "conv": _conv,
    "add": _pairwise(lambda a, b: a + b),
    "sub": _pairwise(lambda a, b: a - b),
    "mul": _pairwise(lambda a, b: a * b),
    "max": _pairwise(max),
    "min": _pairwise(min),
    "shift": lambda op, x: x * Fraction(2) ** op.bits,
    "pool": _pool,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce_max,
    "lookup": _lookup,
    "normalise": lambda op, x: _pairwise(lambda a, _: a * 2 ** (_doublings(a, op) * op.step))(
        op, x, x
    ),
    "shift_like": lambda op, y, x: _pairwise(lambda a, b: a * 2 ** _doublings(b, op))(op, y, x),
    "gather": _gather,
    "compare": lambda op, a, b: _pairwise(lambda x, y: Fraction(int(_COMPARISONS[op.kind](x, y))))(
        op, a, b
    ),
    "select": _select,
    "argmax": _argmax,
    "embedding": _embedding,
    "reshape": lambda op, x: x.reshape(op.shape),
    "transpose": lambda op, x: np.transpose(x, op.axes),
    "concat": lambda op, *parts: np.concatenate(parts, axis=op.axis),
    "pad": _pad,
    "requantize": lambda op, x: _quantized(x, op),
    "divide": lambda op, x, d: _quantized(_pairwise(lambda a, b: a / b)(op, x, d), op),
}


def run_exactly(program: Program, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Every value of one sample as exact rational numbers. inputs: mantissas without batch."""
    values = {
        name: as_fractions(c.data, c.value.type.fraction) for name, c in program.constants.items()
    }
    for port, mantissas in zip(program.inputs, inputs, strict=True):
        values[port.value.name] = as_fractions(mantissas, port.value.type.fraction)
    for instr in program.instrs:
        values[instr.result.name] = _apply(instr, values)
    return values


def _apply(instr: Instr, values: dict[str, Tensor]) -> Tensor:
    return MEANING[instr.op.name](instr.op, *(values[name] for name in instr.args))
