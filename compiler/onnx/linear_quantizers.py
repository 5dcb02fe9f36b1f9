"""QuantizeLinear and DequantizeLinear, which belong together."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fxloom.fixed_point import Rounding
from fxloom.given_constants import array_of
from fxloom.onnx.given import Integers
from fxloom.onnx.node import Node, Refused
from fxloom.onnx.quantizers import Quant, of_constant, refuse_scales
from fxloom.onnx.registry import Function, builds
from fxloom.uniform import Grid

_LIMITS = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 2**16 - 1),
    torch.int16: (-(2**15), 2**15 - 1),
    torch.int32: (-(2**31), 2**31 - 1),
}


def _linear(node: Node) -> tuple[Tensor, Tensor, torch.dtype]:
    """Scale of the rank of the data, zero point and the type of the integers."""
    scale = node.constant(1, "scale")
    zero = node.optional(2, "zero point")
    axis, rank = node.integer("axis", 1), node.rank()
    node.only("block_size", 0, 0)
    node.only("saturate", 1, 1)
    node.only("precision", 0, 0)
    refuse_scales(scale)
    if zero is None:
        zero = torch.zeros((), dtype=torch.uint8)
    if zero.dtype not in _LIMITS:
        raise Refused(f"zero points of {zero.dtype} are not supported")
    if scale.numel() == 1:
        return scale.reshape(()), zero.reshape(()), zero.dtype
    axis = node.counted(axis, rank)
    if scale.dim() != 1 or len(scale) != node.shape()[axis]:
        raise Refused(f"its {list(scale.shape)} scales are not for axis {axis}")
    shape = [-1 if dim == axis else 1 for dim in range(rank)]
    return scale.reshape(shape), zero.reshape(shape) if zero.numel() > 1 else zero, zero.dtype


@builds("QuantizeLinear")
def _quantize_linear(node: Node) -> nn.Module:
    scale, zero, kind = _linear(node)
    node.only("output_dtype", 0, 0)
    if bool((zero != zero.reshape(-1)[0]).any()):
        raise Refused("zero points that differ between channels have no lowering")
    # The zero point is added to what was rounded, so that ties are those of x / scale.
    shift = int(zero.reshape(-1)[0])
    lo, hi = (limit - shift for limit in _LIMITS[kind])
    values = array_of(scale).astype(np.float64)
    to = Grid(values, np.zeros((), np.int64), lo, hi, Rounding.RND_CONV)
    if not node.value(0).constant:
        return QuantizeLinear(to, (scale, zero))
    return of_constant(node, to, scale, (scale, zero))


class QuantizeLinear(Quant):
    """The values that the integers stand for, so that the DequantizeLinear, which must be the next,
    has nothing left to do. pair: its scale and zero point."""

    def __init__(self, to: Grid, pair: tuple[Tensor, Tensor]) -> None:
        super().__init__(to)
        self.pair = pair

    def narrower(self, low: Tensor | None, high: Tensor | None) -> "QuantizeLinear":
        """With limits of its integers."""
        to = self.grid
        lo, hi = _limits((to.lo, to.hi), self.pair, low, high)
        return QuantizeLinear(replace(to, lo=lo, hi=hi), self.pair)


def narrower(
    rounding: Integers, pair: tuple[Tensor, Tensor], low: Tensor | None, high: Tensor | None
) -> Integers:
    """Constants with limits of their integers."""
    lo, hi = _limits(rounding.limits, pair, low, high)
    return Integers(rounding.integers.clamp(lo, hi), rounding.scale, (lo, hi))


def _limits(
    limits: tuple[int, int], pair: tuple[Tensor, Tensor], low: Tensor | None, high: Tensor | None
) -> tuple[int, int]:
    """Limits of integers without their zero point; low and high: of integers with it."""
    shift = int(pair[1].reshape(-1)[0])
    lo = limits[0] if low is None else max(limits[0], int(low) - shift)
    hi = limits[1] if high is None else min(limits[1], int(high) - shift)
    if lo > hi:
        raise Refused(f"no integer lies between {lo + shift} and {hi + shift}")
    return lo, hi


@builds("DequantizeLinear")
def _dequantize_linear(node: Node) -> nn.Module | Function:
    scale, zero, _ = _linear(node)
    node.only("output_dtype", 0, 0)
    given = node.value(0)
    if given.pair is not None:
        if not all(
            torch.equal(one, other) for one, other in zip(given.pair, (scale, zero), strict=True)
        ):
            raise Refused("it undoes a QuantizeLinear with another scale or zero point")
        return lambda x: x
    if not given.constant:
        raise Refused("it reads integers that no QuantizeLinear made")
    lo, hi = _LIMITS.get(given.first.dtype, (0, 0))
    zeros = (int(zero.min()), int(zero.max()))
    return Given(scale, zero, (lo - zeros[1], hi - zeros[0]))


class Given(nn.Module):
    """Constant integers of a DequantizeLinear."""

    keeps_size = True

    def __init__(self, scale: Tensor, zero: Tensor, limits: tuple[int, int]) -> None:
        super().__init__()
        self._scale, self._zero, self._limits = scale, zero, limits

    def rounding(self, x: Tensor) -> Integers:
        integers = x.to(torch.float64) - self._zero.to(torch.float64)
        return Integers(integers, self._scale, self._limits)

    def forward(self, x: Tensor) -> Tensor:
        return self.rounding(x).values
