"""Tables: functions of one value, and softmax, as lookups whose every rounding is a node.

They are written out by quantize and not by legalize, because which table and how wide follows from
the format of the argument.

softmax(x)_i = e_i / sum(e) with e_i = exp(x_i - max(x)): the difference is exact and not positive,
so one table holds all its exponentials, the largest being exactly one. The reciprocal of the sum is
that of the normalised sum (leading one first, looked up by its next bits) shifted by as many bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import tensor_node
from fxloom.errors import UnsupportedLayer
from fxloom.fixed_point import FixedPoint, Int64Array, Overflow, Rounding
from fxloom.functions import Function, function_of, grid, table, table_values, tabulated
from fxloom.graph import arguments, constant, describe, infer, insert_like, origin
from fxloom.ops import MAX_TABLE_WIDTH
from fxloom.passes.chains import NARROWING, TABLES, find_chains, format_of
from fxloom.quantized_ops import LOOKUP, NORMALISE, REQUANTIZE, SHIFT_LIKE

aten = torch.ops.aten

MOST_FRACTION_BITS = 24
"""Finest softmax: beyond it products leave what float64 holds exactly."""


@dataclass(frozen=True, slots=True)
class TableError:
    """Bounds of an absolute error: of the entries at the argument's values, of rounding the
    argument to one of them (within its range; beyond it saturates), and of both."""

    table: float
    argument: float

    @property
    def bound(self) -> float:
        """Largest distance from the real function."""
        return self.table + self.argument

    def record(self) -> dict[str, float]:
        """For the summary of the pass."""
        return {"table": self.table, "argument": self.argument, "bound": self.bound}


def isolate(module: fx.GraphModule) -> None:
    """Put a narrowing node before every table whose argument is not rounded for tables alone."""
    ends = {chain.end for chain in find_chains(module.graph)}
    for node in list(module.graph.nodes):
        if node.target not in TABLES:
            continue
        x = arguments(node)[0]
        if x in ends and all(user.target in TABLES for user in x.users):
            continue
        with module.graph.inserting_before(node):
            narrowing = insert_like(module.graph, node, NARROWING, (x,))
        narrowing.meta |= {key: x.meta[key] for key in ("val", "batch_axis")}
        node.update_arg(0, narrowing)


class Writer:
    """Inserts nodes one after another in front of a node, with its origin and its batch axis."""

    def __init__(self, module: fx.GraphModule, like: Node) -> None:
        self.module, self.like = module, like

    def add(self, target: Any, *args: Any) -> Node:
        """A node, its shape inferred."""
        with self.module.graph.inserting_before(self.like):
            node = insert_like(self.module.graph, self.like, target, args)
        node.meta |= {
            "val": infer(self.module, node),
            "batch_axis": self.like.meta["batch_axis"],
        }
        return node

    def requantize(self, x: Node, to: FixedPoint, rounding: Rounding, overflow: Overflow) -> Node:
        """x rounded and fitted."""
        modes = (str(rounding), str(overflow))
        return self.add(REQUANTIZE, x, to.width, to.integer, to.signed, *modes)

    def lookup(
        self, x: Node, source: FixedPoint, name: str, entries: Int64Array, to: FixedPoint
    ) -> Node:
        """The entries, mantissas in to, for x of format source."""
        # float64 holds them exactly whatever the model's own type is.
        values = torch.from_numpy(entries.copy()).to(torch.float64) * to.step
        typed = self._same_table(values)
        if typed is None:
            full = f"{origin(self.like)}.{name}"
            buffer = tensor_node(self.module, self.like, full, values, trained=False)
            typed = self.requantize(buffer, to, Rounding.RND_CONV, Overflow.SAT)
            typed.meta["batch_axis"] = None
        return self.add(LOOKUP, x, typed, source.width, source.integer, source.signed)

    def _same_table(self, values: Tensor) -> Node | None:
        """The table of the step before in a recurrence, where it is the same."""
        if not self.like.meta.get("tied"):
            return None
        for node in self.module.graph.find_nodes(op="call_function", target=LOOKUP):
            if node.meta.get("tied") and origin(node) == origin(self.like):
                typed = arguments(node)[1]
                held = constant(self.module, arguments(typed)[0].target)
                if torch.equal(held, values):
                    return typed  # type: ignore[no-any-return]
        return None

    def argument(self, bits: int) -> tuple[Node, FixedPoint]:
        """The node's argument in a format of at most that many bits."""
        x = arguments(self.like)[0]
        assert isinstance(x, Node)
        source = format_of(x)
        if source is None:
            raise UnsupportedLayer([f"{describe(self.like)}: its argument has no format"])
        if source.width <= bits:
            return x, source
        narrow = FixedPoint(bits, source.integer, source.signed)
        return self.requantize(x, narrow, Rounding.RND, Overflow.SAT), narrow


def insert_function(
    module: fx.GraphModule, node: Node, to: FixedPoint, bits: int
) -> tuple[Node, TableError]:
    """A table in front of a node that computes a function. to: the format of its entries."""
    function = function_of(node)
    assert function is not None
    writer = Writer(module, node)
    x, source = writer.argument(bits)
    entries, error = tabulated(function.curve, source, to)
    result = writer.lookup(x, source, "table", entries, to)
    return result, TableError(error, argument_error(function, source))


def argument_error(function: Function, source: FixedPoint) -> float:
    """Half a step of the argument times the steepest slope."""
    low, high = (source.lo - 0.5) * source.step, (source.hi + 0.5) * source.step
    return source.step / 2 * function.slope(low, high)


# Softmax


@dataclass(frozen=True, slots=True)
class SoftmaxFormats:
    """Every format of one softmax over `count` values of format source."""

    source: FixedPoint
    count: int
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
        """exp(-n) for every difference n."""
        return table(_exponential, self.difference, self.exponential)

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
        one, next_to_one = table_values(_exponential, first, self.exponential.fraction)
        last = grid(self.index)[-1:]
        (smallest,) = table_values(self._reciprocal, last, self.reciprocal.fraction)
        fraction = self.exponential.fraction + self.reciprocal.fraction
        gap = Fraction(int(one - next_to_one) * int(smallest), 2**fraction)
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
        argument = self.source.step / 2 * 0.5
        return TableError(self.count * rounding * (1 + relative) + relative + last, argument)


def _exponential(n: Decimal) -> Decimal:
    return (-n).exp()


def softmax_formats(source: FixedPoint, count: int, width: int, bits: int) -> SoftmaxFormats:
    """Formats for a result of width bits, or more where the order would not survive.

    The largest argument keeps the largest result if it is ahead by one step: two values more than
    one step of the result apart stay different in every rounding mode. bits: of the reciprocal's
    index.
    """
    for fraction in range(max(width - 1, 1), MOST_FRACTION_BITS + 1):
        formats = _formats(source, count, fraction, bits)
        if formats.smallest_gap > 1:
            return formats
    raise ValueError(
        f"a softmax over {count} values in steps of {source.step:g} needs more than "
        f"{MOST_FRACTION_BITS} fraction bits to keep their order. Give its input fewer bits"
    )


def _formats(source: FixedPoint, count: int, fraction: int, bits: int) -> SoftmaxFormats:
    more = (count - 1).bit_length()
    exponential = FixedPoint(fraction + 2 + (more + 1) // 2, 1, False)
    width = (count << exponential.fraction).bit_length()
    total = FixedPoint(width, width - exponential.fraction, False)
    octave = total.integer - 1  # normalised sums lie in [2**octave, 2**(octave + 1))
    return SoftmaxFormats(
        source=source,
        count=count,
        exponential=exponential,
        total=total,
        index=FixedPoint(min(bits, MAX_TABLE_WIDTH, width - 1), octave, False),
        reciprocal=FixedPoint(fraction + 2, 1 - octave, False),
        product=FixedPoint(fraction + 3, 1 - octave, False),
        result=FixedPoint(fraction + 1, 1, False),
    )


def insert_softmax(
    module: fx.GraphModule,
    node: Node,
    width: int,
    bits: int,
    modes: Sequence[Any],
) -> tuple[Node, SoftmaxFormats]:
    """Softmax in integers, in front of a node that computes it. modes: of the last rounding."""
    dim = arguments(node)[1]
    writer = Writer(module, node)
    x, source = writer.argument(bits)
    count = int(node.meta["val"].shape[dim])
    try:
        f = softmax_formats(source, count, width, bits)
    except ValueError as error:
        raise UnsupportedLayer([f"{describe(node)}: {error}"]) from None
    largest = writer.add(aten.amax.default, x, [dim], True)
    behind = writer.add(aten.sub.Tensor, largest, x)
    # Never negative in fact; the rectifier proves it, and so halves the table.
    behind = writer.add(aten.relu.default, behind)
    e = writer.lookup(behind, f.difference, "exponentials", f.exponentials(), f.exponential)
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
    return writer.requantize(shifted, f.result, *modes), f
