"""Layers with weights: products and convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.onnx.given import Integers, Weights
from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import Function, builds
from fxloom.onnx.windows import Window, window_of

Roundings = tuple[Integers | None, Integers | None]


class Linear(Weights):
    """x @ weight.T + bias."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.rounded_weight(), self.plain_bias())
        return self.behind(y)


class Convolution(Weights):
    """Conv of one or two spatial dimensions; unequal padding is a step of its own."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, rounding: Roundings, window: Window, groups: int
    ) -> None:
        super().__init__(weight, bias, rounding)
        self._window, self._groups = window, groups

    def forward(self, x: Tensor) -> Tensor:
        window = self._window
        function = functional.conv1d if len(window.strides) == 1 else functional.conv2d
        if not window.even:
            x = functional.pad(x, window.outside)
        y = function(
            x,
            self.rounded_weight(),
            self.plain_bias(),
            window.strides,
            window.begins if window.even else 0,
            window.dilations,
            self._groups,
        )
        return self.behind(y)


@builds("Conv")
def _conv(node: Node) -> nn.Module:
    weight, bias, kernel = _weights(node)
    window, groups = window_of(node, kernel), node.integer("group", 1)
    return Convolution(weight, bias, _roundings(node), window, groups)


def _roundings(node: Node) -> Roundings:
    """Those of weight and bias, the second and third input."""
    return node.value(1).rounding, node.value(2).rounding if node.has(2) else None


def _weights(node: Node) -> tuple[Tensor, Tensor | None, list[int]]:
    """Weights and bias of a convolution, and the sizes of its kernel."""
    weight, bias = node.constant(1, "weights"), node.optional(2, "bias")
    if node.rank() not in (3, 4):
        raise Refused(f"required one or two spatial dimensions, got {node.rank() - 2}")
    kernel = list(weight.shape[2:])
    if node.integers("kernel_shape", kernel) != kernel:
        raise Refused(f"kernel_shape is not that of its weights, {kernel}")
    return weight, bias, kernel


class Deconvolution(Weights):
    """ConvTranspose. Rows that unequal padding takes away are cut off."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        rounding: Roundings,
        window: Window,
        extra: list[int],
        groups: int,
    ) -> None:
        super().__init__(weight, bias, rounding, axis=1, groups=groups)
        self._window, self._extra, self._groups = window, extra, groups

    def forward(self, x: Tensor) -> Tensor:
        window = self._window
        function = (
            functional.conv_transpose1d if len(window.strides) == 1 else functional.conv_transpose2d
        )
        padding = [min(pair) for pair in zip(window.begins, window.ends, strict=True)]
        y = function(
            x, self.rounded_weight(), self.plain_bias(), window.strides, padding, self._extra,
            self._groups, window.dilations,
        )  # fmt: skip
        for dim, (begin, end, least) in enumerate(
            zip(window.begins, window.ends, padding, strict=True), 2
        ):
            if begin != end:
                y = y.narrow(dim, begin - least, y.shape[dim] - (begin - least) - (end - least))
        return self.behind(y)


@builds("ConvTranspose")
def _conv_transpose(node: Node) -> nn.Module:
    weight, bias, kernel = _weights(node)
    count = len(kernel)
    extra = node.integers("output_padding", [0] * count)
    shape = node.attribute("output_shape", None)
    mode = node.text("auto_pad", "NOTSET")
    strides, dilations = (
        node.integers("strides", [1] * count),
        node.integers("dilations", [1] * count),
    )
    begins, ends = _ends(node.integers("pads", [0] * (2 * count)), count)
    if min([*extra, *begins, *ends, 0]) < 0 or {len(extra), len(strides), len(dilations)} != {
        count
    }:
        raise Refused(f"its attributes are not for {count} spatial dimensions")
    if shape is not None or mode.startswith("SAME"):
        sizes = node.shape()[2:]
        wanted = shape or [size * stride for size, stride in zip(sizes, strides, strict=True)]
        for dim in range(count):
            full = (
                strides[dim] * (sizes[dim] - 1)
                + extra[dim]
                + (kernel[dim] - 1) * dilations[dim]
                + 1
            )
            total = full - wanted[dim]
            if total < 0:
                raise Refused(f"an output of {wanted} is larger than its input gives")
            less, more = total // 2, total - total // 2
            begins[dim], ends[dim] = (less, more) if mode == "SAME_UPPER" else (more, less)
    window = Window(tuple(strides), tuple(dilations), tuple(begins), tuple(ends))
    for dim in range(count):
        if extra[dim] and extra[dim] >= max(strides[dim], dilations[dim]):
            # torch has no such extra rows, and they would be the bias alone
            raise Refused(f"output_padding {extra} is not below strides {strides}")
    groups = node.integer("group", 1)
    return Deconvolution(weight, bias, _roundings(node), window, extra, groups)


def _ends(pads: list[int], count: int) -> tuple[list[int], list[int]]:
    if len(pads) != 2 * count:
        raise Refused(f"pads has {len(pads)} numbers for {count} spatial dimensions")
    return pads[:count], pads[count:]


@builds("Gemm")
def _gemm(node: Node) -> nn.Module | Function:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    first, second = node.flag("transA"), node.flag("transB")
    simple = not first and node.value(1).constant and (not node.has(2) or node.value(2).constant)
    if simple:
        weight, bias = node.constant(1, "weights"), node.optional(2, "bias")
        weight = weight if second else weight.T
        outputs = len(weight)
        if bias is None or ((bias.dim() < 2 or len(bias) == 1) and bias.numel() in (1, outputs)):
            if bias is not None:
                bias = (bias * beta if beta != 1 else bias).reshape(-1).expand(outputs)
            of_weight, of_bias = _roundings(node)
            if (of_weight is not None and alpha != 1) or (of_bias is not None and beta != 1):
                raise Refused("alpha and beta other than 1 beside rounded weights have no lowering")
            if of_weight is not None and not second:
                of_weight = of_weight.moved(_transposed)
            weight = weight * alpha if alpha != 1 else weight
            return Linear(weight.contiguous(), bias, (of_weight, of_bias))
        node.consumed.clear()

    def product(x: Tensor, y: Tensor, offset: Tensor | None = None) -> Tensor:
        result = torch.matmul(x.T if first else x, y.T if second else y)
        result = result * alpha if alpha != 1 else result
        if offset is None:
            return result
        return result + (offset * beta if beta != 1 else offset)

    return product


@builds("MatMul")
def _matmul(node: Node) -> nn.Module | Function:
    if node.value(1).constant and node.rank(1) == 2:
        rounding, weight = node.value(1).rounding, node.constant(1, "weights")
        moved = None if rounding is None else rounding.moved(_transposed)
        return Linear(weight.T.contiguous(), None, (moved, None))
    return torch.matmul


def _transposed(x: Tensor) -> Tensor:
    return x.T


@builds("Einsum")
def _einsum(node: Node) -> Function:
    equation = node.text("equation")
    return lambda *x: torch.einsum(equation, *x)
