"""Images of another size: pixels shuffled, repeated and interpolated; running sums."""

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.editing import tensor_node
from fxloom.graph import arguments, origin
from fxloom.passes.legalize.core import insert, legalizes
from fxloom.passes.legalize.gathers import gathered, reshaped

aten = torch.ops.aten


@legalizes(aten.pixel_shuffle.default)
def _pixel_shuffle(module: GraphModule, node: Node) -> Node:
    x, factor = arguments(node)
    batch, channels, height, width = x.meta["val"].shape
    shape = (batch, channels // factor**2, factor, factor, height, width)
    split = reshaped(module, node, x, shape)
    order = [0, 1, 4, 2, 5, 3]
    return reshaped(
        module,
        node,
        insert(module, node, aten.permute.default, split, order),
        node.meta["val"].shape,
    )


@legalizes(aten.pixel_unshuffle.default)
def _pixel_unshuffle(module: GraphModule, node: Node) -> Node:
    x, factor = arguments(node)
    batch, channels, height, width = x.meta["val"].shape
    shape = (batch, channels, height // factor, factor, width // factor, factor)
    split = reshaped(module, node, x, shape)
    order = [0, 1, 3, 5, 2, 4]
    return reshaped(
        module,
        node,
        insert(module, node, aten.permute.default, split, order),
        node.meta["val"].shape,
    )


@legalizes(aten.channel_shuffle.default)
def _channel_shuffle(module: GraphModule, node: Node) -> Node:
    x, groups = arguments(node)
    order = np.arange(x.meta["val"].shape[1]).reshape(groups, -1).T
    return gathered(module, node, x, 1, order.reshape(-1).tolist())


NEAREST = (
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec,
)


@legalizes(*NEAREST)
def _nearest(module: GraphModule, node: Node) -> Node:
    x: Node
    x, *attributes = arguments(node)
    sizes = x.meta["val"].shape[2:]
    for axis, size in enumerate(sizes):
        shape = [size if other == axis else 1 for other in range(len(sizes))]
        ramp = torch.arange(size, dtype=x.meta["val"].dtype).reshape(shape).expand(1, 1, *sizes)
        found = node.target(ramp, *attributes)  # type: ignore[operator]
        indices = found.movedim(2 + axis, 0).reshape(found.shape[2 + axis], -1)[:, 0]
        x = gathered(module, node, x, 2 + axis, indices.to(torch.int64).tolist())
    return x


LINEAR = (
    aten.upsample_linear1d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.vec,
    aten._upsample_bilinear2d_aa.vec,
    aten._upsample_bicubic2d_aa.vec,
)


@legalizes(*LINEAR)
def _interpolated(module: GraphModule, node: Node) -> Node:
    """Each result is a sum over a few taps, weighted by constants.

    Taps are gathered side by side, multiplied and summed by a pool: exact, rounded once, and
    images stay channels-last.
    """
    x: Node
    x, *attributes = arguments(node)
    sizes = x.meta["val"].shape[2:]
    kernel, weight = [], torch.ones((), dtype=torch.float64)
    for axis in range(len(sizes)):
        taps, weights = _taps(node.target, sizes, axis, attributes)
        x = gathered(module, node, x, 2 + axis, taps.reshape(-1).tolist())
        kernel.append(taps.shape[1])
        weight = weight.unsqueeze(-1) * weights.reshape(-1)
    if (weight == 1).all():
        return x
    image = (1, *x.meta["val"].shape[2:])[-2:]
    x = reshaped(module, node, x, (*x.meta["val"].shape[:2], *image))
    weight = weight.to(x.meta["val"].dtype).reshape(1, 1, *image)
    x = insert(
        module, node, aten.mul.Tensor, x,
        tensor_node(module, node, f"{origin(node)}.weights", weight),
    )  # fmt: skip
    window = [1, *kernel][-2:]
    if prod(window) > 1:
        summed = (window, window, [0, 0], False, True, 1)
        x = insert(module, node, aten.avg_pool2d.default, x, *summed)
    return reshaped(module, node, x, node.meta["val"].shape)


def _taps(target: Any, sizes: Any, axis: int, attributes: list[Any]) -> tuple[Tensor, Tensor]:
    """For every result along an axis the positions that it reads and their weights.

    Asked of PyTorch with images that are one at a single position of the axis. As many taps for
    each result as the busiest needs; the weights of the others are zero.
    """
    size = sizes[axis]
    unit = torch.eye(size, dtype=torch.float64)
    shape = [size if other == axis else 1 for other in range(len(sizes))]
    images = unit.reshape(size, 1, *shape).expand(size, 1, *sizes).contiguous()
    found = target(images, *attributes).movedim(2 + axis, 1)
    matrix = found.reshape(size, found.shape[1], -1)[:, :, 0].T
    matrix = torch.where(matrix.abs() < 2.0**-40, 0.0, matrix)  # rounding errors of the weights
    count = int((matrix != 0).sum(dim=1).max())
    taps = matrix.abs().topk(count, dim=1).indices.sort(dim=1).values
    return taps, matrix.gather(1, taps)


@legalizes(aten.cumsum.default)
def _running_sum(module: GraphModule, node: Node) -> Node:
    """A product with a triangle of ones."""
    x, dim = arguments(node)[:2]
    size, rank = x.meta["val"].shape[dim], x.meta["val"].dim()
    triangle = torch.ones(size, size, dtype=x.meta["val"].dtype).tril()
    weight = tensor_node(module, node, f"{origin(node)}.triangle", triangle)
    order = [*(axis for axis in range(rank) if axis != dim), dim]
    if dim == rank - 1:
        return insert(module, node, aten.linear.default, x, weight, None)
    x = insert(module, node, aten.permute.default, x, order)
    x = insert(module, node, aten.linear.default, x, weight, None)
    return insert(
        module, node, aten.permute.default, x, [order.index(axis) for axis in range(rank)]
    )
