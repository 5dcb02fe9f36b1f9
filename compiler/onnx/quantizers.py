"""Quantizers of QONNX.

qonnx/custom_op/general/{intquant,bipolar_quant,trunc}.py say what they compute; uniform.py how that
is done exactly.
"""

from math import log2

import numpy as np
import torch
from torch import Tensor, nn

from fxloom.fixed_point import Rounding
from fxloom.given_constants import constant
from fxloom.onnx.given import Integers
from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import builds
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

    def __init__(self, to: Grid | None, scale: Tensor, pair: tuple[Tensor, Tensor] | None) -> None:
        """to: None for signs alone. pair: of a QuantizeLinear."""
        super().__init__()
        self._to, self._scale, self.pair = to, scale, pair

    def rounding(self, x: Tensor) -> Integers:
        if self._to is None:
            return Integers(torch.where(x >= 0, 1.0, -1.0), self._scale, (-1, 1))
        integers = torch.from_numpy(integers_of(x, self._to))
        return Integers(integers, self._scale, (self._to.lowest, self._to.highest))

    def forward(self, x: Tensor) -> Tensor:
        return self.rounding(x).values


def of_constant(
    node: Node, to: Grid | None, scale: Tensor, pair: tuple[Tensor, Tensor] | None = None
) -> Rounded:
    values = node.value(0).first
    if not values.numel() or not bool(torch.isfinite(values).all()):
        raise Refused("the values that it rounds must be finite numbers")
    return Rounded(to, scale, pair)


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
        refuse_scales(scale)
        return of_constant(node, None, scale) if constant_input else Signs(scale)
    to = grid(scale, zero, bits, signed=signed, narrow=narrow, rounding=mode)
    return of_constant(node, to, scale) if constant_input else Quant(to)


@builds("BipolarQuant", domain="qonnx")
def _bipolar(node: Node) -> nn.Module:
    scale = node.constant(1, "scale")
    refuse_scales(scale)
    return of_constant(node, None, scale) if node.value(0).constant else Signs(scale)


def refuse_scales(scale: Tensor) -> None:
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
