"""What of a graph is in formats that the model brought along, and what is left to quantize.

A value that is computed from rounded values by layers, sums, rectifiers, pools and moves is exactly
on a grid and needs no rounding. It gets one all the same where what reads it would need more bits
than an integer has: to WIDE bits where these are few enough, since nobody chose to round there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.fixed_point import FixedPoint
from fxloom.graph import arguments, constant, origin
from fxloom.lowering import exact_values
from fxloom.passes.chains import CHOOSING, LAYERS, MOVING, ROUNDING, Chain, format_of, is_real
from fxloom.passes.fitting import encoding_of, weight_label, widths_of
from fxloom.passes.legalize.scales import MERGED
from fxloom.program import Value
from fxloom.quantized_ops import (
    GIVEN,
    LOOKUP,
    REQUANTIZE,
    REQUANTIZE_WEIGHTS,
    brings_formats,
    is_given,
)
from fxloom.support.core import is_constant, is_weight

aten = torch.ops.aten

GUARD = 8
"""Bits by which an input is finer than the finest of several roundings that read it: what they make
of it differs from what they make of the number itself only next to a tie, within 2**-(GUARD + 1) of
a step."""


WIDE = 24
"""Bits of a value on a grid that is rounded only for the sake of what reads it: as many as float32
has."""


@dataclass(frozen=True)
class Given:
    """values: those that are on a grid. layers: those whose weights or biases are in formats of the
    model's own. wide: values on a grid that are rounded to WIDE bits."""

    values: Mapping[Node, Value]
    layers: frozenset[Node]
    wide: frozenset[Node] = frozenset()

    @classmethod
    def of(cls, module: GraphModule, chains: Mapping[Chain, int]) -> Given:
        """chains: of the graph, with the bits that they get where they are rounded."""
        if not brings_formats(module):
            return cls({}, frozenset())
        layers = frozenset(
            node
            for node in module.graph.nodes
            if node.target in LAYERS
            and any(isinstance(arg, Node) and is_given(arg) for arg in arguments(node)[1:3])
        )
        values, wide = _narrow_values(module, chains)
        return cls(values, layers, wide)

    def is_settled(self, chain: Chain) -> bool:
        """Whether nothing is left to round at the end of a chain."""
        end = chain.end
        if end.op == "placeholder":
            return len(end.users) == 1 and all(map(_rounds, end.users))
        if end.target in ROUNDING:
            return False
        if self.layers and _is_scaled_next(end):
            return True
        return end in self.values or (bool(end.users) and all(map(_rounds, end.users)))

    def wanted(self, chain: Chain) -> FixedPoint | None:
        """The format to which all that reads the end of a chain rounds it, if there is one."""
        kinds = {arguments(user)[1:4] if _rounds(user) else None for user in chain.end.users}
        (kind, *others) = kinds or {None}
        return None if others or kind is None else FixedPoint(*kind)


def _is_scaled_next(node: Node) -> bool:
    """Whether a value is but times a constant, and gets a constant added next, as a batch norm is
    written: rounded once, behind both."""
    if node.target is not aten.mul.Tensor or len(node.users) != 1:
        return False
    (user,) = node.users
    others = [arg for each in (node, user) for arg in arguments(each)[:2] if arg is not node]
    return user.target is aten.add.Tensor and sum(map(is_weight, others)) == 2


def _rounds(node: Node) -> bool:
    return is_given(node) and node.target is not REQUANTIZE_WEIGHTS


def keeps_its_own(node: Node) -> bool:
    """Whether a reader of a value rounds it itself, and must see it unrounded."""
    return node.target is REQUANTIZE and is_given(node)


def fine_enough(to: FixedPoint, port: Node) -> FixedPoint:
    """A format of an input in which the model's own roundings of it still have something to do."""
    kinds = [kind for user in port.users if (kind := _seen_through(user)) is not None]
    if not kinds:
        return to
    every = [to, *(replace(kind, width=kind.width + GUARD) for kind in kinds)]
    signed = any(kind.signed for kind in every)
    whole = max(kind.integer + (signed and not kind.signed) for kind in every)
    return FixedPoint(whole + max(kind.fraction for kind in every), whole, signed)


def _seen_through(user: Node) -> FixedPoint | None:
    """The format that a reader of an input rounds it to, if it does. What moves it, and constants
    of the model that it is multiplied by or that are added, may come before that."""
    module = user.graph.owning_module
    finer = wider = 0
    while not keeps_its_own(user):
        constants = [arg for arg in arguments(user)[:2] if is_weight(arg)]
        if len(user.users) != 1 or module is None:
            return None
        if user.target is aten.mul.Tensor and len(constants) == 1 and is_given(constants[0]):
            numbers = constant(module, arguments(constants[0])[0].target).detach().abs()
            low, high = torch.aminmax(numbers)
            if not low:
                return None
            # From 2**(e - 1) up to 2**e: as fine as the largest makes it, as far as the smallest.
            finer += int(torch.frexp(high).exponent)
            wider -= int(torch.frexp(low).exponent) - 1
        elif not (user.target in MOVING or (user.target is aten.add.Tensor and constants)):
            return None
        (user,) = user.users
    width, integer, signed = arguments(user)[1:4]
    return FixedPoint(width + finer + wider, integer + wider, signed)


def given_formats(module: GraphModule) -> dict[str, str]:
    """The formats that a model brought along, by the names of tensors and layers."""
    found: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.target is LOOKUP and node.meta.get(GIVEN):
            found[origin(node)] = str(format_of(node))
        if not is_given(node) or node.meta.get(MERGED):
            continue
        source = arguments(node)[0]
        to = FixedPoint(*arguments(node)[-5:-2])
        if not is_constant(source):
            found[origin(node)] = str(to)
            continue
        shifts = arguments(node)[1] if node.target is REQUANTIZE_WEIGHTS else ()
        label = weight_label(to, shifts, encoding_of(node), widths_of(node))
        found[str(source.target)] = label
    return found


def remark_on(given: Mapping[str, str]) -> str:
    """The same for people: what has which format."""
    names: dict[str, list[str]] = {}
    for name, label in given.items():
        names.setdefault(label, []).append(name)
    parts = (f"{', '.join(found)} {label}" for label, found in names.items())
    return f"formats that the model brought along and keeps: {'; '.join(parts)}"


def _narrow_values(
    module: GraphModule, chains: Mapping[Chain, int]
) -> tuple[dict[Node, Value], frozenset[Node]]:
    """Values on a grid, less those that have to be rounded for the sake of what reads them, and
    those of the latter for which WIDE bits are few enough.

    What is computed from values that will be rounded is on a grid as well.
    """
    # Where their binary points will be is not known yet.
    assumed = {
        chain.end: FixedPoint(bits, bits // 2)
        for chain, bits in chains.items()
        if is_real(chain.end)
    }
    ends = {chain.end for chain in chains if chain.end.target not in ROUNDING}
    rounded, wide = set[Node](), set[Node]()
    while True:
        kinds = assumed | dict.fromkeys(wide, FixedPoint(WIDE, WIDE // 2))
        values, too_wide = exact_values(module, kinds, rounded)
        before = {end for node in too_wide for end in _ends_before(node, ends)}
        more = (before - rounded) & values.keys()
        if not more and not before & wide:
            return values, frozenset(wide)
        wide -= before
        wide |= {end for end in more if end in assumed}
        rounded |= more


def _ends_before(node: Node, ends: Iterable[Node]) -> set[Node]:
    """The ends of chains that a node reads, as they are or moved."""
    found: set[Node] = set()
    pending: list[Any] = list(node.all_input_nodes)
    while pending:
        source = pending.pop()
        if source in ends:
            found.add(source)
        elif source.target in (*MOVING, *CHOOSING):
            pending += source.all_input_nodes
    return found
