"""Pads: values around an image, numbers or its own. PyTorch itself is asked which go where."""

import torch
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.graph import arguments
from fxloom.passes.legalize.core import insert, legalizes
from fxloom.passes.legalize.gathers import gathered

aten = torch.ops.aten


@legalizes(aten.constant_pad_nd.default)
def _constant_pad(module: GraphModule, node: Node) -> Node | None:
    """Negative lengths cut off: they become gathers."""
    x: Node
    x, widths, fill = arguments(node)
    if min(widths) >= 0:
        return None
    kept = []
    for dim, pair in _by_dimension(x, widths):
        if not any(pair):  # the batch, perhaps
            kept += pair
            continue
        size = x.meta["val"].shape[dim]
        found = aten.constant_pad_nd.default(torch.arange(1, size + 1), pair, 0).tolist()
        inside = [entry - 1 for entry in found if entry]
        x = gathered(module, node, x, dim, inside)
        before = next(position for position, entry in enumerate(found) if entry)
        kept += [before, len(found) - before - len(inside)]
    if not any(kept):
        return x
    return insert(module, node, aten.constant_pad_nd.default, x, kept, fill)


@legalizes(aten.pad.default)
def _pad(module: GraphModule, node: Node) -> Node:
    """Reflected, replicated or circular: entries of the input, one dimension after another."""
    x: Node
    x, widths, mode = arguments(node)[:3]
    for dim, pair in _by_dimension(x, widths):
        if not any(pair):
            continue
        size = x.meta["val"].shape[dim]
        ramp = torch.arange(size, dtype=torch.float64).reshape(1, 1, size)
        indices = aten.pad.default(ramp, pair, mode).to(torch.int64).reshape(-1).tolist()
        x = gathered(module, node, x, dim, indices)
    return x


def _by_dimension(x: Node, widths: list[int]) -> list[tuple[int, list[int]]]:
    """Lengths before and after, from the last dimension on."""
    rank = x.meta["val"].dim()
    return [
        (rank - 1 - index, list(widths[2 * index : 2 * index + 2]))
        for index in range(len(widths) // 2)
    ]
