"""Reductions and positions of extremes."""

from collections.abc import Callable

import torch
from torch import Tensor

from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import Function, builds

_Reduction = Callable[[Tensor, list[int], bool], Tensor]
_REDUCTIONS: dict[str, _Reduction] = {
    "ReduceMean": lambda x, dims, keep: x.mean(dims, keepdim=keep),
    "ReduceSum": lambda x, dims, keep: x.sum(dims, keepdim=keep),
    "ReduceMax": lambda x, dims, keep: x.amax(dims, keepdim=keep),
    "ReduceMin": lambda x, dims, keep: x.amin(dims, keepdim=keep),
    "ReduceL1": lambda x, dims, keep: x.abs().sum(dims, keepdim=keep),
    "ReduceL2": lambda x, dims, keep: torch.linalg.vector_norm(x, 2, dims, keep),
    "ReduceSumSquare": lambda x, dims, keep: (x * x).sum(dims, keepdim=keep),
    "ReduceLogSumExp": lambda x, dims, keep: torch.logsumexp(x, dims, keep),
}
_OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceSumSquare": lambda x: x * x,
}
"""What is not the value itself where nothing is reduced: a sum of one absolute value, ..."""
_AXES_ARE_INPUT = {"ReduceSum": 13}
"""Since which version; the others since 18."""


@builds(*_REDUCTIONS)
def _reduce(node: Node) -> Function:
    reduction, keep = _REDUCTIONS[node.kind], node.flag("keepdims", True)
    if node.version >= _AXES_ARE_INPUT.get(node.kind, 18):
        axes = node.numbers(1, "axes") if node.has(1) else []
        if node.flag("noop_with_empty_axes") and not axes:
            return _OF_ONE.get(node.kind, lambda x: x)
    else:
        axes = node.integers("axes", [])
    dims = [node.counted(axis, node.rank()) for axis in axes or range(node.rank())]
    return lambda x: reduction(x, dims, keep)


@builds("ReduceProd")
def _reduce_prod(node: Node) -> Function:
    """For sizes: nothing lowers a product of data."""
    if not node.value(0).known:
        raise Refused("a product of computed values has no lowering")
    keep = node.flag("keepdims", True)
    if node.version >= 18:
        axes = node.numbers(1, "axes") if node.has(1) else []
    else:
        axes = node.integers("axes", [])
    node.attribute("noop_with_empty_axes", 0)
    dims = sorted({node.counted(axis, node.rank()) for axis in axes or range(node.rank())})

    def product(x: Tensor) -> Tensor:
        for dim in reversed(dims):
            x = x.prod(dim, keepdim=keep)
        return x

    return product


@builds("ArgMax", "ArgMin")
def _arg(node: Node) -> Function:
    node.only("select_last_index", 0, 0)
    function = torch.argmax if node.kind == "ArgMax" else torch.argmin
    axis, keep = node.axis(0), node.flag("keepdims", True)
    return lambda x: function(x, axis, keep)
