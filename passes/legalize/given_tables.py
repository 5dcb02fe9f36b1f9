"""Functions of exact values that the model rounds next: tables that hold what is rounded.

Nothing is lost where the argument is narrow enough for a table, or where the function does not
change any more beyond the values that one holds, as a tanh in 6 bits does not beyond 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.functions import FUNCTIONS, Function, function_of, rounded_table
from fxloom.graph import origin
from fxloom.lowering import exact_values
from fxloom.ops import MAX_TABLE_WIDTH
from fxloom.passes.legalize.given import all_round
from fxloom.passes.tabulate import Writer
from fxloom.program import Value
from fxloom.quantized_ops import GIVEN, requantize_modes

aten = torch.ops.aten

_RISING = (
    *(aten.tanh.default, aten.sigmoid.default, aten.erf.default, aten.hardsigmoid.default),
    *(aten.exp.default, aten.expm1.default, aten.softplus.default, aten.log_sigmoid.default),
)
"""Never smaller where the argument is larger: what is the same at both ends of a range is the same
everywhere in it."""


def tabulate(module: GraphModule) -> Iterator[str]:
    """Rewrite a graph of the caller's; gives the layers that became tables."""
    functions = _functions(module)
    if not functions:
        return
    values, _ = exact_values(module)  # what is rounded has its format whatever is rounded there
    for node in functions:
        x = node.all_input_nodes[0]
        if x in values and _written(module, node, values[x]):
            yield origin(node)


def _functions(module: GraphModule) -> list[Node]:
    return [
        node
        for node in module.graph.nodes
        if node.target in FUNCTIONS and node.users and all_round(node)
    ]


def _written(module: GraphModule, node: Node, x: Value) -> bool:
    function = function_of(node)
    assert function is not None
    kinds = {user: requantize_modes(user) for user in node.users}
    sources = {user: _source(node, function, x, *kind) for user, kind in kinds.items()}
    if None in sources.values():
        return False
    for user, source in sources.items():
        assert source is not None
        writer = Writer(module, user)
        argument = node.all_input_nodes[0]
        cast = writer.requantize(argument, source, Rounding.TRN, Overflow.SAT)
        entries = rounded_table(function.within(source), source, *kinds[user])
        found = writer.lookup(cast, source, "table", entries, kinds[user][0])
        for ours in (cast, found.all_input_nodes[1]):
            del ours.meta[GIVEN]  # the format of the result is the model's
        user.replace_all_uses_with(found)
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    return True


def _source(
    node: Node,
    function: Function,
    x: Value,
    to: FixedPoint,
    rounding: Rounding,
    overflow: Overflow,
) -> FixedPoint | None:
    """The narrowest format of the argument in which nothing is lost; None where no table is as
    large."""
    held = FixedPoint.holding(x.lo, x.hi, x.type.fraction)
    saturates = overflow in (Overflow.SAT, Overflow.SAT_SYM)
    if node.target not in _RISING or not saturates:
        return held if held.width <= MAX_TABLE_WIDTH else None
    entry = partial(_entry, function, x.type.fraction, to, rounding, overflow)
    low, high = entry(x.lo), entry(x.hi)
    for width in range(1 + held.signed, min(held.width, MAX_TABLE_WIDTH) + 1):
        kind = FixedPoint(width, width - x.type.fraction, held.signed)
        if entry(max(kind.lo, x.lo)) == low and entry(min(kind.hi, x.hi)) == high:
            return kind
    return None


def _entry(
    function: Function,
    fraction: int,
    to: FixedPoint,
    rounding: Rounding,
    overflow: Overflow,
    mantissa: int,
) -> int:
    # A format with one value other than zero is a point.
    point = FixedPoint.holding(mantissa, mantissa, fraction)
    (entry,) = rounded_table(function.curve, point, to, rounding, overflow, [mantissa])
    return int(entry)
