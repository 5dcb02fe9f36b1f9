"""Softmax, its logarithm and logsumexp in integers.

softmax(x)_i = e_i / sum(e) with e_i = exp(x_i - max(x)): the difference is exact and not positive,
so one table holds all its exponentials, the largest being exactly one. The reciprocal of the sum is
that of the normalised sum (leading one first, looked up by its next bits) shifted by as many bits.
log(sum) is looked up octave by octave, so that its error is the same however large the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX
from fxloom.editing import tensor_node
from fxloom.errors import UnsupportedLayer
from fxloom.fixed_point import FixedPoint, Int64Array, Overflow, Rounding
from fxloom.functions import exponential, grid, table, table_values, tabulated
from fxloom.graph import arguments, constant, describe, origin
from fxloom.ops import MAX_TABLE_WIDTH
from fxloom.passes.tabulate import TableError, Writer
from fxloom.quantized_ops import NORMALISE, SHIFT_LIKE
from fxloom.support.core import is_constant

aten = torch.ops.aten

MOST_FRACTION_BITS = 24
"""Finest softmax: beyond it products leave what float64 holds exactly."""


@dataclass(frozen=True, slots=True)
class SoftmaxFormats:
    """Every format of one softmax over `count` values of format source, times scale."""

    source: FixedPoint
    count: int
    scale: float
    exponential: FixedPoint
    total: FixedPoint
    index: FixedPoint
    reciprocal: FixedPoint
    product: FixedPoint
    result: FixedPoint

    @property
    def difference(self) -> FixedPoint:
        """The largest value minus any: never negative."""
        return FixedPoint(self.source.width, self.source.integer, False)

    def exponentials(self) -> Int64Array:
        """exp(-scale * n) for every difference n."""
        return tabulated(self._exponential, self.difference, self.exponential)[0]

    def _exponential(self, n: Decimal) -> Decimal:
        return exponential(-n * Decimal(self.scale))

    def reciprocals(self) -> Int64Array:
        """1 / (leading one + u) for every u of format index."""
        return table(self._reciprocal, self.index, self.reciprocal)

    def _reciprocal(self, u: Decimal) -> Decimal:
        return 1 / (Decimal(2) ** (self.total.integer - 1) + u)

    @property
    def smallest_gap(self) -> float:
        """How far apart, in steps of the result and before it is rounded, the largest value is
        from the next, at least, where their arguments differ by one step; exact in floats.

        Tables fall, so the next value is at most the table's second entry. The reciprocal is
        smallest in the table's last entry, with no shift. Dropping bits of the products costs less
        than one of their steps.
        """
        first = grid(self.difference)[:2]
        one, next_to_one = table_values(self._exponential, first, self.exponential.fraction)
        last = grid(self.index)[-1:]
        (smallest,) = table_values(self._reciprocal, last, self.reciprocal.fraction)
        fraction = self.exponential.fraction + self.reciprocal.fraction
        gap = Fraction((one - next_to_one) * smallest, 2**fraction)
        gap -= Fraction(2) ** -self.product.fraction
        return float(gap / Fraction(self.result.step))

    def error(self) -> TableError:
        """Bounds, with sum(e) >= 1: the sum is off by at most count roundings of e, the
        reciprocal by half a step of its index and a rounding, the result by its last rounding."""
        rounding = self.exponential.step / 2
        exact_index = self.index.fraction >= self.total.fraction
        relative = 0.0 if exact_index else 2.0 ** -(self.index.width + 1)
        relative += 2.0 ** -(self.reciprocal.width - 1)
        last = self.result.step * (1 + 0.25)
        # The slopes of one output by all inputs add up to at most one half.
        argument = self.source.step / 2 * 0.5 * self.scale
        return TableError(self.count * rounding * (1 + relative) + relative + last, argument)


def softmax_formats(
    source: FixedPoint, count: int, width: int, bits: int, scale: float = 1.0
) -> SoftmaxFormats:
    """Formats for a result of width bits, or more where the order would not survive.

    The largest argument keeps the largest result if it is ahead by one step: two values more than
    one step of the result apart stay different in every rounding mode. bits: of the reciprocal's
    index.
    """
    for fraction in range(max(width - 1, 1), MOST_FRACTION_BITS + 1):
        formats = _formats(source, count, fraction, bits, scale)
        if formats.smallest_gap > 1:
            return formats
    raise ValueError(
        f"a softmax over {count} values in steps of {source.step:g} needs more than "
        f"{MOST_FRACTION_BITS} fraction bits to keep their order. Give its input fewer bits"
    )


def _formats(
    source: FixedPoint, count: int, fraction: int, bits: int, scale: float
) -> SoftmaxFormats:
    more = (count - 1).bit_length()
    exponential = FixedPoint(fraction + 2 + (more + 1) // 2, 1, False)
    width = (count << exponential.fraction).bit_length()
    total = FixedPoint(width, width - exponential.fraction, False)
    octave = total.integer - 1  # normalised sums lie in [2**octave, 2**(octave + 1))
    return SoftmaxFormats(
        source=source,
        count=count,
        scale=scale,
        exponential=exponential,
        total=total,
        index=FixedPoint(min(bits, MAX_TABLE_WIDTH, width - 1), octave, False),
        reciprocal=FixedPoint(fraction + 2, 1 - octave, False),
        product=FixedPoint(fraction + 3, 1 - octave, False),
        result=FixedPoint(fraction + 1, 1, False),
    )


def insert_softmax(
    module: fx.GraphModule, node: Node, to: FixedPoint, bits: int, modes: Sequence[Any]
) -> tuple[Node, FixedPoint, TableError]:
    """Softmax in integers, in front of a node that computes it. modes: of the last rounding.

    Masked positions are no larger than any other where the maximum is sought, and their
    exponentials are multiplied by zero.
    """
    is_masked = node.target is MASKED_SOFTMAX
    keep, dim, scale = arguments(node)[1:] if is_masked else (None, arguments(node)[1], 1.0)
    writer = Writer(module, node)
    x, source = writer.argument(bits)
    count = int(node.meta["val"].shape[dim])
    try:
        f = softmax_formats(source, count, to.width, bits, scale)
    except ValueError as error:
        raise UnsupportedLayer([f"{describe(node)}: {error}"]) from None
    seen = x if keep is None else _seen(writer, x, keep, source)
    _, e = _exponentials(writer, x if is_constant(keep) else seen, seen, [dim], f)
    if keep is not None:
        e = _kept(writer, e, keep, dim)
    total = writer.add(aten.sum.dim_IntList, e, [dim], True)
    # At least one in fact; the clamp proves it, and so bounds the shift.
    total = writer.add(aten.clamp.default, total, 1.0, None)
    normal = writer.add(NORMALISE, total, f.total.width, f.total.integer)
    rest = writer.add(aten.sub.Tensor, normal, 2.0 ** (f.total.integer - 1))
    index = writer.requantize(rest, f.index, Rounding.RND, Overflow.SAT)
    inverse = writer.lookup(index, f.index, "reciprocals", f.reciprocals(), f.reciprocal)
    product = writer.add(aten.mul.Tensor, e, inverse)
    product = writer.requantize(product, f.product, Rounding.TRN, Overflow.WRAP)
    shifted = writer.add(SHIFT_LIKE, product, total, f.total.width, f.total.integer)
    return writer.requantize(shifted, f.result, *modes), f.result, f.error()


def _seen(writer: Writer, x: Node, keep: Node, source: FixedPoint) -> Node:
    """x, and the lowest value of its format where it is hidden."""
    lowest = source.lo * source.step
    if not is_constant(keep):
        return writer.add(aten.where.ScalarOther, keep, x, lowest)
    ceiling = _constant(writer, "ceiling", keep, source.hi * source.step, lowest, source)
    return writer.add(aten.minimum.default, x, ceiling)


def _kept(writer: Writer, e: Node, keep: Node, dim: int) -> Node:
    """Exponentials, zero where they are hidden; a constant mask leaves something in every row."""
    if is_constant(keep):
        ones = _constant(writer, "kept", keep, 1.0, 0.0, FixedPoint(1, 1, False))
        return writer.add(aten.mul.Tensor, e, ones)
    within = dim - (e.meta["val"].dim() - keep.meta["val"].dim())
    if within < 0:
        return e  # whole rows are hidden, and so all alike, or none
    some = writer.add(aten.amax.default, keep, [within], True)
    none = writer.add(aten.logical_not.default, some)
    return writer.add(aten.where.ScalarOther, writer.add(aten.logical_or.default, keep, none), e, 0)


def _constant(
    writer: Writer, name: str, keep: Node, yes: float, no: float, kind: FixedPoint
) -> Node:
    """A number where a mask is true and another elsewhere, as a constant of a format."""
    values = torch.where(constant(writer.module, keep.target), yes, no)
    name = f"{origin(writer.like)}.{name}"
    return writer.typed(tensor_node(writer.module, writer.like, name, values, trained=False), kind)


def _exponentials(
    writer: Writer, x: Node, seen: Node, dims: Sequence[int], f: SoftmaxFormats
) -> tuple[Node, Node]:
    """The largest of what is seen, and exp(x - largest), which is at most one."""
    largest = writer.add(aten.amax.default, seen, list(dims), True)
    behind = writer.add(aten.sub.Tensor, largest, x)
    # Never negative in fact where x is seen; the rectifier proves it, and so halves the table.
    behind = writer.add(aten.relu.default, behind)
    e = writer.lookup(behind, f.difference, "exponentials", f.exponentials(), f.exponential)
    return largest, e


# Logarithms


def insert_log_of_sum(
    module: fx.GraphModule, node: Node, to: FixedPoint, bits: int, modes: Sequence[Any]
) -> tuple[Node, FixedPoint, TableError]:
    """logsumexp (dims kept) or log_softmax, rounded once into the format `to`."""
    is_softmax = node.target is aten.log_softmax.int
    dims = [arguments(node)[1]] if is_softmax else list(arguments(node)[1])
    writer = Writer(module, node)
    x, source = writer.argument(bits)
    count = prod(int(arguments(node)[0].meta["val"].shape[dim]) for dim in dims)
    # All exponentials together are off by at most a quarter of the last step.
    fraction = min(max(to.fraction + (count - 1).bit_length() + 1, 2), MOST_FRACTION_BITS)
    f = _formats(source, count, fraction, bits, 1.0)
    f = replace(f, exponential=FixedPoint(fraction + 1, 1, False))
    largest, e = _exponentials(writer, x, x, dims, f)
    total = writer.add(aten.sum.dim_IntList, e, dims, True)
    logarithm, error = _logarithm(writer, total, fraction, count, to, bits)
    if is_softmax:
        y = writer.add(aten.sub.Tensor, x, largest)
        y = y if logarithm is None else writer.add(aten.sub.Tensor, y, logarithm)
    else:
        y = largest if logarithm is None else writer.add(aten.add.Tensor, largest, logarithm)
    error += count * f.exponential.step / 2 + to.step
    # Rounding x moves the largest value and the sum: the slopes add up to one each.
    argument = source.step / 2 * (2 if is_softmax else 1)
    return writer.requantize(y, to, *modes), to, TableError(error, argument)


def _logarithm(
    writer: Writer, total: Node, fraction: int, count: int, to: FixedPoint, bits: int
) -> tuple[Node | None, float]:
    """log(total) for a total from 1 to count, and a bound of its error; None where that is zero.

    Each octave adds what of the logarithm lies in it: all of log(2) below the total, nothing above.
    """
    octaves = (count - 1).bit_length()
    width = min(max(to.fraction + 4, 3), MOST_FRACTION_BITS)
    entry = FixedPoint(width, 0, False)
    result, error = None, octaves * entry.step / 2
    for octave in range(octaves):
        low = 2.0**octave
        part = writer.add(aten.clamp.default, total, low, 2 * low)
        part = writer.add(aten.sub.Tensor, part, low)
        natural = octave + 1 + fraction
        index = FixedPoint(min(bits, MAX_TABLE_WIDTH, natural), octave + 1, False)
        if index.width < natural:
            part = writer.requantize(part, index, Rounding.RND, Overflow.SAT)
            error = max(error, octaves * entry.step / 2 + 2.0**-index.width)
        base = Decimal(2) ** octave

        def curve(u: Decimal, base: Decimal = base) -> Decimal:
            return (1 + min(u, base) / base).ln()

        entries = table(curve, index, entry)
        piece = writer.lookup(part, index, f"logarithms_{octave}", entries, entry)
        result = piece if result is None else writer.add(aten.add.Tensor, result, piece)
    return result, error
