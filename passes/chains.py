"""Chains: where in a float graph values are rounded.

A chain begins at an operation that adds bits (a layer, a sum, a product) or at an input and runs
through the activations that follow; its end is where one rounding makes the value fit its format.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import log2
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX, QUOTIENT, ROOT, STANDARDISE
from fxloom.fixed_point import FixedPoint
from fxloom.functions import FUNCTIONS, function_of
from fxloom.graph import arguments, origin
from fxloom.moves import GATHER
from fxloom.quantized_ops import DIVIDE, EMBEDDING, LOOKUP, REQUANTIZE, REQUANTIZE_WEIGHTS

aten = torch.ops.aten

LAYERS = (aten.linear.default, aten.convolution.default)
MERGES = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor)
TABLES = (
    *FUNCTIONS,
    aten.softmax.int,
    MASKED_SOFTMAX,
    aten.log_softmax.int,
    aten.logsumexp.default,
)
"""Looked up by a narrow argument; the entries are rounded, so nothing follows in a chain."""
FLOATING = (STANDARDISE, ROOT, QUOTIENT)
"""Written out with a table of what was normalised: the argument keeps its width."""
NARROWING = aten.clone.default
"""Marks where an argument of a table may need a rounding of its own; see tabulate.isolate."""
GROWING = (
    *LAYERS,
    *MERGES,
    *TABLES,
    *FLOATING,
    NARROWING,
    aten.div.Tensor,
    aten.leaky_relu.default,
    aten.prelu.default,
    aten.matmul.default,
    aten.bmm.default,
    aten.sum.dim_IntList,
    aten.avg_pool2d.default,
)
SUMS = (aten.sum.dim_IntList, aten.avg_pool2d.default)
LEAKY = (aten.leaky_relu.default, aten.prelu.default)
ACTIVATIONS = (
    aten.relu.default,
    aten.clamp.default,
    aten.neg.default,
    aten.abs.default,
    *LEAKY,
)
WHERE = (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)
RELATIONS = tuple(
    getattr(getattr(aten, name), overload)
    for name in ("gt", "ge", "lt", "le", "eq", "ne")
    for overload in ("Tensor", "Scalar")
)
CHOOSING = (
    *WHERE,
    *RELATIONS,
    aten.maximum.default,
    aten.minimum.default,
    aten.neg.default,
    aten.abs.default,
    aten.sign.default,
    aten.argmax.default,
    aten.argmin.default,
    aten.cat.default,
)
"""Of values that were rounded before: nothing is left to round."""
CONSTANT_ARGUMENTS = {
    STANDARDISE: (1,),
    **dict.fromkeys((*MERGES, aten.maximum.default, aten.minimum.default), (0, 1)),
    **dict.fromkeys(WHERE, (1, 2)),
    **dict.fromkeys((*LEAKY, EMBEDDING), (1,)),
    aten.clamp.default: (1, 2),
}
"""Positions of the numbers and constant tensors that are rounded like weights, beside those of
layers. What is only compared needs no rounding: see lowering.operands."""
MOVING = (
    aten.reshape.default,
    aten.view.default,
    aten.permute.default,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.amax.default,
    aten.constant_pad_nd.default,
    GATHER,
)
ROUNDING = (aten.div.Tensor, NARROWING, *TABLES, *FLOATING)
"""What rounds by itself: a chain ends there."""
WAITING = (
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.reshape.default,
    aten.permute.default,
    GATHER,
)
"""Between a layer and its activation these commute with rounding, which waits for the latter."""


@dataclass(frozen=True)
class Chain:
    """The nodes from the first that adds bits to the one whose value is rounded."""

    nodes: tuple[Node, ...]
    is_output: bool

    @property
    def end(self) -> Node:
        """The node whose value is rounded."""
        return self.nodes[-1]

    @property
    def is_input(self) -> bool:
        """Whether the chain is an input of the model."""
        return self.end.op == "placeholder"

    @property
    def group(self) -> Hashable:
        """What shares a format with this chain: the same part of all steps of a recurrence."""
        end = self.end
        return (origin(end), end.target) if end.meta.get("tied") else end

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers of the chain."""
        return tuple(origin(node) for node in self.nodes)


def find_chains(graph: fx.Graph) -> list[Chain]:
    """All chains of a legalized float graph, in order."""
    chains: list[Chain] = []
    taken: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            chains.append(Chain((node,), False))
        elif node.meta.get("exact"):
            continue  # of a recurrence: what follows rounds
        elif node.target in GROWING and node not in taken and not is_binary_shift(node):
            nodes = _follow(node)
            taken.update(nodes)
            chains.append(Chain(tuple(nodes), _feeds_output_only(nodes[-1])))
    return chains


def _follow(node: Node) -> list[Node]:
    nodes = [node]
    while node.target not in ROUNDING and len(node.users) == 1:
        (user,) = node.users
        leaks = any(each.target in LEAKY for each in nodes)
        if user.target in LEAKY and leaks:
            break  # each product adds bits: a second one begins a chain of its own
        if (
            user.target in ACTIVATIONS
            or is_binary_shift(user)
            or _divides(user, node)
            or _weighted(node, user)
        ):
            nodes.append(user)
        elif user.target in WAITING and (moves := _until_rectified(user)):
            if moves[-1].target in LEAKY and leaks:
                break
            nodes += moves
        else:
            break
        node = nodes[-1]
    return nodes


def _divides(user: Node, node: Node) -> bool:
    """Whether a sum is divided next: the division rounds, the sum before it stays exact."""
    return user.target is aten.div.Tensor and node.target in SUMS


def _weighted(node: Node, user: Node) -> bool:
    """Whether products with constants are summed next, as a layer does: exact until then."""
    return (
        user.target in SUMS
        and node.target is aten.mul.Tensor
        and any(isinstance(arg, Node) and arg.op == "get_attr" for arg in arguments(node)[:2])
    )


def _until_rectified(node: Node) -> list[Node]:
    """What only moves values, from this node on, and the activation that follows; else nothing."""
    nodes = [node]
    while nodes[-1].target in WAITING:
        if len(nodes[-1].users) != 1:
            return []
        nodes += nodes[-1].users
    return nodes if nodes[-1].target in ACTIVATIONS else []


def is_binary_shift(node: Node) -> bool:
    """Whether a node multiplies by a power of two, which adds no bits."""
    factor = arguments(node)[1] if node.target is aten.mul.Tensor else None
    return isinstance(factor, int | float) and factor > 0 and log2(factor).is_integer()


def _feeds_output_only(node: Node) -> bool:
    pending = list(node.users)
    while pending:
        user = pending.pop()
        if user.op == "output":
            continue
        if user.target not in (*MOVING, *CHOOSING):
            return False
        pending.extend(user.users)
    return True


def feeds_tables_only(node: Node) -> bool:
    """Whether a value is but an argument of tables."""
    pending = list(node.users)
    while pending:
        user = pending.pop()
        if user.target in TABLES:
            continue
        if user.target not in (*MOVING, NARROWING):
            return False
        pending.extend(user.users)
    return True


_WITH_NUMBERS = (*MERGES, aten.constant_pad_nd.default)


def nonnegative(graph: fx.Graph, inputs: Mapping[Node, bool]) -> dict[Node, bool]:
    """For every node, whether its value cannot be negative by construction.

    inputs: verdicts on the inputs.
    """
    verdicts = dict(inputs)
    for node in graph.nodes:
        if node not in verdicts:
            verdicts[node] = _is_nonnegative(node, verdicts)
    return verdicts


def is_real(node: Node) -> bool:
    """Whether a node's values are numbers that are rounded, not conditions or indices."""
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.is_floating_point()


def _is_nonnegative(node: Node, known: Mapping[Node, bool]) -> bool:
    """known: verdicts on the nodes before."""
    if node.target in (aten.relu.default, aten.abs.default, aten.softmax.int, MASKED_SOFTMAX, ROOT):
        return True
    if node.target in (REQUANTIZE, DIVIDE) and not arguments(node)[-3]:
        return True
    if not is_real(node):
        return node.op != "placeholder"  # conditions and indices
    if node.target is aten.maximum.default:
        return any(known[arg] for arg in node.all_input_nodes)
    if node.target in WHERE:
        return all(
            known[arg] if isinstance(arg, Node) else arg >= 0 for arg in arguments(node)[1:3]
        )
    function = function_of(node)
    if function is not None:
        return function.is_nonnegative
    if node.target is aten.clamp.default:
        low, high = arguments(node)[1:3]  # where they cross, the high one counts
        return low is not None and low >= 0 and (high is None or high >= 0)
    passing: tuple[Any, ...] = (
        *MOVING,
        NARROWING,
        aten.cat.default,
        aten.add.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.sum.dim_IntList,
        aten.avg_pool2d.default,
        aten.minimum.default,
        aten.matmul.default,
        aten.bmm.default,
        aten.sign.default,
        aten._to_copy.default,
        QUOTIENT,
        REQUANTIZE,
    )
    if node.target not in passing:
        return False
    numbers = [arg for arg in arguments(node)[:3] if isinstance(arg, int | float)]
    if node.target in _WITH_NUMBERS and any(number < 0 for number in numbers):
        return False
    return all(known[arg] for arg in node.all_input_nodes)


def fraction_of(node: Any) -> int:
    """Fraction bits of a value of a graph in which every chain is rounded or exact."""
    moved = 0
    while node.target not in (REQUANTIZE, DIVIDE, LOOKUP, EMBEDDING, REQUANTIZE_WEIGHTS):
        if not is_real(node) or node.target is aten.sign.default:
            return -moved
        if node.target in LAYERS:  # exact: it has the formats that a model brought along
            x, weight, bias = arguments(node)[:3]
            product = fraction_of(x) + fraction_of(weight)
            return max(product, product if bias is None else fraction_of(bias)) - moved
        if len(node.all_input_nodes) > 1:
            return max(fraction_of(arg) for arg in node.all_input_nodes) - moved
        if is_binary_shift(node):
            moved += int(log2(arguments(node)[1]))
        (node,) = node.all_input_nodes
    if node.target in (LOOKUP, EMBEDDING):
        return fraction_of(arguments(node)[1]) - moved
    width, integer = arguments(node)[-5:-3]
    is_weight = node.target is REQUANTIZE_WEIGHTS
    channels = max(arguments(node)[1], default=0) if is_weight else 0
    return int(width - integer + channels) - moved


def format_of(node: Node) -> FixedPoint | None:
    """The format in which a value was rounded, or None where it was not rounded as it is."""
    while node.target in MOVING:
        if node.target is aten.constant_pad_nd.default and arguments(node)[2] != 0:
            return None  # what is put around it may lie outside its format
        node = node.all_input_nodes[0]
    if node.target in (LOOKUP, EMBEDDING):
        node = arguments(node)[1]
    if node.target not in (REQUANTIZE, DIVIDE):
        return None
    return FixedPoint(*arguments(node)[-5:-2])
