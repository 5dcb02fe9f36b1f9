"""Canonical forms of masks: what is hidden before a softmax becomes an argument of the softmax.

No format holds minus infinity, and none holds -1e9 beside scores with anything left of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, nan, prod, sqrt
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX
from fxloom.forms_products import product
from fxloom.graph import aten, insert_like
from fxloom.quantized_ops import ROUNDINGS
from fxloom.rewriting import input_of, is_constant, make, rewrites, same_shape, sizes_of

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
    """Softmax of masked scores, which may be scaled or negated behind the mask."""
    source, dim, dtype = node.args
    assert isinstance(source, Node)
    assert isinstance(dim, int)
    if dtype not in (None, source.meta["val"].dtype):
        return None
    found = taken_apart(graph, node)
    found.fix()
    if found.keeps:
        return insert_like(graph, node, MASKED_SOFTMAX, found.arguments())
    scores, added = _with_constant(source)
    if added is None or len(source.users) > 1:
        return None
    return insert_like(graph, node, MASKED_SOFTMAX, (scores, added, dim, 1.0))


def taken_apart(graph: fx.Graph, node: Node, most: float = MASKING) -> Masked:
    """What a softmax reads. most: the largest number that counts as one that hides scores."""
    source, dim = input_of(node), node.args[1]
    assert isinstance(dim, int)
    found = Masked(graph, node, dim, source, most)
    while found.step():
        pass
    return found


class Masked:
    """What a softmax reads, taken apart step by step: scores, and what keeps them."""

    def __init__(self, graph: fx.Graph, node: Node, dim: int, source: Node, most: float) -> None:
        self.graph, self.node, self.dim, self.source, self.most = graph, node, dim, source, most
        self.keeps: list[Node] = []
        self.number: float | None = None
        """What stands for hidden scores. Where several masks hide all of a row, it is the ones with
        the largest number that a softmax would still see: so it must be the same for all."""
        self.scale = 1.0
        self.fall = inf
        """By how much at least, scaled, hidden scores fall where something is added to them."""

    def arguments(self) -> tuple[Any, ...]:
        """Those of a masked softmax."""
        scores = self.source
        if self.scale < 0:
            scores = make(self.graph, self.node, aten.neg.default, scores)
        return scores, all_of(self.graph, self.node, self.keeps), self.dim, abs(self.scale)

    def step(self) -> bool:
        """Take off the outermost operation; False where it is none that scales or masks."""
        source = self.source
        if source.target is aten.neg.default:
            self.source, self.scale = input_of(source), -self.scale
            return True
        if source.target in (aten.mul.Tensor, aten.div.Tensor) and _is_factor(source.args[1]):
            number: Any = source.args[1]
            self.scale *= number if source.target is aten.mul.Tensor else 1 / number
            self.source = input_of(source)
            return True
        if source.target in _CHOICES:
            return self._chosen(source)
        if source.target in (aten.add.Tensor, aten.sub.Tensor):
            return self._added(source)
        return False

    def _hides(self, number: float | None) -> bool:
        """Whether a number masks, and the masks before it, if any, left the same."""
        if number is None or not (number if self.scale > 0 else -number) <= self.most:
            return False
        if self.number is not None and self.number != number * self.scale:
            return False
        self.number = number * self.scale
        return True

    def _chosen(self, source: Node) -> bool:
        condition, first, second = source.args
        assert isinstance(condition, Node)
        for number, scores, hides in ((first, second, True), (second, first, False)):
            if (
                isinstance(scores, Node)
                and not is_constant(scores)
                and self._hides(_number(number))
            ):
                keep = negated(self.graph, self.node, condition) if hides else condition
                self.keeps.append(keep)
                self.source = scores
                return True
        return False

    def _added(self, source: Node) -> bool:
        first, second = source.args[:2]
        pairs = [(first, second)]
        if source.target is aten.add.Tensor:
            pairs.append((second, first))
        for scores, added in pairs:
            if not isinstance(scores, Node) or not isinstance(added, Node):
                continue
            if is_constant(scores) or not same_shape(scores, source):
                continue
            sign = 1 if source.target is aten.add.Tensor else -1
            if is_constant(added):
                return False
            choice = choice_of(self.graph, self.node, added)
            if choice is None:
                continue
            sign = sign if self.scale > 0 else -sign
            choice = replace(choice, yes=sign * choice.yes, no=sign * choice.no)
            hidden = min(choice.yes, choice.no)
            above = max(choice.yes, choice.no)
            masks = hidden <= self.most < above
            if masks and (self.number is None or hidden == self.number == -inf):
                # Hidden scores keep their differences and add up: a finite number is none again.
                self.number = -inf if hidden == -inf else nan
                self.fall = min(self.fall, (above - hidden) * abs(self.scale))
                self.keeps.append(_kept(self.graph, self.node, choice, self.dim))
                self.source = scores
                return True
        return False

    def fix(self) -> None:
        """Split off a constant mask, among others or scaled: legalize drops what it adds where
        that is nothing."""
        scores, added = _with_constant(self.source)
        if scores is None or added is None or not same_shape(scores, self.source):
            return
        if (not self.keeps and self.scale == 1) or self.scale < 0 or len(self.source.users) > 1:
            return
        if self.number not in (None, -inf):
            return
        keep, rest = split(self.graph, self.node, added, self.number or MASKING)
        self.keeps.append(keep)
        self.source = make(self.graph, self.node, aten.add.Tensor, scores, rest)


def _is_factor(number: object) -> bool:
    return isinstance(number, int | float) and number != 0 and abs(number) < inf


def split(graph: fx.Graph, node: Node, mask: Node, number: float) -> tuple[Node, Node]:
    """What a constant mask that is added keeps, by what is above a number, and what it adds."""
    keep = make(graph, node, aten.gt.Scalar, mask, number)
    return keep, make(graph, node, aten.where.ScalarOther, keep, mask, 0.0)


def all_of(graph: fx.Graph, node: Node, conditions: Sequence[Node]) -> Node:
    """Where all conditions hold."""
    result = conditions[0]
    for condition in conditions[1:]:
        result = make(graph, node, aten.logical_and.default, result, condition)
    return result


def _with_constant(source: Node) -> tuple[Node | None, Node | None]:
    """Scores and a constant that is added to them: legalize looks which of its values mask."""
    if source.target is aten.add.Tensor and all(isinstance(arg, Node) for arg in source.args):
        first, second = input_of(source), input_of(source, 1)
        if not {first.target, second.target}.isdisjoint(ROUNDINGS):
            return None, None  # an offset in a format of the model's own
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


# Attention ---------------------------------------------------------------------------------------


@rewrites(aten.scaled_dot_product_attention.default)
def _attention(graph: fx.Graph, node: Node) -> Node | None:
    """nn.MultiheadAttention adds a padding mask, minus infinity or nothing, to a constant one."""
    query, key, value, mask, dropout, is_causal = node.args
    assert isinstance(mask, Node | None)
    plain = not (dropout or is_causal or node.kwargs.get("enable_gqa"))
    learned = [is_constant(input_of(node, position)) for position in range(3)]
    written_out = plain and any(learned) and not all(learned[:2])
    if mask is None or is_constant(mask) or mask.meta["val"].dtype == torch.bool:
        return _written_out(graph, node, mask) if written_out else None
    parts = _parts(graph, node, mask)
    if parts is None:
        return None
    keeps, constants = parts
    if not constants and written_out:
        return _written_out(graph, node, all_of(graph, node, keeps))
    if not constants:
        args = (query, key, value, all_of(graph, node, keeps), dropout, is_causal)
        attention = insert_like(graph, node, aten.scaled_dot_product_attention.default, args)
        attention.kwargs = node.kwargs
        return attention
    if not plain or len(constants) > 1:
        return None
    return _written_out(graph, node, all_of(graph, node, keeps), constants[0])


def _parts(graph: fx.Graph, node: Node, mask: Node) -> tuple[list[Node], list[Node]] | None:
    """The conditions and the constants whose sum a mask is."""
    if is_constant(mask):
        return [], [mask]
    if mask.target is aten.add.Tensor and all(isinstance(arg, Node) for arg in mask.args):
        sides = [_parts(graph, node, input_of(mask, n)) for n in (0, 1)]
        if sides[0] is None or sides[1] is None:
            return None
        return sides[0][0] + sides[1][0], sides[0][1] + sides[1][1]
    if mask.target in _CHOICES:
        condition, first, second = mask.args
        assert isinstance(condition, Node)
        for number, rest, hides in ((first, second, True), (second, first, False)):
            if _number(number) != -inf or not isinstance(rest, Node):
                continue
            inner = ([], []) if _number(rest) == 0 else _parts(graph, node, rest)
            keep = negated(graph, node, condition) if hides else condition
            return None if inner is None else ([keep, *inner[0]], inner[1])
    if mask.target is aten.reshape.default and mask.meta["val"].dim() == 4:
        split_heads = _by_heads(graph, node, mask)
        if split_heads is not None:
            return _parts(graph, node, split_heads)
    choice = choice_of(graph, node, mask)
    if choice is None or not choice.masks or min(choice.yes, choice.no) != -inf:
        return None
    return [choice.kept(graph, node)], []


def _by_heads(graph: fx.Graph, node: Node, mask: Node) -> Node | None:
    """A sum of masks [batch * heads, rows, columns] as a sum of [batch, heads, rows, columns]."""
    source = input_of(mask)
    shapes = [each.meta["val"].shape for each in (source, mask)]
    is_sum = source.target is aten.add.Tensor and all(isinstance(a, Node) for a in source.args)
    if not is_sum or len(shapes[0]) != 3 or list(shapes[0][1:]) != list(shapes[1][2:]):
        return None
    sides = []
    for position in (0, 1):
        side = input_of(source, position)
        sizes = sizes_of(side, -1)
        if len(sizes) != 3:
            return None
        heads = [1, 1] if sizes[0] == 1 else sizes_of(mask, -1)[:2]
        sides.append(make(graph, node, aten.reshape.default, side, [*heads, *sizes[1:]]))
    return make(graph, node, aten.add.Tensor, *sides)


def _written_out(
    graph: fx.Graph, node: Node, mask: Node | None, constant: Node | None = None
) -> Node | None:
    """Attention as products and a softmax: to scores that get a constant as well as a condition,
    and of learned queries, keys or values.

    Where a computed condition leaves nothing of a row, attention gives zero.
    """
    query, key, value = (input_of(node, position) for position in range(3))
    rank = key.meta["val"].dim()
    scale: Any = node.kwargs.get("scale")
    if scale is None:
        scale = 1 / sqrt(query.meta["val"].shape[-1])
    if not 0 < scale < inf:
        return None
    turned = [*range(rank - 2), rank - 1, rank - 2]
    key = make(graph, node, aten.permute.default, key, turned)
    scores = product(graph, node, query, key)
    if mask is not None and constant is not None:
        keep, added = split(graph, node, constant, -inf)
        added = make(graph, node, aten.div.Tensor, added, scale)
        scores = make(graph, node, aten.add.Tensor, scores, added)
        mask = all_of(graph, node, [mask, keep])
    weights = make(graph, node, MASKED_SOFTMAX, scores, mask, rank - 1, scale)
    result = product(graph, node, weights, value)
    if mask is None or is_constant(mask):
        return result
    some = make(graph, node, aten.amax.default, mask, [mask.meta["val"].dim() - 1], True)
    return make(graph, node, aten.where.ScalarOther, some, result, 0.0)


def negated(graph: fx.Graph, node: Node, condition: Node) -> Node:
    return make(graph, node, aten.logical_not.default, condition)


# Masks that are added ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A value that is one of two numbers everywhere, by a computed condition."""

    condition: Node
    yes: float
    no: float

    @property
    def masks(self) -> bool:
        return min(self.yes, self.no) <= MASKING < max(self.yes, self.no)

    def kept(self, graph: fx.Graph, node: Node) -> Node:
        """Where it does not mask. A softmax does not see what is added to all that it keeps."""
        return self.condition if self.yes > self.no else negated(graph, node, self.condition)


_ARITHMETIC: dict[Any, Callable[[float, float], float]] = {
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.mul.Tensor: operator.mul,
    aten.div.Tensor: operator.truediv,
}
_CHOICES = (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)
_VIEWS = (aten.reshape.default, aten.permute.default, aten.expand.default)


def choice_of(graph: fx.Graph, node: Node, value: Node) -> Choice | None:
    """The choice that a value is: a condition as a number, of numbers, or arithmetic on one."""
    source = value.args[0] if value.args else None
    if value.target is aten._to_copy.default and isinstance(source, Node):
        if source.meta["val"].dtype == torch.bool:
            return Choice(source, 1.0, 0.0)
        return choice_of(graph, node, source)
    if value.target in _CHOICES:
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
    """The number that an argument is everywhere, as far as its form tells."""
    if isinstance(argument, Node) and argument.target is aten.full.default:
        argument = argument.args[1]
    if isinstance(argument, Node) and argument.target in (aten.mul.Tensor, aten.neg.default):
        factors = [_number(factor) for factor in argument.args[:2]]
        known = [factor for factor in factors if factor is not None]
        if argument.target is aten.neg.default:
            known.append(-1.0)
        return prod(known) if len(known) == 2 else None
    if isinstance(argument, Node):
        return argument.meta.get("number")
    return float(argument) if isinstance(argument, int | float) else None
