"""Quantizers: those of QONNX, and QuantizeLinear with DequantizeLinear.

qonnx/custom_op/general/{intquant,bipolar_quant,trunc}.py and the ONNX specification say what they
compute; uniform.py how that is done exactly.
"""

from math import log2

import numpy as np
import torch
from torch import Tensor, nn

from fxloom.fixed_point import Rounding
from fxloom.given_constants import array_of, constant
from fxloom.onnx.given import Integers
from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import Function, builds
from fxloom.uniform import ROUNDINGS, Activation, Grid, grid, integers_of, limited, signs

BITS = 32
"""Of the integers that Trunc takes, which it does not limit by itself."""


class Quant(Activation):
    """Computed values brought onto a grid."""


class Signs(nn.Module):
    """1 where a value is not negative, else -1, times a scale."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = constant(scale) if bool((scale != 1).any()) else None

    def forward(self, x: Tensor) -> Tensor:
        y = signs(x)
        return y if self.scale is None else y * self.scale()


class Rounded(nn.Module):
    """Constants on a grid, which layers are told about."""

    keeps_size = True

    def __init__(self, to: Grid | None, scale: Tensor) -> None:
        """to: None for signs alone."""
        super().__init__()
        self._to, self._scale = to, scale

    def rounding(self, x: Tensor) -> Integers:
        if self._to is None:
            return Integers(torch.where(x >= 0, 1.0, -1.0), self._scale, (-1, 1))
        integers = torch.from_numpy(integers_of(x, self._to))
        return Integers(integers, self._scale, (self._to.lowest, self._to.highest))

    def forward(self, x: Tensor) -> Tensor:
        return self.rounding(x).values


@builds("Quant", "IntQuant", domain="qonnx")
def _quant(node: Node) -> nn.Module:
    scale, zero, bits = (
        node.constant(place, name) for place, name in enumerate(("scale", "zero point", "bits"), 1)
    )
    signed, narrow = node.flag("signed", True), node.flag("narrow", True)
    mode = node.text("rounding_mode", "ROUND")
    constant_input = node.value(0).constant
    if bits.numel() == 1 and bits.item() == 1 and signed:
        if bool(zero.any()):
            raise Refused("a zero point other than 0 of one signed bit has no meaning")
        _refuse_scales(scale)
        return Rounded(None, scale) if constant_input else Signs(scale)
    to = grid(scale, zero, bits, signed=signed, narrow=narrow, rounding=mode)
    return Rounded(to, scale) if constant_input else Quant(to)


@builds("BipolarQuant", domain="qonnx")
def _bipolar(node: Node) -> nn.Module:
    scale = node.constant(1, "scale")
    _refuse_scales(scale)
    return Rounded(None, scale) if node.value(0).constant else Signs(scale)


def _refuse_scales(scale: Tensor) -> None:
    if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
        raise Refused("its scales must be positive numbers")


class Trunc(nn.Module):
    """Integers x / scale without their last bits, times another scale."""

    def __init__(self, scale: float, drop: int, limits: tuple[int, int], result: float,
                 rounding: Rounding) -> None:  # fmt: skip
        super().__init__()
        self._fraction = -_power(scale)
        self._drop, self._limits, self._rounding = drop, limits, rounding
        self._shift = _power(result) - _power(scale) - drop

    def forward(self, x: Tensor) -> Tensor:
        most = (1 << (BITS - 1)) - 1
        whole = limited(x, -most - 1, most, self._fraction, Rounding.RND_CONV)
        y = limited(whole, *self._limits, self._fraction - self._drop, self._rounding)
        return y * 2.0**self._shift if self._shift else y


def _power(scale: float) -> int:
    if scale <= 0 or not np.isfinite(scale) or np.frexp(scale)[0] != 0.5:
        raise Refused(f"required a scale that is a power of two, {scale:g} arrived")
    return int(np.frexp(scale)[1]) - 1


@builds("Trunc", domain="qonnx")
def _trunc(node: Node) -> nn.Module:
    names = ("scale", "zero point", "input bits")
    scale, zero, bits = (_one(node, place, name) for place, name in enumerate(names, 1))
    mode = ROUNDINGS.get(node.text("rounding_mode", "FLOOR").upper())
    if mode is None:
        raise Refused(f"it rounds {node.text('rounding_mode')}, which hardware has no mode for")
    if zero != 0:
        raise Refused(f"required a zero point of 0, {zero:g} arrived")
    if node.version < 2:
        drop = int(bits - _one(node, 4, "output bits"))
        most = 1 << (BITS - 1 - drop) if 0 <= drop < BITS - 1 else 0
        limits, result = (-most, most - 1), scale
    else:
        result, width = _one(node, 4, "output scale"), int(_one(node, 5, "output bits"))
        drop = round(log2(result / scale)) if result > 0 and scale > 0 else -1
        to = grid(1.0, 0, width, signed=node.flag("signed", True), narrow=node.flag("narrow"))
        limits = (to.lo, to.hi)
    if not 0 <= drop < BITS - 1:
        raise Refused(f"it drops {drop} bits")
    return Trunc(scale, drop, limits, result, mode)


def _one(node: Node, place: int, name: str) -> float:
    found = node.constant(place, name)
    if found.numel() != 1:
        raise Refused(f"required one {name}, {found.numel()} arrived")
    return float(found)


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
    _refuse_scales(scale)
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
    module = Rounded(to, scale) if node.value(0).constant else Quant(to)
    return paired(module, scale, zero)


def paired(module: nn.Module, scale: Tensor, zero_point: Tensor) -> nn.Module:
    """A QuantizeLinear: it gives the values that its integers stand for, so that the
    DequantizeLinear, which must be the next, has nothing left to do."""
    module.pair = (scale, zero_point)  # type: ignore[assignment]
    return module


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
