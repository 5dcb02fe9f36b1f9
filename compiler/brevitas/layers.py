"""Layers of Brevitas as modules of ours, which compute the same with formats of their own."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.brevitas.quantizers import (
    bias_from,
    function_of,
    is_power_of_two,
    quantizer,
    refuse_delay,
    rounding_name,
    weight_from,
)
from fxloom.brevitas.recorded import Calls, Quantized, only
from fxloom.fixed_point import Rounding
from fxloom.given_constants import Constant, QuantizerRefused, addends, constant, reciprocal
from fxloom.uniform import Activation, grid, limited

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Builder = Callable[[Any, Calls], nn.Module]
BUILDERS: dict[str, Builder] = {}
"""By the class of Brevitas."""


def builds(*classes: str) -> Callable[[Builder], Builder]:
    """Register what makes a module of a layer of these classes; it raises QuantizerRefused."""

    def register(builder: Builder) -> Builder:
        BUILDERS.update(dict.fromkeys(classes, builder))
        return builder

    return register


class Rescale(nn.Module):
    """y * scale + bias for each channel, of both or one of them."""

    def __init__(self, scale: Constant | None, bias: Constant | None) -> None:
        super().__init__()
        self.scale, self.bias = scale, bias

    def forward(self, y: Tensor) -> Tensor:
        y = y if self.scale is None else y * self.scale()
        return y if self.bias is None else y + self.bias()


class Weighted(nn.Module):
    """A layer of weights between the quantizers of its input and its output."""

    def __init__(self, layer: Any, calls: Calls, product: Product, axis: int, dims: int) -> None:
        """axis: of the weights' output channels. dims: axes of a result behind its channels."""
        super().__init__()
        self.input_quant = quantizer(layer, "input_quant", calls)
        self.output_quant = quantizer(layer, "output_quant", calls)
        self.product = product
        found = only(calls.results("weight_quant"), "weight")
        self.rounding = weight_from(found, axis) if isinstance(found, Quantized) else None
        values = self.rounding.values if self.rounding else found
        assert isinstance(values, Tensor)
        self.weight = nn.Parameter(values)
        scale = self.rounding.scale if self.rounding else None
        self.bias: Constant | None = None
        outer: Constant | None = None
        if layer.bias is not None:
            result = only(calls.results("bias_quant"), "bias")
            bias, behind = bias_from(result, scale)
            self.bias, outer = (None, _along_channels(bias, dims)) if behind else (bias, None)
        behind_it = None if scale is None else _along_channels(constant(scale), dims)
        self.rescale = Rescale(behind_it, outer) if behind_it or outer else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.input_quant is None else self.input_quant(x)
        weight = self.weight if self.rounding is None else self.rounding.round(self.weight)
        y = self.product(x, weight, None if self.bias is None else self.bias())
        y = y if self.rescale is None else self.rescale(y)
        return y if self.output_quant is None else self.output_quant(y)


def _along_channels(number: Constant, dims: int) -> Constant:
    if number.value.numel() > 1:
        number.value = number.value.reshape(-1, *(1,) * dims)
    return number


@builds("QuantLinear")
def _linear(layer: Any, calls: Calls) -> nn.Module:
    return Weighted(layer, calls, functional.linear, axis=0, dims=0)


@builds("QuantConv1d", "QuantConv2d")
def _convolution(layer: Any, calls: Calls) -> nn.Module:
    dims = len(layer.kernel_size)
    convolve = partial(
        functional.conv1d if dims == 1 else functional.conv2d,
        stride=layer.stride,
        dilation=layer.dilation,
        groups=layer.groups,
    )
    padding: Any = layer.padding
    around: list[int] = []
    if layer.is_same_padded_strided:
        shape = _shape_of_input(calls)[-dims:]
        for size, kernel, stride, dilation in zip(
            shape, layer.kernel_size, layer.stride, layer.dilation, strict=True
        ):
            missing = (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size
            before = max(missing, 0) // 2
            around = [before, max(missing, 0) - before, *around]
    elif layer.padding_mode != "zeros":
        around, padding = list(layer._reversed_padding_repeated_twice), 0
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = functional.pad(x, around, mode) if any(around) else x
        return convolve(x, weight, bias, padding=padding)

    return Weighted(layer, calls, product, axis=0, dims=dims)


@builds("QuantConvTranspose1d", "QuantConvTranspose2d")
def _transposed(layer: Any, calls: Calls) -> nn.Module:
    dims = len(layer.kernel_size)
    if any(len(args) > 1 and args[1] is not None for args, _ in calls.layer):
        raise QuantizerRefused("it is called with output_size: give output_padding instead")
    product = partial(
        functional.conv_transpose1d if dims == 1 else functional.conv_transpose2d,
        stride=layer.stride,
        padding=layer.padding,
        output_padding=layer.output_padding,
        groups=layer.groups,
        dilation=layer.dilation,
    )
    return Weighted(layer, calls, product, axis=1, dims=dims)


def _shape_of_input(calls: Calls) -> Sequence[int]:
    given = calls.layer[0][0][0]
    return (given.value if isinstance(given, Quantized) else given).shape


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


BUILDERS["QuantEltwiseAdd"] = Added


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
        _shape_of_input(calls)[-2:],
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


class ScaleBias(nn.Module):
    """x * weight + bias for each channel, between the quantizers of input and output."""

    def __init__(self, layer: Any, calls: Calls) -> None:
        super().__init__()
        self.input_quant = quantizer(layer, "input_quant", calls)
        self.output_quant = quantizer(layer, "output_quant", calls)
        weight, bias = (
            _value(only(calls.results(f"{name}_quant"), name)).reshape(layer.runtime_shape)
            for name in ("weight", "bias")
        )
        self.weight, self.bias = constant(weight), addends(bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.input_quant is None else self.input_quant(x)
        y: Tensor = x * self.weight() + self.bias()
        return y if self.output_quant is None else self.output_quant(y)


BUILDERS.update(
    dict.fromkeys(
        ("QuantScaleBias", "BatchNorm1dToQuantScaleBias", "BatchNorm2dToQuantScaleBias"), ScaleBias
    )
)


def _value(operand: Tensor | Quantized) -> Tensor:
    return operand.value if isinstance(operand, Quantized) else operand
