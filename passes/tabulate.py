"""Tables: functions of one value as lookups whose every rounding is a node.

They are written out by quantize and not by legalize, because which table and how wide follows from
the format of the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import float64, tensor_node
from fxloom.errors import UnsupportedLayer
from fxloom.fixed_point import FixedPoint, Int64Array, Overflow, Rounding
from fxloom.functions import Function, function_of, tabulated
from fxloom.graph import arguments, constant, describe, infer, insert_like, origin
from fxloom.passes.chains import FLOATING, MOVING, NARROWING, TABLES, format_of
from fxloom.quantized_ops import LOOKUP, REQUANTIZE

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class TableError:
    """Bounds of an absolute error: of the entries at the argument's values, of rounding the
    argument to one of them (within its range; beyond it saturates), and of both."""

    table: float
    argument: float

    @property
    def bound(self) -> float:
        """Largest distance from the real function."""
        return self.table + self.argument

    def record(self) -> dict[str, float]:
        """For the summary of the pass."""
        return {"table": self.table, "argument": self.argument, "bound": self.bound}


def isolate(module: fx.GraphModule, ends: set[Node]) -> None:
    """Put a narrowing node before every table whose argument is not rounded for tables alone, and
    before what must know the format of its arguments where those are not rounded as they are.

    ends: of the chains at whose end something is rounded.
    """
    for node in list(module.graph.nodes):
        if node.target in TABLES:
            x = arguments(node)[0]
            if not (x in ends and all(user.target in TABLES for user in x.users)):
                _narrow(module, node, 0)
        elif node.target in FLOATING:
            for position, x in enumerate(arguments(node)[:2]):
                if isinstance(x, Node) and x.op != "get_attr" and not _rounded(x, ends):
                    _narrow(module, node, position)


def _rounded(node: Node, ends: set[Node]) -> bool:
    """Whether a value is the end of a chain, moved or without its sign at most."""
    while node not in ends and node.target in (*MOVING, *_UNSIGNING):
        node = node.all_input_nodes[0]
    return node in ends


_UNSIGNING = (aten.relu.default, aten.abs.default)


def exact_format(node: Node) -> FixedPoint | None:
    """A format that holds every value of a node in its own steps, None where none is known."""
    while node.target in MOVING:
        node = node.all_input_nodes[0]
    if node.target not in _UNSIGNING:
        return format_of(node)
    source = exact_format(node.all_input_nodes[0])
    if source is None or not source.signed:
        return source
    # The magnitude of the lowest negative value needs all bits.
    lost = int(node.target is aten.relu.default and source.width > 1)
    return FixedPoint(source.width - lost, source.integer - lost, False)


def _narrow(module: fx.GraphModule, node: Node, position: int) -> None:
    x = arguments(node)[position]
    with module.graph.inserting_before(node):
        narrowing = insert_like(module.graph, node, NARROWING, (x,))
    narrowing.meta |= {key: x.meta[key] for key in ("val", "batch_axis")}
    node.update_arg(position, narrowing)


class Writer:
    """Inserts nodes one after another in front of a node, with its origin and its batch axis."""

    def __init__(self, module: fx.GraphModule, like: Node) -> None:
        self.module, self.like = module, like

    def add(self, target: Any, *args: Any) -> Node:
        """A node, its shape inferred."""
        with self.module.graph.inserting_before(self.like):
            node = insert_like(self.module.graph, self.like, target, args)
        node.meta |= {
            "val": infer(self.module, node),
            "batch_axis": self.like.meta["batch_axis"],
        }
        return node

    def requantize(self, x: Node, to: FixedPoint, rounding: Rounding, overflow: Overflow) -> Node:
        """x rounded and fitted."""
        modes = (str(rounding), str(overflow))
        return self.add(REQUANTIZE, x, to.width, to.integer, to.signed, *modes)

    def lookup(
        self, x: Node, source: FixedPoint, name: str, entries: Int64Array, to: FixedPoint
    ) -> Node:
        """The entries, mantissas in to, for x of format source."""
        # float64 holds them exactly whatever the model's own type is.
        values = torch.from_numpy(entries.copy()).to(torch.float64) * to.step
        typed = self._same_table(values)
        if typed is None:
            full = f"{origin(self.like)}.{name}"
            buffer = tensor_node(self.module, self.like, full, values, trained=False)
            typed = self.typed(buffer, to)
        return self.add(LOOKUP, x, typed, source.width, source.integer, source.signed)

    def format(self, x: Any) -> FixedPoint:
        """The format of an argument of the node."""
        found = exact_format(x) if isinstance(x, Node) else None
        if found is None:
            raise UnsupportedLayer([f"{describe(self.like)}: its argument has no format"])
        return found

    def finely(self, constant_node: Node, to: FixedPoint) -> Node:
        """A constant that is added before the last rounding, in an eighth of its steps."""
        values = float64(constant(self.module, constant_node.target))
        scaled = torch.round(values * 2.0 ** (to.fraction + 3))
        low, high = (int(n) for n in torch.aminmax(scaled))
        kind = FixedPoint.holding(min(low, 0), max(high, 0), to.fraction + 3)
        return self.typed(constant_node, kind)

    def typed(self, constant_node: Node, kind: FixedPoint) -> Node:
        """A constant in a format."""
        typed = self.requantize(constant_node, kind, Rounding.RND_CONV, Overflow.SAT)
        typed.meta["batch_axis"] = None
        return typed

    def _same_table(self, values: Tensor) -> Node | None:
        """The table of the step before in a recurrence, where it is the same."""
        if not self.like.meta.get("tied"):
            return None
        for node in self.module.graph.find_nodes(op="call_function", target=LOOKUP):
            if node.meta.get("tied") and origin(node) == origin(self.like):
                typed = arguments(node)[1]
                held = constant(self.module, arguments(typed)[0].target)
                if torch.equal(held, values):
                    return typed  # type: ignore[no-any-return]
        return None

    def argument(self, bits: int) -> tuple[Node, FixedPoint]:
        """The node's argument in a format of at most that many bits."""
        x = arguments(self.like)[0]
        assert isinstance(x, Node)
        source = self.format(x)
        if source.width <= bits:
            return x, source
        narrow = FixedPoint(bits, source.integer, source.signed)
        return self.requantize(x, narrow, Rounding.RND, Overflow.SAT), narrow


def insert_function(
    module: fx.GraphModule, node: Node, to: FixedPoint, bits: int, modes: Sequence[Any]
) -> tuple[Node, FixedPoint, TableError]:
    """A table in front of a node that computes a function. to: the format of its entries, which
    are rounded to nearest whatever the modes are."""
    function = function_of(node)
    assert function is not None
    writer = Writer(module, node)
    x, source = writer.argument(bits)
    entries, error = tabulated(function.within(source), source, to)
    result = writer.lookup(x, source, "table", entries, to)
    return result, to, TableError(error, argument_error(function, source))


def argument_error(function: Function, source: FixedPoint) -> float:
    """Half a step of the argument times the steepest slope in the domain."""
    low, high = function.lowest(source) - source.step / 2, (source.hi + 0.5) * source.step
    return source.step / 2 * function.slope(low, high)
