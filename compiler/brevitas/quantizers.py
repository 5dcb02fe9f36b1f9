"""Quantizers of Brevitas as modules of ours, read from what they are and what they did."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.brevitas.recorded import Calls, Quantized
from fxloom.fixed_point import FloatArray
from fxloom.given_constants import Constant, QuantizerRefused, addends, array_of, constant
from fxloom.uniform import Activation, Weight, grid, signs, ternary, weight_of

_ROUNDINGS = {
    "RoundSte": "ROUND",
    "FloorSte": "FLOOR",
    "RoundToZeroSte": "ROUND_TO_ZERO",
    "CeilSte": "CEIL",
}
"""brevitas/core/function_wrapper/ops_ste.py"""

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Hardswish": functional.hardswish,
}


class Signs(nn.Module):
    """The scale with the sign of a value, plus where that is zero (BinaryQuant)."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = constant(scale)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = signs(x) * self.scale()
        return result


class Ternary(nn.Module):
    """The scale with the sign of a value; zero up to a threshold (TernaryQuant)."""

    def __init__(self, scale: Tensor, threshold: Tensor) -> None:
        super().__init__()
        self.scale, self.threshold = constant(scale), constant(threshold)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = ternary(x, self.threshold()) * self.scale()
        return result


def function_of(proxy: Any) -> Callable[[Tensor], Tensor] | None:
    """What a quantizer of activations applies before it rounds; None where that is nothing."""
    fused = proxy.fused_activation_quant_proxy
    name = "Identity" if fused is None else type(fused.activation_impl).__name__
    if name == "Identity":
        return None
    if name == "Hardtanh":
        limits = fused.activation_impl
        return partial(functional.hardtanh, min_val=limits.min_val, max_val=limits.max_val)
    if name not in _FUNCTIONS:
        raise QuantizerRefused(f"its activation {name} is not known here")
    return _FUNCTIONS[name]


def quantizer(layer: nn.Module, name: str, calls: Calls) -> nn.Module | None:
    """What rounds computed values as the quantizer of that name does; None where none does."""
    proxy: Any = getattr(layer, name, None)
    if proxy is None or proxy.fused_activation_quant_proxy is None or not proxy.is_quant_enabled:
        return None
    if type(proxy).__name__ != "ActQuantProxyFromInjector":
        raise QuantizerRefused(
            f"its {name} is a {type(proxy).__name__}. Supported are quantizers with integers and "
            "scales that do not depend on the data (ActQuantProxyFromInjector)"
        )
    if proxy.export_mode:
        raise QuantizerRefused("it is in export mode: leave that first")
    rounding = proxy.fused_activation_quant_proxy.tensor_quant
    result = calls.results(name)[0]
    if not isinstance(result, Quantized):
        raise QuantizerRefused(f"its {name} gives a {type(result).__name__}, not an IntQuantTensor")
    _refuse_dynamic(proxy, calls.quantizers[name][0][0][0], result, name)
    kind = type(rounding).__name__
    if kind in ("BinaryQuant", "ClampedBinaryQuant"):
        refuse_delay(rounding)
        return Signs(result.scale)
    if kind == "TernaryQuant":
        refuse_delay(rounding)
        return Ternary(result.scale, rounding.threshold * result.scale)
    if kind != "RescalingIntQuant" or type(rounding.int_quant).__name__ != "IntQuant":
        raise QuantizerRefused(
            f"its {name} is a {kind}. Supported are RescalingIntQuant with IntQuant, BinaryQuant, "
            "ClampedBinaryQuant and TernaryQuant"
        )
    if rounding.observer_only:
        raise QuantizerRefused(f"its {name} only observes: end its calibration first")
    integers = rounding.int_quant
    refuse_delay(integers)
    return Activation(
        grid(
            result.scale,
            result.zero_point,
            result.bits,
            signed=bool(integers.signed),
            narrow=bool(integers.narrow_range),
            rounding=rounding_name(integers.float_to_int_impl),
        )
    )


def rounding_name(implementation: Any) -> str:
    """A rounding mode by the name that grid knows; refused there by its class where unknown."""
    name = type(implementation).__name__
    return _ROUNDINGS.get(name, name)


def refuse_delay(rounding: Any) -> None:
    delay = rounding.delay_wrapper.delay_impl
    if getattr(delay, "quant_delay_steps", 0) > 0:
        raise QuantizerRefused(
            f"it does not round for another {delay.quant_delay_steps} steps of training"
        )


def _refuse_dynamic(proxy: Any, given: Any, result: Quantized, name: str) -> None:
    """A scale that other data change has no place in hardware."""
    x = given.value if isinstance(given, Quantized) else given
    with torch.no_grad():
        _, scale, zero_point, bits = proxy.fused_activation_quant_proxy(3 * x.clone() + 1)
    before = (result.scale, result.zero_point, result.bits)
    if not all(torch.equal(a, b) for a, b in zip((scale, zero_point, bits), before, strict=True)):
        raise QuantizerRefused(
            f"the scale or zero point of its {name} depends on the data. Use static ones"
        )


def is_power_of_two(scale: Tensor) -> bool:
    """Whether all of these scales are."""
    return bool((torch.frexp(scale)[0] == 0.5).all())


def weight_from(result: Quantized, axis: int) -> Weight:
    """Constant weights as Brevitas has quantized them."""
    integers, scale = _integers(result), array_of(result.scale).astype(np.float64)
    n, zero_point = int(result.bits), array_of(result.zero_point)
    lo, hi = (-(1 << (n - 1)), (1 << (n - 1)) - 1) if result.signed else (0, (1 << n) - 1)
    lowest = min(lo - int(zero_point.max()), int(integers.min()))  # one bit is -1 and 1
    highest = max(hi - int(zero_point.min()), int(integers.max()))
    if scale.size == 1:
        scale = scale.reshape(())
    return weight_of(integers, scale, (lowest, highest), axis)


def _integers(result: Quantized) -> FloatArray:
    """(q - zero_point) of a constant that is (q - zero_point) * scale in float32."""
    value, scale = array_of(result.value), array_of(result.scale)
    integers: FloatArray = np.rint(value.astype(np.float64) / scale)
    again = integers.astype(value.dtype) * scale.astype(value.dtype)
    if not np.array_equal(again, value):
        raise QuantizerRefused("its values are not integers times its scale")
    return integers


def bias_from(result: Tensor | Quantized, behind: FloatArray | None) -> tuple[Constant, bool]:
    """A bias in a format, and whether it is added behind the scale of the weights.

    behind: that scale. A bias whose own scale is this one times a power of two, as that of the
    accumulator of inputs whose scale is one, is added before it, where it has few bits.
    """
    if isinstance(result, Tensor):
        return addends(result), behind is not None
    scale = array_of(result.scale).astype(np.float64).reshape(-1)
    ratio = scale if behind is None else scale / behind.reshape(-1)
    powers = (np.frexp(ratio)[0] == 0.5).all()
    if not powers or (behind is not None and (ratio * behind.reshape(-1) != scale).any()):
        return addends(result.value), behind is not None
    flat = replace(result, scale=result.scale.reshape(-1))
    return constant(_integers(flat) * ratio), False
