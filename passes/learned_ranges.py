"""Roundings whose formats change while a graph trains, and ranges as numbers that gradients reach.

A range is multiplied by 2**point: a step size with its gradient (Esser et al. 2019, arXiv
1902.08153), learned as a logarithm (Jain et al. 2019, arXiv 1903.08066).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import tensor_node
from fxloom.encodings import Encoding
from fxloom.fixed_point import FixedPoint
from fxloom.graph import arguments, constant, insert_like, origin
from fxloom.passes.fitting import encoding_of, set_weight, widths_of
from fxloom.passes.grid import MOST_SHIFTED
from fxloom.quantized_ops import REQUANTIZE_WEIGHTS

WIDEST = 8
"""Bits from which widths fall: networks lose nothing at 8 (see docs/accuracy.md)."""


@dataclass
class Rounded:
    """A rounding whose format may change. node: in the quantized graph; twin: in what learns.

    to: its format as it was given, the coarsest channel's. shifts: of its channels, empty where
    there is one binary point. widths: of its channels, empty where all have that of the format.
    point: by how many bits its range has grown, a tensor of one number or one a channel where that
    is learned; scaled: the node of what learns that divides by it.
    """

    node: Node
    twin: Node
    to: FixedPoint
    shifts: tuple[int, ...]
    encoding: Encoding
    widths: tuple[int, ...] = ()
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
        encoding, widths = self.encoding, self.widths
        if extra > 0 and to.width < WIDEST:
            to = replace(to, width=_widened(to.width, extra))
            encoding = Encoding.FIXED
        if extra > 0:
            widths = tuple(_widened(bits, extra) if bits else 0 for bits in widths)
        for node in {self.node, self.twin}:
            source = arguments(node)[0]
            if self.is_weight:
                set_weight(node, source, to, shifts, encoding, widths)
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


def _widened(bits: int, extra: float) -> int:
    return max(bits, bits + ceil(extra * (WIDEST - bits)))


def rounded(node: Node, twin: Node) -> Rounded:
    """A rounding in the quantized graph and in what learns."""
    args = arguments(node)
    shifts = tuple(args[1]) if node.target is REQUANTIZE_WEIGHTS else ()
    return Rounded(node, twin, FixedPoint(*args[-5:-2]), shifts, encoding_of(node), widths_of(node))


def divided(x: Tensor, point: Tensor, low: float, high: float, shifts: Sequence[int]) -> Tensor:
    """x without what its range has grown by: divided by 2**point, [] or one number a channel.

    low, high, shifts: what the format holds; beyond it the quotient's rounding does not depend on
    the range. A weight that its bounds hold at the last level is one that would lie beyond it.
    """
    grown = by_channel(point, x)
    with torch.no_grad():
        quotient = x * torch.exp2(-grown)
        if shifts:
            finer = torch.tensor(shifts, dtype=x.dtype, device=x.device)
            quotient = quotient * torch.exp2(by_channel(finer, x))
        inside = (quotient > low * _NEARLY) & (quotient < high * _NEARLY)
    return x * torch.exp2(-torch.where(inside, grown, grown.detach()))


def multiplied(x: Tensor, point: Tensor) -> Tensor:
    """x with what its range has grown by."""
    return x * torch.exp2(by_channel(point, x))


_NEARLY = 1 - 2.0**-16
"""Bounds times 2**point are rounded."""


def by_channel(point: Tensor, x: Tensor) -> Tensor:
    """One number a channel, along the first axis of x; or one for all."""
    return point.reshape(-1, *(1,) * (x.dim() - 1)) if point.dim() else point
