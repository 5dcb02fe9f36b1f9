"""The order in which the axes of a tensor had best lie: as the first layer reads it that cares."""

from collections import deque

import torch
from torch.fx.node import Node

from fxloom.batch_axis import sample_axis, sample_shape
from fxloom.graph import arguments
from fxloom.moves import GATHER
from fxloom.quantized_ops import REQUANTIZE

aten = torch.ops.aten

Layout = tuple[int, ...]

_ON_IMAGES = (
    aten.convolution.default,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
)
_KEEPING = (aten.constant_pad_nd.default, aten.cat.default, aten.sum.dim_IntList, GATHER)
USUAL: dict[int, Layout] = {3: (1, 2, 0), 2: (1, 0)}
"""How an image or signal lies, by its number of axes: channels last."""


def usual_layout(node: Node) -> Layout:
    """How a tensor had best lie: as a layer wants it, an image otherwise with its channels last."""
    rank = len(sample_shape(node))
    return wanted_layout(node) or (USUAL[3] if rank == 3 else tuple(range(rank)))


def wanted_layout(node: Node) -> Layout | None:
    """The axes of a tensor in the order in which a layer reads them without a transpose; None where
    no layer tells.

    The nearest layer decides; behind a permute it is one of the permuted tensor.
    """
    # What is left to look at: a tensor, and where the axes of the first one are in it.
    plain = tuple(range(len(sample_shape(node))))
    pending, seen = deque([(node, plain)]), {node}
    while pending:
        source, places = pending.popleft()
        for user in source.users:
            layout = _read_as(user, source)
            if layout is not None:
                return tuple(places.index(axis) for axis in layout)
            moved = _places(user, source, places)
            if moved is not None and user not in seen:
                seen.add(user)
                pending.append((user, moved))
    return None


def _read_as(user: Node, source: Node) -> Layout | None:
    """How a layer reads its input, if it minds."""
    rank = len(sample_shape(source))
    if user.args[0] is not source:
        return None
    if user.target in _ON_IMAGES:
        return USUAL.get(rank)
    return tuple(range(rank)) if user.target is aten.linear.default and rank > 1 else None


def _places(user: Node, source: Node, places: Layout) -> Layout | None:
    """Where axes are in a node's result; None where they end."""
    if user.target is aten.permute.default:
        batch = source.meta["batch_axis"]
        order = [sample_axis(source, dim) for dim in arguments(user)[1] if dim != batch]
        return tuple(order.index(axis) for axis in places)
    tags = getattr(user.target, "tags", ())
    keeps = user.target in (*_KEEPING, REQUANTIZE) or torch.Tag.pointwise in tags
    same = isinstance(user.meta.get("val"), torch.Tensor) and len(sample_shape(user)) == len(places)
    return places if keeps and same else None
