"""Canonical forms of masks: what is hidden before a softmax becomes an argument of the softmax.

No format holds minus infinity, and none holds -1e9 beside scores with anything left of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX
from fxloom.graph import aten, insert_like
from fxloom.rewriting import input_of, is_constant, make, rewrites, same_shape

MASKING = -1e4
"""Numbers up to here mask where they stand among scores: beside any other their exponential is
zero in float32."""


@rewrites(aten._softmax.default, aten._log_softmax.default)
def _decomposed_softmax(graph: fx.Graph, node: Node) -> Node | None:
    """As ExportedProgram.run_decompositions leaves them."""
    source, dim, to_float = node.args
    if to_float:
        return None
    is_log = node.target is aten._log_softmax.default
    target = aten.log_softmax.int if is_log else aten.softmax.int
    result = insert_like(graph, node, target, (source, dim, None))
    masked = None if is_log else _softmax(graph, result)
    if masked is None:
        return result
    graph.erase_node(result)
    return masked


@rewrites(aten.softmax.int)
def _softmax(graph: fx.Graph, node: Node) -> Node | None:
    """Softmax of masked scores, which may be scaled behind the mask."""
    source, dim, dtype = node.args
    assert isinstance(source, Node)
    assert isinstance(dim, int)
    if dtype not in (None, source.meta["val"].dtype):
        return None
    masked, scale = source, 1.0
    while masked.target in (aten.mul.Tensor, aten.div.Tensor) and _is_positive(masked.args[1]):
        number: Any = masked.args[1]
        scale = scale * number if masked.target is aten.mul.Tensor else scale / number
        masked = input_of(masked)
    scores, mask = _unmasked(graph, node, masked, dim)
    if mask is None and scale == 1 and len(source.users) == 1:
        scores, mask = _without_added(source)
    if mask is None:
        return None
    return insert_like(graph, node, MASKED_SOFTMAX, (scores, mask, dim, scale))


def _is_positive(number: object) -> bool:
    return isinstance(number, int | float) and 0 < number < inf


def _unmasked(
    graph: fx.Graph, node: Node, source: Node, dim: int
) -> tuple[Node | None, Node | None]:
    """Scores and what keeps them, behind `source`; None twice where it masks nothing."""
    if source.target is aten.where.ScalarSelf and is_masking(source.args[1]):
        return input_of(source, 2), make(graph, node, aten.logical_not.default, input_of(source))
    if source.target is aten.where.ScalarOther and is_masking(source.args[2]):
        return input_of(source, 1), input_of(source)
    if source.target is aten.add.Tensor and all(isinstance(arg, Node) for arg in source.args):
        first, second = input_of(source), input_of(source, 1)
        for scores, added in ((first, second), (second, first)):
            choice = None if is_constant(added) else choice_of(graph, node, added)
            if choice is not None and choice.masks and same_shape(scores, source):
                return scores, _kept(graph, node, choice, dim)
    return None, None


def _without_added(source: Node) -> tuple[Node | None, Node | None]:
    """Scores and a constant that is added to them: legalize looks which of its values mask."""
    if source.target is aten.add.Tensor and all(isinstance(arg, Node) for arg in source.args):
        first, second = input_of(source), input_of(source, 1)
        if is_constant(first) != is_constant(second):
            return (second, first) if is_constant(first) else (first, second)
    return None, None


def _kept(graph: fx.Graph, node: Node, choice: Choice, dim: int) -> Node:
    """What an added choice keeps: a whole row where it adds the same number to all of it.

    Unless scores vanish beside that number: then they are all alike, as under a mask.
    """
    kept = choice.kept(graph, node)
    if -min(choice.yes, choice.no) * torch.finfo(node.meta["val"].dtype).eps >= 1:
        return kept
    some = kept
    within = dim - (node.meta["val"].dim() - kept.meta["val"].dim())
    if within >= 0:
        some = make(graph, node, aten.amax.default, kept, [within], True)
    return make(graph, node, aten.logical_or.default, kept, negated(graph, node, some))


@rewrites(aten.scaled_dot_product_attention.default)
def _attention(graph: fx.Graph, node: Node) -> Node | None:
    """nn.MultiheadAttention adds a padding mask, minus infinity or nothing: it is a condition."""
    query, key, value, mask, dropout, is_causal = node.args
    if not isinstance(mask, Node) or is_constant(mask):
        return None
    choice = choice_of(graph, node, mask)
    if choice is None or not choice.masks:
        return None
    keep = _kept(graph, node, choice, node.meta["val"].dim() - 1)
    args = (query, key, value, keep, dropout, is_causal)
    attention = insert_like(graph, node, aten.scaled_dot_product_attention.default, args)
    attention.kwargs = node.kwargs
    return attention


def negated(graph: fx.Graph, node: Node, condition: Node) -> Node:
    return make(graph, node, aten.logical_not.default, condition)


def is_masking(number: object) -> bool:
    """Whether a number hides what it stands for: nothing else of a score's place is left of it."""
    return isinstance(number, int | float) and number <= MASKING


# Masks that are added ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A value that is one of two numbers everywhere, by a computed condition."""

    condition: Node
    yes: float
    no: float

    @property
    def masks(self) -> bool:
        return is_masking(min(self.yes, self.no)) and not is_masking(max(self.yes, self.no))

    def kept(self, graph: fx.Graph, node: Node) -> Node:
        """Where it does not mask. A softmax does not see what is added to all that it keeps."""
        return self.condition if self.yes > self.no else negated(graph, node, self.condition)


_ARITHMETIC: dict[Any, Callable[[float, float], float]] = {
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.mul.Tensor: operator.mul,
    aten.div.Tensor: operator.truediv,
}
_VIEWS = (aten.reshape.default, aten.permute.default, aten.expand.default)


def choice_of(graph: fx.Graph, node: Node, value: Node) -> Choice | None:
    """The choice that a value is: a condition as a number, of numbers, or arithmetic on one."""
    source = value.args[0] if value.args else None
    if value.target is aten._to_copy.default and isinstance(source, Node):
        if source.meta["val"].dtype == torch.bool:
            return Choice(source, 1.0, 0.0)
        return choice_of(graph, node, source)
    if value.target in (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther):
        yes, no = (_number(branch) for branch in value.args[1:3])
        if yes is None or no is None or not isinstance(source, Node):
            return None
        return Choice(source, yes, no)
    if value.target in _VIEWS and isinstance(source, Node):
        found = choice_of(graph, node, source)
        if found is None:
            return None
        moved = make(graph, node, value.target, found.condition, *value.args[1:])
        return replace(found, condition=moved)
    if value.target in _ARITHMETIC:
        return _calculated(graph, node, value)
    return None


def _calculated(graph: fx.Graph, node: Node, value: Node) -> Choice | None:
    function = _ARITHMETIC[value.target]
    first, second = (_number(argument) for argument in value.args[:2])
    if (first is None) == (second is None):
        return None
    found = choice_of(graph, node, input_of(value, int(first is not None)))
    if found is None:
        return None
    try:
        yes, no = (
            function(n, second) if second is not None else function(first or 0.0, n)
            for n in (found.yes, found.no)
        )
    except ZeroDivisionError:
        return None
    return replace(found, yes=yes, no=no)


def _number(argument: object) -> float | None:
    """The number that an argument is everywhere."""
    if isinstance(argument, Node) and argument.target is aten.full.default:
        argument = argument.args[1]
    return float(argument) if isinstance(argument, int | float) else None
