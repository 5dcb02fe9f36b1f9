"""Exact integer arithmetic in floating point: one rule for each operation.

A rule looks at what the program proves about an instruction (intervals, formats, constant weights)
and returns a function on arrays of mantissas in the cheapest carrier that is exact for every
intermediate. It falls back on the int64 definition in fxloom.ops where no float is wide enough.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fxloom.fixed_point import FixedPoint, Int64Array, Overflow, Rounding
from fxloom.ops import (
    ArgMax,
    Compare,
    Concat,
    Conv,
    Lookup,
    MatMul,
    Normalise,
    Op,
    Operand,
    Pad,
    Pool,
    ReduceMax,
    ReduceSum,
    Requantize,
    ShiftLike,
    weight_sums,
)
from fxloom.ops import Divide as DivideOp
from fxloom.program import Value

Array = npt.NDArray[Any]
Run = Callable[[Sequence[Array]], Array]

FLOAT32_EXACT = 2**24
FLOAT64_EXACT = 2**53


@dataclass(frozen=True, slots=True)
class Plan:
    """One instruction to be planned. free[i]: argument i's memory may be overwritten."""

    op: Op
    operands: tuple[Operand, ...]
    result: Value
    free: tuple[bool, ...]

    @property
    def carrier(self) -> np.dtype[Any]:
        """The type that carries the result between instructions."""
        return carrier_for(largest(self.result.lo, self.result.hi))


def largest(lo: int, hi: int) -> int:
    """Largest magnitude in an interval."""
    return max(abs(lo), abs(hi))


def carrier_for(bound: int) -> np.dtype[Any]:
    """The cheapest type in which all integers up to bound, and their sums up to it, are exact."""
    if bound <= FLOAT32_EXACT:
        return np.dtype(np.float32)
    return np.dtype(np.float64 if bound <= FLOAT64_EXACT else np.int64)


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f"


def by_definition(plan: Plan) -> Run:
    """The int64 definition, converted from and to carriers."""
    constants: list[Int64Array | None] = [
        None if operand.data is None else operand.data.astype(np.int64) for operand in plan.operands
    ]

    def run(arrays: Sequence[Array]) -> Array:
        computed = iter(arrays)
        full = [
            next(computed).astype(np.int64) if constant is None else constant
            for constant in constants
        ]
        return plan.op.evaluate(plan.operands, full).astype(plan.carrier, copy=False)

    return run


def _matmul(plan: Plan) -> Run:
    assert isinstance(plan.op, MatMul)
    w = plan.operands[1]
    if w.data is None:
        return _matmul_computed(plan)
    work = carrier_for(dot_bound(plan, (0,)))
    if not _is_float(work):
        return by_definition(plan)
    weight = np.ascontiguousarray(w.data, dtype=work)

    def run(arrays: Sequence[Array]) -> Array:
        product: Array = arrays[0].astype(work, copy=False) @ weight
        result: Array = product.astype(plan.carrier, copy=False)
        return result

    return run


def _matmul_computed(plan: Plan) -> Run:
    x, y = plan.operands
    magnitudes = largest(x.lo, x.hi), largest(y.lo, y.hi)
    work = carrier_for(max(x.shape[-1] * prod(magnitudes), *magnitudes))
    if not _is_float(work):
        return by_definition(plan)

    def run(arrays: Sequence[Array]) -> Array:
        left, right = (array.astype(work, copy=False) for array in arrays)
        with torch.inference_mode():  # batches of small matrices: NumPy multiplies one at a time
            product = torch.matmul(torch.from_numpy(left), torch.from_numpy(right))
        result: Array = product.numpy().astype(plan.carrier, copy=False)
        return result

    return run


def dot_bound(plan: Plan, axes: tuple[int, ...]) -> int:
    """Largest magnitude any partial sum of the products can reach, in any order."""
    x, w = plan.operands
    assert w.data is not None
    magnitude = max(p - n for n, p in zip(*weight_sums(w.data, axes), strict=True))
    return max(magnitude * largest(x.lo, x.hi), largest(x.lo, x.hi), largest(w.lo, w.hi))


def _conv(plan: Plan) -> Run:
    op = plan.op
    assert isinstance(op, Conv)
    w = plan.operands[1]
    assert w.data is not None
    work = carrier_for(dot_bound(plan, (0, 1, 2)))
    if not _is_float(work):
        return by_definition(plan)
    convolve = convolution(op, w.data, work)

    def run(arrays: Sequence[Array]) -> Array:
        y = convolve(channels_first(arrays[0].astype(work, copy=False)))
        return channels_last(y).astype(plan.carrier, copy=False)

    return run


def convolution(
    op: Conv,
    weight: npt.NDArray[np.integer[Any]],
    work: np.dtype[Any],
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The convolution of x[N, C, H, W] with weight[H, W, I, O] * scale, plus a bias."""
    floats = weight.transpose(3, 2, 0, 1).astype(work)
    floats *= work.type(scale)
    kernel = torch.from_numpy(floats).contiguous(memory_format=torch.channels_last)
    (top, bottom), (left, right) = op.padding
    dilation = needed_dilation(op, weight.shape)
    exact = _exact_convolutions(trusted=not _is_miscomputed(op, weight.shape))

    def convolve(x: torch.Tensor) -> torch.Tensor:
        pads = not pads_itself(op, x.shape[2:], weight.shape)
        if pads:
            x = functional.pad(x, (left, right, top, bottom))
        with torch.inference_mode(), exact():
            return functional.conv2d(
                x,
                kernel,
                bias,
                stride=op.stride,
                padding=0 if pads else (top, left),
                dilation=dilation,
                groups=op.groups,
            )

    return convolve


def pads_itself(op: Conv, size: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether torch may pad an image of that size: as much on both sides, no more than "same" does.

    torch 2.13's oneDNN crashes on some convolutions with windows that lie in the padding alone.
    """
    axes = zip(size, weight, op.padding, op.dilation, strict=False)
    return all(
        before == after < n and before + after <= dilation * (taps - 1)
        for n, taps, (before, after), dilation in axes
    )


def needed_dilation(op: Conv, weight: tuple[int, ...]) -> tuple[int, ...]:
    """The dilation, 1 where the kernel has one tap: torch 2.13's oneDNN crashes on some others."""
    return tuple(
        1 if taps == 1 else step for taps, step in zip(weight[:2], op.dilation, strict=True)
    )


def _is_miscomputed(op: Conv, weight: tuple[int, ...]) -> bool:
    """Whether torch 2.13's oneDNN float32 convolution may be wrong.

    With one input channel, unequal strides and an output of width 1 it applies the wrong stride:
    283 of 110,047 random convolutions were wrong, all of this kind, and all right without oneDNN.
    """
    return op.groups == 1 and weight[2] == 1 and op.stride[0] != op.stride[1]


def _exact_convolutions(trusted: bool) -> Callable[[], AbstractContextManager[None]]:
    """oneDNN in full precision, whatever the user has set, or not at all where it is not trusted.

    float32 means all 24 bits here.
    """
    backend: Any = torch.backends.mkldnn
    if trusted:
        return lambda: _setting(backend.conv, "fp32_precision", "ieee", ("none", "ieee"))
    return lambda: _setting(backend, "enabled", False, (False,))


def exact_products() -> AbstractContextManager[None]:
    """torch's matrix products in full precision, whatever the user has set.

    bfloat16, which torch.set_float32_matmul_precision("medium") allows, holds 8 bits.
    """
    backend: Any = torch.backends.mkldnn
    return _setting(backend.matmul, "fp32_precision", "ieee", ("none", "ieee"))


_changing = threading.RLock()


@contextmanager
def _setting(owner: Any, name: str, value: object, fine: tuple[object, ...]) -> Iterator[None]:
    """Another value of a setting for a while, unless it is fine as it is.

    Settings hold for all threads: where one has changed a setting, the others wait for it to be
    put back.
    """
    with _changing:
        before = getattr(owner, name)
        if before not in fine:
            setattr(owner, name, value)
            try:
                yield
            finally:
                setattr(owner, name, before)
            return
    yield


def channels_first(x: Array) -> torch.Tensor:
    """A view [N, C, H, W] of x[N, H, W, C]: torch's channels_last format, no copy."""
    return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)


def channels_last(x: torch.Tensor) -> Array:
    array: Array = np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())
    return array


def _elementwise(
    plan: Plan, function: Callable[..., Array], bound: int, fractions: Sequence[int] | None
) -> Run:
    """function(a, b) on mantissas aligned to the larger of fractions (None: as they are)."""
    work = carrier_for(bound)
    if not _is_float(work):
        return by_definition(plan)
    common = 0 if fractions is None else max(fractions)
    scales = [1.0 if fractions is None else 2.0 ** (common - f) for f in fractions or (0, 0)]
    rank = max(len(operand.shape) for operand in plan.operands)
    constants = [
        None if o.data is None else (o.data * scale).astype(work)
        for o, scale in zip(plan.operands, scales, strict=True)
    ]
    shapes_match = [operand.shape == plan.result.shape for operand in plan.operands]

    def run(arrays: Sequence[Array]) -> Array:
        computed = iter(arrays)
        ready: list[Array] = []
        out: Array | None = None
        for index, constant in enumerate(constants):
            if constant is not None:
                ready.append(constant)
                continue
            x = next(computed)
            owned = plan.free[index]
            if x.dtype != work:
                x, owned = x.astype(work), True
            if scales[index] != 1.0:
                x, owned = np.multiply(x, work.type(scales[index]), out=x if owned else None), True
            if x.ndim - 1 < rank:
                x = x.reshape(len(x), *(1,) * (rank + 1 - x.ndim), *x.shape[1:])
            if owned and shapes_match[index]:
                out = x
            ready.append(x)
        return function(*ready, out=out).astype(plan.carrier, copy=False)

    return run


def _linear_rule(function: Callable[..., Array]) -> Callable[[Plan], Run]:
    """Rule of an operation whose arguments share one binary point: add, sub, max, min."""

    def rule(plan: Plan) -> Run:
        fractions = [operand.fraction for operand in plan.operands]
        common = max(fractions)
        bounds = [
            largest(operand.lo, operand.hi) << (common - operand.fraction)
            for operand in plan.operands
        ]
        return _elementwise(plan, function, sum(bounds), fractions)

    return rule


def _mul(plan: Plan) -> Run:
    bounds = [largest(operand.lo, operand.hi) for operand in plan.operands]
    return _elementwise(plan, np.multiply, max(prod(bounds), *bounds), None)


def _shift(plan: Plan) -> Run:
    return lambda arrays: arrays[0]


def _pool(plan: Plan) -> Run:
    op = plan.op
    assert isinstance(op, Pool)
    (x,) = plan.operands
    count = prod(op.kernel) if op.kind == "sum" else 1
    work = carrier_for(count * largest(x.lo, x.hi))
    if not _is_float(work):
        return by_definition(plan)
    (top, bottom), (left, right) = op.padding
    if op.dilation != (1, 1) and op.kind == "sum":
        return by_definition(plan)
    if _is_tiled(op, x.shape):
        return lambda arrays: _pool_tiles(op, arrays[0].astype(work, copy=False), plan.carrier)
    fill = 0.0 if op.kind == "sum" else float("-inf")

    def run(arrays: Sequence[Array]) -> Array:
        t = channels_first(arrays[0].astype(work, copy=False))
        with torch.inference_mode():
            if top or bottom or left or right:
                t = functional.pad(t, (left, right, top, bottom), value=fill)
            if op.kind == "max":
                y = functional.max_pool2d(t, op.kernel, op.stride, dilation=op.dilation)
            else:
                y = functional.avg_pool2d(t, op.kernel, op.stride, divisor_override=1)
        return channels_last(y).astype(plan.carrier, copy=False)

    return run


def _is_tiled(op: Pool, shape: tuple[int, ...]) -> bool:
    """Whether the windows tile an image of few channels, for which torch's pools are slow."""
    if op.kernel == (1, 1):
        return False  # nothing would be combined, and the result be the argument's own memory
    height, width, channels = shape
    tiles = height % op.kernel[0] == 0 and width % op.kernel[1] == 0 and op.dilation == (1, 1)
    return tiles and op.kernel == op.stride and not np.any(op.padding) and channels <= 16


def _pool_tiles(op: Pool, x: Array, carrier: np.dtype[Any]) -> Array:
    """A pool of x[N, H, W, C] by whole rows, then by columns."""
    combine = torch.add if op.kind == "sum" else torch.maximum
    n, height, width, channels = x.shape
    rows, columns = op.kernel
    with torch.inference_mode():
        t = torch.from_numpy(np.ascontiguousarray(x)).view(n, height // rows, rows, -1)
        y = t[:, :, 0]
        for row in range(1, rows):
            y = combine(y, t[:, :, row])
        t = y.reshape(n, height // rows, width // columns, columns, channels)
        y = t[:, :, :, 0]
        for column in range(1, columns):
            y = combine(y, t[:, :, :, column])
        result: Array = y.contiguous().numpy()
    return result.astype(carrier, copy=False)


def _reduce_sum(plan: Plan) -> Run:
    op = plan.op
    assert isinstance(op, ReduceSum)
    (x,) = plan.operands
    count = prod(x.shape[axis] for axis in op.axes)
    work = carrier_for(count * largest(x.lo, x.hi))
    if not _is_float(work):
        return by_definition(plan)
    axes = tuple(axis + 1 for axis in op.axes)

    def run(arrays: Sequence[Array]) -> Array:
        total: Array = arrays[0].astype(work, copy=False).sum(axis=axes, keepdims=True)
        return total.astype(plan.carrier, copy=False)

    return run


def _reduce_max(plan: Plan) -> Run:
    op = plan.op
    assert isinstance(op, ReduceMax)
    axes = tuple(axis + 1 for axis in op.axes)
    return lambda arrays: arrays[0].max(axis=axes, keepdims=True)


def _lookup(plan: Plan) -> Run:
    op, table = plan.op, plan.operands[1].data
    assert isinstance(op, Lookup)
    assert table is not None
    # Entry m at index m: negative mantissas count from the end, as indices of NumPy do.
    entries = np.roll(table, op.source.lo).astype(plan.carrier)
    return lambda arrays: entries[arrays[0].astype(np.int32)]


def _normalise(plan: Plan) -> Run:
    op = plan.op
    assert isinstance(op, Normalise)
    work = carrier_for(op.source.hi)
    if not _is_float(work):
        return by_definition(plan)
    bits, step = np.int32(op.source.width), np.int32(op.step)

    def run(arrays: Sequence[Array]) -> Array:
        x = arrays[0].astype(work, copy=False)
        significand, length = np.frexp(x)
        if step == 1:
            shifted: Array = np.ldexp(significand, bits)
        else:
            shifted = np.ldexp(x, (bits - length) // step * step)
        return shifted.astype(plan.carrier, copy=False)

    return run


def _shift_like(plan: Plan) -> Run:
    op, (y, x) = plan.op, plan.operands
    assert isinstance(op, ShiftLike)
    computed = y.data is None and x.data is None and len(y.shape) == len(x.shape)
    work = carrier_for(max(largest(plan.result.lo, plan.result.hi), largest(x.lo, x.hi)))
    if not _is_float(work) or not computed:
        return by_definition(plan)
    width, step = np.int32(op.source.width), np.int32(op.step)

    def run(arrays: Sequence[Array]) -> Array:
        y, x = (array.astype(work, copy=False) for array in arrays)
        _, length = np.frexp(x)
        shifted: Array = np.ldexp(y, (width - length) // step)
        return shifted.astype(plan.carrier, copy=False)

    return run


def _view_rule(plan: Plan) -> Run:
    """Operations that move values and leave them as they are."""

    def run(arrays: Sequence[Array]) -> Array:
        return plan.op.evaluate(plan.operands, arrays)

    return run


def _pad(plan: Plan) -> Run:
    assert isinstance(plan.op, Pad)
    return _view_rule(plan)


def _concat(plan: Plan) -> Run:
    assert isinstance(plan.op, Concat)
    fraction = max(operand.fraction for operand in plan.operands)
    aligned = all(operand.fraction == fraction for operand in plan.operands)
    if not aligned or any(operand.data is not None for operand in plan.operands):
        return by_definition(plan)
    axis = plan.op.axis + 1
    carrier = plan.carrier

    def run(arrays: Sequence[Array]) -> Array:
        return np.concatenate([x.astype(carrier, copy=False) for x in arrays], axis=axis)

    return run


_COMPARE: dict[str, Callable[..., Array]] = {
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}


def _compare(plan: Plan) -> Run:
    op = plan.op
    assert isinstance(op, Compare)
    relation = _COMPARE[op.kind]

    def function(a: Array, b: Array, out: Array | None) -> Array:
        return relation(a, b)

    return _linear_rule(function)(plan)


def _select(plan: Plan) -> Run:
    """Of mantissas that need no alignment; else by definition."""
    _, a, b = plan.operands
    ranks = {len(operand.shape) for operand in plan.operands}
    computed = all(operand.data is None for operand in plan.operands)
    if a.fraction != b.fraction or len(ranks) > 1 or not computed:
        return by_definition(plan)

    def run(arrays: Sequence[Array]) -> Array:
        return np.where(arrays[0] != 0, arrays[1], arrays[2]).astype(plan.carrier, copy=False)

    return run


def _argmax(plan: Plan) -> Run:
    op = plan.op
    assert isinstance(op, ArgMax)
    axis = op.axis + 1
    return lambda arrays: np.asarray(arrays[0].argmax(axis=axis, keepdims=True)).astype(
        plan.carrier
    )


def _embedding(plan: Plan) -> Run:
    table = plan.operands[1].data
    assert table is not None
    rows = table.astype(plan.carrier)
    return lambda arrays: rows[arrays[0].astype(np.int32)]


def _requantize(plan: Plan) -> Run:
    op = plan.op
    assert isinstance(op, Requantize)
    (x,) = plan.operands
    dropped = x.fraction - op.to.fraction
    bound = largest(x.lo, x.hi)
    # Halves are added before the floor: they must be exact in the carrier too.
    bound = bound + (1 << max(dropped - 1, 0)) if dropped > 0 else bound << -dropped
    fits = fits_without_overflow(plan, op)
    if op.overflow is Overflow.WRAP and not fits:
        bound += 1 << op.to.width  # wrapping counts from the lowest mantissa
    work = carrier_for(bound)
    if not _is_float(work) or not -64 < dropped < 64:
        return by_definition(plan)
    scale = work.type(2.0**-dropped)
    rounding = _ROUND[op.rounding] if dropped > 0 else None
    limit = None if fits else _LIMIT[op.overflow](op.to, work)

    def run(arrays: Sequence[Array]) -> Array:
        y = arrays[0]
        if y.dtype != work:
            y = y.astype(work)
        elif not plan.free[0]:
            y = y.copy()
        if dropped:
            np.multiply(y, scale, out=y)
        if rounding is not None:
            y = rounding(y)
        if limit is not None:
            y = limit(y)
        return y.astype(plan.carrier, copy=False)

    return run


def fits_without_overflow(plan: Plan, op: Requantize) -> bool:
    """Whether the proven interval makes the overflow mode idle.

    Rounding moves a value by less than one step, so an interval strictly inside is enough.
    """
    (x,) = plan.operands
    dropped = x.fraction - op.to.fraction
    if dropped > 0:
        lo, hi = (x.lo >> dropped), -((-x.hi) >> dropped)
    else:
        lo, hi = x.lo << -dropped, x.hi << -dropped
    floor = -op.to.hi if op.overflow is Overflow.SAT_SYM and op.to.signed else op.to.lo
    return floor <= lo and hi <= op.to.hi


def _half(y: Array) -> Any:
    return y.dtype.type(0.5)


_ROUND: dict[Rounding, Callable[[Array], Array]] = {
    Rounding.TRN: lambda y: np.floor(y, out=y),
    Rounding.TRN_ZERO: lambda y: np.trunc(y, out=y),
    Rounding.RND: lambda y: np.floor(np.add(y, _half(y), out=y), out=y),
    Rounding.RND_MIN_INF: lambda y: np.ceil(np.subtract(y, _half(y), out=y), out=y),
    Rounding.RND_INF: lambda y: np.trunc(y + np.copysign(_half(y), y)),
    Rounding.RND_ZERO: lambda y: np.copysign(np.ceil(np.abs(y) - _half(y)), y) + y.dtype.type(0),
    Rounding.RND_CONV: lambda y: np.rint(y, out=y),
}


def _saturate(to: FixedPoint, dtype: np.dtype[Any], symmetric: bool) -> Callable[[Array], Array]:
    low = dtype.type(-to.hi if symmetric and to.signed else to.lo)
    high = dtype.type(to.hi)
    return lambda y: np.clip(y, low, high, out=y)


def _zero_outside(to: FixedPoint, dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    low, high = dtype.type(to.lo), dtype.type(to.hi)
    return lambda y: np.where((y >= low) & (y <= high), y, dtype.type(0))


def _wrap(to: FixedPoint, dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    """Powers of two: scaling and the product with whole turns are exact."""
    low, size, turn = dtype.type(to.lo), dtype.type(2.0**to.width), dtype.type(2.0**-to.width)
    return lambda y: np.subtract(y, np.floor((y - low) * turn) * size, out=y)


_LIMIT: dict[Overflow, Callable[[FixedPoint, np.dtype[Any]], Callable[[Array], Array]]] = {
    Overflow.SAT: lambda to, dtype: _saturate(to, dtype, False),
    Overflow.SAT_SYM: lambda to, dtype: _saturate(to, dtype, True),
    Overflow.SAT_ZERO: _zero_outside,
    Overflow.WRAP: _wrap,
}


RULES: dict[str, Callable[[Plan], Run]] = {
    "matmul": _matmul,
    "conv": _conv,
    "add": _linear_rule(np.add),
    "sub": _linear_rule(np.subtract),
    "mul": _mul,
    "max": _linear_rule(np.maximum),
    "min": _linear_rule(np.minimum),
    "shift": _shift,
    "pool": _pool,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce_max,
    "lookup": _lookup,
    "normalise": _normalise,
    "shift_like": _shift_like,
    "reshape": _view_rule,
    "transpose": _view_rule,
    "concat": _concat,
    "pad": _pad,
    "gather": _view_rule,
    "compare": _compare,
    "select": _select,
    "argmax": _argmax,
    "embedding": _embedding,
    "requantize": _requantize,
    DivideOp.name: by_definition,
}
