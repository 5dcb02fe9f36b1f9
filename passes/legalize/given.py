"""Formats that a model brings along: written so that every rounding happens once.

A division in front of a rounding becomes one of integers, which rounds once; what only moves an
input before it is rounded comes behind the rounding, for the port of a program rounds; and what is
rounded twice into the same format is rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log2
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.editing import tensor_node
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.graph import arguments, constant, origin, range_of
from fxloom.moves import GATHER
from fxloom.quantized_ops import DIVIDE, EMBEDDING, GIVEN, REQUANTIZE, is_given
from fxloom.support.core import is_constant

aten = torch.ops.aten

_MOVES = (aten.reshape.default, aten.view.default, aten.permute.default, GATHER)
_KEEPING = (
    *(*_MOVES, aten.relu.default, aten.max_pool1d.default, aten.max_pool2d.default),
    *(aten.amax.default, aten.constant_pad_nd.default),
)
"""Through these a positive factor goes as it is; a pad must be with zeros."""


def write_once(module: GraphModule) -> list[str]:
    """Rewrite a graph of the caller's; returns the layers in which something changed."""
    changed: list[str] = []
    for node in list(module.graph.nodes):
        if node.op == "placeholder":
            changed += _port(module, node)
        elif node.target is aten.div.Tensor:
            changed += _quotient(module, node)
    for node in list(module.graph.nodes):
        changed += _merged(node)
    return changed


def behind(node: Node, through: tuple[Any, ...]) -> tuple[list[Node], list[Node], bool]:
    """The roundings that read a value as it is or through some operations, those operations in
    order, and whether nothing else reads it."""
    ends: list[Node] = []
    passed: list[Node] = []
    pending, alone = list(node.users), True
    while pending:
        user = pending.pop(0)
        if user in passed or user in ends:
            continue
        if is_given(user) and user.target is REQUANTIZE:
            ends.append(user)
        elif _passes(user, through):
            passed.append(user)
            pending += user.users
        else:
            alone = False
    return ends, passed, alone


def all_round(node: Node) -> bool:
    """Whether everything that reads a value rounds it, in a format of the model's own."""
    return all(user.target is REQUANTIZE and is_given(user) for user in node.users)


def _passes(node: Node, through: tuple[Any, ...]) -> bool:
    if node.target is aten.constant_pad_nd.default:
        return node.target in through and arguments(node)[2] == 0
    if node.target is aten.mul.Tensor and aten.relu.default in through:
        number = arguments(node)[1]
        return isinstance(number, int | float) and number > 0 and log2(number).is_integer()
    return node.target in through


def rounded_like(module: GraphModule, before: Node, rounding: Node, *args: Any) -> Node:
    """A rounding of the model's own with other arguments in front of its format."""
    target = DIVIDE if len(args) > 1 else REQUANTIZE
    with module.graph.inserting_before(before):
        node = module.graph.call_function(target, (*args, *arguments(rounding)[-5:]))
    node.meta = dict(rounding.meta)
    return node


def _quotient(module: GraphModule, node: Node) -> Iterator[str]:
    """A division whose readers round: they divide, each into its format."""
    x, divisor = arguments(node)[:2]
    ends, passed, alone = behind(node, _KEEPING)
    is_number = not isinstance(divisor, Node)
    values = torch.tensor([divisor]) if is_number else _constant(module, divisor)
    if values is None or not _divides(values):
        return
    if not alone or (passed and not is_number and set(passed) - _elementwise(passed)):
        ends, passed = [end for end in ends if end.args[0] is node], []
    if not ends:
        return
    if is_number:
        divisor = tensor_node(
            module, node, f"{origin(node)}.divisor", values.to(torch.int64), trained=False
        )
    for end in ends:
        source = x if end.args[0] is node else end.args[0]
        divided = rounded_like(module, end, end, source, divisor)
        end.replace_all_uses_with(divided)
        module.graph.erase_node(end)
        yield origin(divided)
    if passed:
        node.replace_all_uses_with(x)


def _elementwise(nodes: list[Node]) -> set[Node]:
    return {node for node in nodes if node.target in (aten.relu.default, aten.mul.Tensor)}


def _divides(values: Tensor) -> bool:
    return bool(((values > 0) & (values == values.round())).all())


def _constant(module: GraphModule, node: Node) -> Tensor | None:
    return constant(module, node.target).detach() if is_constant(node) else None


def _merged(node: Node) -> Iterator[str]:
    """Roundings of one value into one format as the first of them."""
    kinds: dict[tuple[Any, ...], Node] = {}
    for user in list(node.users):
        if user.target is not REQUANTIZE:
            continue
        first = kinds.setdefault(arguments(user)[1:], user)
        if first is user:
            continue
        if user < first:
            first, user = user, first
            kinds[arguments(first)[1:]] = first
        user.replace_all_uses_with(first)
        user.graph.erase_node(user)
        yield origin(first)


# Ports ------------------------------------------------------------------------------------------


def _port(module: GraphModule, port: Node) -> Iterator[str]:
    """The rounding of an input right behind it, where there is one that says all."""
    if not port.meta["val"].is_floating_point():
        kind = _whole(port)
        if kind is not None and not any(user.target is REQUANTIZE for user in port.users):
            _round_port(module, port, (*kind, "RND", "SAT"))
            yield str(port.target)
        return
    ends, passed, alone = behind(port, (*_MOVES, aten.constant_pad_nd.default))
    formats = {arguments(end)[1:] for end in ends}
    if not ends or not alone:
        return
    if len(formats) == 1 and passed:
        _round_port(module, port, arguments(ends[0])[1:])
        for end in ends:
            end.replace_all_uses_with(arguments(end)[0])
            module.graph.erase_node(end)
        yield str(port.target)
    elif len(formats) > 1 and (kind := finest(formats)) is not None:
        _round_port(module, port, (*kind, "TRN", "SAT"))
        yield str(port.target)


def _round_port(module: GraphModule, port: Node, kind: tuple[Any, ...]) -> None:
    with module.graph.inserting_after(port):
        node = module.graph.call_function(REQUANTIZE, (port, *kind))
    meta = {key: port.meta[key] for key in ("val", "batch_axis")}
    node.meta = meta | {"origin": str(port.target), GIVEN: True}
    port.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)


def finest(formats: set[tuple[Any, ...]]) -> tuple[int, int, bool] | None:
    """A format from which, rounded down, several roundings give what they give of any number:
    one that has their halves. None where one of them tells a half from a little more."""
    exact = {str(Rounding.TRN): 0, str(Rounding.RND): 1}
    fraction, integer, signed = [], [], False
    for width, whole, is_signed, rounding, overflow in formats:
        if rounding not in exact or overflow not in (Overflow.SAT, Overflow.SAT_SYM):
            return None
        fraction.append(width - whole + exact[rounding])
        # One bit more: what an unsigned or a symmetric format holds, a signed one holds with it.
        integer.append(whole + (not is_signed))
        signed = signed or is_signed
    whole = max(integer) - (not signed)
    kind = (max(fraction) + whole, whole, signed)
    return kind if 1 <= kind[0] <= 32 else None


def _whole(port: Node) -> tuple[int, int, bool] | None:
    """The format of an integer input that follows from its type, or from the tables it chooses
    rows of; None where it follows from data alone."""
    dtype = port.meta["val"].dtype
    if dtype.itemsize == 1:
        return _of(FixedPoint.holding(*range_of(dtype), 0))
    rows, pending = [0], list(port.users)
    while pending:
        user = pending.pop()
        if user.target is EMBEDDING:
            rows.append(len(arguments(user)[1].meta["val"]) - 1)
        elif user.target in _MOVES:
            pending += user.users
        else:
            return None
    return _of(FixedPoint.holding(0, max(rows), 0))


def _of(to: FixedPoint) -> tuple[int, int, bool]:
    return to.width, to.integer, to.signed
