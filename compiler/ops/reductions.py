"""Sums and extremes over axes."""

from collections.abc import Sequence
from math import prod
from typing import ClassVar

from fxloom.fixed_point import (
    Int64Array,
)
from fxloom.ops.base import (
    Inferred,
    Operand,
    check_axes,
    operation,
)


@operation
class ReduceSum:
    """Sum over axes; they stay with length 1."""

    axes: tuple[int, ...]
    name: ClassVar[str] = "reduce_sum"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        check_axes(self.axes, len(x.shape))
        count = prod(x.shape[axis] for axis in self.axes)
        shape = tuple(1 if axis in self.axes else n for axis, n in enumerate(x.shape))
        return Inferred(shape, x.fraction, count * x.lo, count * x.hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        result: Int64Array = arrays[0].sum(axis=tuple(a + 1 for a in self.axes), keepdims=True)
        return result


@operation
class ReduceMax:
    """Largest value over axes; they stay with length 1."""

    axes: tuple[int, ...]
    name: ClassVar[str] = "reduce_max"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        check_axes(self.axes, len(x.shape))
        shape = tuple(1 if axis in self.axes else n for axis, n in enumerate(x.shape))
        return Inferred(shape, x.fraction, x.lo, x.hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        result: Int64Array = arrays[0].max(axis=tuple(a + 1 for a in self.axes), keepdims=True)
        return result
