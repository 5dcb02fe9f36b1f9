"""Arithmetic of pairs of values, broadcasting."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fxloom.fixed_point import (
    Int64Array,
)
from fxloom.ops.base import (
    Inferred,
    Operand,
    align,
    aligned,
    broadcast_shape,
    operation,
)


@operation
class Add:
    """a + b, broadcasting."""

    name: ClassVar[str] = "add"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        fraction, ((alo, ahi), (blo, bhi)) = align(args)
        return Inferred(broadcast_shape(args), fraction, alo + blo, ahi + bhi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        a, b = aligned(args, arrays)
        return a + b


@operation
class Sub:
    """a - b, broadcasting."""

    name: ClassVar[str] = "sub"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        fraction, ((alo, ahi), (blo, bhi)) = align(args)
        return Inferred(broadcast_shape(args), fraction, alo - bhi, ahi - blo)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        a, b = aligned(args, arrays)
        return a - b


@operation
class Mul:
    """a * b, broadcasting."""

    name: ClassVar[str] = "mul"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        a, b = args
        products = _products(a, b)
        return Inferred(
            broadcast_shape(args), a.fraction + b.fraction, min(products), max(products)
        )

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        # Only the ranks matter here: mantissas multiply as they are.
        level = [arg._replace(fraction=0) for arg in args]
        a, b = aligned(level, arrays)
        return a * b


@operation
class Max:
    """The larger of a and b, broadcasting."""

    name: ClassVar[str] = "max"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        fraction, ((alo, ahi), (blo, bhi)) = align(args)
        return Inferred(broadcast_shape(args), fraction, max(alo, blo), max(ahi, bhi))

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        a, b = aligned(args, arrays)
        return np.maximum(a, b)


@operation
class Min:
    """The smaller of a and b, broadcasting."""

    name: ClassVar[str] = "min"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        fraction, ((alo, ahi), (blo, bhi)) = align(args)
        return Inferred(broadcast_shape(args), fraction, min(alo, blo), min(ahi, bhi))

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        a, b = aligned(args, arrays)
        return np.minimum(a, b)


@operation
class Shift:
    """x * 2**bits: the binary point moves, the mantissas stay."""

    bits: int
    name: ClassVar[str] = "shift"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        return Inferred(x.shape, x.fraction - self.bits, x.lo, x.hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        return arrays[0]


def _products(a: Operand, b: Operand) -> list[int]:
    return [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
