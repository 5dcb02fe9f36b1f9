"""Layers of Brevitas that have weights: products, embeddings, scale and bias."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fxloom.brevitas.builders import builds, shape_of_input
from fxloom.brevitas.quantizers import bias_from, quantizer, weight_from
from fxloom.brevitas.recorded import Calls, Quantized, only
from fxloom.given_constants import Constant, QuantizerRefused, addends, constant

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


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
        axes = zip(
            shape_of_input(calls)[-dims:],
            layer.kernel_size,
            layer.stride,
            layer.dilation,
            strict=True,
        )
        for size, kernel, stride, dilation in axes:
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


@builds("QuantEmbedding")
class Embedded(nn.Module):
    """Rows of rounded weights."""

    def __init__(self, layer: Any, calls: Calls) -> None:
        super().__init__()
        if layer.max_norm is not None:
            raise QuantizerRefused("max_norm changes its weights: scale them beforehand")
        found = only(calls.results("weight_quant"), "weight")
        self.rounding = weight_from(found, axis=1) if isinstance(found, Quantized) else None
        values = self.rounding.values if self.rounding else found
        assert isinstance(values, Tensor)
        self.weight = nn.Parameter(values)
        scale = self.rounding.scale if self.rounding else None
        self.rescale = None if scale is None else Rescale(constant(scale), None)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.rounding is None else self.rounding.round(self.weight)
        y = functional.embedding(x, weight)
        return y if self.rescale is None else self.rescale(y)


@builds("QuantScaleBias", "BatchNorm1dToQuantScaleBias", "BatchNorm2dToQuantScaleBias")
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


def _value(operand: Tensor | Quantized) -> Tensor:
    return operand.value if isinstance(operand, Quantized) else operand
