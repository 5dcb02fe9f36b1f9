"""Averages: sums and divisions."""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.adaptive import windows
from fxloom.editing import tensor_node
from fxloom.graph import arguments, origin
from fxloom.passes.legalize.core import insert, legalizes
from fxloom.passes.legalize.gathers import gathered

aten = torch.ops.aten


def _divided(module: GraphModule, like: Node, total: Node, divisor: int) -> Node:
    """total / divisor: a power of two is a product, which is exact."""
    if divisor & (divisor - 1) == 0:
        return insert(module, like, aten.mul.Tensor, total, 1.0 / divisor)
    return insert(module, like, aten.div.Tensor, total, divisor)


@legalizes(aten.avg_pool2d.default)
def _average_pool(module: GraphModule, node: Node) -> Node | None:
    x, *window, count_padding, divisor = arguments(node)
    if divisor == 1:
        return None  # already a sum
    total = insert(module, node, aten.avg_pool2d.default, x, *window, True, 1)
    if divisor is not None:
        return _divided(module, node, total, int(divisor))
    return _divided_by(module, node, total, _pool_divisors(x, *window, count_padding))


def _divided_by(module: GraphModule, node: Node, total: Node, divisors: Tensor) -> Node:
    """total / divisors, integers that broadcast to it."""
    low, high = (int(n) for n in torch.aminmax(divisors))
    if low == high:
        return _divided(module, node, total, low)
    counts = tensor_node(module, total, f"{origin(node)}.counts", divisors)
    return insert(module, node, aten.div.Tensor, total, counts)


def _pool_divisors(x: Node, *attributes: Any) -> Tensor:
    """How many positions each window counts, [1, 1, OH, OW]: asked of PyTorch itself."""
    ones = torch.ones(1, 1, *x.meta["val"].shape[-2:], dtype=torch.float64)
    *window, count_padding = attributes
    totals = aten.avg_pool2d.default(ones, *window, True, 1)
    means = aten.avg_pool2d.default(ones, *window, count_padding)
    return torch.round(totals / means).to(torch.int64)


@legalizes(aten.adaptive_avg_pool2d.default)
def _adaptive_average_pool(module: GraphModule, node: Node) -> Node:
    """Sums over windows; those of another size are laid side by side, filled up with zeros."""
    x, outputs = arguments(node)
    sizes = x.meta["val"].shape[-2:]
    laid = [windows(n, m, n) for n, m in zip(sizes, outputs, strict=True)]
    for dim, size, window in zip((2, 3), sizes, laid, strict=True):
        if window.indices is None:
            continue
        if size in window.indices:
            zero = [0, 0, 0, 1] if dim == 2 else [0, 1]
            x = insert(module, node, aten.constant_pad_nd.default, x, zero, 0.0)
        x = gathered(module, node, x, dim, window.indices)
    kernel, stride = [w.kernel for w in laid], [w.stride for w in laid]
    attributes = (kernel, stride, [0, 0], False, True, 1)
    total = insert(module, node, aten.avg_pool2d.default, x, *attributes)
    rows, columns = (
        torch.tensor([-(-(i + 1) * n // m) - i * n // m for i in range(m)])
        for n, m in zip(sizes, outputs, strict=True)
    )
    return _divided_by(module, node, total, (rows[:, None] * columns)[None, None])


@legalizes(aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default)
def _pool_of_signals(module: GraphModule, node: Node) -> Node:
    """An average along a signal is one along an image of height 1."""
    x, *window = arguments(node)
    _, channels, length = x.meta["val"].shape
    image = insert(module, node, aten.reshape.default, x, [-1, channels, 1, length])
    if node.target is aten.adaptive_avg_pool1d.default:
        pooled = insert(module, node, aten.adaptive_avg_pool2d.default, image, [1, *window[0]])
    else:
        kernel, stride, padding, *modes = window
        window = [[1, *kernel], [1, *stride], [0, *padding], *modes, None]
        pooled = insert(module, node, aten.avg_pool2d.default, image, *window)
    length = node.meta["val"].shape[-1]
    return insert(module, node, aten.reshape.default, pooled, [-1, channels, length])


@legalizes(aten.mean.dim)
def _mean(module: GraphModule, node: Node) -> Node:
    x, dims, keep = arguments(node)[:3]
    total = insert(module, node, aten.sum.dim_IntList, x, dims, keep)
    return _divided(module, node, total, prod(x.meta["val"].shape[dim] for dim in dims))
