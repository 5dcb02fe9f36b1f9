"""Uniform quantizers with scale and zero point, as Brevitas, QONNX and QKeras have them, in
operations that lowering computes exactly.

Such a quantizer makes of a real number x the integer

    q = clip(round(x / scale + zero_point), lo, hi)

and hands on (q - zero_point) * scale (Jacob et al. 2018, arXiv 1712.05877; qonnx,
custom_op/general/intquant.py; Brevitas, core/quant/int_base.py). Where the scale is a power of two
this is one rounding into a fixed-point format. Every other scale becomes two products with
constants of SIGNIFICANT bits, as many as float32 holds: x by the reciprocal of the scale, and the
integers by the scale. Weights are constants, so their integers are found once, and their scale
stands behind the layer that reads them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxloom.encodings import Encoding
from fxloom.fixed_point import FixedPoint, FloatArray, Int64Array, Overflow, Rounding
from fxloom.given_constants import QuantizerRefused, array_of, constant, reciprocal, rounded
from fxloom.quantized_ops import REQUANTIZE_WEIGHTS

ROUNDINGS = {
    "ROUND": Rounding.RND_CONV,
    "HALF_EVEN": Rounding.RND_CONV,
    "FLOOR": Rounding.TRN,
    "DOWN": Rounding.TRN_ZERO,
    "ROUND_TO_ZERO": Rounding.TRN_ZERO,
    "HALF_UP": Rounding.RND_INF,
    "HALF_DOWN": Rounding.RND_ZERO,
}
"""Modes by the names that QONNX and Brevitas give them; "HALF_UP" is away from zero in both."""

_WITH_THE_INTEGERS = (Rounding.TRN, Rounding.RND, Rounding.RND_MIN_INF)
"""Modes for which round(x + 1) is round(x) + 1."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The values (q - zero_point) * scale, lo <= q <= hi.

    scale, zero_point: scalars, or arrays that broadcast with what is rounded.
    """

    scale: FloatArray
    zero_point: Int64Array
    lo: int
    hi: int
    rounding: Rounding

    @property
    def lowest(self) -> int:
        """The lowest integer that is multiplied by a scale."""
        return self.lo - int(self.zero_point.max())

    @property
    def highest(self) -> int:
        """The highest such integer."""
        return self.hi - int(self.zero_point.min())

    @property
    def exponents(self) -> Int64Array | None:
        """The binary logarithms of the scales; None where one of them is no power of two."""
        mantissa, exponent = np.frexp(self.scale)
        return exponent.astype(np.int64) - 1 if (mantissa == 0.5).all() else None


def grid(
    scale: npt.ArrayLike | Tensor,
    zero_point: npt.ArrayLike | Tensor = 0,
    bits: float | Tensor = 8,
    *,
    signed: bool = True,
    narrow: bool = False,
    rounding: str = "ROUND",
) -> Grid:
    """The grid of integers of so many bits.

    narrow: without the lowest integer of signed ones, without the highest of unsigned ones, as in
    QONNX and Brevitas. rounding: a name of ROUNDINGS, in any case. Raises QuantizerRefused where
    scales are not positive, zero points and bits no integers, or there is no such rounding.
    """
    mode = ROUNDINGS.get(str(rounding).upper())
    if mode is None:
        known = ", ".join(ROUNDINGS)
        raise QuantizerRefused(f"it rounds {rounding}, which hardware has no mode for. Use {known}")
    width = _integers(bits, "bits")
    if width.size != 1 or not 1 <= width.item() <= 32:
        raise QuantizerRefused(f"it has {bits} bits: required is one number from 1 to 32")
    n = int(width.item())
    if signed:
        lo, hi = -(1 << (n - 1)) + narrow, (1 << (n - 1)) - 1
    else:
        lo, hi = 0, (1 << n) - 1 - narrow
    return Grid(_scales(scale), _equal(_integers(zero_point, "zero point")), lo, hi, mode)


def _equal(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One number in the place of many that are the same."""
    return np.asarray(values.flat[0]) if (values == values.flat[0]).all() else values


def _scales(scale: npt.ArrayLike | Tensor) -> FloatArray:
    values = array_of(scale).astype(np.float64)
    if values.size == 0 or not np.isfinite(values).all() or values.min() <= 0:
        raise QuantizerRefused("its scales must be positive numbers")
    return _equal(values)


def _integers(values: npt.ArrayLike | Tensor, what: str) -> Int64Array:
    given = array_of(values)
    integers = given.astype(np.int64)
    if given.size == 0 or (integers != given).any():
        raise QuantizerRefused(f"its {what} must be integers, not {given.tolist()}")
    return integers


def limited(x: Tensor, lowest: int, highest: int, fraction: int, rounding: Rounding) -> Tensor:
    """x rounded to steps of 2**-fraction, of which there are lowest to highest."""
    to = FixedPoint.holding(lowest, highest, fraction)
    if (lowest, highest) == (-to.hi, to.hi) and to.signed:
        return rounded(x, to, rounding, Overflow.SAT_SYM)
    result = rounded(x, to, rounding)
    if (lowest, highest) != (to.lo, to.hi):
        result = torch.clamp(result, lowest * to.step, highest * to.step)
    return result


class Activation(nn.Module):
    """Computed values brought onto a grid.

    One rounding where all channels have the same power of two for a scale and the zero point can be
    added afterwards; else x * (1 / scale) + zero_point, rounded to integers, and these
    (without the zero point) times the scale.
    """

    def __init__(self, to: Grid) -> None:
        """Raises QuantizerRefused where the scales do not fit into one format."""
        super().__init__()
        self.grid = to
        self.shifted = to.zero_point.size == 1 and (
            to.rounding in _WITH_THE_INTEGERS or to.zero_point.item() % _period(to.rounding) == 0
        )
        exponents = to.exponents
        self.fraction: int | None = None
        if self.shifted and exponents is not None and exponents.size == 1:
            self.fraction = -int(exponents.item())
            return
        self.reciprocal, self.scale = reciprocal(to.scale), constant(to.scale)
        if not self.shifted:
            self.zero_point = constant(to.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        to = self.grid
        if self.fraction is not None:
            return limited(x, to.lowest, to.highest, self.fraction, to.rounding)
        x = x * self.reciprocal()
        if self.shifted:
            integers = limited(x, to.lowest, to.highest, 0, to.rounding)
        else:
            zero_point = self.zero_point()
            integers = limited(x + zero_point, to.lo, to.hi, 0, to.rounding) - zero_point
        result: Tensor = integers * self.scale()
        return result


def _period(rounding: Rounding) -> int:
    """The least n for which round(x + n) is round(x) + n always; a number that is too large where
    there is none but zero."""
    return 2 if rounding is Rounding.RND_CONV else 1 << 62


def signs(x: Tensor) -> Tensor:
    """1 where x is not negative, else -1."""
    below = rounded(x, FixedPoint(1, 1), Rounding.TRN)  # -1 below zero, else 0
    result: Tensor = 2 * below + 1
    return result


def ternary(x: Tensor, threshold: Tensor | float) -> Tensor:
    """1 where x is above the threshold, -1 where it is below -threshold, else 0.

    threshold: not negative; what a Constant gives, or a number of few bits.
    """
    sign = FixedPoint(1, 1)
    return rounded(x + threshold, sign, Rounding.TRN) - rounded(threshold - x, sign, Rounding.TRN)


@dataclass(frozen=True, slots=True)
class Weight:
    """Rounded weights.

    values: what to keep in the place of the weights, exactly in the format `to`, whose binary point
    lies shifts[c] bits further left in channel c (first axis; empty: nowhere).
    scale: what the layer's results are to be multiplied by: one number, or one for each channel;
    None where there is nothing to multiply by.
    """

    values: Tensor
    to: FixedPoint
    shifts: tuple[int, ...] = ()
    scale: FloatArray | None = None

    def round(self, parameter: Tensor) -> Tensor:
        """`values`, or what became of them, in their format, as a node of the graph."""
        if not self.shifts:
            return rounded(parameter, self.to)
        kind = (self.to.width, self.to.integer, self.to.signed)
        modes = (Rounding.RND_CONV.value, Overflow.SAT.value)
        result: Tensor = REQUANTIZE_WEIGHTS(
            parameter, self.shifts, Encoding.FIXED.value, [], *kind, *modes
        )
        return result


def integers_of(values: npt.ArrayLike | Tensor, to: Grid) -> FloatArray:
    """The integers (q - zero_point) of constants on a grid.

    Divided in the type of the values, float32 as a rule, as Brevitas and qonnx do, so that these
    are the integers that they compute.
    """
    given = array_of(values)
    kind = given.dtype.type
    scaled = given / to.scale.astype(kind) + to.zero_point.astype(kind)
    whole = np.clip(_ROUNDED[to.rounding](scaled), to.lo, to.hi)
    integers: FloatArray = whole - to.zero_point.astype(kind)
    return integers


def _half(ties_up: Any) -> Any:
    """Rounding to nearest: where ties_up(x) is true, ties go up."""

    def rounding(x: FloatArray) -> FloatArray:
        below = np.floor(x)
        rest = x - below
        nearest: FloatArray = below + ((rest > 0.5) | ((rest == 0.5) & ties_up(x)))
        return nearest

    return rounding


_ROUNDED: dict[Rounding, Any] = {
    Rounding.TRN: np.floor,
    Rounding.TRN_ZERO: np.trunc,
    Rounding.RND_CONV: np.rint,
    Rounding.RND: _half(lambda x: True),
    Rounding.RND_MIN_INF: _half(lambda x: False),
    Rounding.RND_INF: _half(lambda x: x > 0),
    Rounding.RND_ZERO: _half(lambda x: x < 0),
}


def weight(values: npt.ArrayLike | Tensor, to: Grid, axis: int = 0) -> Weight:
    """Constant weights on a grid whose scales differ along one axis at most.

    axis: of output channels. Raises QuantizerRefused where scales differ along another one, among
    the inputs of a sum, since then none can stand behind it.
    """
    return weight_of(integers_of(values, to), to.scale, (to.lowest, to.highest), axis)


def weight_of(
    integers: npt.ArrayLike | Tensor,
    scale: npt.ArrayLike | Tensor,
    limits: tuple[int, int],
    axis: int = 0,
) -> Weight:
    """Weights integers * scale.

    scale: of the rank of the weights, or a scalar. limits: the lowest and the highest integer that
    there may be. See weight.
    """
    data, scales = array_of(integers), _scales(scale)
    assert limits[0] <= data.min()
    assert data.max() <= limits[1]
    assert (data == np.trunc(data)).all()
    if scales.ndim:
        scales = _by_channel(scales, data, axis)
    to = FixedPoint.holding(*limits, 0)
    mantissa, exponent = np.frexp(scales)
    powers = exponent.reshape(-1) - 1
    if (mantissa != 0.5).any() or (scales.ndim and axis % data.ndim):
        return Weight(_tensor(data), to, scale=scales.reshape(-1) if scales.ndim else scales)
    values = _tensor(data * np.exp2(exponent - 1.0))
    highest = int(powers.max())
    shifts = tuple(highest - int(power) for power in powers) if scales.ndim else ()
    return Weight(values, FixedPoint(to.width, to.width + highest, to.signed), shifts)


def _by_channel(scales: FloatArray, data: FloatArray, axis: int) -> FloatArray:
    """Scales of the rank of a weight, or one where all are the same."""
    others = tuple(place for place in range(data.ndim) if place != axis % data.ndim)
    shape = (1,) * (data.ndim - scales.ndim) + scales.shape
    if len(shape) > data.ndim or any(shape[place] != 1 for place in others):
        raise QuantizerRefused(
            f"its scales have shape {scales.shape} where the weight has {data.shape}: they may "
            f"differ along axis {axis}, the output channels, alone"
        )
    # By what a channel of zeros is multiplied does not matter.
    used = (data != 0).any(axis=others, keepdims=True)
    scales = scales.reshape(shape)
    return _equal(np.where(used, scales, scales.max(where=used, initial=0) or 1))


def _tensor(values: FloatArray) -> Tensor:
    """As float32, or float64 where that alone holds them."""
    narrow = values.astype(np.float32)
    return torch.from_numpy(narrow if (narrow == values).all() else values.astype(np.float64))
