"""The operators that a quantized graph adds to ATen: fxloom::requantize and fxloom::divide.

Forward they compute real values that are exact wherever the carrier can hold them (see exact.py);
backward they are straight-through estimators, so that a quantized graph can be trained. What the
modes mean is defined in fixed_point.py; here they are written once more in torch because training
needs tensors on any device, and tests compare the two on every mode.
"""

from typing import Any

import torch
from torch import Tensor

from fxloom.fixed_point import FixedPoint, Overflow, Rounding


def times_power(x: Tensor, exponent: int) -> Tensor:
    """x * 2**exponent, in two steps where float32 might not hold the factor itself."""
    half = exponent // 2
    if abs(exponent) < 120:
        return x * 2.0**exponent
    return x * 2.0**half * 2.0 ** (exponent - half)


def _round(scaled: Tensor, rounding: Rounding) -> Tensor:
    """Round to integers. x - trunc(x) is exact for every float, x - floor(x) is not."""
    whole = torch.trunc(scaled)
    rest = scaled - whole
    match rounding:
        case Rounding.TRN:
            return whole - (rest < 0).to(scaled.dtype)
        case Rounding.TRN_ZERO:
            return whole
        case Rounding.RND:
            up, down = rest >= 0.5, rest < -0.5
        case Rounding.RND_MIN_INF:
            up, down = rest > 0.5, rest <= -0.5
        case Rounding.RND_ZERO:
            up, down = rest > 0.5, rest < -0.5
        case Rounding.RND_INF:
            up, down = rest >= 0.5, rest <= -0.5
        case Rounding.RND_CONV:
            return torch.round(scaled)
    return whole + up.to(scaled.dtype) - down.to(scaled.dtype)


def _fit(rounded: Tensor, to: FixedPoint, overflow: Overflow) -> Tensor:
    match overflow:
        case Overflow.SAT:
            return torch.clamp(rounded, to.lo, to.hi)
        case Overflow.SAT_SYM:
            return torch.clamp(rounded, -to.hi if to.signed else 0, to.hi)
        case Overflow.SAT_ZERO:
            inside = (rounded >= to.lo) & (rounded <= to.hi)
            return torch.where(inside, rounded, torch.zeros_like(rounded))
        case Overflow.WRAP:
            wrapped = torch.remainder(rounded, float(1 << to.width))
            return torch.where(wrapped > to.hi, wrapped - float(1 << to.width), wrapped)


@torch.library.custom_op("fxloom::requantize", mutates_args=())
def requantize(
    x: Tensor, width: int, integer: int, signed: bool, rounding: str, overflow: str
) -> Tensor:
    """x rounded and fitted into FixedPoint(width, integer, signed); real values, x's dtype."""
    to = FixedPoint(width, integer, signed)
    scaled = times_power(x, to.fraction)
    fitted = _fit(_round(scaled, Rounding(rounding)), to, Overflow(overflow))
    return times_power(fitted, -to.fraction)


@torch.library.custom_op("fxloom::divide", mutates_args=())
def divide(
    x: Tensor,
    divisor: Tensor,
    width: int,
    integer: int,
    signed: bool,
    rounding: str,
    overflow: str,
) -> Tensor:
    """x / divisor rounded once into a format. divisor: positive integers, broadcasting to x.

    Exact in float64 while the dividend in units of the result's step stays below 2**51: the
    remainder, not the rounded quotient, decides.
    """
    to = FixedPoint(width, integer, signed)
    scaled = times_power(x, to.fraction)
    positive = divisor.to(x.dtype)
    remainder = torch.fmod(scaled, positive)
    whole = (scaled - remainder) / positive
    # Replace the remainder by the number of its case (nothing, below, at, above one half), with
    # its sign, so that adding it to the quotient cannot round.
    twice = torch.abs(remainder) * 2
    eighth = torch.where(
        twice == 0,
        0.0,
        torch.where(twice < positive, 1.0, torch.where(twice == positive, 2.0, 3.0)),
    ).to(x.dtype)
    exact = whole + torch.copysign(eighth / 4, remainder)
    fitted = _fit(_round(exact, Rounding(rounding)), to, Overflow(overflow))
    return times_power(fitted, -to.fraction)


def _shape_of_first(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _inside(x: Tensor, to: FixedPoint) -> Tensor:
    return (x >= to.lo * to.step) & (x <= to.hi * to.step)


def _keep_range(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *_, width, integer, signed, _rounding, overflow = inputs
    divisor = inputs[1] if isinstance(inputs[1], Tensor) else None
    to = FixedPoint(width, integer, signed)
    quotient = x if divisor is None else x / divisor
    # A wrapped value has no useful slope either way: only saturation stops the gradient.
    passes = torch.ones_like(x, dtype=torch.bool) if overflow == "WRAP" else _inside(quotient, to)
    ctx.save_for_backward(passes, divisor)


def _straight_through(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    passes, divisor = ctx.saved_tensors
    kept = gradient * passes
    if divisor is None:
        return (kept, None, None, None, None, None)
    return (kept / divisor, None, None, None, None, None, None)


for _op in (requantize, divide):
    _op.register_fake(_shape_of_first)
    _op.register_autograd(_straight_through, setup_context=_keep_range)

REQUANTIZE = torch.ops.fxloom.requantize.default
DIVIDE = torch.ops.fxloom.divide.default
