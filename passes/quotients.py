"""Quotients of two computed values in integers: x / y = x * (1 / normalised y), shifted back.

The reciprocal has the same relative error for every divisor. A divisor of zero counts as one step
of its format; where the format is signed, its sign is multiplied into the dividend.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.functions import tabulated
from fxloom.graph import arguments
from fxloom.ops import MAX_TABLE_WIDTH
from fxloom.passes.tabulate import TableError, Writer
from fxloom.quantized_ops import NORMALISE, SHIFT_LIKE

aten = torch.ops.aten

GUARD_BITS = 2
"""Bits of a reciprocal beyond those of the result."""
MOST_ENTRY_BITS = 24


def insert_quotient(
    module: fx.GraphModule, node: Node, to: FixedPoint, bits: int, modes: Sequence[Any]
) -> tuple[Node, FixedPoint, TableError]:
    """x / y (or 1 / y) in front of a quotient node, rounded once into the format `to`."""
    x, y = arguments(node)
    writer = Writer(module, node)
    source = writer.format(y)
    dividend, divisor = x, y
    if source.signed:
        # One step where y is not negative, minus one where it is: a sign that moves no bits.
        sign = writer.add(aten.mul.Tensor, y, 2.0)
        sign = writer.add(aten.add.Tensor, sign, source.step)
        sign = writer.add(aten.clamp.default, sign, -source.step, source.step)
        sign = writer.add(aten.mul.Tensor, sign, 1.0 / source.step)
        dividend = sign if x is None else writer.add(aten.mul.Tensor, x, sign)
        divisor = writer.add(aten.maximum.default, y, writer.add(aten.sub.Tensor, 0.0, y))
    divisor = writer.add(aten.clamp.default, divisor, source.step, None)
    # The magnitude of the lowest negative value needs all of the bits; a table needs one to index.
    width = max(source.width, 2)
    total = FixedPoint(width, width - source.fraction, False)
    octave = total.integer - 1  # normalised values lie in [2**octave, 2**(octave + 1))
    index = FixedPoint(max(min(bits, MAX_TABLE_WIDTH, width - 1), 1), octave, False)
    entry = FixedPoint(min(to.width + GUARD_BITS, MOST_ENTRY_BITS), 1 - octave, False)

    def curve(u: Decimal) -> Decimal:
        return 1 / (Decimal(2) ** octave + u)

    entries, worst = tabulated(curve, index, entry)
    normal = writer.add(NORMALISE, divisor, width, total.integer)
    rest = writer.add(aten.sub.Tensor, normal, 2.0**octave)
    if index.width < width - 1:
        rest = writer.requantize(rest, index, Rounding.RND, Overflow.SAT)
    quotient = writer.lookup(rest, index, "reciprocals", entries, entry)
    if dividend is not None:
        quotient = writer.add(aten.mul.Tensor, dividend, quotient)
    quotient = writer.add(SHIFT_LIKE, quotient, divisor, width, total.integer)
    relative = 0.0 if index.width == width - 1 else 2.0 ** -(index.width + 1)
    relative += worst * 2.0 ** (octave + 1)
    largest = max(-to.lo, to.hi) * to.step
    error = TableError(relative * largest + to.step, 0.0)
    return writer.requantize(quotient, to, *modes), to, error
