"""What moves values and leaves them as they are."""

from collections.abc import Sequence
from math import prod
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
    check_axes,
    operation,
    require,
)


@operation
class Reshape:
    """The same values in row-major order under another shape."""

    shape: tuple[int, ...]
    name: ClassVar[str] = "reshape"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        require(
            all(n >= 1 for n in self.shape) and prod(self.shape) == prod(x.shape),
            f"reshape must keep the number of values, got {x.shape} to {self.shape}",
        )
        return Inferred(self.shape, x.fraction, x.lo, x.hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        return arrays[0].reshape(-1, *self.shape)


@operation
class Transpose:
    """Axis i of the result is axis axes[i] of the argument."""

    axes: tuple[int, ...]
    name: ClassVar[str] = "transpose"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        check_axes(self.axes, len(x.shape))
        require(len(self.axes) == len(x.shape), f"transpose of {x.shape} got axes {self.axes}")
        return Inferred(tuple(x.shape[a] for a in self.axes), x.fraction, x.lo, x.hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        return arrays[0].transpose(0, *(axis + 1 for axis in self.axes))


@operation
class Concat:
    """The arguments one after another along an axis."""

    axis: int
    name: ClassVar[str] = "concat"
    arity: ClassVar[int | None] = None

    def infer(self, args: Sequence[Operand]) -> Inferred:
        require(len(args) >= 1, "concat needs at least one argument")
        first = args[0].shape
        check_axes((self.axis,), len(first))
        rest = [arg.shape[: self.axis] + arg.shape[self.axis + 1 :] for arg in args]
        require(
            all(len(arg.shape) == len(first) for arg in args) and len(set(rest)) == 1,
            f"concat along axis {self.axis} needs equal shapes elsewhere, got "
            f"{[arg.shape for arg in args]}",
        )
        length = sum(arg.shape[self.axis] for arg in args)
        fraction, intervals = align(args)
        return Inferred(
            (*first[: self.axis], length, *first[self.axis + 1 :]),
            fraction,
            min(lo for lo, _ in intervals),
            max(hi for _, hi in intervals),
        )

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        batch = next(len(x) for x, arg in zip(arrays, args, strict=True) if arg.data is None)
        parts = [
            x if arg.data is None else np.broadcast_to(x, (batch, *arg.shape))
            for x, arg in zip(aligned(args, arrays), args, strict=True)
        ]
        return np.concatenate(parts, axis=self.axis + 1)


@operation
class Pad:
    """Zeros around x: padding[i] = (before, after) of axis i."""

    padding: tuple[tuple[int, int], ...]
    name: ClassVar[str] = "pad"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        require(
            len(self.padding) == len(x.shape) and all(min(pair) >= 0 for pair in self.padding),
            f"pad of {x.shape} needs one pair of non-negative lengths an axis, got {self.padding}",
        )
        shape = tuple(n + sum(pair) for n, pair in zip(x.shape, self.padding, strict=True))
        return Inferred(shape, x.fraction, min(x.lo, 0), max(x.hi, 0))

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        return np.pad(arrays[0], ((0, 0), *self.padding))


@operation
class Gather:
    """Entries of x along an axis, in any order and any number: result[i] = x[indices[i]].

    Slices, flips, repetitions and nearest-neighbour upsampling are of this kind.
    """

    axis: int
    indices: tuple[int, ...]
    name: ClassVar[str] = "gather"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        check_axes((self.axis,), len(x.shape))
        length = x.shape[self.axis]
        require(
            len(self.indices) >= 1 and all(0 <= index < length for index in self.indices),
            f"gather needs indices within an axis of {length}, got {self.indices}",
        )
        shape = (*x.shape[: self.axis], len(self.indices), *x.shape[self.axis + 1 :])
        return Inferred(shape, x.fraction, x.lo, x.hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        return arrays[0].take(self.indices, axis=self.axis + 1)
