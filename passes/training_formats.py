"""Number formats while a graph trains: biases with room, binary points that are learned, widths
that fall.

While binary points are learned, what trains is a copy of the graph, on the same tensors, in which
every range is multiplied by a power of two with a real exponent: a step size with its gradient
(Esser et al. 2019, arXiv 1902.08153), learned as a logarithm (Jain et al. 2019, arXiv 1903.08066).
Then the exponents are rounded, and the graph itself goes on with the formats that this gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import copy_graph, tensor_node
from fxloom.encodings import Encoding
from fxloom.fixed_point import FixedPoint, Overflow
from fxloom.graph import arguments, constant, insert_like, origin
from fxloom.passes.chains import LAYERS, is_real
from fxloom.passes.fitting import MOST_SHIFTED, encoding_of, set_weight, weight_label
from fxloom.passes.trainable import bounds, fit_biases, widen_biases
from fxloom.passes.written import INSERTS
from fxloom.quantized_ops import (
    DIVIDE,
    LOOKUP,
    NORMALISE,
    REQUANTIZE,
    REQUANTIZE_WEIGHTS,
    SHIFT_LIKE,
)

aten = torch.ops.aten

WIDEST = 8
"""Bits from which widths fall: networks lose nothing at 8 (see docs/accuracy.md)."""

MOST_MOVED = 8.0
"""Bits by which a binary point may move either way."""

Bounds = Mapping[str, tuple[Tensor, Tensor]]


@dataclass
class Rounded:
    """A rounding whose format may change. node: in the quantized graph; twin: in what learns.

    to: its format as it was given, the coarsest channel's. shifts: of its channels, empty where
    there is one binary point. point: by how many bits its range has grown, a tensor of one number
    or one a channel where that is learned; scaled: the node of what learns that divides by it.
    """

    node: Node
    twin: Node
    to: FixedPoint
    shifts: tuple[int, ...]
    encoding: Encoding
    point: Tensor | None = None
    scaled: Node | None = None

    @property
    def is_weight(self) -> bool:
        """Whether it rounds a parameter."""
        return bool(arguments(self.node)[0].op == "get_attr")

    @property
    def label(self) -> str:
        """What reports call it."""
        source = arguments(self.node)[0]
        return str(source.target) if self.is_weight else origin(self.node)

    @property
    def moved(self) -> list[int]:
        """By how many bits of range, rounded."""
        if self.point is None:
            return [0] * max(len(self.shifts), 1)
        return [int(bits) for bits in self.point.detach().round().reshape(-1).tolist()]

    def format(self, moved: Sequence[int]) -> tuple[FixedPoint, tuple[int, ...]]:
        """The format with its shifts, moved by that many bits."""
        if not self.shifts:
            return replace(self.to, integer=self.to.integer + moved[0]), ()
        own = [bits - shift for bits, shift in zip(moved, self.shifts, strict=True)]
        shifts = tuple(min(max(own) - each, MOST_SHIFTED) for each in own)
        return replace(self.to, integer=self.to.integer + max(own)), shifts

    def write(self, to: FixedPoint, shifts: Sequence[int], extra: float) -> None:
        """Put a format into both graphs. extra: the share of the bits up to WIDEST that are there
        beside the final ones."""
        encoding = self.encoding
        if extra > 0 and to.width < WIDEST:
            to = replace(to, width=to.width + ceil(extra * (WIDEST - to.width)))
            encoding = Encoding.FIXED
        for node in {self.node, self.twin}:
            source = arguments(node)[0]
            if self.is_weight:
                set_weight(node, source, to, shifts, encoding)
            else:
                node.args = (source, to.width, to.integer, *arguments(node)[3:])
        if self.scaled is not None:
            levels = encoding.levels(to.width) or (to.lo, to.hi)
            if encoding is Encoding.BINARY:  # of two levels each is the last
                levels = (0, 0)
            ends = (levels[0] * to.step, levels[-1] * to.step)
            self.scaled.args = (*arguments(self.scaled)[:2], *ends, list(shifts))

    def learn(self, module: fx.GraphModule) -> None:
        """Let the twin's range grow by a power of two that gradients reach."""
        source, graph = arguments(self.twin)[0], module.graph
        start = torch.zeros(len(self.shifts)) if self.shifts else torch.zeros(())
        values = source.meta["val"]
        start = start.to(values.dtype)
        point = tensor_node(module, self.twin, f"{self.label}.binary_point", start)
        with graph.inserting_before(self.twin):
            self.scaled = insert_like(graph, self.twin, divided, (source, point))
        with graph.inserting_after(self.twin):
            result = insert_like(graph, self.twin, multiplied, (self.twin, point))
        for node in (self.scaled, result):
            node.meta |= {key: self.twin.meta[key] for key in ("val", "batch_axis")}
        self.twin.replace_all_uses_with(result, delete_user_cb=lambda user: user is not result)
        self.twin.update_arg(0, self.scaled)
        self.point = constant(module, point.target)


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
        self._learner = copy_graph(self.graph) if self.learning else self.graph
        self._biases: list[tuple[Node, Node]] = []
        if self.learning or self.narrowing:
            twins = dict(zip(self.graph.graph.nodes, self._learner.graph.nodes, strict=True))
            given = [arguments(node)[2] for node in twins if node.target in LAYERS]
            self._biases = [
                (b, twins[b]) for b in given if b is not None and b.target is REQUANTIZE
            ]
            names = {id(constant(self.graph, name)) for name in self.trained}
            self.rounded = [
                _rounded(node, twins[node]) for node in twins if self._may_change(node, names)
            ]
        for each in self.rounded if self.learning else []:
            overflow = arguments(each.node)[-1]
            # Beyond what wraps, more range has no slope.
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
        """Move all tensors."""
        self.graph.to(place)
        self._learner.to(place)
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
                factor = _by_channel(torch.exp2(each.point.detach()), weights)
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
            each.label: weight_label(*each.format(each.moved), each.encoding)
            for each in self.rounded
            if any(each.moved)
        }
        return self.graph, biases, learned

    def _may_change(self, node: Node, trained: set[int]) -> bool:
        """Whether nothing but layers and roundings that follow depend on a node's format."""
        if node.target not in (REQUANTIZE, REQUANTIZE_WEIGHTS) or not is_real(node):
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


def _rounded(node: Node, twin: Node) -> Rounded:
    args = arguments(node)
    shifts = tuple(args[1]) if node.target is REQUANTIZE_WEIGHTS else ()
    return Rounded(node, twin, FixedPoint(*args[-5:-2]), shifts, encoding_of(node))


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


def divided(x: Tensor, point: Tensor, low: float, high: float, shifts: Sequence[int]) -> Tensor:
    """x without what its range has grown by: divided by 2**point, [] or one number a channel.

    low, high, shifts: what the format holds; beyond it the quotient's rounding does not depend on
    the range. A weight that its bounds hold at the last level is one that would lie beyond it.
    """
    grown = _by_channel(point, x)
    with torch.no_grad():
        quotient = x * torch.exp2(-grown)
        if shifts:
            finer = torch.tensor(shifts, dtype=x.dtype, device=x.device)
            quotient = quotient * torch.exp2(_by_channel(finer, x))
        inside = (quotient > low * _NEARLY) & (quotient < high * _NEARLY)
    return x * torch.exp2(-torch.where(inside, grown, grown.detach()))


def multiplied(x: Tensor, point: Tensor) -> Tensor:
    """x with what its range has grown by."""
    return x * torch.exp2(_by_channel(point, x))


_NEARLY = 1 - 2.0**-16
"""Bounds times 2**point are rounded."""


def _by_channel(point: Tensor, x: Tensor) -> Tensor:
    return point.reshape(-1, *(1,) * (x.dim() - 1)) if point.dim() else point
