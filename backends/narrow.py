"""Steps on bytes: narrow convolutions and sums at the speed of 8-bit dot products.

oneDNN, through torch, multiplies unsigned bytes of values by signed bytes of weights, adds up in
int32, and ends each sum on its own with a scale, a bias, a clamp and a rounding to nearest, ties to
even, into bytes again. The scale is a power of two and every number stays below 2**24 units of its
last place, so all of that is exact, and the rounding is the floor we want once half a unit of the
result less half of the last place is taken off first: no tie is left.

Values in -128..127 go in as bytes that count from -128. A sum of two values is a product with the
identity, into which the second value is added. Processors without 8-bit dot products add up in 16
bits, which saturate: a probe tells.
"""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fxloom.backends.carriers import (
    FLOAT32_EXACT,
    Array,
    Run,
    channels_last,
    needed_dilation,
    pads_itself,
)
from fxloom.backends.rounded import Rounded, finish
from fxloom.ops import Add, Conv, weight_sums
from fxloom.program import Instr

Byte = np.dtype[Any]

_ONEDNN: Any = torch.ops.onednn
_RANGE = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}
_OFFSET = 128
"""What is added to a signed byte so that it is an unsigned one: its first bit is flipped."""
_FLIP = np.uint8(_OFFSET)
_COLUMNS = 64
"""Width of the identity that sums are multiplied by: bytes in a row of a matrix unit."""


def byte_for(lo: int, hi: int) -> Byte | None:
    """The byte that holds an interval, or None."""
    return next((byte for byte, (low, high) in _RANGE.items() if low <= lo and hi <= high), None)


def narrow_results(rounded: dict[str, Rounded], users: dict[str, list[Instr]]) -> dict[str, Byte]:
    """The steps that run on bytes, with the types of their results: bytes or float32.

    rounded: all steps of the program, in order. A result is in bytes where a step on bytes reads
    it, and where it is a sum; pools and the like read floats faster.
    """
    able: dict[str, Byte | None] = {}
    for name, step in rounded.items() if available() else ():
        narrow = all(able.get(arg) for arg in step.instrs[0].args)
        if _is_convolution(step) or (narrow and _is_sum(step) and _byte_result(step)):
            able[name] = _byte_result(step)
    begin = {rounded[name].instrs[0].result.name for name in able}
    types = {}
    for name, byte in able.items():
        read = any(each.result.name in begin for each in users.get(name, []))
        types[name] = byte if byte and (read or _is_sum(rounded[name])) else np.dtype(np.float32)
    return types


def _byte_result(step: Rounded) -> Byte | None:
    """The byte that a step can round into: float32 must hold halves of the last place for it.
    oneDNN does not wrap."""
    if step.wrap is not None:
        return None
    bound = 2 * _bound(step) + (1 << step.dropped) if step.rounds else _bound(step)
    return byte_for(*step.clamp) if bound <= FLOAT32_EXACT else None


def _bound(step: Rounded) -> int:
    """Largest magnitude of any partial sum where values below zero count from -128."""
    units = 2.0**step.dropped  # the bound's in one of the result
    wrapping = 0 if step.wrap is None else int(step.wrap.period * units)
    w = step.plan.operands[1]
    if isinstance(step.plan.op, Add):
        return step.bound + wrapping + _OFFSET * int(sum(step.scales) * units)
    assert w.data is not None
    heaviest = max(p - n for n, p in zip(*weight_sums(w.data, (0, 1, 2)), strict=True))
    signed = step.plan.operands[0].lo < 0
    lowest = _OFFSET * heaviest * int(step.scale * units) if signed else 0
    return step.bound + wrapping + lowest


def _is_convolution(step: Rounded) -> bool:
    """Whether a step is a convolution of bytes whose sums float32 holds."""
    x, w = step.plan.operands
    return (
        isinstance(step.plan.op, Conv)
        and byte_for(x.lo, x.hi) is not None
        and w.data is not None
        and w.lo >= -128
        and w.hi <= 127
        and not _is_miscomputed(step)
        and _bound(step) <= FLOAT32_EXACT
    )


def _is_miscomputed(step: Rounded) -> bool:
    """Whether torch 2.13's oneDNN may use a wrong stride: on bytes, where the output's width is 1.

    (The same that befalls float32 where there is one input channel and strides are unequal.)
    """
    assert isinstance(step.plan.op, Conv)
    return step.plan.result.shape[1] == 1 and step.plan.op.stride != (1, 1)


def _is_sum(step: Rounded) -> bool:
    """Whether a step adds two values and one number, in rows that the identity can multiply."""
    shape = step.plan.result.shape
    return isinstance(step.plan.op, Add) and step.offset.size == 1 and prod(shape) % _COLUMNS == 0


def narrow_step(step: Rounded, to: Byte) -> Run:
    """How a step runs whose result is of type to."""
    return _sum(step, to) if isinstance(step.plan.op, Add) else _convolution(step, to)


def _unsigned(x: Array, signed: bool) -> torch.Tensor:
    """Mantissas as unsigned bytes, which count from -128 where signed."""
    if not signed:
        return torch.from_numpy(np.ascontiguousarray(x, np.uint8))
    flipped = np.ascontiguousarray(x, np.int8).view(np.uint8) ^ _FLIP
    return torch.from_numpy(flipped)


def _offset(step: Rounded, to: Byte) -> npt.NDArray[np.float64]:
    """What is added to a sum, to be rounded to nearest where the result is in bytes."""
    return step.offset - (0.5 - 0.5 * 2.0**-step.dropped if step.rounds and to.kind != "f" else 0)


def _convolution(step: Rounded, to: Byte) -> Run:
    op, (x, w) = step.plan.op, step.plan.operands
    assert isinstance(op, Conv)
    assert w.data is not None
    signed, outputs = x.lo < 0, w.shape[-1]
    zero = _OFFSET if signed else 0
    (top, bottom), (left, right) = op.padding
    pads = signed or not pads_itself(op, x.shape, w.shape)  # oneDNN pads with zero bytes
    padding = (0, 0) if pads else (top, left)
    window = (op.stride, padding, needed_dilation(op, w.shape), op.groups)
    scale = torch.full((outputs,), step.scale)
    zeros = torch.zeros(outputs, dtype=torch.int64)
    more = zero * step.scale * w.data.sum((0, 1, 2), dtype=np.float64)
    offset = torch.from_numpy((_offset(step, to) - more).astype(np.float32))
    kernel = torch.from_numpy(w.data.transpose(3, 2, 0, 1).astype(np.int8))
    packed = _ONEDNN.qconv_prepack(kernel, scale, 1.0, 0, *window, None)
    kind = torch.from_numpy(np.empty(0, to)).dtype
    clips = to.kind != "f" and step.clamp != _RANGE[to]
    after = ("hardtanh", list(step.clamp)) if clips else ("none", [])
    end = finish(step)

    def run(arrays: Sequence[Array]) -> Array:
        with torch.inference_mode():
            image = _unsigned(arrays[0], signed).permute(0, 3, 1, 2)
            if pads:
                image = functional.pad(image, (left, right, top, bottom), value=zero)
            y = _ONEDNN.qconv2d_pointwise(
                image, 1.0, 0, packed, scale, zeros, offset, *window, 1.0, 0, kind, *after, ""
            )
            return channels_last(y if to.kind != "f" else end(y))

    return run


def _sum(step: Rounded, to: Byte) -> Run:
    """A product of the first value with the identity, added to the second in place."""
    packed = _ONEDNN.qlinear_prepack(torch.eye(_COLUMNS, dtype=torch.int8), None)
    first, second = (operand.lo < 0 for operand in step.plan.operands)
    a_scale, b_scale = step.scales
    scale = torch.full((_COLUMNS,), a_scale)
    zeros = torch.zeros(_COLUMNS, dtype=torch.int64)
    # The second value is in bytes of the result's kind.
    moved = 0 if second == (to == np.int8) else _OFFSET if second else -_OFFSET
    more = (_OFFSET if first else 0) * a_scale + moved * b_scale
    offset = torch.from_numpy((_offset(step, to) - more).astype(np.float32)).repeat(_COLUMNS)
    clips = step.clamp != _RANGE[to]

    def run(arrays: Sequence[Array]) -> Array:
        with torch.inference_mode():
            rows = _unsigned(arrays[0], first).view(-1, _COLUMNS)
            other = np.ascontiguousarray(arrays[1])
            held = (other.view(np.uint8) ^ _FLIP).view(to) if moved else other.copy()
            y = torch.from_numpy(held).view(-1, _COLUMNS)
            _ONEDNN.qlinear_pointwise.binary(
                rows, 1.0, 0, packed, scale, zeros, y, offset, 1.0, 0, y.dtype,
                b_scale, 0, "sum", 1.0, "none", [], "",
            )  # fmt: skip
            if clips:
                y.clamp_(*step.clamp)
        result: Array = y.numpy().reshape(arrays[0].shape)
        return result

    return run


@cache
def available() -> bool:
    """Whether this processor and this torch compute on bytes, and exactly.

    The sums of the probe are beyond 16 bits from the second product on.
    """
    try:
        return all(_is_exact(channels, groups, size) for channels, groups, size in _PROBES)
    except (AttributeError, RuntimeError):  # NotImplementedError is a RuntimeError
        return False


_PROBES = ((64, 1, 3), (64, 1, 1), (64, 64, 3), (3, 1, 3))
"""Channels, groups and kernel of convolutions that oneDNN computes each in its own way."""


def _is_exact(channels: int, groups: int, size: int) -> bool:
    outputs = max(groups, 16)
    shape = (outputs, channels // groups, size, size)
    values = torch.tensor([-128, 127], dtype=torch.int8)
    kernel = values[torch.arange(outputs) % 2].view(-1, 1, 1, 1).expand(shape).contiguous()
    image = torch.full((1, channels, 8, 8), 255, dtype=torch.uint8)
    scale, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    window = ([1, 1], [0, 0], [1, 1], groups)
    exact = functional.conv2d(image.double(), kernel.double(), groups=groups)
    packed = _ONEDNN.qconv_prepack(kernel, scale, 1.0, 0, *window, None)
    y = _ONEDNN.qconv2d_pointwise(
        image, 1.0, 0, packed, scale, zeros, torch.zeros(outputs), *window,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return torch.equal(y.double(), exact)
