"""The operators that a quantized graph adds to ATen: requantize, divide, lookup, embedding and, for
reciprocals, normalise and shift_like, all in the namespace fxloom.

Forward they compute real values that are exact wherever the carrier can hold them (see exact.py);
backward they are straight-through estimators, so that a quantized graph can be trained. What the
modes mean is defined in fixed_point.py; here they are written once more in torch because training
needs tensors on any device, and tests compare the two on every mode.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxloom.encodings import Encoding
from fxloom.errors import RecipeError
from fxloom.fixed_point import FixedPoint, Overflow, Rounding

BLOCK = 2**16
"""Values that are rounded together: many passes over them should stay in the cache."""


def blocks(x: Tensor) -> list[Tensor]:
    """The values of a tensor, BLOCK at a time; views where it is contiguous."""
    flat = x.reshape(-1)
    return [flat[start : start + BLOCK] for start in range(0, flat.numel(), BLOCK)]


def times_power(x: Tensor, exponent: int) -> Tensor:
    """x * 2**exponent, in two steps where float32 might not hold the factor itself."""
    half = exponent // 2
    if abs(exponent) < 120:
        return x * 2.0**exponent
    return x * 2.0**half * 2.0 ** (exponent - half)


def _round(scaled: Tensor, rounding: Rounding) -> Tensor:
    """Round to integers. x - trunc(x) is exact for every float, x - floor(x) is not.

    Overwrites its argument: large weights and activations have no room for copies.
    """
    if rounding is Rounding.RND_CONV:
        return scaled.round_()
    whole = torch.trunc(scaled)
    rest = scaled.sub_(whole)
    match rounding:
        case Rounding.TRN:
            return whole.sub_((rest < 0).to(whole.dtype))
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
    return whole.add_(up).sub_(down.to(whole.dtype))


def rounded_steps(x: Tensor, fraction: int, rounding: Rounding) -> Tensor:
    """x in steps of 2**-fraction, rounded to integers of any size."""
    return _round(times_power(x, fraction), rounding)


def _fit(rounded: Tensor, to: FixedPoint, overflow: Overflow) -> Tensor:
    """Bring integers into a format's range; overwrites its argument."""
    match overflow:
        case Overflow.SAT:
            return rounded.clamp_(to.lo, to.hi)
        case Overflow.SAT_SYM:
            return rounded.clamp_(-to.hi if to.signed else 0, to.hi)
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
    to, modes = FixedPoint(width, integer, signed), (Rounding(rounding), Overflow(overflow))
    if not x.is_floating_point():
        # Indices: they stay integers, of which float32 would not hold all.
        assert to.fraction == 0
        return _fit(x.to(torch.float64), to, modes[1]).to(x.dtype)
    if x.numel() <= BLOCK or not x.is_contiguous():
        return _requantized(x, to, *modes)
    result = torch.empty_like(x)
    for block, out in zip(blocks(x), blocks(result), strict=True):
        out.copy_(_requantized(block, to, *modes))
    return result


def _requantized(x: Tensor, to: FixedPoint, rounding: Rounding, overflow: Overflow) -> Tensor:
    scaled = times_power(x, to.fraction)
    fitted = _fit(_round(scaled, rounding), to, overflow)
    return times_power(fitted, -to.fraction)


@torch.library.custom_op("fxloom::requantize_weights", mutates_args=())
def requantize_weights(
    x: Tensor,
    shifts: Sequence[int],
    encoding: str,
    widths: Sequence[int],
    width: int,
    integer: int,
    signed: bool,
    rounding: str,
    overflow: str,
) -> Tensor:
    """Weights rounded into a format, or to those of its mantissas that an encoding has.

    The binary point of channel c (first axis) is shifts[c] bits further left: steps of
    2**-(fraction + shifts[c]). No shifts mean none. Its mantissas have widths[c] bits, saturating;
    no widths mean that all have `width`.
    """
    to = FixedPoint(width, integer, signed)
    factors = _channel_factors(x, shifts)
    scaled = times_power(x * factors, to.fraction)
    if encoding == Encoding.FIXED:
        fitted = _fit(_round(scaled, Rounding(rounding)), to, Overflow(overflow))
        if widths:
            fitted = torch.clamp(fitted, *channel_limits(x, widths, signed))
    else:
        fitted = Encoding(encoding).nearest(scaled, to)
    return times_power(fitted, -to.fraction) / factors


def _channel_factors(x: Tensor, shifts: Sequence[int]) -> Tensor:
    factors = torch.tensor([2.0**shift for shift in shifts or [0]], dtype=x.dtype, device=x.device)
    return factors.reshape(-1, *(1,) * (x.dim() - 1))


def channel_limits(x: Tensor, widths: Sequence[int], signed: bool) -> tuple[Tensor, Tensor]:
    """The least and the largest mantissa of every channel (first axis of x); no bits hold 0."""
    formats = [FixedPoint(bits, bits, signed) if bits else None for bits in widths]
    low, high = (
        torch.tensor(bounds, dtype=x.dtype, device=x.device)
        for bounds in zip(*((to.lo, to.hi) if to else (0, 0) for to in formats), strict=True)
    )
    shape = (-1, *(1,) * (x.dim() - 1))
    return low.reshape(shape), high.reshape(shape)


def _keep_channels(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, shifts, encoding, widths, width, integer, signed, _rounding, _overflow = inputs
    to = FixedPoint(width, integer, signed)
    scaled = x * _channel_factors(x, shifts)
    levels = Encoding(encoding).levels(width)
    # Beyond the last level by more than a step nothing is learned from what is never seen.
    inside = _inside(scaled, to) if levels is None else scaled.abs() <= (levels[-1] + 1) * to.step
    if widths:
        low, high = channel_limits(x, widths, signed)
        inside &= (scaled >= (low - 1) * to.step) & (scaled <= (high + 1) * to.step)
    ctx.save_for_backward(inside)


def _through_channels(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (passes,) = ctx.saved_tensors
    return (gradient * passes, *(None,) * 8)


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


@torch.library.custom_op("fxloom::lookup", mutates_args=())
def lookup(x: Tensor, table: Tensor, width: int, integer: int, signed: bool) -> Tensor:
    """table[m - lo] for the mantissa m of every x, which is of format (width, integer, signed).

    table: real values, one for each mantissa from the lowest on. x's dtype.
    """
    index = _index(x, FixedPoint(width, integer, signed))
    return table[index].to(x.dtype)


def _index(x: Tensor, source: FixedPoint) -> Tensor:
    mantissa = torch.round(x * 2.0**source.fraction)
    return (torch.clamp(mantissa, source.lo, source.hi) - source.lo).to(torch.int64)


def _keep_slope(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, table, width, integer, signed = inputs
    source = FixedPoint(width, integer, signed)
    # Central differences, one-sided at the ends.
    last = table.numel() - 1
    index = _index(x, source)
    above, below = torch.clamp(index + 1, max=last), torch.clamp(index - 1, min=0)
    rise = (table[above] - table[below]) / ((above - below).to(table.dtype) * source.step)
    ctx.save_for_backward(rise.to(x.dtype))


def _along_slope(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (slope,) = ctx.saved_tensors
    return (gradient * slope, None, None, None, None)


def _doublings(x: Tensor, width: int, integer: int, step: int) -> Tensor:
    """How often, in multiples of step, x may double before its leading one leaves the format."""
    _, exponent = torch.frexp(x)
    return torch.div(integer - exponent, step, rounding_mode="floor")


def _power(like: Tensor, exponent: Tensor) -> Tensor:
    return torch.ldexp(torch.ones_like(like), exponent)


@torch.library.custom_op("fxloom::normalise", mutates_args=())
def normalise(x: Tensor, width: int, integer: int, step: int = 1) -> Tensor:
    """Positive x times the power of 2**step that brings it to 2**(integer - step) or more, but
    below 2**integer."""
    return x * _power(x, _doublings(x, width, integer, step) * step)


@torch.library.custom_op("fxloom::shift_like", mutates_args=())
def shift_like(y: Tensor, x: Tensor, width: int, integer: int, step: int = 1) -> Tensor:
    """y times the power of two of which normalise(x) multiplies x by the step-th power."""
    return y * _power(x, _doublings(x, width, integer, step))


def _keep_normalising(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, width, integer, step = inputs
    ctx.save_for_backward(_power(x, _doublings(x, width, integer, step) * step))


def _along_normalising(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (factor,) = ctx.saved_tensors
    return (gradient * factor, None, None, None)


def _keep_shift(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, x, width, integer, step = inputs
    ctx.shape = y.shape
    ctx.save_for_backward(_power(x, _doublings(x, width, integer, step)))


def _along_shift(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (factor,) = ctx.saved_tensors
    return ((gradient * factor).sum_to_size(ctx.shape), None, None, None, None)


def _broadcast(y: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(y + x)


@torch.library.custom_op("fxloom::embedding", mutates_args=())
def embedding(x: Tensor, weight: Tensor) -> Tensor:
    """Row x of weight [rows, columns], the nearest where there is none: [..., columns].

    x: integers, of any dtype.
    """
    return weight[_rows(x, weight)]


def _rows(x: Tensor, weight: Tensor) -> Tensor:
    return torch.clamp(x, 0, len(weight) - 1).to(torch.int64)


def _embedded(x: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty((*x.shape, weight.shape[1]))


def _keep_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight = inputs
    ctx.shape = weight.shape
    ctx.save_for_backward(_rows(x, weight))


def _into_rows(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (rows,) = ctx.saved_tensors
    total = gradient.new_zeros(ctx.shape)
    return (None, total.index_add(0, rows.reshape(-1), gradient.reshape(-1, ctx.shape[1])))


embedding.register_fake(_embedded)
embedding.register_autograd(_into_rows, setup_context=_keep_rows)
requantize_weights.register_fake(_shape_of_first)
requantize_weights.register_autograd(_through_channels, setup_context=_keep_channels)
lookup.register_fake(_shape_of_first)
lookup.register_autograd(_along_slope, setup_context=_keep_slope)
normalise.register_fake(_shape_of_first)
normalise.register_autograd(_along_normalising, setup_context=_keep_normalising)
shift_like.register_fake(_broadcast)
shift_like.register_autograd(_along_shift, setup_context=_keep_shift)

REQUANTIZE = torch.ops.fxloom.requantize.default
REQUANTIZE_WEIGHTS = torch.ops.fxloom.requantize_weights.default
DIVIDE = torch.ops.fxloom.divide.default
LOOKUP = torch.ops.fxloom.lookup.default
NORMALISE = torch.ops.fxloom.normalise.default
SHIFT_LIKE = torch.ops.fxloom.shift_like.default
EMBEDDING = torch.ops.fxloom.embedding.default


ROUNDINGS = (REQUANTIZE, REQUANTIZE_WEIGHTS, DIVIDE)
"""What brings numbers into a format."""
GIVEN = "given"
"""In the meta of a rounding that the model brought along."""


def is_quantized(graph: fx.GraphModule) -> bool:
    """Whether numbers of a graph are rounded already, by quantize or by the model itself."""
    return any(node.target in ROUNDINGS for node in graph.graph.nodes)


def requantize_modes(node: fx.Node) -> tuple[FixedPoint, Rounding, Overflow]:
    """Format and modes of a rounding."""
    arguments: Sequence[Any] = node.args
    *_, width, integer, signed, rounding, overflow = arguments
    return FixedPoint(width, integer, signed), Rounding(rounding), Overflow(overflow)


def is_given(node: fx.Node) -> bool:
    """Whether a node is a rounding that the model brought along: quantize wrote all others."""
    return node.target in ROUNDINGS and bool(node.meta.get(GIVEN))


def brings_formats(graph: fx.GraphModule) -> bool:
    """Whether a graph has formats of the model's own and quantize has not seen it yet."""
    return "floats" not in graph.meta and any(is_given(node) for node in graph.graph.nodes)


def require_unrounded(graph: fx.GraphModule, who: str, before: str) -> None:
    """Raise RecipeError for a graph that has formats, whose ever they are.

    who: the pass. before: what to do where quantize came first.
    """
    if brings_formats(graph):
        raise RecipeError(
            f"{who}: the model brought formats along, which are kept as they are. "
            f"{who} changes float models: use it on the model before it is trained in few bits"
        )
    if is_quantized(graph):
        raise RecipeError(f"{who}: the graph is quantized already. {before}")
