"""Canonical forms of what computes: convolutions, activations, arithmetic, reductions, pools."""

import math
from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.adaptive import windows
from fxloom.forms_recurrent import RECURRENT, cell_result
from fxloom.forms_recurrent import result as recurrent_result
from fxloom.graph import aten, insert_like
from fxloom.moves import GATHER
from fxloom.rewriting import input_of, rewrites, spread

# Convolutions ------------------------------------------------------------------------------------


@rewrites(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    aten.convolution.default,
)  # fmt: skip
def _convolution(graph: fx.Graph, node: Node) -> Node | None:
    spatial = input_of(node, 1).meta["val"].dim() - 2
    if node.target is aten.convolution.default or input_of(node).meta["val"].dim() != spatial + 2:
        return None  # an input without a batch: the batch rules refuse it by name
    transposed = "transpose" in str(node.target)
    source, weight, bias, stride, padding, *rest = node.args
    output, groups, dilation = rest if transposed else (0, rest[1], rest[0])
    dilation = spread(dilation, spatial)
    if padding == "same":
        source, padding = _pad_to_same(graph, node, dilation)
    elif padding == "valid":
        padding = 0
    args = (
        source, weight, bias, spread(stride, spatial), spread(padding, spatial), dilation,
        transposed, spread(output, spatial), groups,
    )  # fmt: skip
    return insert_like(graph, node, aten.convolution.default, args)


def _pad_to_same(graph: fx.Graph, node: Node, dilation: list[int]) -> tuple[Node, list[int]]:
    """Input and padding for 'same'; an odd total needs a pad of its own, the extra column last."""
    kernel = input_of(node, 1).meta["val"].shape[2:]
    totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    if all(total % 2 == 0 for total in totals):
        return input_of(node), [total // 2 for total in totals]
    widths = [width for total in reversed(totals) for width in (total // 2, total - total // 2)]
    padded = insert_like(graph, node, aten.constant_pad_nd.default, (input_of(node), widths, 0.0))
    return padded, [0] * len(totals)


# Activations and arithmetic ----------------------------------------------------------------------


@rewrites(
    aten.clamp.default, aten.clip.default, aten.clamp_min.default, aten.clamp_max.default,
    aten.hardtanh.default, aten.relu6.default,
)  # fmt: skip
def _clamp(graph: fx.Graph, node: Node) -> Node:
    low, high = (*node.args[1:], None, None)[:2]
    if node.target is aten.clamp_max.default:
        low, high = None, low
    elif node.target is aten.relu6.default:
        low, high = 0, 6
    # Beyond the numbers of its type there is nothing to bound.
    limits = torch.finfo(node.meta["val"].dtype) if node.meta["val"].is_floating_point() else None
    if limits is not None:
        low = None if isinstance(low, int | float) and low <= limits.min else low
        high = None if isinstance(high, int | float) and high >= limits.max else high
    if low is None and high is None:
        return input_of(node)
    if low == 0 and high is None:
        return insert_like(graph, node, aten.relu.default, (input_of(node),))
    return insert_like(graph, node, aten.clamp.default, (input_of(node), low, high))


@rewrites(aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar)
@rewrites(aten.rsub.Tensor)
def _add(graph: fx.Graph, node: Node) -> Node:
    """left + alpha * right, with alpha a multiplication of its own."""
    left, right, *scale = node.args
    alpha = node.kwargs.get("alpha", scale[0] if scale else 1)
    reverse = node.target in (aten.rsub.Scalar, aten.rsub.Tensor)
    if reverse:
        left, right = right, left
    if alpha != 1:
        assert isinstance(alpha, (int, float))
        if isinstance(right, Node):
            scaled = insert_like(graph, node, aten.mul.Tensor, (right, alpha))
            scaled.meta["val"] = right.meta["val"]
            right = scaled
        else:
            assert isinstance(right, (int, float))
            right = right * alpha
    target = aten.add.Tensor if "add" in str(node.target) else aten.sub.Tensor
    return insert_like(graph, node, target, (left, right))


@rewrites(aten.div.Tensor, aten.div.Scalar, aten.true_divide.Tensor, aten.true_divide.Scalar)
def _divide(graph: fx.Graph, node: Node) -> Node:
    """Division by a power of two is the same floating-point number as a multiplication."""
    divisor = node.args[1]
    if isinstance(divisor, (int, float)) and abs(math.frexp(divisor)[0]) == 0.5:
        return insert_like(graph, node, aten.mul.Tensor, (node.args[0], 1 / divisor))
    return insert_like(graph, node, aten.div.Tensor, node.args)


# Reductions and pools ----------------------------------------------------------------------------

_OVER_ALL: dict[Any, Any] = {
    aten.mean.default: aten.mean.dim,
    aten.sum.default: aten.sum.dim_IntList,
    aten.max.default: aten.amax.default,
    aten.min.default: aten.amin.default,
}


@rewrites(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, *_OVER_ALL)
def _reduce(graph: fx.Graph, node: Node) -> Node | None:
    dims, keepdim = (*node.args[1:], False)[:2] if node.target not in _OVER_ALL else (None, False)
    order = sorted(dims) if isinstance(dims, Sequence) and dims else None  # type: ignore[type-var]
    everything = list(range(input_of(node).meta["val"].dim()))
    target = _OVER_ALL.get(node.target, node.target)
    reduced = insert_like(graph, node, target, (input_of(node), order or everything, keepdim))
    reduced.kwargs = node.kwargs
    return reduced


@rewrites(
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default,
)  # fmt: skip
def _pool(graph: fx.Graph, node: Node) -> None:
    spatial = int(str(node.target).partition("pool")[2][0])
    source, kernel, stride, *rest = node.args
    rest = [spread(entry, spatial) if isinstance(entry, (list, tuple)) else entry for entry in rest]
    node.args = (source, spread(kernel, spatial), spread(stride or kernel, spatial), *rest)


# Ops with several results ------------------------------------------------------------------------


@rewrites(getitem)
def _getitem(graph: fx.Graph, node: Node) -> Node | None:
    producer, index = input_of(node), node.args[1]
    assert isinstance(index, int)
    rule = _RESULTS.get(producer.target)
    return rule(graph, node, producer, index) if rule is not None else None


def _batch_norm(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    source, weight, bias, mean, variance, momentum, eps = producer.args
    args = (source, weight, bias, mean, variance, False, momentum, eps, False)
    return insert_like(graph, node, aten.batch_norm.default, args)


def _layer_norm(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    if index != 0:
        return None
    return insert_like(graph, node, aten.layer_norm.default, (*producer.args, False))


def _group_norm(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    source, weight, bias, _, _, _, groups, eps = producer.args
    if index != 0:
        return None
    args = (source, groups, weight, bias, eps, False)
    return insert_like(graph, node, aten.group_norm.default, args)


def _max_pool_values(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    if index != 0:
        return None
    pool = insert_like(graph, node, aten.max_pool2d.default, producer.args)
    _pool(graph, pool)
    return pool


def _adaptive_max_pool(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    """Its values as a max pool, of entries laid side by side where windows differ in size."""
    source, counts = input_of(producer), spread(producer.args[1], 1)
    shape = source.meta["val"].shape
    first = len(shape) - len(counts)
    sizes = shape[first:]
    static = all(isinstance(size, int) for size in (*sizes, *counts))
    if index != 0 or first != 2 or not static or min(counts) < 1:
        return None
    laid = [windows(n, m) for n, m in zip(sizes, counts, strict=True)]
    for axis, window in enumerate(laid):
        if window.indices is not None:
            source = insert_like(graph, node, GATHER, (source, first + axis, window.indices))
    kernel, stride = [w.kernel for w in laid], [w.stride for w in laid]
    nothing, ones = [0] * len(laid), [1] * len(laid)
    target = aten.max_pool1d.default if len(laid) == 1 else aten.max_pool2d.default
    args = (source, kernel, stride, nothing, ones, False)
    return insert_like(graph, node, target, args)


def _extreme(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    source, dim, keepdim = producer.args
    largest = producer.target is aten.max.dim
    if index == 1:
        target = aten.argmax.default if largest else aten.argmin.default
        return insert_like(graph, node, target, (source, dim, keepdim))
    target = aten.amax.default if largest else aten.amin.default
    return insert_like(graph, node, target, (source, [dim], keepdim))


def _split(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    dim = producer.args[2]
    assert isinstance(dim, int)
    widths = [part.shape[dim] for part in producer.meta["val"]]
    if not all(isinstance(width, int) for width in widths):
        return None
    start = sum(widths[:index])
    args = (producer.args[0], dim, start, start + widths[index], 1)
    return insert_like(graph, node, aten.slice.Tensor, args)


def _unbind(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node:
    source, dim = producer.args
    return insert_like(graph, node, aten.select.int, (source, dim, index))


_RESULTS: dict[Any, Callable[[fx.Graph, Node, Node, int], Node | None]] = {
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten.max_pool2d_with_indices.default: _max_pool_values,
    aten.adaptive_max_pool1d.default: _adaptive_max_pool,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    aten.max.dim: _extreme,
    aten.min.dim: _extreme,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.unbind.int: _unbind,
    **dict.fromkeys(RECURRENT, recurrent_result),
    aten.lstm_cell.default: cell_result,
}
