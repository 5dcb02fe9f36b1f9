"""Channels in another order, or at another scale, than the layers behind them expect.

Those layers get their columns in that order where nothing else reads the channels on the way there;
else the channels are put back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import release_tensor, tensor_node
from fxloom.graph import BATCH, arguments, constant
from fxloom.moves import GATHER
from fxloom.passes.equalize import readers_of
from fxloom.passes.legalize.core import insert

aten = torch.ops.aten


def put_in_order(module: fx.GraphModule, node: Node, order: Tensor, axis: int) -> Node | None:
    """Make a node that has channel order[i] at place i of an axis do for what reads it. Returns the
    node that puts channels back, None where none is needed."""
    if torch.equal(order, torch.arange(len(order))) or absorbed(module, node, order, axis):
        return None
    with module.graph.inserting_after(node):
        moved = insert(module, node, GATHER, node, axis, order.argsort().tolist())
    node.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)
    return moved


def absorbed(
    module: fx.GraphModule,
    node: Node,
    order: Tensor,
    axis: int,
    scale: Tensor | None = None,
) -> bool:
    """Give the layers behind a node columns for another order and scale; whether that was possible.

    At place i of the axis comes what channel order[i] was, times scale[i] > 0 (a channel may not
    come twice). Nothing is changed where something else reads the node, or where the layers do not
    read whole channels.
    """
    readers = readers_of(module, node)
    if not readers or any(_groups(reader) > 1 for reader in readers):
        return False
    shape = node.meta["val"].shape
    size = [n if n % BATCH else n // BATCH for n in shape]  # of one sample
    z = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = z.index_select(axis, order)
    factors = torch.ones(len(order), dtype=torch.float64) if scale is None else scale.double()
    scaled = moved * factors.reshape([-1 if dim == axis else 1 for dim in range(z.dim())])
    values = [_reach(module, node, readers, each) for each in (z.abs(), moved.abs(), scaled.abs())]
    signed = [_reach(module, node, readers, each) for each in (z, scaled)]
    columns = {}
    for reader in readers:
        along = 1 if reader.target is aten.convolution.default else -1
        before, after, larger = (each[reader].movedim(along, 0).flatten(1) for each in values)
        places = {row.numpy().tobytes(): place for place, row in enumerate(before)}
        found = [places.get(row.numpy().tobytes(), -1) for row in after]
        if sorted(found) != list(range(len(before))):
            return False
        factor = larger.sum(1) / after.sum(1)
        first, last = (each[reader].movedim(along, 0).flatten(1) for each in signed)
        if not torch.allclose(first[found] * factor[:, None], last, rtol=1e-9, atol=1e-12):
            return False
        columns[reader] = (torch.tensor(found), factor)
    for reader, (found_places, factor) in columns.items():
        _rewrite(module, reader, found_places, factor)
    return True


def _groups(layer: Node) -> int:
    return int(arguments(layer)[8]) if layer.target is aten.convolution.default else 1


def _reach(
    module: fx.GraphModule, node: Node, readers: list[Node], z: Tensor
) -> dict[Node, Tensor]:
    """What readers read of a value [one sample] of a node."""
    between = _between(node, readers)
    found: dict[Node, Tensor] = {node: z}

    def value(argument: Node) -> Any:
        if argument.op == "get_attr":
            return constant(module, argument.target).double()
        return found[argument]

    for step in module.graph.nodes:
        if step in between:
            assert callable(step.target)
            args, kwargs = fx.node.map_arg((arguments(step), step.kwargs), value)
            with torch.no_grad():
                found[step] = step.target(*args, **kwargs)
    return {reader: found[arguments(reader)[0]] for reader in readers}


def _between(node: Node, readers: list[Node]) -> set[Node]:
    """What lies between a node and layers that read it."""
    found: set[Node] = set()
    pending = [user for user in node.users if user not in readers]
    while pending:
        step = pending.pop()
        found.add(step)
        pending += [user for user in step.users if user not in found and user not in readers]
    return found


def _rewrite(module: fx.GraphModule, reader: Node, places: Tensor, factor: Tensor) -> None:
    """Columns of a reader's weight: the one at i was at places[i], for inputs factor[i] times as
    large."""
    source = arguments(reader)[1]
    weight = constant(module, source.target).detach()
    shape = [1, -1, *(1,) * (weight.dim() - 2)]
    values = weight.index_select(1, places) / factor.reshape(shape).to(weight.dtype)
    name = release_tensor(module, source)
    fresh = tensor_node(
        *(module, reader, name, values.contiguous()),
        move=lambda kept: kept.index_select(1, places),
    )
    reader.update_arg(1, fresh)
    module.graph.erase_node(source)
