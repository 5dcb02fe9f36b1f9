"""Layers of Brevitas that have no weights: activations, sums, averages, images of another size."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.brevitas.builders import builds, shape_of_input
from fxloom.brevitas.quantizers import (
    function_of,
    is_power_of_two,
    quantizer,
    refuse_delay,
    rounding_name,
)
from fxloom.brevitas.recorded import Calls, Quantized
from fxloom.fixed_point import Rounding
from fxloom.given_constants import Constant, QuantizerRefused, constant, reciprocal
from fxloom.uniform import Activation, grid, limited


class Activated(nn.Module):
    """An activation between two quantizers."""

    def __init__(self, layer: Any, calls: Calls) -> None:
        super().__init__()
        self.input_quant = quantizer(layer, "input_quant", calls)
        self.function = function_of(layer.act_quant)
        self.act_quant = quantizer(layer, "act_quant", calls)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.input_quant is None else self.input_quant(x)
        x = x if self.function is None else self.function(x)
        return x if self.act_quant is None else self.act_quant(x)


@builds(
    "QuantIdentity", "QuantReLU", "QuantSigmoid", "QuantTanh", "QuantHardTanh", "QuantHardSwish"
)
def _activation(layer: Any, calls: Calls) -> nn.Module:
    result = Activated(layer, calls)
    alone = result.input_quant is None and result.function is None
    return result.act_quant if alone and result.act_quant is not None else result


@builds("QuantEltwiseAdd")
class Added(nn.Module):
    """The rounded sum of two tensors, each rounded before."""

    def __init__(self, layer: Any, calls: Calls) -> None:
        super().__init__()
        self.input_quant = quantizer(layer, "input_quant", calls)
        self.output_quant = quantizer(layer, "output_quant", calls)

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        first, second = (
            x if self.input_quant is None else self.input_quant(x) for x in (input, other)
        )
        return first + second if self.output_quant is None else self.output_quant(first + second)


class Pooled(nn.Module):
    """Sums over windows, brought to fewer bits and divided by the size of a window (TruncIntQuant
    behind an average)."""

    def __init__(
        self, pool: Callable[[Tensor], Tensor], size: int, layer: Any, calls: Calls
    ) -> None:
        """pool: gives the sums. size: of a window, by which Brevitas divides."""
        super().__init__()
        self.pool = pool
        given, result = calls.layer[0][0][0], calls.results("trunc_quant")[0]
        rounding = layer.trunc_quant.tensor_quant
        if type(rounding).__name__ != "TruncIntQuant" or not isinstance(result, Quantized):
            raise QuantizerRefused(f"its trunc_quant is a {type(rounding).__name__}")
        refuse_delay(rounding)
        if given.zero_point.any():
            raise QuantizerRefused("its input has a zero point, which a sum would have to divide")
        shift = result.scale.double() / (given.scale / size).double()
        scale = given.scale.double()
        # Sums are integers times the scale. A product with the reciprocal would lose the ties of
        # their rounding, so that these integers are found first.
        self.reciprocal: Constant | None = None
        factor = torch.tensor(1 / size, dtype=torch.float64)
        if not is_power_of_two(scale):
            self.reciprocal = reciprocal(scale)
            scale, factor = torch.ones_like(scale), factor * scale
        if not is_power_of_two(shift):
            raise QuantizerRefused(f"it truncates to steps of {shift.tolist()}: no power of two")
        to = grid(
            scale * shift,
            0,
            result.bits,
            signed=result.signed,
            narrow=bool(rounding.narrow_range),
            rounding=rounding_name(rounding.float_to_int_impl),
        )
        self.truncated, self.factor = Activation(to), constant(factor)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(x)
        if self.reciprocal is not None:
            y = limited(y * self.reciprocal(), -_MOST, _MOST, 0, Rounding.RND_CONV)
        result: Tensor = self.truncated(y) * self.factor()
        return result


_MOST = (1 << 30) - 1
"""More than any sum over a window."""


@builds("TruncAvgPool2d")
def _average(layer: Any, calls: Calls) -> nn.Module:
    if layer.ceil_mode:
        raise QuantizerRefused("ceil_mode leaves windows of several sizes. Pad before it instead")
    kernel = layer.kernel_size
    size = kernel**2 if isinstance(kernel, int) else kernel[0] * kernel[1]
    return _pool(layer, calls, kernel, layer.stride, layer.divisor_override or size)


@builds("TruncAdaptiveAvgPool2d")
def _adaptive(layer: Any, calls: Calls) -> nn.Module:
    wanted = layer.output_size
    pairs = zip(
        shape_of_input(calls)[-2:],
        wanted if isinstance(wanted, tuple) else (wanted, wanted),
        strict=True,
    )
    kernel = []
    for size, outputs in pairs:
        outputs = size if outputs is None else outputs
        if size % outputs:
            raise QuantizerRefused(
                f"its windows have several sizes: {size} values become {outputs}. Use sizes that "
                "divide without rest"
            )
        kernel.append(size // outputs)
    return _pool(layer, calls, kernel, kernel, kernel[0] * kernel[1])


def _pool(layer: Any, calls: Calls, kernel: Any, stride: Any, size: int) -> nn.Module:
    def pool(x: Tensor, divisor: int = 1) -> Tensor:
        return functional.avg_pool2d(x, kernel, stride, divisor_override=divisor)

    if calls.results("trunc_quant") and isinstance(calls.layer[0][0][0], Quantized):
        return Pooled(pool, size, layer, calls)
    return Plain(partial(pool, divisor=size))


class Plain(nn.Module):
    """A layer without a quantizer of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@builds("QuantUpsample", "QuantUpsamplingNearest2d")
def _upsample(layer: Any, calls: Calls) -> nn.Module:
    if layer.mode != "nearest":
        raise QuantizerRefused(f"it upsamples {layer.mode}: supported is mode='nearest'")
    return Plain(partial(functional.interpolate, size=layer.size, scale_factor=layer.scale_factor))
