"""Weights as QKeras quantizes them: numbers on a fixed-point grid, times a scale.

Scales that QKeras finds itself (alpha "auto" and "auto_po2") are computed in float32 as
TensorFlow does, but for the order in which means add up. Source: qkeras/quantizers.py, 0.9.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fxloom.keras.quantizer_functions import quantized, require_form
from fxloom.keras.quantizer_powers import EPSILON, signed_powers, unsigned_powers
from fxloom.keras.quantizers import Quantizer
from fxloom.keras.registry import Refused

Floats = npt.NDArray[np.float32]

ONE: Floats = np.ones((), np.float32)


@dataclass(frozen=True)
class QuantizedWeights:
    """values * scale, both float32. values lie on a fixed-point grid; scale broadcasts to them."""

    values: Floats
    scale: Floats

    @property
    def has_point_scale(self) -> bool:
        """Whether every scale is a power of two: a move of the binary point."""
        return bool((np.frexp(np.abs(self.scale))[0] == 0.5).all())

    @property
    def product(self) -> Floats:
        """The weights as QKeras has them: exact where the scale is a power of two."""
        return self.values * self.scale


def quantized_weights(quantizer: Quantizer | None, weights: Floats) -> QuantizedWeights:
    """What a quantizer makes of weights. Raises Refused where there is no exact form."""
    weights = np.asarray(weights, np.float32)
    if not np.isfinite(weights).all():
        raise Refused("its weights must be finite numbers")
    if quantizer is None:
        return QuantizedWeights(weights, ONE)
    require_form(quantizer)
    alpha = quantizer.options.get("alpha")
    if isinstance(alpha, str):
        if quantizer.name not in _AUTO:
            raise Refused(f"{quantizer.name} with alpha={alpha!r} has no exact form here")
        with np.errstate(divide="ignore", invalid="ignore"):
            found = _AUTO[quantizer.name](quantizer, weights)
        none = found.scale == 0  # of weights that are all zero
        return QuantizedWeights(np.where(none, 0, found.values), np.where(none, 1, found.scale))
    plain = quantizer.with_options(alpha=None) if alpha is not None else quantizer
    if quantizer.name in PLAIN:
        values = PLAIN[quantizer.name](plain, weights)
    else:
        module = quantized(plain)
        with torch.no_grad():
            values = module(torch.from_numpy(weights)).numpy()
    scale = np.asarray(1 if alpha is None else alpha, np.float32)
    try:
        np.broadcast_to(scale, values.shape)
    except ValueError:
        raise Refused(
            f"{quantizer.name} with an alpha of shape {scale.shape} for weights {values.shape}"
        ) from None
    return QuantizedWeights(values, scale)


def _axes(weights: Floats, scale_axis: int | None = None) -> tuple[int, ...]:
    """The axes that share a scale: all but that of the channels, by default the last."""
    if scale_axis is None:
        return tuple(range(weights.ndim - 1))
    return tuple(axis for axis in range(weights.ndim) if axis != scale_axis)


def _power_of_two(scale: Floats) -> Floats:
    exponents = np.rint(np.log(scale + EPSILON) / np.float32(np.log(2.0)))
    powers: Floats = np.ldexp(np.float32(1), exponents.astype(np.int32))
    return powers


def _fitted(
    quantizer: Quantizer, weights: Floats, codes: Floats, scale_axis: int | None = None
) -> Floats:
    """The scale with the least squared error of codes * scale, or a power of two near it."""
    if weights.ndim > 1:
        axes = _axes(weights, scale_axis)
        mean = (weights * codes).mean(axis=axes, keepdims=True, dtype=np.float64)
        square = (codes * codes).mean(axis=axes, keepdims=True, dtype=np.float64)
    else:
        mean, square = weights * codes, codes * codes
    scale = mean.astype(np.float32) / (square.astype(np.float32) + EPSILON)
    return _power_of_two(scale) if quantizer["alpha"] == "auto_po2" else scale


def _bits(quantizer: Quantizer, weights: Floats) -> QuantizedWeights:
    if quantizer["bits"] == 1:
        raise Refused("quantized_bits of 1 bit with alpha auto has no level: use binary")
    point = np.float32(2.0 ** quantizer["integer"])
    weights = weights / point
    axis = quantizer["scale_axis"]
    axes = _axes(weights, axis) if weights.ndim > 1 else (0,)
    highest = np.float32(2 ** (quantizer["bits"] - 1) - 1)
    scale = np.abs(weights).max(axis=axes, keepdims=True) * np.float32(2) / (highest * 2)

    def codes() -> Floats:
        steps = np.floor(np.abs(weights) / scale + np.float32(0.5))
        return np.sign(weights) * np.where(steps < highest, steps, highest)

    if quantizer["alpha"] == "auto":
        return QuantizedWeights(codes() * point, scale)
    scale = _power_of_two(scale)
    for _ in range(5):
        found = codes()
        scale = _fitted(quantizer, weights, found, axis)
    return QuantizedWeights(found * point, scale)


def _ternary(quantizer: Quantizer, weights: Floats) -> QuantizedWeights:
    if quantizer["threshold"] is not None:
        raise Refused(
            f"{quantizer.name} with both alpha auto and a threshold, which QKeras refuses"
        )
    axes = _axes(weights) if weights.ndim > 1 else None
    scale = np.float32(2) * np.abs(weights).max(axis=axes, keepdims=True) / np.float32(3)
    if quantizer["alpha"] == "auto_po2":
        scale = _power_of_two(scale)
    codes = np.zeros_like(weights)
    for _ in range(quantizer["number_of_unrolls"]):
        steps = scale * np.rint(weights / scale)
        codes = (np.abs(steps) >= scale / 2) * np.sign(weights)
        scale = _fitted(quantizer, weights, codes)
    return QuantizedWeights(codes, scale)


def _binary(quantizer: Quantizer, weights: Floats) -> QuantizedWeights:
    codes = np.where(weights < 0, np.float32(-1), np.float32(1))
    if quantizer.options.get("use_01"):
        codes = (codes + 1) / 2
    return QuantizedWeights(codes, _fitted(quantizer, weights, codes))


_AUTO: dict[str, Callable[[Quantizer, Floats], QuantizedWeights]] = {
    "quantized_bits": _bits,
    "ternary": _ternary,
    "stochastic_ternary": _ternary,
    "binary": _binary,
    "stochastic_binary": _binary,
}


def _plain_bits(quantizer: Quantizer, weights: Floats) -> Floats:
    bits, signed = quantizer["bits"], bool(quantizer["keep_negative"])
    if bits == signed:
        return np.where(weights < 0, np.float32(-1), np.float32(1))
    steps = 1 << (bits - signed)
    low = -steps + bool(quantizer["symmetric"]) if signed else 0
    step = np.float32(2.0 ** quantizer["integer"] / steps)
    rounded: Floats = np.clip(np.rint(weights / step), low, steps - 1) * step
    return rounded


PLAIN: dict[str, Callable[[Quantizer, Floats], Floats]] = {
    "quantized_bits": _plain_bits,
    "quantized_po2": signed_powers,
    "quantized_relu_po2": unsigned_powers,
}
"""Quantizers of constants without a scale, computed without torch."""
