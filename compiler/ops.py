"""The operations of a Program: what each computes, exactly.

Every class is one operation. Its fields are its attributes; ``infer`` gives shape, binary point and
proven interval of the result from those of the arguments (and from the actual values of constants);
``evaluate`` computes it on int64 mantissas. This is the only place where the meaning of an
operation is written; simulator, backends and graph are tested against it.

Shapes are channels-last and carry no batch axis. In ``evaluate`` every computed array has a leading
batch axis and every constant has none, so that both broadcast as their shapes say. Results are
exact; only Requantize and Divide lose information, and they declare their format. (A Lookup loses
it too, but its table says how.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, dataclass_transform

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fxloom.errors import VerifyError
from fxloom.fixed_point import (
    FixedPoint,
    Int64Array,
    IntArray,
    Overflow,
    Rounding,
    fit,
    requantize,
    round_quotient,
    shift_left,
)

Shape = tuple[int, ...]
T = TypeVar("T")
Pads = tuple[tuple[int, int], ...]


class Operand(NamedTuple):
    """What is known about an argument: shape, binary point, interval of mantissas, and its data
    where it is a constant (mantissas of that shape, any integer dtype)."""

    shape: Shape
    fraction: int
    lo: int
    hi: int
    data: IntArray | None = None


class Inferred(NamedTuple):
    """What an operation guarantees of its result. declared is the format of a lossy operation;
    None means the narrowest format that holds lo to hi."""

    shape: Shape
    fraction: int
    lo: int
    hi: int
    declared: FixedPoint | None = None


class Op(Protocol):
    """One operation; implementations are frozen dataclasses registered in OPS."""

    name: ClassVar[str]
    arity: ClassVar[int | None]

    def infer(self, args: Sequence[Operand]) -> Inferred: ...

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array: ...


OPS: dict[str, type[Any]] = {}


@dataclass_transform(frozen_default=True)
def operation(cls: type[T]) -> type[T]:
    """Register a class as an operation under its name, as an immutable dataclass."""
    frozen = dataclass(frozen=True, slots=True)(cls)
    OPS[frozen.name] = frozen  # type: ignore[attr-defined]
    return frozen


def require(condition: bool, requirement: str) -> None:
    """Raise VerifyError with the requirement where it does not hold."""
    if not condition:
        raise VerifyError(requirement)


def _align(args: Sequence[Operand]) -> tuple[int, list[tuple[int, int]]]:
    """Common fraction of the arguments and their intervals in it."""
    fraction = max(arg.fraction for arg in args)
    return fraction, [
        (arg.lo << (fraction - arg.fraction), arg.hi << (fraction - arg.fraction)) for arg in args
    ]


def _aligned(args: Sequence[Operand], arrays: Sequence[Int64Array]) -> list[Int64Array]:
    """Arrays brought to the common fraction and, constants too, to the rank of the result.

    A computed array has its batch axis first; axes that the shape lacks come right behind it, so
    that broadcasting aligns from the last axis as the shapes say.
    """
    fraction = max(arg.fraction for arg in args)
    rank = max(len(arg.shape) for arg in args)
    result = []
    for arg, array in zip(args, arrays, strict=True):
        shifted = shift_left(array, fraction - arg.fraction)
        if arg.data is None and array.ndim - 1 < rank:
            missing = (1,) * (rank + 1 - array.ndim)
            shifted = shifted.reshape(array.shape[0], *missing, *array.shape[1:])
        result.append(shifted)
    return result


def _broadcast_shape(args: Sequence[Operand]) -> Shape:
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*(arg.shape for arg in args)))
    except ValueError:
        shapes = " and ".join(str(arg.shape) for arg in args)
        raise VerifyError(f"shapes must broadcast, got {shapes}") from None


def _products(a: Operand, b: Operand) -> list[int]:
    return [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]


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
    """x[..., K] times the constant w[K, N]: [..., N]."""

    name: ClassVar[str] = "matmul"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        x, w = args
        require(w.data is not None, "the right side of matmul must be a constant")
        assert w.data is not None
        require(
            len(x.shape) >= 1 and len(w.shape) == 2 and x.shape[-1] == w.shape[0],
            f"matmul needs x[..., K] and w[K, N], got {x.shape} and {w.shape}",
        )
        lo, hi = dot_bounds(x.lo, x.hi, w.data, (0,))
        return Inferred((*x.shape[:-1], w.shape[1]), x.fraction + w.fraction, lo, hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        product: Int64Array = np.matmul(arrays[0], arrays[1])
        return product


@operation
class Conv:
    """2-D cross-correlation of x[H, W, C] with the constant w[KH, KW, C/groups, O], zero-padded.

    padding: ((top, bottom), (left, right)). Output channel o reads the input channels of its group
    o // (O / groups), as in torch.nn.Conv2d.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    name: ClassVar[str] = "conv"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        x, w = args
        require(w.data is not None, "the kernel of conv must be a constant")
        assert w.data is not None
        require(
            len(x.shape) == 3 and len(w.shape) == 4,
            f"conv needs x[H, W, C] and w[KH, KW, C/groups, O], got {x.shape} and {w.shape}",
        )
        require(
            self.groups >= 1
            and x.shape[2] == w.shape[2] * self.groups
            and w.shape[3] % self.groups == 0,
            f"conv with {self.groups} groups does not fit {x.shape[2]} input channels and a "
            f"kernel of {w.shape}",
        )
        height, width = window_positions(
            x.shape[:2], w.shape[:2], self.stride, self.padding, self.dilation
        )
        padded = any(n for pair in self.padding for n in pair)
        lo, hi = (min(x.lo, 0), max(x.hi, 0)) if padded else (x.lo, x.hi)
        lo, hi = dot_bounds(lo, hi, w.data, (0, 1, 2))
        return Inferred((height, width, w.shape[3]), x.fraction + w.fraction, lo, hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        x, w = arrays
        kernel = w.shape[:2]
        windows = _windows(x, kernel, self.stride, self.padding, self.dilation, 0)
        outputs = w.shape[3] // self.groups
        parts = []
        for group in range(self.groups):
            channels = slice(group * w.shape[2], (group + 1) * w.shape[2])
            columns = windows[:, :, :, channels].reshape(*windows.shape[:3], -1)
            part = w[..., group * outputs : (group + 1) * outputs]
            # windows are [..., C, KH, KW]
            parts.append(columns @ part.transpose(2, 0, 1, 3).reshape(-1, outputs))
        return np.concatenate(parts, axis=-1)


def window_positions(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Pads,
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, int]:
    """How many windows fit along height and width; VerifyError where an attribute is senseless."""
    require(
        min(*kernel, *stride, *dilation) >= 1 and min(n for pair in padding for n in pair) >= 0,
        f"kernel {tuple(kernel)}, stride {tuple(stride)} and dilation {tuple(dilation)} must be "
        f"positive, padding {padding} not negative",
    )
    counts = []
    for n, k, s, (before, after), d in zip(size, kernel, stride, padding, dilation, strict=True):
        room = n + before + after - (d * (k - 1) + 1)
        require(
            room >= 0, f"a window of {d * (k - 1) + 1} does not fit {n}+{before}+{after} positions"
        )
        counts.append(room // s + 1)
    return counts[0], counts[1]


def _windows(
    x: Int64Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Pads,
    dilation: Sequence[int],
    fill: int,
) -> Int64Array:
    """Sliding windows of x[N, H, W, C]: a view [N, OH, OW, C, KH, KW]."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    windows = sliding_window_view(padded, extent, axis=(1, 2))
    result: Int64Array = windows[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    return result


@operation
class Add:
    """a + b, broadcasting."""

    name: ClassVar[str] = "add"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        fraction, ((alo, ahi), (blo, bhi)) = _align(args)
        return Inferred(_broadcast_shape(args), fraction, alo + blo, ahi + bhi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        a, b = _aligned(args, arrays)
        return a + b


@operation
class Sub:
    """a - b, broadcasting."""

    name: ClassVar[str] = "sub"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        fraction, ((alo, ahi), (blo, bhi)) = _align(args)
        return Inferred(_broadcast_shape(args), fraction, alo - bhi, ahi - blo)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        a, b = _aligned(args, arrays)
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
            _broadcast_shape(args), a.fraction + b.fraction, min(products), max(products)
        )

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        # Only the ranks matter here: mantissas multiply as they are.
        level = [arg._replace(fraction=0) for arg in args]
        a, b = _aligned(level, arrays)
        return a * b


@operation
class Max:
    """The larger of a and b, broadcasting."""

    name: ClassVar[str] = "max"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        fraction, ((alo, ahi), (blo, bhi)) = _align(args)
        return Inferred(_broadcast_shape(args), fraction, max(alo, blo), max(ahi, bhi))

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        a, b = _aligned(args, arrays)
        return np.maximum(a, b)


@operation
class Min:
    """The smaller of a and b, broadcasting."""

    name: ClassVar[str] = "min"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        fraction, ((alo, ahi), (blo, bhi)) = _align(args)
        return Inferred(_broadcast_shape(args), fraction, min(alo, blo), min(ahi, bhi))

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        a, b = _aligned(args, arrays)
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


@operation
class Pool:
    """Sum or maximum over windows of x[H, W, C]; positions in the padding do not take part.

    kind: "sum" or "max". padding: ((top, bottom), (left, right)), each less than the kernel.
    """

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    name: ClassVar[str] = "pool"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        require(self.kind in ("sum", "max"), f"pool kind must be sum or max, got {self.kind!r}")
        require(len(x.shape) == 3, f"pool needs x[H, W, C], got {x.shape}")
        height, width = window_positions(x.shape[:2], self.kernel, self.stride, self.padding)
        require(
            all(n < k for pair, k in zip(self.padding, self.kernel, strict=True) for n in pair),
            f"pool padding {self.padding} must be less than the kernel {self.kernel}, so that "
            "every window holds a value",
        )
        shape = (height, width, x.shape[2])
        if self.kind == "max":
            return Inferred(shape, x.fraction, x.lo, x.hi)
        count = prod(self.kernel)
        padded = any(n for pair in self.padding for n in pair)
        least = 1 if padded else count
        return Inferred(
            shape,
            x.fraction,
            min(count * x.lo, least * x.lo),
            max(count * x.hi, least * x.hi),
        )

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        fill = 0 if self.kind == "sum" else args[0].lo
        windows = _windows(arrays[0], self.kernel, self.stride, self.padding, (1, 1), fill)
        result: Int64Array = (
            windows.sum(axis=(-2, -1)) if self.kind == "sum" else windows.max(axis=(-2, -1))
        )
        return result


@operation
class ReduceSum:
    """Sum over axes; they stay with length 1."""

    axes: tuple[int, ...]
    name: ClassVar[str] = "reduce_sum"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        _check_axes(self.axes, len(x.shape))
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
        _check_axes(self.axes, len(x.shape))
        shape = tuple(1 if axis in self.axes else n for axis, n in enumerate(x.shape))
        return Inferred(shape, x.fraction, x.lo, x.hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        result: Int64Array = arrays[0].max(axis=tuple(a + 1 for a in self.axes), keepdims=True)
        return result


def _check_axes(axes: Sequence[int], rank: int) -> None:
    require(
        len(set(axes)) == len(axes) and all(0 <= axis < rank for axis in axes),
        f"axes must be distinct and within a rank of {rank}, got {tuple(axes)}",
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
        _check_axes(self.axes, len(x.shape))
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
        _check_axes((self.axis,), len(first))
        rest = [arg.shape[: self.axis] + arg.shape[self.axis + 1 :] for arg in args]
        require(
            all(len(arg.shape) == len(first) for arg in args) and len(set(rest)) == 1,
            f"concat along axis {self.axis} needs equal shapes elsewhere, got "
            f"{[arg.shape for arg in args]}",
        )
        length = sum(arg.shape[self.axis] for arg in args)
        fraction, intervals = _align(args)
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
            for x, arg in zip(_aligned(args, arrays), args, strict=True)
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


def _fitted_bounds(lo: int, hi: int, to: FixedPoint, overflow: Overflow) -> tuple[int, int]:
    """Interval after an overflow mode, of rounded values from lo to hi."""
    if to.lo <= lo and hi <= to.hi and overflow is not Overflow.SAT_SYM:
        return lo, hi
    if overflow is Overflow.WRAP:
        return to.lo, to.hi
    low = -to.hi if overflow is Overflow.SAT_SYM and to.signed else to.lo
    if overflow is Overflow.SAT_ZERO:
        # What lies beyond becomes zero; what is left lies within both intervals.
        inside = (max(lo, to.lo), min(hi, to.hi))
        if inside[0] > inside[1]:
            return 0, 0
        return min(inside[0], 0), max(inside[1], 0)
    return min(max(lo, low), to.hi), min(max(hi, low), to.hi)


def _exact_quotient(n: int, d: int, rounding: Rounding) -> int:
    """One rounded quotient of integers of any size, by the int64 code where it fits."""
    if abs(n) < 2**62 and d < 2**62:
        return int(round_quotient(np.array([n]), d, rounding)[0])
    quotient, remainder = divmod(n, d)
    # Three states of the remainder decide: scale them down to a denominator of four.
    twice = 2 * remainder
    state = 0 if remainder == 0 else 1 if twice < d else 2 if twice == d else 3
    low_bits = quotient % 2  # parity for ties to even
    sign_keeper = low_bits - 2 if n < 0 else low_bits
    small = int(round_quotient(np.array([sign_keeper * 4 + state]), 4, rounding)[0])
    return quotient + (small - sign_keeper)


@operation
class Requantize:
    """Round and fit into a declared format."""

    to: FixedPoint
    rounding: Rounding = Rounding.TRN
    overflow: Overflow = Overflow.WRAP
    name: ClassVar[str] = "requantize"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        dropped = x.fraction - self.to.fraction
        if dropped <= 0:
            lo, hi = x.lo << -dropped, x.hi << -dropped
            _require_int64(lo, hi, "requantize to a finer binary point")
        else:
            lo = _exact_quotient(x.lo, 1 << dropped, self.rounding)
            hi = _exact_quotient(x.hi, 1 << dropped, self.rounding)
        lo, hi = _fitted_bounds(lo, hi, self.to, self.overflow)
        return Inferred(x.shape, self.to.fraction, lo, hi, self.to)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        return requantize(arrays[0], args[0].fraction, self.to, self.rounding, self.overflow)


@operation
class Divide:
    """x / d for positive constant integers d (broadcasting to x), rounded once into a format.

    d: mantissas with fraction 0. An average pool is a sum and a Divide.
    """

    to: FixedPoint
    rounding: Rounding = Rounding.TRN
    overflow: Overflow = Overflow.WRAP
    name: ClassVar[str] = "divide"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        x, d = args
        require(
            d.data is not None and d.lo >= 1 and d.fraction == 0,
            "the divisor must be constant positive integers",
        )
        require(_broadcast_shape(args) == x.shape, "the divisor must broadcast to the dividend")
        up, down = self._shifts(x.fraction)
        lo, hi = x.lo << up, x.hi << up
        _require_int64(lo, hi, "divide")
        _require_int64(0, d.hi << down, "divide")
        ends = [
            _exact_quotient(n, q << down, self.rounding) for n in (lo, hi) for q in (d.lo, d.hi)
        ]
        low, high = _fitted_bounds(min(ends), max(ends), self.to, self.overflow)
        return Inferred(x.shape, self.to.fraction, low, high, self.to)

    def _shifts(self, fraction: int) -> tuple[int, int]:
        """Left shifts of dividend and divisor that make the quotient come out in to's units."""
        finer = self.to.fraction - fraction
        return max(finer, 0), max(-finer, 0)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        up, down = self._shifts(args[0].fraction)
        quotient = round_quotient(arrays[0] << up, arrays[1] << down, self.rounding)
        return fit(quotient, self.to, self.overflow)


def _require_int64(lo: int, hi: int, what: str) -> None:
    require(
        max(-lo, hi).bit_length() <= 62,
        f"{what}: the shifted value needs {max(-lo, hi).bit_length()} bits, 62 are possible. "
        "Choose formats whose binary points lie closer together.",
    )


MAX_TABLE_WIDTH = 16
"""Bits of the widest value that can be looked up: beyond it a table is no table any more."""


@operation
class Lookup:
    """table[m - source.lo] for every mantissa m of x: any function of a narrow value.

    source: the format of x, at most 16 bits. The table is a constant with one entry for each of
    its 2**width mantissas; the result has the table's binary point.
    """

    source: FixedPoint
    name: ClassVar[str] = "lookup"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        x, table = args
        require(table.data is not None, "the table of lookup must be a constant")
        assert table.data is not None
        require(
            self.source.width <= MAX_TABLE_WIDTH,
            f"a value of {self.source.width} bits is too wide for a table, {MAX_TABLE_WIDTH} are "
            "possible. Requantize it first",
        )
        require(
            table.shape == (1 << self.source.width,),
            f"the table of lookup needs {1 << self.source.width} entries, got {table.shape}",
        )
        _require_source(x, self.source)
        entries = table.data[x.lo - self.source.lo : x.hi - self.source.lo + 1]
        return Inferred(x.shape, table.fraction, int(entries.min()), int(entries.max()))

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        result: Int64Array = arrays[1][arrays[0] - self.source.lo]
        return result


def _require_source(x: Operand, source: FixedPoint) -> None:
    require(
        x.fraction == source.fraction and source.lo <= x.lo and x.hi <= source.hi,
        f"needs a value of format {source}, got mantissas in [{x.lo}, {x.hi}] with {x.fraction} "
        "fraction bits",
    )


def leading_zeros(mantissa: Int64Array, width: int) -> Int64Array:
    """Zeros before the leading one of positive mantissas in width bits."""
    count = np.zeros_like(mantissa)
    for bit in range(width):
        count += mantissa < (1 << bit)
    return count


def _zeros_between(x: Operand, source: FixedPoint) -> tuple[int, int]:
    """Fewest and most leading zeros of x; VerifyError unless it is positive and in source."""
    require(not source.signed, f"needs an unsigned format, got {source}")
    require(x.lo >= 1, f"needs a positive value, got mantissas in [{x.lo}, {x.hi}]")
    _require_source(x, source)
    return source.width - x.hi.bit_length(), source.width - x.lo.bit_length()


@operation
class Normalise:
    """x shifted left until the leading one of its mantissa is the first bit of source.

    x: positive. The result lies between half of source's range and all of it, so that a table of
    its leading bits has the same relative error for every x.
    """

    source: FixedPoint
    name: ClassVar[str] = "normalise"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        _zeros_between(x, self.source)
        return Inferred(x.shape, x.fraction, 1 << (self.source.width - 1), self.source.hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        return arrays[0] << leading_zeros(arrays[0], self.source.width)


@operation
class ShiftLike:
    """y shifted left by as many bits as Normalise shifts x, broadcasting: f(x) from f(normalise(x))
    where f is a reciprocal."""

    source: FixedPoint
    name: ClassVar[str] = "shift_like"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        y, x = args
        fewest, most = _zeros_between(x, self.source)
        ends = [end << bits for end in (y.lo, y.hi) for bits in (fewest, most)]
        return Inferred(_broadcast_shape(args), y.fraction, min(ends), max(ends))

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        level = [arg._replace(fraction=0) for arg in args]
        y, x = _aligned(level, arrays)
        return y << leading_zeros(x, self.source.width)
