"""Number formats while a graph trains: biases with room, binary points that are learned, widths
that fall.

While binary points are learned, what trains is a copy of the graph, on the same tensors, in which
every range is multiplied by a power of two with a real exponent. Then the exponents are rounded,
and the graph itself goes on with the formats that this gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import copy_graph
from fxloom.fixed_point import Overflow
from fxloom.graph import arguments, constant, origin
from fxloom.passes.chains import LAYERS, is_real
from fxloom.passes.fitting import weight_label
from fxloom.passes.learned_ranges import Rounded, by_channel, rounded
from fxloom.passes.trainable import bounds, fit_biases, widen_biases
from fxloom.passes.written import INSERTS
from fxloom.quantized_ops import (
    DIVIDE,
    LOOKUP,
    NORMALISE,
    REQUANTIZE,
    REQUANTIZE_WEIGHTS,
    SHIFT_LIKE,
    is_given,
)

aten = torch.ops.aten

MOST_MOVED = 8.0
"""Bits by which a binary point may move either way."""

Bounds = Mapping[str, tuple[Tensor, Tensor]]


@dataclass
class TrainingFormats:
    """The formats of a graph while it trains.

    graph: of its own, changed in place; quantized or not. trained: names of the parameters that
    train. is_frozen: whether the layer of that name keeps its formats. narrowing: epochs in which
    widths fall to those of the graph. learning: epochs in which binary points are learned.
    """

    graph: fx.GraphModule
    trained: Sequence[str]
    is_frozen: Callable[[str], bool]
    narrowing: int
    learning: int
    module: fx.GraphModule = field(init=False)
    bounds: Bounds = field(init=False)
    rounded: list[Rounded] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._biases: list[tuple[Node, Node]] = []
        self._learner = copy_graph(self.graph) if self.learning else self.graph
        if self.learning or self.narrowing:
            twins = dict(zip(self.graph.graph.nodes, self._learner.graph.nodes, strict=True))
            given = [arguments(node)[2] for node in twins if node.target in LAYERS]
            self._biases = [
                (b, twins[b])
                for b in given
                if b is not None and b.target is REQUANTIZE and not is_given(b)
            ]
            names = {id(constant(self.graph, name)) for name in self.trained}
            self.rounded = [
                rounded(node, twins[node]) for node in twins if self._may_change(node, names)
            ]
        for each in self.rounded if self.learning else []:
            overflow = arguments(each.node)[-1]
            # Beyond what wraps, more range has no slope; channels of their own widths keep theirs.
            if each.widths:
                continue
            if each.is_weight or overflow in (Overflow.SAT, Overflow.SAT_SYM):
                each.learn(self._learner)
        self.begin(0)

    @property
    def points(self) -> dict[str, Tensor]:
        """The binary points that train, by name."""
        found = ((f"{each.label}.binary_point", each.point) for each in self.rounded)
        return {
            f"{name}.{index}": point
            for index, (name, point) in enumerate(found)
            if point is not None
        }

    @property
    def first_final(self) -> int:
        """The first epoch in which all formats are final."""
        return max(self.narrowing, self.learning)

    def to(self, place: torch.device) -> None:
        """Move all tensors; both graphs still have the same ones."""
        self.graph.to(place)
        self._learner.to(place)
        for each in self.rounded:
            if each.scaled is not None:
                each.point = constant(self._learner, arguments(each.scaled)[1].target)
        for name, tensor in [*self.graph.named_parameters(remove_duplicate=False),
                             *self.graph.named_buffers(remove_duplicate=False)]:  # fmt: skip
            *path, leaf = name.split(".")
            setattr(self._learner.get_submodule(".".join(path)), leaf, tensor)
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Give every rounding the width that it has in an epoch, and the range learned so far."""
        extra = max(0.0, 1 - epoch / self.narrowing) if self.narrowing else 0.0
        is_learning = epoch < self.learning
        self.module = self._learner if is_learning else self.graph
        for each in self.rounded:
            moved = [0] * len(each.moved) if is_learning else each.moved
            each.write(*each.format(moved), extra)
        widen_biases(self.graph)
        if is_learning:
            for bias, twin in self._biases:
                twin.args = (arguments(twin)[0], *arguments(bias)[1:])
            self._learner.recompile()
        self._limits = self.bounds = bounds(self.graph, list(self.trained))

    def settle(self) -> None:
        """After binary points were learned: bounds of the weights move with them."""
        if self.module is self.graph:
            return
        grown: dict[int, Tensor] = {}
        for each in self.rounded:
            if each.point is not None:
                each.point.detach().clamp_(-MOST_MOVED, MOST_MOVED)
            if each.point is not None and each.is_weight:
                weights = constant(self.graph, arguments(each.node)[0].target)
                factor = by_channel(torch.exp2(each.point.detach()), weights)
                most = grown.setdefault(id(weights), factor)  # of several roundings the widest
                grown[id(weights)] = torch.maximum(most, factor)
        self.bounds = {
            name: (low * grown[key], high * grown[key])
            if (key := id(constant(self.graph, name))) in grown
            else (low, high)
            for name, (low, high) in self._limits.items()
        }

    def finished(self) -> tuple[fx.GraphModule, dict[str, str], dict[str, str]]:
        """The quantized graph with formats that fit; those of its biases, and of what was learned
        where it is not as it was given."""
        self.begin(self.first_final)
        biases = fit_biases(self.graph)
        self.graph.recompile()
        learned = {
            each.label: weight_label(*each.format(each.moved), each.encoding, each.widths)
            for each in self.rounded
            if any(each.moved)
        }
        return self.graph, biases, learned

    def _may_change(self, node: Node, trained: set[int]) -> bool:
        """Whether nothing but layers and roundings that follow depend on a node's format."""
        if node.target not in (REQUANTIZE, REQUANTIZE_WEIGHTS) or not is_real(node):
            return False
        if is_given(node):
            return False
        source = arguments(node)[0]
        if source.op == "get_attr":
            is_weight = all(user.target in LAYERS and arguments(user)[1] is node
                            for user in node.users)  # fmt: skip
            return id(constant(self.graph, source.target)) in trained and is_weight
        floats = self.graph.meta.get("floats")
        names = {} if floats is None else {each.name: each for each in floats.graph.nodes}
        end = names.get(str(node.meta.get("twin")))
        if end is None or end.target in INSERTS or any(map(self.is_frozen, _names(node))):
            return False
        return not node.meta.get("tied") and not _is_pinned(node)


def _names(node: Node) -> set[str]:
    """The layer whose values a node rounds, and what follows it until there."""
    names, x = {origin(node)}, arguments(node)[0]
    while x.op == "call_function" and x.target not in (REQUANTIZE, DIVIDE, LOOKUP):
        names.add(origin(x))
        if x.target in LAYERS or len(x.all_input_nodes) != 1:
            break
        x = x.all_input_nodes[0]
    return names


def _is_pinned(node: Node) -> bool:
    """Whether something that was computed for the format of a node reads it: the entries of a
    table, what fills a pad, the bias that the steps of a recurrence share."""
    pending = list(node.users)
    while pending:
        user = pending.pop()
        if user.target in (LOOKUP, NORMALISE, SHIFT_LIKE) or user.meta.get("tied"):
            return True
        if user.target is aten.constant_pad_nd.default and arguments(user)[2]:
            return True
        if user.target in (REQUANTIZE, DIVIDE):
            if "twin" not in user.meta:  # part of a function that was written out
                return True
            continue
        pending.extend(user.users)
    return False
