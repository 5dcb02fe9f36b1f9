"""Functions by table, and the floating point that wide reciprocals need."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fxloom.fixed_point import (
    FixedPoint,
    Int64Array,
)
from fxloom.ops.base import (
    Inferred,
    Operand,
    aligned,
    broadcast_shape,
    operation,
    require,
)

MAX_TABLE_WIDTH = 16
"""Bits of the widest value that can be looked up: beyond it a table is no table any more."""


@operation
class Lookup:
    """table[m - source.lo] for every mantissa m of x: any function of a narrow value.

    source: the format of x, at most 16 bits. The table is a constant with one entry for each of
    its 2**width mantissas; the result has the table's binary point.
    """

    source: FixedPoint
    name: ClassVar[str] = "lookup"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        x, table = args
        require(table.data is not None, "the table of lookup must be a constant")
        assert table.data is not None
        require(
            self.source.width <= MAX_TABLE_WIDTH,
            f"a value of {self.source.width} bits is too wide for a table, {MAX_TABLE_WIDTH} are "
            "possible. Requantize it first",
        )
        require(
            table.shape == (1 << self.source.width,),
            f"the table of lookup needs {1 << self.source.width} entries, got {table.shape}",
        )
        require_source(x, self.source)
        entries = table.data[x.lo - self.source.lo : x.hi - self.source.lo + 1]
        return Inferred(x.shape, table.fraction, int(entries.min()), int(entries.max()))

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        result: Int64Array = arrays[1][arrays[0] - self.source.lo]
        return result


def require_source(x: Operand, source: FixedPoint) -> None:
    require(
        x.fraction == source.fraction and source.lo <= x.lo and x.hi <= source.hi,
        f"needs a value of format {source}, got mantissas in [{x.lo}, {x.hi}] with {x.fraction} "
        "fraction bits",
    )


def leading_zeros(mantissa: Int64Array, width: int) -> Int64Array:
    """Zeros before the leading one of positive mantissas in width bits."""
    count = np.zeros_like(mantissa)
    for bit in range(width):
        count += mantissa < (1 << bit)
    return count


def _zeros_between(x: Operand, source: FixedPoint, step: int) -> tuple[int, int]:
    """Fewest and most steps of leading zeros of x; VerifyError unless it is positive, in source."""
    require(step >= 1, f"the step must be positive, got {step}")
    require(not source.signed, f"needs an unsigned format, got {source}")
    require(x.lo >= 1, f"needs a positive value, got mantissas in [{x.lo}, {x.hi}]")
    require_source(x, source)
    zeros = (source.width - x.hi.bit_length(), source.width - x.lo.bit_length())
    return zeros[0] // step, zeros[1] // step


def _shifts(mantissa: Int64Array, source: FixedPoint, step: int) -> Int64Array:
    return leading_zeros(mantissa, source.width) // step


@operation
class Normalise:
    """x shifted left until the leading one of its mantissa is the first bit of source.

    x: positive. The result lies between half of source's range and all of it, so that a table of
    its leading bits has the same relative error for every x. step: shift by multiples of it only,
    so that the leading one is among the first `step` bits.
    """

    source: FixedPoint
    step: int = 1
    name: ClassVar[str] = "normalise"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        _zeros_between(x, self.source, self.step)
        lowest = max(1 << max(self.source.width - self.step, 0), x.lo)
        return Inferred(x.shape, x.fraction, lowest, self.source.hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        (x,) = arrays
        return x << (_shifts(x, self.source, self.step) * self.step)


@operation
class ShiftLike:
    """y shifted left by one bit for every `step` bits that Normalise shifts x, broadcasting:
    f(x) from f(normalise(x)) where f is a reciprocal (step 1) or its square root (step 2)."""

    source: FixedPoint
    step: int = 1
    name: ClassVar[str] = "shift_like"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        y, x = args
        fewest, most = _zeros_between(x, self.source, self.step)
        ends = [end << bits for end in (y.lo, y.hi) for bits in (fewest, most)]
        return Inferred(broadcast_shape(args), y.fraction, min(ends), max(ends))

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        level = [arg._replace(fraction=0) for arg in args]
        y, x = aligned(level, arrays)
        return y << _shifts(x, self.source, self.step)
