"""Pools."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import Function, builds
from fxloom.onnx.windows import Window, window_of


def _pool(node: Node) -> tuple[list[int], Window, bool]:
    kernel = node.integers("kernel_shape")
    if len(kernel) not in (1, 2):
        raise Refused(f"required one or two spatial dimensions, got {len(kernel)}")
    ceil, mode = node.flag("ceil_mode"), node.text("auto_pad", "NOTSET")
    if ceil and mode != "NOTSET":
        raise Refused(
            f"auto_pad={mode!r} already says how many windows there are, and ceil_mode changes "
            "that in some runtimes only. Write its pads down"
        )
    window = window_of(node, kernel)
    pairs = zip(kernel, window.strides, window.dilations, strict=True)
    if mode.startswith("SAME") and any(size < step or apart > 1 for size, step, apart in pairs):
        raise Refused(
            f"auto_pad={mode!r} of a dilated window, or of one smaller than its step, means "
            "different things to different runtimes. Write its pads down"
        )
    return kernel, window, ceil


def _fits(kernel: Sequence[int], window: Window) -> bool:
    """Whether torch pads so itself: alike on both sides, by at most half a window."""
    return window.even and all(
        2 * begin <= size for begin, size in zip(window.begins, kernel, strict=True)
    )


@builds("MaxPool")
def _max_pool(node: Node) -> Function:
    node.refuse_outputs(1)
    node.attribute("storage_order", 0)  # of the indices alone
    kernel, window, ceil = _pool(node)
    function = functional.max_pool1d if len(kernel) == 1 else functional.max_pool2d
    if _fits(kernel, window):
        return lambda x: function(
            x, kernel, window.strides, window.begins, window.dilations, ceil_mode=ceil
        )
    if any(size != 1 for size in window.dilations) or ceil:
        raise Refused("unequal padding with dilations or ceil_mode has no lowering")
    if any(
        max(begin, end) >= size
        for begin, end, size in zip(window.begins, window.ends, kernel, strict=True)
    ):
        raise Refused("some of its windows lie in the padding alone")

    def pooled(x: Tensor) -> Tensor:
        # A window that holds a copy of a border value holds the value too: copies change nothing.
        return function(functional.pad(x, window.outside, mode="replicate"), kernel, window.strides)

    return pooled


@builds("AveragePool")
def _average_pool(node: Node) -> Function:
    kernel, window, ceil = _pool(node)
    include = node.flag("count_include_pad")
    if any(size != 1 for size in window.dilations):
        raise Refused("dilations have no lowering")
    function = functional.avg_pool1d if len(kernel) == 1 else functional.avg_pool2d
    if _fits(kernel, window):
        return lambda x: function(x, kernel, window.strides, window.begins, ceil, include)
    if ceil:
        raise Refused("unequal padding with ceil_mode has no lowering")
    if include:
        return lambda x: function(functional.pad(x, window.outside), kernel, window.strides)
    inside = functional.pad(torch.ones(1, 1, *node.shape()[2:]), window.outside)
    share = function(inside, kernel, window.strides)
    if not bool((share > 0).all()):
        raise Refused("some of its windows lie in the padding alone")
    factor = 1 / share
    return lambda x: function(functional.pad(x, window.outside), kernel, window.strides) * factor


@builds("GlobalAveragePool")
def _global_average_pool(node: Node) -> Function:
    dims = list(range(2, node.rank()))
    return lambda x: x.mean(dims, keepdim=True)


@builds("GlobalMaxPool")
def _global_max_pool(node: Node) -> Function:
    dims = list(range(2, node.rank()))
    return lambda x: x.amax(dims, keepdim=True)
