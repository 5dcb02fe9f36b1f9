"""Where a scale and a shift of channels may move to: the layers before, past what commutes."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from fxloom.graph import arguments

aten = torch.ops.aten


class Fold(NamedTuple):
    """A layer whose outputs are to be scaled and shifted, channel by channel."""

    layer: Node
    scale: Tensor
    shift: Tensor


Route = Callable[[Node, int, Tensor, Tensor], list[Fold] | None]
"""From a node, the dimension that holds the channels in its result, scale and shift."""


def commuted(node: Node, dim: int, scale: Tensor, shift: Tensor) -> list[Fold] | None:
    """The layers that take scale and shift of the channels in dimension dim of a node.

    None where something reads the value on the way there, or does not commute with them.
    """
    route = _ROUTES.get(node.target)
    return route(node, dim, scale, shift) if route is not None and len(node.users) == 1 else None


def is_transposed(layer: Node) -> bool:
    """Whether a layer is a transposed convolution, whose weight begins with its inputs."""
    return layer.target is aten.convolution.default and bool(arguments(layer)[6])


def _layer(node: Node, dim: int, scale: Tensor, shift: Tensor) -> list[Fold] | None:
    """A layer with weight and bias of its own that has its outputs in that dimension."""
    outputs = 1 if node.target is aten.convolution.default else node.meta["val"].dim() - 1
    own = all(
        argument is None or (isinstance(argument, Node) and argument.op == "get_attr")
        for argument in arguments(node)[1:3]
    )
    return [Fold(node, scale, shift)] if dim == outputs and own else None


def _permute(node: Node, dim: int, scale: Tensor, shift: Tensor) -> list[Fold] | None:
    return commuted(node.all_input_nodes[0], arguments(node)[1][dim], scale, shift)


def _reshape(node: Node, dim: int, scale: Tensor, shift: Tensor) -> list[Fold] | None:
    """As long as the channels stay one dimension with as many values behind it."""
    (source,) = node.all_input_nodes
    shape, behind = source.meta["val"].shape, prod(node.meta["val"].shape[dim + 1 :])
    for before, size in enumerate(shape):
        if size == len(scale) and prod(shape[before + 1 :]) == behind:
            return commuted(source, before, scale, shift)
    return None


def _same(node: Node, dim: int, scale: Tensor, shift: Tensor) -> list[Fold] | None:
    return commuted(node.all_input_nodes[0], dim, scale, shift) if dim == 1 else None


def _average_pool(node: Node, dim: int, scale: Tensor, shift: Tensor) -> list[Fold] | None:
    """Not where zeros of the padding count, nor with a divisor of its own."""
    *_, padding, _, count_padding = arguments(node)[1:6]
    if (any(padding) and count_padding) or any(arguments(node)[6:]):
        return None
    return _same(node, dim, scale, shift)


def _max_pool(node: Node, dim: int, scale: Tensor, shift: Tensor) -> list[Fold] | None:
    return _same(node, dim, scale, shift) if bool((scale > 0).all()) else None


def _mean(node: Node, dim: int, scale: Tensor, shift: Tensor) -> list[Fold] | None:
    (source,), dims = node.all_input_nodes, arguments(node)[1]
    if not arguments(node)[2]:
        dim = [axis for axis in range(source.meta["val"].dim()) if axis not in dims][dim]
    return commuted(source, dim, scale, shift) if dim not in dims else None


def _cat(node: Node, dim: int, scale: Tensor, shift: Tensor) -> list[Fold] | None:
    parts, along = arguments(node)[:2]
    folds, start = [], 0
    for part in parts:
        span = slice(start, start + part.meta["val"].shape[dim]) if along == dim else slice(None)
        start = span.stop or 0
        found = commuted(part, dim, scale[span], shift[span])
        if found is None:
            return None
        folds += found
    return folds


_ROUTES: dict[Any, Route] = {
    aten.convolution.default: _layer,
    aten.linear.default: _layer,
    aten.permute.default: _permute,
    aten.reshape.default: _reshape,
    aten.avg_pool1d.default: _average_pool,
    aten.avg_pool2d.default: _average_pool,
    aten.adaptive_avg_pool1d.default: _same,
    aten.adaptive_avg_pool2d.default: _same,
    aten.max_pool1d.default: _max_pool,
    aten.max_pool2d.default: _max_pool,
    aten.mean.dim: _mean,
    aten.cat.default: _cat,
    aten.upsample_nearest1d.vec: _same,
    aten.upsample_nearest2d.vec: _same,
    aten.upsample_linear1d.vec: _same,
    aten.upsample_bilinear2d.vec: _same,
}
