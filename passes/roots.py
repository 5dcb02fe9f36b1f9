"""Square roots in integers: norms, rsqrt and sqrt, each with one table and one last rounding.

1 / sqrt(v) is that of the normalised v (its leading one among the first two bits, looked up by its
leading bits) shifted by half as many bits: the relative error is the same for every v, however
small or large.

A norm over N values x_i works on c_i = N * x_i - sum(x), which are exact integers, so that

    (x_i - mean) / sqrt(variance + eps) = c_i * sqrt(N) / sqrt(sum(c * c) + N**3 * eps)

needs no division. c_i is shifted before it meets the table's entry: |c_i| is at most the root of
the sum, so what is shifted is at most the root of the normalised sum, and the product is narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import ceil, floor, frexp, log2, prod, sqrt
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.composite_ops import Scale
from fxloom.editing import float64
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.functions import tabulated
from fxloom.graph import arguments, constant
from fxloom.ops import MAX_TABLE_WIDTH
from fxloom.passes.tabulate import TableError, Writer
from fxloom.quantized_ops import NORMALISE, SHIFT_LIKE

aten = torch.ops.aten

MOST_SQUARED_BITS = 48
"""Bits of a sum of squares: float64 must hold it exactly, and a little more."""
LEAST_SUM_BITS = 10
"""How exact, at least, eps is where it is next to the least sum of squares that is not zero."""
MOST_FACTOR_BITS = 24
"""Bits of the two factors of a norm's product."""
GUARD_BITS = 2
"""Bits that intermediate values have beyond the step of the result."""


def exponent_above(number: float) -> int:
    """Smallest e with number < 2**e."""
    return frexp(number)[1]


@dataclass(frozen=True, slots=True)
class RootTable:
    """gain / sqrt(v) for positive v of format total, by the leading bits of normalised v."""

    total: FixedPoint
    index: FixedPoint
    entry: FixedPoint
    gain: float

    @classmethod
    def of(cls, total: FixedPoint, gain: float, index_bits: int, entry_bits: int) -> RootTable:
        """index_bits: at most this many index the table. entry_bits: of its entries."""
        index = FixedPoint(min(index_bits, MAX_TABLE_WIDTH, total.width), total.integer, False)
        largest = exponent_above(2 * gain / sqrt(2.0**total.integer))
        return cls(total, index, FixedPoint(entry_bits, largest, False), gain)

    @property
    def largest(self) -> float:
        """The largest entry: normalised v are at least a quarter of what the format holds."""
        return 2 * self.gain / sqrt(2.0**self.total.integer)

    def curve(self, u: Decimal) -> Decimal:
        """gain / sqrt(u), from the smallest normalised value on."""
        return Decimal(self.gain) / max(u, Decimal(2) ** (self.total.integer - 2)).sqrt()

    @property
    def relative_error(self) -> float:
        """Bound: half a step of the index at the smallest value, and the rounding of an entry."""
        lost = 0.0 if self.index.width == self.total.width else 1.05 * 2.0**-self.index.width
        _, worst = tabulated(self.curve, self.index, self.entry)
        return lost + worst / (self.largest / 2)

    def insert(self, writer: Writer, total: Node) -> Node:
        """The entry for each value of a positive node."""
        kind = self.total
        normal = writer.add(NORMALISE, total, kind.width, kind.integer, 2)
        if self.index.width < kind.width:
            normal = writer.requantize(normal, self.index, Rounding.RND, Overflow.SAT)
        entries, _ = tabulated(self.curve, self.index, self.entry)
        return writer.lookup(normal, self.index, "roots", entries, self.entry)


# Norms


@dataclass(frozen=True, slots=True)
class NormFormats:
    """Every format of one norm.

    deviation: of c, and square: of the sum of its squares, None where they stay exact. epsilon:
    what is added to that sum, or its lower bound, zero where that is nothing. shifted: of c after
    its shift. product: of c times the root. error: bound for the whole norm's result.
    """

    deviation: FixedPoint | None
    square: FixedPoint | None
    epsilon: float
    root: RootTable
    shifted: FixedPoint
    product: FixedPoint
    error: float


def norm_formats(
    source: FixedPoint, count: int, by: Scale, eps: float, to: FixedPoint, bits: int, gain: float
) -> NormFormats:
    """Formats for a norm over count values of format source.

    to: the format of the result. gain: the largest factor that follows. bits: of the table's index.
    """
    is_centred = by is Scale.DEVIATION
    span = count * (source.hi - source.lo) if is_centred else max(source.hi, -source.lo)
    fraction, deviation = source.fraction, None
    widest = (MOST_SQUARED_BITS - (count - 1).bit_length()) // 2 + 1
    if span.bit_length() + 1 > widest:
        fraction -= span.bit_length() + 1 - widest
        deviation = FixedPoint(widest, widest - fraction, True)
        span = -deviation.lo
    wanted, root_gain = _epsilon_and_gain(by, count, eps)
    # The least sum of squares but zero: one value differs from all others, or from zero, by a step.
    least = (count * (count - 1) if is_centred else 1) * 2.0 ** (-2 * source.fraction)
    least = max(least, 2.0 ** (-2 * fraction))
    # Fine enough for eps where that dominates, and for the least sum where that does.
    precision = min(to.width, MOST_FACTOR_BITS) + GUARD_BITS
    fine = -floor(log2(max(wanted * 2.0**-precision, least * 2.0**-LEAST_SUM_BITS)))
    highest = count * span * span
    fine = min(fine, 2 * fraction + max(MOST_SQUARED_BITS + 2 - highest.bit_length(), 0))
    if wanted * 2.0**fine < 0.5:  # nothing is added, so that no finer steps are needed
        fine = min(fine, 2 * fraction)
    drops = fine < 2 * fraction
    highest = (highest >> (2 * fraction - fine)) + 1 if drops else highest << (fine - 2 * fraction)
    square = FixedPoint(highest.bit_length(), highest.bit_length() - fine, False) if drops else None
    epsilon = round(wanted * 2.0**fine)
    if fine > 2 * fraction:
        epsilon |= 1  # odd: the sum gets the steps that it is meant to have
    width = (max(highest, square.hi if square else 0) + epsilon).bit_length()
    total = FixedPoint(width, width - fine, False)
    entry_bits = min(to.width + GUARD_BITS + 1, MOST_FACTOR_BITS)
    root = RootTable.of(total, root_gain, bits, entry_bits)
    # No |c| exceeds the root of the sum, so none exceeds that of the normalised sum when shifted.
    shifts = (width - max(epsilon, 1).bit_length()) // 2
    top = min(ceil(total.integer / 2), exponent_above(span * 2.0 ** (shifts - fraction)))
    last = to.step / gain * 2.0**-GUARD_BITS
    finest = min(ceil(-log2(last / root.largest)), MOST_FACTOR_BITS - top - 1, fraction)
    finest = max(finest, -top)
    shifted = FixedPoint(top + 1 + finest, top + 1, True)
    product_top = exponent_above(2.0**top * root.largest)
    finest_product = min(ceil(-log2(last)), MOST_FACTOR_BITS - product_top - 1)
    finest_product = max(finest_product, -product_top)
    product = FixedPoint(product_top + 1 + finest_product, product_top + 1, True)
    relative = root.relative_error + 0.5 * (
        ((0.5 if drops else 0.0) + abs(epsilon - wanted * 2.0**fine)) / ((wanted + least) * 2**fine)
    )
    largest = 1.0 if by is Scale.LENGTH else sqrt(count)
    error = largest * relative + shifted.step * root.largest + product.step
    if deviation is not None:
        moved = sqrt(count) * deviation.step / 2 * root_gain / sqrt(wanted + least)
        error += min(moved, 2 * largest)
    return NormFormats(
        deviation, square, epsilon * 2.0**-fine, root, shifted, product, error * gain
    )


def _epsilon_and_gain(by: Scale, count: int, eps: float) -> tuple[float, float]:
    """eps in units of the sum of squares, and the factor of c over its root."""
    match by:
        case Scale.DEVIATION:
            return eps * count**3, sqrt(count)
        case Scale.MEAN_SQUARE:
            return eps * count, sqrt(count)
        case Scale.LENGTH:
            return eps**2, 1.0


def insert_norm(
    module: fx.GraphModule, node: Node, to: FixedPoint, bits: int, modes: Sequence[Any]
) -> tuple[Node, FixedPoint, TableError]:
    """A norm in integers, in front of a standardise node, rounded once into the format `to`."""
    x, weight, bias, dims, eps, kind = arguments(node)
    by = Scale(kind)
    writer = Writer(module, node)
    source = writer.format(x)
    count = prod(int(x.meta["val"].shape[dim]) for dim in dims)
    gain = 1.0 if weight is None else _largest(module, weight.args[0])
    f = norm_formats(source, count, by, eps, to, bits, gain)
    c = x
    if by is Scale.DEVIATION:
        total = writer.add(aten.sum.dim_IntList, x, dims, True)
        c = writer.add(aten.sub.Tensor, writer.add(aten.mul.Tensor, x, float(count)), total)
    if f.deviation is not None:
        c = writer.requantize(c, f.deviation, Rounding.RND, Overflow.SAT)
    square = writer.add(aten.mul.Tensor, c, c)
    square = writer.add(aten.sum.dim_IntList, square, dims, True)
    if f.square is not None:
        square = writer.requantize(square, f.square, Rounding.RND, Overflow.SAT)
    if f.epsilon and by is not Scale.LENGTH:
        square = writer.add(aten.add.Tensor, square, f.epsilon)
    # A sum of zero counts as one step: its deviations are zero. For all others but a length the
    # clamp proves only that they are positive.
    square = writer.add(aten.clamp.default, square, max(f.epsilon, f.root.total.step), None)
    inverse = f.root.insert(writer, square)
    kind = f.root.total
    y = writer.add(SHIFT_LIKE, c, square, kind.width, kind.integer, 2)
    y = writer.requantize(y, f.shifted, Rounding.TRN, Overflow.SAT)
    y = writer.add(aten.mul.Tensor, y, inverse)
    if weight is not None:
        y = writer.requantize(y, f.product, Rounding.TRN, Overflow.SAT)
        y = writer.add(aten.mul.Tensor, y, weight)
    error = f.error
    if bias is not None:
        y = writer.add(aten.add.Tensor, y, writer.finely(bias, to))
        error += to.step * 2.0**-GUARD_BITS / 2
    return writer.requantize(y, to, *modes), to, TableError(error + to.step, 0.0)


def _largest(module: fx.GraphModule, source: Any) -> float:
    """Largest magnitude of a constant; one where that is next to nothing."""
    largest = float(float64(constant(module, source.target)).abs().max())
    return largest if largest > 2.0**-40 else 1.0


# Roots


def insert_root(
    module: fx.GraphModule, node: Node, to: FixedPoint, bits: int, modes: Sequence[Any]
) -> tuple[Node, FixedPoint, TableError]:
    """x ** 0.5 or x ** -0.5, in front of a root node; x is taken for one step where it is less."""
    x, exponent = arguments(node)
    writer = Writer(module, node)
    source = writer.format(x)
    width = max(source.width - source.signed, 1)  # a sign alone is never positive
    total = FixedPoint(width, width - source.fraction, False)
    root = RootTable.of(total, 1.0, bits, min(to.width + GUARD_BITS, MOST_FACTOR_BITS))
    positive = writer.add(aten.clamp.default, x, total.step, None)
    y = root.insert(writer, positive)
    if exponent > 0:
        # sqrt(x) = x / sqrt(x), which is zero for zero.
        y = writer.add(aten.mul.Tensor, writer.add(aten.relu.default, x), y)
    y = writer.add(SHIFT_LIKE, y, positive, total.width, total.integer, 2)
    largest = max(abs(to.lo), to.hi) * to.step
    return (
        writer.requantize(y, to, *modes),
        to,
        TableError(root.relative_error * largest + to.step, 0.0),
    )
