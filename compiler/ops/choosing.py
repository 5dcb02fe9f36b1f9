"""Comparisons, and what is chosen by them or by a computed index."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fxloom.fixed_point import Int64Array
from fxloom.ops.base import (
    Inferred,
    Operand,
    align,
    aligned,
    broadcast_shape,
    check_axes,
    operation,
    require,
)

_COMPARE = {"lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal}


@operation
class Compare:
    """1 where a < b (kind "lt"), a <= b ("le"), a == b ("eq") or a != b ("ne"), else 0,
    broadcasting."""

    kind: str
    name: ClassVar[str] = "compare"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        require(self.kind in _COMPARE, f"compare kind must be one of {', '.join(_COMPARE)}")
        align(args)
        return Inferred(broadcast_shape(args), 0, 0, 1)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        a, b = aligned(args, arrays)
        return _COMPARE[self.kind](a, b).astype(np.int64)


@operation
class Select:
    """a where condition is 1, b where it is 0, broadcasting."""

    name: ClassVar[str] = "select"
    arity: ClassVar[int | None] = 3

    def infer(self, args: Sequence[Operand]) -> Inferred:
        condition, *rest = args
        require(
            condition.fraction == 0 and condition.lo >= 0 and condition.hi <= 1,
            f"the condition of select must be 0 or 1, got [{condition.lo}, {condition.hi}]",
        )
        fraction, ((alo, ahi), (blo, bhi)) = align(rest)
        return Inferred(broadcast_shape(args), fraction, min(alo, blo), max(ahi, bhi))

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        # The condition counts ones, not steps: brought to the others' rank, not to their point.
        fraction = max(arg.fraction for arg in args[1:])
        level = [args[0]._replace(fraction=fraction), *args[1:]]
        condition, a, b = aligned(level, arrays)
        return np.where(condition != 0, a, b)


@operation
class ArgMax:
    """Index of the largest value along an axis, which stays with length 1; the first of equals."""

    axis: int
    name: ClassVar[str] = "argmax"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        check_axes((self.axis,), len(x.shape))
        shape = (*x.shape[: self.axis], 1, *x.shape[self.axis + 1 :])
        return Inferred(shape, 0, 0, x.shape[self.axis] - 1)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        return np.asarray(arrays[0].argmax(axis=self.axis + 1, keepdims=True), dtype=np.int64)


@operation
class Embedding:
    """Row x of the constant table w[V, D] for every integer x: [..., D]."""

    name: ClassVar[str] = "embedding"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        x, w = args
        require(
            w.data is not None and len(w.shape) == 2,
            f"the table of embedding must be a constant [rows, columns], got {w.shape}",
        )
        assert w.data is not None
        require(
            x.fraction == 0 and x.lo >= 0 and x.hi < w.shape[0],
            f"the index of embedding must be an integer from 0 to {w.shape[0] - 1}, got mantissas "
            f"in [{x.lo}, {x.hi}] with {x.fraction} fraction bits",
        )
        rows = w.data[x.lo : x.hi + 1]
        return Inferred((*x.shape, w.shape[1]), w.fraction, int(rows.min()), int(rows.max()))

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        result: Int64Array = arrays[1][arrays[0]]
        return result
