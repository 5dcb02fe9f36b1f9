"""Legalize: write operations as the primitives that have an exact meaning in integers.

An average is a sum and a division: the sum is exact, the division gets a node of its own so that
its rounding has a place (a power of two only moves the binary point).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.editing import copy_graph, finish, tensor_node
from fxloom.errors import UnsupportedLayer
from fxloom.graph import arguments, constant, describe, insert_like, origin, refresh_shapes
from fxloom.recipe import PassResult

if TYPE_CHECKING:
    from fxloom.data import Data

aten = torch.ops.aten

MAX_DIVISOR = 2**24
"""Integers up to here are divided by exactly; by others it is a multiplication."""

Rewrite = Callable[[GraphModule, Node], Node | None]


@dataclass(frozen=True)
class Legalize:
    """Rewrite averages and divisions into sums, products and exact divisions."""

    name: ClassVar[str] = "legalize"

    def __call__(self, graph: GraphModule, data: Data | None = None) -> PassResult:
        result = copy_graph(graph)
        rewritten: list[str] = []
        problems: list[str] = []
        for node in list(result.graph.nodes):
            rewrite = REWRITES.get(node.target)
            if rewrite is None:
                continue
            try:
                with result.graph.inserting_before(node):
                    replacement = rewrite(result, node)
            except NotLegal as reason:
                problems.append(f"{describe(node)}: {reason}")
                continue
            if replacement is not None:
                replacement.meta |= {key: node.meta[key] for key in ("val", "batch_axis")}
                node.replace_all_uses_with(replacement)
                rewritten.append(origin(node))
        if problems:
            raise UnsupportedLayer(problems)
        if not rewritten:
            return PassResult(graph, False, {"rewritten": []})
        finish(result)
        refresh_shapes(result)
        return PassResult(result, True, {"rewritten": rewritten})


class NotLegal(Exception):
    """Why a node cannot be written in primitives."""


def _insert(module: GraphModule, like: Node, target: Any, args: tuple[Any, ...]) -> Node:
    node = insert_like(module.graph, like, target, args)
    node.meta |= {key: like.meta[key] for key in ("val", "batch_axis")}
    return node


def _divided(module: GraphModule, like: Node, total: Node, divisor: int) -> Node:
    """total / divisor: a power of two is a product, which is exact."""
    if divisor & (divisor - 1) == 0:
        return _insert(module, like, aten.mul.Tensor, (total, 1.0 / divisor))
    return _insert(module, like, aten.div.Tensor, (total, divisor))


def _average_pool(module: GraphModule, node: Node) -> Node | None:
    x, kernel, stride, padding, ceil_mode, count_padding, divisor = arguments(node)
    if divisor == 1:
        return None  # already a sum
    assert isinstance(x, Node)
    total = _insert(
        module, node, aten.avg_pool2d.default, (x, kernel, stride, padding, ceil_mode, True, 1)
    )
    if divisor is not None:
        if divisor < 0:
            raise NotLegal(f"divisor_override={divisor} must be positive")
        return _divided(module, node, total, int(divisor))
    divisors = _pool_divisors(x, kernel, stride, padding, ceil_mode, count_padding)
    low, high = (int(n) for n in torch.aminmax(divisors))
    if low == high:
        return _divided(module, node, total, low)
    counts = tensor_node(module, total, f"{origin(node)}.counts", divisors)
    return _insert(module, node, aten.div.Tensor, (total, counts))


def _pool_divisors(x: Node, *attributes: Any) -> Tensor:
    """How many positions each window counts, [1, 1, OH, OW]: asked of PyTorch itself."""
    ones = torch.ones(1, 1, *x.meta["val"].shape[-2:], dtype=torch.float64)
    kernel, stride, padding, ceil_mode, count_padding = attributes
    totals = aten.avg_pool2d.default(ones, kernel, stride, padding, ceil_mode, True, 1)
    means = aten.avg_pool2d.default(ones, kernel, stride, padding, ceil_mode, count_padding)
    return torch.round(totals / means).to(torch.int64)


def _adaptive_average_pool(module: GraphModule, node: Node) -> Node:
    x, outputs = arguments(node)
    assert isinstance(x, Node)
    sizes = x.meta["val"].shape[-2:]
    kernel = []
    for size, count in zip(sizes, outputs, strict=True):
        if count == 0 or size % count:
            raise NotLegal(
                f"adaptive pooling of {size} positions to {count} has windows of unequal size. "
                f"Choose an output that divides {size}"
            )
        kernel.append(size // count)
    args = (x, kernel, kernel, [0, 0], False, True, 1)
    total = _insert(module, node, aten.avg_pool2d.default, args)
    return _divided(module, node, total, prod(kernel))


def _pool_of_signals(module: GraphModule, node: Node) -> Node:
    """An average along a signal is one along an image of height 1."""
    x = arguments(node)[0]
    assert isinstance(x, Node)
    sizes = [-1 if axis == 0 else n for axis, n in enumerate(x.meta["val"].shape)]
    image = _insert(module, x, aten.reshape.default, (x, [*sizes[:2], 1, sizes[2]]))
    image.meta |= {"origin": node.meta["origin"], "val": x.meta["val"].unsqueeze(2)}
    if node.target is aten.adaptive_avg_pool1d.default:
        target, args = aten.adaptive_avg_pool2d.default, (image, [1, *arguments(node)[1]])
        rewrite: Rewrite = _adaptive_average_pool
    else:
        kernel, stride, padding, *modes = arguments(node)[1:]
        target = aten.avg_pool2d.default
        args = (image, [1, *kernel], [1, *stride], [0, *padding], *modes, None)
        rewrite = _average_pool
    pooled = _insert(module, node, target, args)
    pooled.meta["val"] = node.meta["val"].unsqueeze(2)
    result = rewrite(module, pooled)
    assert result is not None
    sizes = [-1 if axis == 0 else n for axis, n in enumerate(node.meta["val"].shape)]
    return _insert(module, node, aten.reshape.default, (result, sizes))


def _mean(module: GraphModule, node: Node) -> Node:
    x, dims, keep, *rest = arguments(node)
    assert isinstance(x, Node)
    if node.kwargs or any(rest):
        raise NotLegal("a mean with dtype= has no exact form. Leave the dtype out")
    shape = x.meta["val"].shape
    total = _insert(module, node, aten.sum.dim_IntList, (x, dims, keep))
    return _divided(module, node, total, prod(shape[dim] for dim in dims))


def _division(module: GraphModule, node: Node) -> Node | None:
    divisor = arguments(node)[1]
    if isinstance(divisor, Node):
        return _division_by_tensor(module, node, divisor)
    if not divisor:
        raise NotLegal("division by zero")
    number = float(divisor)
    whole = number.is_integer() and 0 < number < MAX_DIVISOR
    if whole and int(number) & (int(number) - 1):
        return None  # an exact division; by a power of two it is a product
    return _scaled(module, node, 1.0 / number)


def _division_by_tensor(module: GraphModule, node: Node, divisor: Node) -> Node | None:
    if divisor.op != "get_attr":
        raise NotLegal("division by a computed tensor has no lowering yet")
    values = constant(module, divisor.target).detach()
    if not values.is_floating_point():
        values = values.to(node.meta["val"].dtype)
    if (values == 0).any():
        raise NotLegal(f"{divisor.target} holds a zero divisor")
    if ((values > 0) & (values < MAX_DIVISOR) & (values == values.round())).all():
        return None
    inverse = tensor_node(module, node, f"{divisor.target}.inverse", 1 / values)
    return _insert(module, node, aten.mul.Tensor, (arguments(node)[0], inverse))


def _scaled(module: GraphModule, node: Node, factor: float) -> Node:
    return _insert(module, node, aten.mul.Tensor, (arguments(node)[0], factor))


REWRITES: dict[Any, Rewrite] = {
    aten.avg_pool2d.default: _average_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_average_pool,
    aten.avg_pool1d.default: _pool_of_signals,
    aten.adaptive_avg_pool1d.default: _pool_of_signals,
    aten.mean.dim: _mean,
    aten.div.Tensor: _division,
}
