"""Canonical forms of comparisons, conditions, choices, and powers."""

from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.graph import aten, insert_like
from fxloom.rewriting import input_of, is_constant, make, rewrites, same_shape, sizes_of

# Conditions --------------------------------------------------------------------------------------

_LOGIC: dict[Any, Any] = {
    "and": aten.logical_and.default,
    "or": aten.logical_or.default,
    "xor": aten.logical_xor.default,
    "not": aten.logical_not.default,
}


@rewrites(
    aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default,
    aten.logical_not.default, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor,
    aten.bitwise_xor.Tensor, aten.bitwise_not.default,
    aten.__and__.Tensor, aten.__or__.Tensor, aten.__xor__.Tensor,
)  # fmt: skip
def _logic(graph: fx.Graph, node: Node) -> Node | None:
    """Of conditions; a number is true where it is not zero."""
    if node.meta["val"].dtype != torch.bool:
        return None  # of the bits of integers
    name = str(node.target).split(".")[1].strip("_").rpartition("_")[2]
    arguments = [
        argument
        if argument.meta["val"].dtype == torch.bool
        else make(graph, node, aten.ne.Scalar, argument, 0)
        for argument in node.all_input_nodes
        if isinstance(argument, Node)
    ]
    if len(arguments) < len(node.args):  # a condition with itself
        arguments *= 2
    return insert_like(graph, node, _LOGIC[name], tuple(arguments))


@rewrites(aten.mul.Tensor, aten.mul.Scalar)
def _multiply(graph: fx.Graph, node: Node) -> Node:
    """What is multiplied by a condition is chosen, which needs no rounding."""
    for x, factor in (node.args[:2], node.args[1::-1]):
        if not isinstance(x, Node) or not isinstance(factor, Node):
            continue
        condition = _condition(graph, node, factor)
        if condition is not None and x.meta["val"].is_floating_point() and not is_constant(x):
            return insert_like(graph, node, aten.where.ScalarOther, (condition, x, 0.0))
    return insert_like(graph, node, aten.mul.Tensor, node.args[:2])


def _condition(graph: fx.Graph, node: Node, factor: Node) -> Node | None:
    """The condition that a factor is, as it is or as a number, moved or not."""
    if factor.meta["val"].dtype == torch.bool:
        return factor
    if factor.target is aten._to_copy.default:
        return _condition(graph, node, input_of(factor))
    if factor.target in (aten.reshape.default, aten.permute.default):
        source = _condition(graph, node, input_of(factor))
        return source and make(graph, node, factor.target, source, *factor.args[1:])
    return None


# Choices -----------------------------------------------------------------------------------------


@rewrites(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(graph: fx.Graph, node: Node) -> Node:
    condition, first, second = (_plain(argument) for argument in node.args)
    if condition.meta["val"].dtype != torch.bool:
        condition = make(graph, node, aten.ne.Scalar, condition, 0)
    if not isinstance(first, Node) and not isinstance(second, Node):
        # In the type of the result: a number alone would have torch's default type.
        first = insert_like(graph, node, aten.full.default, ([], first))
        first.kwargs = {"dtype": node.meta["val"].dtype}
        first.meta["val"] = node.meta["val"].new_empty([])
    else:
        first, second = _filling(node, first, second), _filling(node, second, first)
    return insert_like(graph, node, _where_of(first, second), (condition, first, second))


def _filling(node: Node, branch: Any, other: Any) -> Any:
    """The number that a branch is everywhere, where the other one has the shape of the result."""
    is_full = isinstance(branch, Node) and branch.target is aten.full.default
    if not is_full or not isinstance(other, Node) or not same_shape(other, node):
        return branch
    return branch if other.target is aten.full.default else branch.args[1]


def _where_of(first: Any, second: Any) -> Any:
    if not isinstance(first, Node):
        return aten.where.ScalarSelf
    return aten.where.self if isinstance(second, Node) else aten.where.ScalarOther


def _plain(argument: Any) -> Any:
    """The argument, or the number that it is: torch writes x * 0 for zeros of x's shape."""
    is_product = isinstance(argument, Node) and argument.target is aten.mul.Tensor
    return 0.0 if is_product and argument.args[1] == 0 else argument


@rewrites(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(graph: fx.Graph, node: Node) -> Node:
    x, mask, value = node.args
    return insert_like(graph, node, _where_of(value, x), (mask, value, x))


@rewrites(aten.threshold.default)
def _threshold(graph: fx.Graph, node: Node) -> Node:
    x, threshold, value = node.args
    if threshold == value == 0:
        return insert_like(graph, node, aten.relu.default, (x,))
    condition = make(graph, node, aten.gt.Scalar, x, threshold)
    return insert_like(graph, node, aten.where.ScalarOther, (condition, x, value))


@rewrites(
    aten.max.other, aten.min.other, aten.fmax.default, aten.fmin.default,
)  # fmt: skip
def _extreme(graph: fx.Graph, node: Node) -> Node:
    largest = "max" in str(node.target)
    target = aten.maximum.default if largest else aten.minimum.default
    return insert_like(graph, node, target, node.args)


@rewrites(aten.clamp.Tensor, aten.clip.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor)
def _clamp(graph: fx.Graph, node: Node) -> Node:
    """Where the bounds cross, the upper one counts."""
    x, low, high = (*node.args, None)[:3]
    if node.target is aten.clamp_max.Tensor:
        low, high = None, low
    bounded = input_of(node)
    if low is not None:
        bounded = make(graph, node, aten.maximum.default, x, low)
    return bounded if high is None else make(graph, node, aten.minimum.default, bounded, high)


@rewrites(aten.sgn.default)
def _sign(graph: fx.Graph, node: Node) -> Node | None:
    if node.meta["val"].is_complex():
        return None
    return insert_like(graph, node, aten.sign.default, node.args)


# Powers ------------------------------------------------------------------------------------------


@rewrites(aten.pow.Tensor_Scalar, aten.square.default)
def _power(graph: fx.Graph, node: Node) -> Node | None:
    """A whole exponent as products, by repeated squaring; a half as a root; -n as 1 / x**n."""
    exponent = 2 if node.target is aten.square.default else node.args[1]
    if not isinstance(exponent, int | float) or not node.meta["val"].is_floating_point():
        return None
    if abs(exponent) == 0.5:
        root = aten.sqrt.default if exponent > 0 else aten.rsqrt.default
        return insert_like(graph, node, root, (input_of(node),))
    if not float(exponent).is_integer():
        return None
    if exponent < 0:
        power = make(graph, node, aten.pow.Tensor_Scalar, input_of(node), -exponent)
        power = _power(graph, power) or power
        return insert_like(graph, node, aten.reciprocal.default, (power,))
    square, result = input_of(node), None
    exponent = int(exponent)
    if exponent == 0:
        ones = insert_like(graph, node, aten.full.default, (sizes_of(node, 1), 1))
        ones.kwargs = {"dtype": node.meta["val"].dtype}
        return ones
    while exponent:
        if exponent % 2:
            result = square if result is None else _product(graph, node, result, square)
        exponent //= 2
        if exponent:
            square = _product(graph, node, square, square)
    return result


def _product(graph: fx.Graph, node: Node, left: Node, right: Node) -> Node:
    return make(graph, node, aten.mul.Tensor, left, right)


# Compound arithmetic -----------------------------------------------------------------------------


@rewrites(aten.addcmul.default, aten.addcdiv.default)
def _add_scaled(graph: fx.Graph, node: Node) -> Node:
    """x + value * (a * b), or x + value * (a / b)."""
    x, a, b = node.args[:3]
    target = aten.mul.Tensor if node.target is aten.addcmul.default else aten.div.Tensor
    product = make(graph, node, target, a, b)
    value = node.kwargs.get("value", 1)
    if value != 1:
        product = make(graph, node, aten.mul.Tensor, product, value)
    return insert_like(graph, node, aten.add.Tensor, (x, product))


@rewrites(aten.lerp.Scalar, aten.lerp.Tensor)
def _interpolate(graph: fx.Graph, node: Node) -> Node:
    """a + weight * (b - a)."""
    a, b, weight = node.args
    step = make(graph, node, aten.mul.Tensor, make(graph, node, aten.sub.Tensor, b, a), weight)
    return insert_like(graph, node, aten.add.Tensor, (a, step))


@rewrites(aten.any.dim, aten.any.dims, aten.all.dim, aten.all.dims)
def _quantifier(graph: fx.Graph, node: Node) -> Node | None:
    """Whether the largest of the conditions is true; for all, whether no opposite is."""
    x, dims, keep = node.args
    if not isinstance(x, Node) or x.meta["val"].dtype != torch.bool or dims is None:
        return None
    dims = [dims] if isinstance(dims, int) else dims
    if "any" in str(node.target):
        return insert_like(graph, node, aten.amax.default, (x, dims, keep))
    opposite = make(graph, node, aten.logical_not.default, x)
    some = make(graph, node, aten.amax.default, opposite, dims, keep)
    return insert_like(graph, node, aten.logical_not.default, (some,))
