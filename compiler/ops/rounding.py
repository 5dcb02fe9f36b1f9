"""The two operations that round, into a declared format."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from fxloom.fixed_point import (
    FixedPoint,
    Int64Array,
    Overflow,
    Rounding,
    fit,
    requantize,
    round_quotient,
)
from fxloom.ops.base import (
    Inferred,
    Operand,
    broadcast_shape,
    operation,
    require,
    require_int64,
)


@operation
class Requantize:
    """Round and fit into a declared format."""

    to: FixedPoint
    rounding: Rounding = Rounding.TRN
    overflow: Overflow = Overflow.WRAP
    name: ClassVar[str] = "requantize"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        lo, hi = _fitted_bounds(*self._rounded(x), self.to, self.overflow)
        return Inferred(x.shape, self.to.fraction, lo, hi, self.to)

    def _rounded(self, x: Operand) -> tuple[int, int]:
        dropped = x.fraction - self.to.fraction
        if dropped <= 0:
            lo, hi = x.lo << -dropped, x.hi << -dropped
            require_int64(lo, hi, "requantize to a finer binary point")
            return lo, hi
        return (
            _exact_quotient(x.lo, 1 << dropped, self.rounding),
            _exact_quotient(x.hi, 1 << dropped, self.rounding),
        )

    def without_idle_overflow(self, x: Operand) -> "Requantize":
        """The same with WRAP, which is wires, where no value of x overflows, proven."""
        lo, hi = self._rounded(x)
        symmetric = self.overflow is Overflow.SAT_SYM and self.to.signed
        if (-self.to.hi if symmetric else self.to.lo) <= lo and hi <= self.to.hi:
            return replace(self, overflow=Overflow.WRAP)
        return self

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        return requantize(arrays[0], args[0].fraction, self.to, self.rounding, self.overflow)


@operation
class Divide:
    """x / d for positive constant integers d (broadcasting to x), rounded once into a format.

    d: mantissas with fraction 0. An average pool is a sum and a Divide.
    """

    to: FixedPoint
    rounding: Rounding = Rounding.TRN
    overflow: Overflow = Overflow.WRAP
    name: ClassVar[str] = "divide"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        x, d = args
        require(
            d.data is not None and d.lo >= 1 and d.fraction == 0,
            "the divisor must be constant positive integers",
        )
        require(broadcast_shape(args) == x.shape, "the divisor must broadcast to the dividend")
        up, down = self._shifts(x.fraction)
        lo, hi = x.lo << up, x.hi << up
        require_int64(lo, hi, "divide")
        require_int64(0, d.hi << down, "divide")
        ends = [
            _exact_quotient(n, q << down, self.rounding) for n in (lo, hi) for q in (d.lo, d.hi)
        ]
        low, high = _fitted_bounds(min(ends), max(ends), self.to, self.overflow)
        return Inferred(x.shape, self.to.fraction, low, high, self.to)

    def _shifts(self, fraction: int) -> tuple[int, int]:
        """Left shifts of dividend and divisor that make the quotient come out in to's units."""
        finer = self.to.fraction - fraction
        return max(finer, 0), max(-finer, 0)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        up, down = self._shifts(args[0].fraction)
        quotient = round_quotient(arrays[0] << up, arrays[1] << down, self.rounding)
        return fit(quotient, self.to, self.overflow)


def _fitted_bounds(lo: int, hi: int, to: FixedPoint, overflow: Overflow) -> tuple[int, int]:
    """Interval after an overflow mode, of rounded values from lo to hi."""
    if to.lo <= lo and hi <= to.hi and overflow is not Overflow.SAT_SYM:
        return lo, hi
    if overflow is Overflow.WRAP:
        return to.lo, to.hi
    low = -to.hi if overflow is Overflow.SAT_SYM and to.signed else to.lo
    if overflow is Overflow.SAT_ZERO:
        # What lies beyond becomes zero; what is left lies within both intervals.
        inside = (max(lo, to.lo), min(hi, to.hi))
        if inside[0] > inside[1]:
            return 0, 0
        return min(inside[0], 0), max(inside[1], 0)
    return min(max(lo, low), to.hi), min(max(hi, low), to.hi)


def _exact_quotient(n: int, d: int, rounding: Rounding) -> int:
    """One rounded quotient of integers of any size, by the int64 code where it fits."""
    if abs(n) < 2**62 and d < 2**62:
        return int(round_quotient(np.array([n]), d, rounding)[0])
    quotient, remainder = divmod(n, d)
    # Three states of the remainder decide: scale them down to a denominator of four.
    twice = 2 * remainder
    state = 0 if remainder == 0 else 1 if twice < d else 2 if twice == d else 3
    low_bits = quotient % 2  # parity for ties to even
    sign_keeper = low_bits - 2 if n < 0 else low_bits
    small = int(round_quotient(np.array([sign_keeper * 4 + state]), 4, rounding)[0])
    return quotient + (small - sign_keeper)
