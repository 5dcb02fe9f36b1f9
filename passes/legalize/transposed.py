"""Transposed convolutions: convolutions whose results are interleaved.

Along an axis with stride s, position p of the result reads the taps j with j * dilation = p mod s
only. So every remainder has a smaller kernel of its own: one ordinary convolution with s results a
channel, and a reshape that interleaves them. Nothing is multiplied by zeros between pixels.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.graph import arguments
from fxloom.passes.legalize.core import insert, legalizes
from fxloom.passes.legalize.gathers import gathered, reshaped
from fxloom.passes.legalize.rounded import rearranged

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class _Axis:
    """How the results along one axis come about.

    Result p + padding = q * stride + r is a correlation at q of kernel r, whose entry u is tap
    taps[r][u] of the transposed one, None for a zero; q runs over as many positions as needed.
    """

    stride: int
    dilation: int
    taps: list[list[int | None]]
    before: int  # zeros in front of the input, negative where some of it is cut off
    after: int
    skipped: int  # results in front of the first that is wanted

    @classmethod
    def of(
        cls, stride: int, padding: int, dilation: int, kernel: int, size: int, result: int
    ) -> "_Axis":
        """size, result: positions of the input and of the result."""
        if stride == 1:  # one kernel, and dilation stays what it is
            reach = dilation * (kernel - 1)
            taps: list[list[int | None]] = [[*range(kernel)][::-1]]
            first = padding
        else:
            reach = (kernel - 1) * dilation // stride
            taps = [[None] * (reach + 1) for _ in range(stride)]
            for tap in range(kernel):
                offset, remainder = divmod(tap * dilation, stride)
                taps[remainder][reach - offset] = tap
            dilation, first = 1, padding // stride
        end = -(-(padding + result) // stride)
        return cls(stride, dilation, taps, reach - first, end - size, padding - first * stride)


@legalizes(aten.convolution.default)
def _transposed(module: GraphModule, node: Node) -> Node | None:
    x, weight_node, bias_node, strides, paddings, dilations, transposed, _, groups = arguments(node)
    if not transposed:
        return None
    weight = weight_node.meta["val"]
    results = node.meta["val"].shape[2:]
    axes = [
        _Axis.of(*attributes)
        for attributes in zip(
            strides, paddings, dilations, weight.shape[2:], x.meta["val"].shape[2:], results,
            strict=True,
        )
    ]  # fmt: skip

    def move(values: Tensor) -> Tensor:
        return _rearranged(values, axes, groups)

    def repeat(values: Tensor) -> Tensor:
        split = values.reshape(groups, 1, -1).expand(-1, prod(strides), -1)
        return split.reshape(-1).contiguous()

    kernel = rearranged(module, node, weight_node, move)
    bias = None if bias_node is None else rearranged(module, node, bias_node, repeat)
    symmetric = [max(0, min(axis.before, axis.after)) for axis in axes]
    rest = [
        width - padding
        for axis, padding in reversed(list(zip(axes, symmetric, strict=True)))
        for width in (axis.before, axis.after)
    ]
    if any(rest):
        x = insert(module, node, aten.constant_pad_nd.default, x, rest, 0.0)
    ones = [1] * len(axes)
    attributes = (ones, symmetric, [axis.dilation for axis in axes], False, [0] * len(axes), groups)
    product = insert(module, node, aten.convolution.default, x, kernel, bias, *attributes)
    image = _interleaved(module, node, product, axes, groups)
    for position, (axis, result) in enumerate(zip(axes, results, strict=True)):
        wanted = range(axis.skipped, axis.skipped + result)
        image = gathered(module, node, image, 2 + position, wanted)
    return image


def _rearranged(weight: Tensor, axes: list[_Axis], groups: int) -> Tensor:
    """[I, O / groups, *K] as a kernel [groups * remainders * O / groups, I / groups, *taps]."""
    for position, axis in enumerate(axes):
        dim = 2 + 2 * position
        empty = torch.zeros_like(weight.select(dim, 0))
        kernels = [
            torch.stack([empty if tap is None else weight.select(dim, tap) for tap in taps], dim)
            for taps in axis.taps
        ]
        weight = torch.stack(kernels, dim)  # [..., remainder, tap, ...]
    inputs, outputs = weight.shape[:2]
    weight = weight.reshape(groups, inputs // groups, *weight.shape[1:])
    remainders = [3 + 2 * position for position in range(len(axes))]
    taps = [each + 1 for each in remainders]
    weight = weight.permute(0, *remainders, 2, 1, *taps)
    rows = groups * outputs * prod(axis.stride for axis in axes)
    sizes = [len(axis.taps[0]) for axis in axes]
    return weight.reshape(rows, inputs // groups, *sizes).contiguous()


def _interleaved(
    module: GraphModule, node: Node, product: Node, axes: list[_Axis], groups: int
) -> Node:
    """[B, groups * remainders * O / groups, *Q] to [B, O, *(Q * remainder)]."""
    strides = [axis.stride for axis in axes]
    if prod(strides) == 1:
        return product
    batch, channels, *sizes = product.meta["val"].shape
    outputs = channels // prod(strides) // groups
    split = reshaped(module, node, product, (batch, groups, *strides, outputs, *sizes))
    count = len(axes)
    pairs = [dim for axis in range(count) for dim in (3 + count + axis, 2 + axis)]
    moved = insert(module, node, aten.permute.default, split, [0, 1, 2 + count, *pairs])
    whole = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    return reshaped(module, node, moved, (batch, groups * outputs, *whole))
