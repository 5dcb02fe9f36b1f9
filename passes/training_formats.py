"""Number formats while a graph trains: biases with room, binary points that are learned, widths
that fall.

A learned binary point is a real number of bits by which a range has grown, rounded for use: its
gradient is that of a step size (Esser et al. 2019, arXiv 1902.08153), in bits and straight through
the rounding (Jain et al. 2019, arXiv 1903.08066), so every scale stays a power of two. The formats
in use always stand in the quantized graph itself; what trains is a copy of it, on the same
tensors, in which gradients reach the binary points too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Any

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

MOST_MOVED = 8
"""Bits by which a binary point may move either way."""

LEARNING = 0.5
"""Share of the epochs after which binary points stay where they are: near a boundary they swing
from one side to the other (Jain et al. 2019, section 5.2), and weights must settle in the end."""

Bounds = Mapping[str, tuple[Tensor, Tensor]]


@dataclass
class Rounded:
    """A rounding whose format may change. node: in the quantized graph; twin: in what trains.

    to: its format as it was given, the coarsest channel's. shifts: of its channels, empty where
    there is one binary point. learned: in what trains, what passes gradients to the binary point.
    moved: by how many bits of range, one number or one a channel.
    """

    node: Node
    twin: Node
    to: FixedPoint
    shifts: tuple[int, ...]
    encoding: Encoding
    learned: Node | None = None
    moved: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.moved = (0,) * max(len(self.shifts), 1)

    @property
    def is_weight(self) -> bool:
        """Whether it rounds a parameter."""
        return bool(arguments(self.node)[0].op == "get_attr")

    @property
    def point(self) -> str | None:
        """The name of its binary point, where that is learned."""
        return None if self.learned is None else str(arguments(self.learned)[2].target)

    @property
    def label(self) -> str:
        """What reports call it."""
        source = arguments(self.node)[0]
        return str(source.target) if self.is_weight else origin(self.node)

    def format(self) -> tuple[FixedPoint, tuple[int, ...]]:
        """The final format with its shifts, moved as far as was learned."""
        if not self.shifts:
            return replace(self.to, integer=self.to.integer + self.moved[0]), ()
        own = [moved - shift for moved, shift in zip(self.moved, self.shifts, strict=True)]
        shifts = tuple(min(max(own) - each, MOST_SHIFTED) for each in own)
        return replace(self.to, integer=self.to.integer + max(own)), shifts

    def write(self, extra: float) -> None:
        """Put the format into both graphs. extra: the share of the bits up to WIDEST that are
        there beside the final ones."""
        to, shifts = self.format()
        encoding = self.encoding
        if extra > 0 and to.width < WIDEST:
            more = -int(-extra * (WIDEST - to.width) // 1)
            to, encoding = replace(to, width=to.width + more), Encoding.FIXED
        for node in (self.node,) if self.twin is self.node else (self.node, self.twin):
            source = arguments(node)[0]
            if self.is_weight:
                set_weight(node, source, to, shifts, encoding)
            else:
                node.args = (source, to.width, to.integer, *arguments(node)[3:])
        if self.learned is not None:
            kept = arguments(self.learned)[:3]
            format = (to.width, to.integer, to.signed)
            self.learned.args = (*kept, list(shifts), str(encoding), *format)


@dataclass
class TrainingFormats:
    """The formats of a graph while it trains.

    graph: of its own, changed in place; quantized or not. trained: names of the parameters that
    train. is_frozen: whether the layer of that name keeps its formats. ranges: whether binary
    points are learned. narrowing: epochs in which widths fall to those of the graph. epochs: all.
    """

    graph: fx.GraphModule
    trained: Sequence[str]
    is_frozen: Callable[[str], bool]
    ranges: bool
    narrowing: int
    epochs: int
    module: fx.GraphModule = field(init=False)
    rounded: list[Rounded] = field(init=False, default_factory=list)
    bounds: Bounds = field(init=False, default_factory=dict)
    _extra: float = 0.0

    def __post_init__(self) -> None:
        self.module = self.graph
        if self.ranges:
            self.module = copy_graph(self.graph)
        if self.ranges or self.narrowing:
            twins = dict(zip(self.graph.graph.nodes, self.module.graph.nodes, strict=True))
            names = {id(constant(self.graph, name)) for name in self.trained}
            self.rounded = [
                _rounded(node, twins[node]) for node in twins if self._may_change(node, names)
            ]
        if self.ranges:
            self._learn()
        self._write()

    @property
    def points(self) -> dict[str, Tensor]:
        """The binary points that train, by name."""
        return {
            each.point: constant(self.module, each.point)
            for each in self.rounded
            if each.point is not None
        }

    def begin(self, epoch: int) -> None:
        """Give every rounding the width that it has in an epoch, and the range learned so far."""
        self._extra = max(0.0, 1 - epoch / self.narrowing) if self.narrowing else 0.0
        learning = epoch < self.narrowing + LEARNING * (self.epochs - self.narrowing)
        for point in self.points.values():
            point.requires_grad_(learning)
        self.settle(changed=bool(self.rounded))

    def settle(self, *, changed: bool = False) -> None:
        """After binary points were learned or loaded: round, and write formats that changed."""
        for each in self.rounded:
            if each.point is not None:
                learned = constant(self.module, each.point).detach()
                moved = tuple(int(n) for n in learned.round().reshape(-1).tolist())
                changed |= moved != each.moved
                each.moved = moved
        if changed:
            self._write()

    def finished(self) -> tuple[fx.GraphModule, dict[str, str], dict[str, str]]:
        """The quantized graph with formats that fit; those of its biases, and of what was learned
        where it is not as it was given."""
        self.begin(self.epochs)
        formats = fit_biases(self.graph)
        self.graph.recompile()
        learned: dict[str, str] = {}
        for each in self.rounded:
            if any(each.moved):
                to, shifts = each.format()
                learned[each.label] = weight_label(to, shifts, each.encoding)
        return self.graph, formats, learned

    def _write(self) -> None:
        for each in self.rounded:
            each.write(self._extra)
        widen_biases(self.graph)
        if self.module is not self.graph:
            for node, twin in zip(self._originals, self._twins, strict=True):
                twin.args = (arguments(twin)[0], *arguments(node)[1:])
            self.module.recompile()
        self.bounds = bounds(self.graph, list(self.trained))

    def _learn(self) -> None:
        """Let gradients reach the binary points of all roundings that may change."""
        biases = [arguments(n)[2] for n in self.graph.graph.nodes if n.target in LAYERS]
        pairs = dict(zip(self.graph.graph.nodes, self.module.graph.nodes, strict=True))
        self._originals = [b for b in biases if isinstance(b, Node) and b.target is REQUANTIZE]
        self._twins = [pairs[bias] for bias in self._originals]
        for each in self.rounded:
            overflow = arguments(each.node)[-1]
            if not each.is_weight and overflow not in (Overflow.SAT, Overflow.SAT_SYM):
                continue  # beyond what wraps, more range has no slope
            start = torch.zeros(len(each.shifts)) if each.shifts else torch.zeros(())
            point = tensor_node(self.module, each.twin, f"{each.label}.binary_point", start)
            with self.module.graph.inserting_after(each.twin):
                node = insert_like(
                    self.module.graph,
                    each.twin,
                    learned_range,
                    (each.twin, arguments(each.twin)[0], point),
                )
            each.learned = node
            each.twin.replace_all_uses_with(
                node, delete_user_cb=node.__ne__
            )

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


def learned_range(
    rounded: Tensor,
    x: Tensor,
    point: Tensor,
    shifts: Sequence[int],
    encoding: str,
    width: int,
    integer: int,
    signed: bool,
) -> Tensor:
    """x as it was rounded; gradients pass, and reach the binary point as well.

    shifts, encoding, width, integer, signed: of the format that it was rounded into.
    """
    to = FixedPoint(width, integer, signed)
    result: Tensor = _LearnedRange.apply(rounded, x, point, shifts, Encoding(encoding), to)  # type: ignore[no-untyped-call]
    return result


class _LearnedRange(torch.autograd.Function):
    """With x in steps of its format, one more bit of range moves the result by the step and log(2)
    times what rounding added, within the range, and the last mantissa beyond it."""

    @staticmethod
    def forward(
        ctx: Any,
        rounded: Tensor,
        x: Tensor,
        point: Tensor,
        shifts: Sequence[int],
        encoding: Encoding,
        to: FixedPoint,
    ) -> Tensor:
        ctx.save_for_backward(rounded, x)
        ctx.format, ctx.by_channel = (shifts, encoding, to), point.dim() > 0
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slope = None
        if ctx.needs_input_grad[2]:
            slope = gradient * _by_range(*ctx.saved_tensors, *ctx.format)
            slope = slope.flatten(1).sum(1) if ctx.by_channel else slope.sum()
        return (gradient, None, slope, None, None, None)


def _by_range(
    rounded: Tensor, x: Tensor, shifts: Sequence[int], encoding: Encoding, to: FixedPoint
) -> Tensor:
    """By how much a rounded value grows with every bit of range."""
    if encoding is Encoding.BINARY:  # of two levels each is the last
        return rounded * log(2)
    levels = encoding.levels(to.width) or (to.lo, to.hi)
    step = torch.full((1,) * x.dim(), to.step, dtype=x.dtype, device=x.device)
    if shifts:
        finer = torch.tensor(shifts, dtype=x.dtype, device=x.device)
        step = step * torch.exp2(-finer).reshape(-1, *(1,) * (x.dim() - 1))
    # A weight that the optimizer's bounds hold at the last level is one that would lie beyond it.
    inside = (x > levels[0] * step) & (x < levels[-1] * step)
    return torch.where(inside, rounded - x, rounded) * log(2)
