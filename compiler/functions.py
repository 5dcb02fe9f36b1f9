"""Functions of one number that become tables: from an ATen op to correctly rounded entries.

Everything is computed in decimal arithmetic of 40 digits, so that a table is the same on every
machine, whatever its libm. Where that leaves in doubt which way an entry rounds, 130 digits decide;
what is a tie even then is one, and goes to even.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import (
    MAX_EMAX,
    MIN_EMIN,
    ROUND_FLOOR,
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    getcontext,
    localcontext,
)
from functools import lru_cache, partial
from math import erf as float_erf
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from fxloom.fixed_point import FixedPoint, Int64Array, Overflow, Rounding, fit, round_quotient
from fxloom.graph import arguments

aten = torch.ops.aten

DIGITS, MORE_DIGITS = 40, 130
DOUBT = Decimal("1e-6")
"""Distance from a tie below which more digits are asked for: far above the error of float_erf."""

Curve = Callable[[Decimal], Decimal]


@dataclass(frozen=True, slots=True)
class Function:
    """curve: its value. slope: largest magnitude of its derivative over [low, high], or above.

    above: where its domain begins, open; what is not above it counts as the first value that is.
    """

    curve: Curve
    slope: Callable[[float, float], float]
    is_nonnegative: bool = False
    above: float | None = None

    def lowest(self, source: FixedPoint) -> float:
        """The lowest value of a format where the function is taken."""
        lowest = source.lo * source.step
        return lowest if self.above is None else max(lowest, self.above + source.step)

    def within(self, source: FixedPoint) -> Curve:
        """The curve for all values of a format, those outside of the domain included."""
        lowest = Decimal(self.lowest(source))
        return self.curve if self.above is None else lambda x: self.curve(max(x, lowest))


Make = Callable[..., Function]
FUNCTIONS: dict[Any, Make] = {}
"""From an ATen op to a function of the arguments behind its first."""


def function_of(node: Node) -> Function | None:
    """The function that a node computes elementwise, or None."""
    make = FUNCTIONS.get(node.target)
    return None if make is None else make(*arguments(node)[1:], **node.kwargs)


def table_values(curve: Curve, points: Sequence[Decimal], fraction: int) -> list[int]:
    """curve at all points in units of 2**-fraction, rounded to nearest, ties to even. May exceed
    int64."""
    scale = Decimal(2) ** abs(fraction)

    def scaled(x: Decimal) -> Decimal:
        return curve(x) * scale if fraction >= 0 else curve(x) / scale

    entries = []
    for point in points:
        with localcontext(_context(DIGITS)):
            value = scaled(point)
            doubtful = abs(abs(value - value.to_integral_value(ROUND_HALF_EVEN)) - _HALF) < DOUBT
        if doubtful:
            with localcontext(_context(MORE_DIGITS)):
                value = scaled(point)
                tie = (value * 2).to_integral_value(ROUND_HALF_EVEN) / 2
                if abs(value - tie) < Decimal("1e-60"):
                    value = tie
        entries.append(int(value.to_integral_value(ROUND_HALF_EVEN)))
    return entries


_HALF = Decimal("0.5")


def grid(kind: FixedPoint) -> list[Decimal]:
    """All values of a format in the order of their mantissas, exact."""
    with localcontext(_context(400)):
        step = Decimal(2) ** -kind.fraction
        return [mantissa * step for mantissa in range(kind.lo, kind.hi + 1)]


def _context(digits: int) -> Context:
    return Context(
        prec=digits, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[InvalidOperation, DivisionByZero]
    )


def table(curve: Curve, source: FixedPoint, to: FixedPoint) -> Int64Array:
    """The mantissas in to, rounded to nearest and saturated, for every mantissa of source."""
    entries = table_values(curve, grid(source), to.fraction)
    return np.array([min(max(entry, to.lo), to.hi) for entry in entries], dtype=np.int64)


def rounded_table(
    curve: Curve,
    source: FixedPoint,
    to: FixedPoint,
    rounding: Rounding,
    overflow: Overflow,
    mantissas: Sequence[int] | None = None,
) -> Int64Array:
    """The mantissas in to, rounded and fitted by those modes, for every mantissa of source, or for
    some."""
    step = Decimal(2) ** -source.fraction
    with localcontext(_context(400)):
        points = grid(source) if mantissas is None else [n * step for n in mantissas]
    # Quarters of a step say on which side of a half a value lies.
    limit = 1 << 60
    quarters = [min(max(n, -limit), limit) for n in _quarters(curve, points, to.fraction)]
    return fit(round_quotient(np.array(quarters, dtype=np.int64), 4, rounding), to, overflow)


def _quarters(curve: Curve, points: Sequence[Decimal], fraction: int) -> Iterator[int]:
    """The curve in units of 2**-(fraction + 2): exact where it is a multiple of two of them, else
    the odd one between."""
    for point in points:
        for digits, doubt in ((DIGITS, DOUBT), (MORE_DIGITS, Decimal("1e-60"))):
            with localcontext(_context(digits)):
                halves = curve(point) * Decimal(2) ** (fraction + 1)
                whole = halves.to_integral_value(ROUND_HALF_EVEN)
                is_whole = abs(halves - whole) < doubt
                below = int(halves.to_integral_value(ROUND_FLOOR))
            if not is_whole:
                break
        yield 2 * int(whole) if is_whole else 2 * below + 1


def table_error(curve: Curve, source: FixedPoint, to: FixedPoint, entries: Int64Array) -> float:
    """Largest distance of a table's entries from the curve at the values of source.

    Where the curve leaves to's range the entries saturate, by declaration; those do not count.
    """
    worst = Decimal(0)
    with localcontext(_context(DIGITS)):
        step = Decimal(2) ** -to.fraction
        for entry, point in zip(entries.tolist(), grid(source), strict=True):
            value = curve(point)
            if (to.lo - _HALF) * step <= value <= (to.hi + _HALF) * step:
                worst = max(worst, abs(entry * step - value))
    return float(worst)


@lru_cache(maxsize=32)
def tabulated(curve: Curve, source: FixedPoint, to: FixedPoint) -> tuple[Int64Array, float]:
    """A table and its error; the steps of a recurrence ask for the same ones again and again."""
    entries = table(curve, source, to)
    entries.flags.writeable = False
    return entries, table_error(curve, source, to, entries)


# The curves. All arithmetic is Decimal; constants are exact or given to more digits than needed.


def _number(number: float) -> Decimal:
    return Decimal(float(number))


def exponential(x: Decimal) -> Decimal:
    """exp(x); beyond +-1000 no format tells values apart, and Decimal takes forever."""
    return min(max(x, _LOWEST), -_LOWEST).exp()


_LOWEST = Decimal(-1000)


def _sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + exponential(-x))


def _tanh(x: Decimal) -> Decimal:
    return 1 - 2 / (1 + exponential(2 * x))


def _softplus(x: Decimal) -> Decimal:
    return max(x, Decimal(0)) + (1 + exponential(-abs(x))).ln()


def _erf(x: Decimal) -> Decimal:
    """The error function; series of Abramowitz and Stegun 7.1.6, free of cancellation."""
    if _precision() <= DIGITS:
        return Decimal(float_erf(float(x)))
    if abs(x) > 18:  # 1 - erf(18) < 1e-142
        return Decimal(1).copy_sign(x)
    term = total = x
    n = 0
    while abs(term) > abs(total) * Decimal(10) ** -MORE_DIGITS:
        n += 1
        term = term * 2 * x * x / (2 * n + 1)
        total += term
    return 2 / _PI.sqrt() * (-x * x).exp() * total


def _precision() -> int:
    return getcontext().prec


_PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534"
    "2117067982148086513282306647093844609550582231725359408128481117450284102701938521105559644623"
)


def _gelu(x: Decimal) -> Decimal:
    return x * (1 + _erf(x / Decimal(2).sqrt())) / 2


def _gelu_tanh(x: Decimal) -> Decimal:
    inner = (2 / _PI).sqrt() * (x + Decimal("0.044715") * x**3)
    return x * (1 + _tanh(inner)) / 2


def _hard_sigmoid(x: Decimal) -> Decimal:
    return min(max(x + 3, Decimal(0)), Decimal(6)) / 6


def _sine(x: Decimal) -> Decimal:
    """The series, after whole turns are taken off."""
    turn = 2 * _PI
    x -= turn * (x / turn).to_integral_value(ROUND_HALF_EVEN)
    term = total = x
    n = 1
    while abs(term) > Decimal(10) ** -_precision():
        n += 2
        term = -term * x * x / (n * (n - 1))
        total += term
    return total


def _steepest(slope: float) -> Callable[[float, float], float]:
    return lambda low, high: slope


def _plain(curve: Curve, slope: float, is_nonnegative: bool = False) -> Make:
    function = Function(curve, _steepest(slope), is_nonnegative)
    return lambda: function


def _make_gelu(approximate: str = "none") -> Function:
    return Function(_gelu_tanh if approximate == "tanh" else _gelu, _steepest(1.13))


def _make_softplus(beta: float = 1, threshold: float = 20) -> Function:
    scale, limit = _number(beta), _number(threshold)

    def curve(x: Decimal) -> Decimal:
        return x if x * scale > limit else _softplus(x * scale) / scale

    return Function(curve, _steepest(1.0), beta > 0)


def _make_elu(alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Function:
    a, s, t = _number(alpha), _number(scale), _number(input_scale)

    def curve(x: Decimal) -> Decimal:
        return s * x if x > 0 else s * a * (exponential(x * t) - 1)

    return Function(curve, _steepest(abs(scale) * max(1.0, abs(alpha * input_scale))))


def _make_celu(alpha: float = 1) -> Function:
    return _make_elu(alpha, 1, 1 / alpha)


def _make_exp(minus: int = 0) -> Function:
    def slope(low: float, high: float) -> float:
        return float(np.exp(min(high, 700.0)))

    return Function(lambda x: exponential(x) - minus, slope, not minus)


def _logarithm(above: float, base: Decimal | None = None) -> Make:
    """log(x - above), to a base."""
    start = Decimal(above)

    def curve(x: Decimal) -> Decimal:
        value = (x - start).ln()
        return value if base is None else value / base.ln()

    factor = 1.0 if base is None else 1 / float(base.ln())
    function = Function(curve, lambda low, high: factor / (low - above), above=above)
    return lambda: function


FUNCTIONS |= {
    aten.sigmoid.default: _plain(_sigmoid, 0.25, True),
    aten.tanh.default: _plain(_tanh, 1.0),
    aten.erf.default: _plain(_erf, 1.13),
    aten.log_sigmoid.default: _plain(lambda x: -_softplus(-x), 1.0),
    aten.hardsigmoid.default: _plain(_hard_sigmoid, 1 / 6, True),
    aten.silu.default: _plain(lambda x: x * _sigmoid(x), 1.1),
    aten.hardswish.default: _plain(lambda x: x * _hard_sigmoid(x), 1.5),
    aten.mish.default: _plain(lambda x: x * _tanh(_softplus(x)), 1.09),
    aten.gelu.default: _make_gelu,
    aten.softplus.default: _make_softplus,
    aten.elu.default: _make_elu,
    aten.celu.default: _make_celu,
    aten.selu.default: partial(_make_elu, 1.6732632423543772, 1.0507009873554805),
    aten.exp.default: _make_exp,
    aten.expm1.default: partial(_make_exp, 1),
    aten.log.default: _logarithm(0.0),
    aten.log2.default: _logarithm(0.0, Decimal(2)),
    aten.log10.default: _logarithm(0.0, Decimal(10)),
    aten.log1p.default: _logarithm(-1.0),
    aten.sin.default: _plain(_sine, 1.0),
    aten.cos.default: _plain(lambda x: _sine(x + _PI / 2), 1.0),
}
