"""Pools and reductions."""

import torch
from torch.fx.node import Node

from fxloom import ops
from fxloom.batch_axis import sample_axis
from fxloom.graph import arguments, origin
from fxloom.lowering.core import Lowered, Lowering, NotLowered, lowers
from fxloom.lowering.layers import pair
from fxloom.lowering.operands import without
from fxloom.ops import Op

aten = torch.ops.aten


def _pooled(
    lowering: Lowering,
    node: Node,
    kind: str,
    ceil_mode: bool,
    dilation: tuple[int, int] = (1, 1),
) -> Lowered:
    image = lowering.image(node)
    kernel = pair(arguments(node)[1])
    stride = pair(arguments(node)[2]) if arguments(node)[2] else kernel
    padding = pair(arguments(node)[3], 0)
    pads = tuple(
        pool_padding(n, d * (k - 1) + 1, s, p, ceil_mode)
        for n, k, s, p, d in zip(image.shape, kernel, stride, padding, dilation, strict=False)
    )
    op = ops.Pool(kind, kernel, stride, (pads[0], pads[1]), dilation)
    return lowering.from_image(lowering.emit(op, [image], node), node)


def pool_padding(
    size: int, kernel: int, stride: int, padding: int, ceil_mode: bool
) -> tuple[int, int]:
    """Padding before and after that gives PyTorch's windows.

    With ceil_mode a last window may hang over the end, but must start inside the input or its left
    padding (torch.nn.MaxPool2d). Without it, positions that no window reaches do not matter.
    """
    if not ceil_mode:
        return padding, padding
    count = -(-(size + 2 * padding - kernel) // stride) + 1
    if (count - 1) * stride >= size + padding:
        count -= 1
    reach = (count - 1) * stride + kernel
    return padding, max(reach - size - padding, 0)


@lowers(aten.max_pool1d.default, aten.max_pool2d.default)
def _max_pool(lowering: Lowering, node: Node) -> Lowered:
    dilation, ceil_mode = arguments(node)[4:6]
    return _pooled(lowering, node, "max", bool(ceil_mode), pair(dilation))


@lowers(aten.avg_pool2d.default)
def _sum_pool(lowering: Lowering, node: Node) -> Lowered:
    if arguments(node)[6] != 1:
        raise NotLowered("an average has no fixed-point format. Run the quantize pass before lower")
    return _pooled(lowering, node, "sum", bool(arguments(node)[4]))


@lowers(aten.sum.dim_IntList, aten.amax.default)
def _reduce(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.unflatten(lowering.tensor(node, 0), origin(node))
    source, dims, keep = arguments(node)[:3]
    assert isinstance(source, Node)
    user_axes = [sample_axis(source, dim) for dim in dims]
    axes = tuple(sorted(x.layout.index(axis) for axis in user_axes))
    op: Op = ops.ReduceMax(axes) if node.target is aten.amax.default else ops.ReduceSum(axes)
    value = lowering.emit(op, [x.value], node)
    if keep:
        return Lowered(value, x.layout)
    return without(lowering, node, x, axes, value)
