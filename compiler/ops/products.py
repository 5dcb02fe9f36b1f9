"""Sums of products with constant weights."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fxloom.fixed_point import (
    Int64Array,
    IntArray,
)
from fxloom.ops.base import (
    Inferred,
    Operand,
    operation,
    require,
)


def weight_sums(weight: IntArray, axes: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Sums over axes of the negative and of the positive weights, exact, one per output."""
    largest = max(abs(int(weight.max(initial=0))), abs(int(weight.min(initial=0))))
    fits = largest * max(weight.size, 1) < 2**62
    wide: Any = np.int64 if fits else object
    source = weight if fits else weight.astype(object)
    zero = source.dtype.type(0) if fits else 0
    negative = np.minimum(source, zero).sum(axis=axes, dtype=wide).reshape(-1)
    positive = np.maximum(source, zero).sum(axis=axes, dtype=wide).reshape(-1)
    return [int(n) for n in negative], [int(p) for p in positive]


def dot_bounds(lo: int, hi: int, weight: IntArray, axes: tuple[int, ...]) -> tuple[int, int]:
    """Interval of a sum of products of constant weights with inputs from lo to hi."""
    sums = list(zip(*weight_sums(weight, axes), strict=True))
    return (
        min(positive * lo + negative * hi for negative, positive in sums),
        max(positive * hi + negative * lo for negative, positive in sums),
    )


@operation
class MatMul:
    """x[..., K] times the constant w[K, N]: [..., N]; or x[..., M, K] times the computed
    y[..., K, N], with the same leading axes: [..., M, N]."""

    name: ClassVar[str] = "matmul"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        x, w = args
        if w.data is None:
            return _computed(x, w)
        require(
            len(x.shape) >= 1 and len(w.shape) == 2 and x.shape[-1] == w.shape[0],
            f"matmul needs x[..., K] and w[K, N], got {x.shape} and {w.shape}",
        )
        lo, hi = dot_bounds(x.lo, x.hi, w.data, (0,))
        return Inferred((*x.shape[:-1], w.shape[1]), x.fraction + w.fraction, lo, hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        product: Int64Array = np.matmul(arrays[0], arrays[1])
        return product


def _computed(x: Operand, y: Operand) -> Inferred:
    require(
        len(x.shape) >= 2
        and len(x.shape) == len(y.shape)
        and x.shape[:-2] == y.shape[:-2]
        and x.shape[-1] == y.shape[-2],
        f"matmul of computed values needs x[..., M, K] and y[..., K, N], got {x.shape} and "
        f"{y.shape}",
    )
    ends = [x.shape[-1] * a * b for a in (x.lo, x.hi) for b in (y.lo, y.hi)]
    shape = (*x.shape[:-1], y.shape[-1])
    return Inferred(shape, x.fraction + y.fraction, min(ends), max(ends))
