"""Channels taken out of a graph: smaller tensors, and the new sizes where the graph says them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Set
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fxloom.batch_axis import track
from fxloom.editing import copy_graph
from fxloom.errors import UnsupportedLayer
from fxloom.facts import carry
from fxloom.graph import arguments, constant, describe
from fxloom.moves import GATHER
from fxloom.passes.channel_groups import Dependencies
from fxloom.passes.channel_ties import sizes_of, storage_key

aten = torch.ops.aten

Mask = NDArray[np.bool_]
Kept = Callable[[Node, int], Mask]
"""Which entries of a dimension of a value stay."""


def without(found: Dependencies, removed: Set[int]) -> fx.GraphModule:
    """The graph without these units; it shares all tensors that stay as they are."""
    module = copy_graph(found.channels.module)
    gone = np.fromiter(sorted(removed), np.int64, len(removed))

    def kept(node: Node, axis: int) -> Mask:
        return ~np.isin(found.channels.ties.roots(found.channels.values[node][axis]), gone)

    _shrink_tensors(module, kept, found)
    for old, new in zip(found.channels.module.graph.nodes, module.graph.nodes, strict=True):
        rewrite = _LITERALS.get(old.target)
        if rewrite is not None:
            rewrite(kept, old, new)
    module.recompile()
    # Heads that are merged with the batch are fewer: where the batch lies is found anew.
    if problems := track(module):
        raise UnsupportedLayer(problems)
    for old, new in zip(found.channels.module.graph.nodes, module.graph.nodes, strict=True):
        if isinstance(old.meta.get("val"), Tensor):
            _require_sizes(kept, old, new)
    return module


def _require_sizes(kept: Kept, old: Node, new: Node) -> None:
    """What was computed must have the shape that was foreseen; anything else is a fault of ours."""
    foreseen = [int(kept(old, axis).sum()) for axis in range(old.meta["val"].dim())]
    assert sizes_of(new) == foreseen, f"{describe(old)}: {sizes_of(new)}, foreseen {foreseen}"


def _shrink_tensors(module: fx.GraphModule, kept: Kept, found: Dependencies) -> None:
    fresh: dict[Hashable, Tensor] = {}
    done: set[str] = set()
    for node in found.channels.module.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        masks = [kept(node, axis) for axis in range(len(found.channels.values[node]))]
        if name in done or all(mask.all() for mask in masks):
            continue
        done.add(name)
        tensor = constant(module, name)
        key = storage_key(name, tensor)
        if key not in fresh:
            fresh[key] = _taken(tensor, masks)
        *path, leaf = name.split(".")
        setattr(module.get_submodule(".".join(path)), leaf, fresh[key])
        carry(module, name, name, lambda zeros, masks=masks: _taken(zeros, masks))  # type: ignore[misc]


def _taken(tensor: Tensor, masks: list[Mask]) -> Tensor:
    smaller = tensor.detach()
    for axis, mask in enumerate(masks):
        if not mask.all():
            index = torch.from_numpy(np.flatnonzero(mask)).to(tensor.device)
            smaller = smaller.index_select(axis, index)
    smaller = smaller.contiguous()
    return nn.Parameter(smaller, tensor.requires_grad) if _is_parameter(tensor) else smaller


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


# Numbers in the graph ----------------------------------------------------------------------------


def _sizes(kept: Kept, old: Node, new: Node) -> None:
    """The sizes of a reshape, an expansion or a constant; the batch's are 1 or -1."""
    position = 0 if old.target is aten.full.default else 1
    written = arguments(old)[position]
    sizes = [
        size if size in (-1, 1) else int(kept(old, axis).sum()) for axis, size in enumerate(written)
    ]
    new.update_arg(position, sizes)


def _slice(kept: Kept, old: Node, new: Node) -> None:
    source, dim, start, end, step = arguments(old)
    mask = kept(source, dim)
    if mask.all():
        return
    taken = np.arange(mask.size)[start:end:step]
    _take(new, dim, mask, taken)


def _gather(kept: Kept, old: Node, new: Node) -> None:
    source, dim, indices = arguments(old)
    mask = kept(source, dim)
    if not mask.all():
        _take(new, dim, mask, np.array(indices))


def _take(new: Node, dim: int, mask: Mask, taken: NDArray[np.int64]) -> None:
    """Entries of what is left: a slice where they are side by side."""
    places = np.cumsum(mask) - 1
    left = places[taken[mask[taken]]]
    if new.target is aten.slice.Tensor and (np.diff(left) == 1).all():
        new.args = (new.args[0], dim, int(left[0]), int(left[-1]) + 1, 1)
        return
    new.target = GATHER
    new.args = (new.args[0], dim, left.tolist())


def _select(kept: Kept, old: Node, new: Node) -> None:
    source, dim, index = arguments(old)
    new.update_arg(2, int(kept(source, dim)[:index].sum()))


def _pad(kept: Kept, old: Node, new: Node) -> None:
    widths = list(arguments(old)[1])
    rank = old.meta["val"].dim()
    for index, width in enumerate(widths):
        if width > 0:
            mask = kept(old, rank - 1 - index // 2)
            widths[index] = int((mask[:width] if index % 2 == 0 else mask[-width:]).sum())
    new.update_arg(1, widths)


def _convolution(kept: Kept, old: Node, new: Node) -> None:
    """Groups that go take their inputs along; inside of groups as many go from each."""
    groups = arguments(old)[8]
    if groups > 1:
        mask = kept(arguments(old)[0], 1).reshape(groups, -1)
        new.update_arg(8, int(mask.any(1).sum()))


def _group_norm(kept: Kept, old: Node, new: Node) -> None:
    mask = kept(old, 1).reshape(arguments(old)[1], -1)
    new.update_arg(1, int(mask.any(1).sum()))


def _attention(kept: Kept, old: Node, new: Node) -> None:
    """The scale that follows from the width of a head stays that of the whole width."""
    width = kept(arguments(old)[0], -1)
    if not width.all() and old.kwargs.get("scale") is None:
        new.kwargs = {**new.kwargs, "scale": 1 / math.sqrt(width.size)}


def _repeat_interleave(kept: Kept, old: Node, new: Node) -> None:
    if len(arguments(old)) > 3:
        new.update_arg(3, None)


_LITERALS: dict[Any, Callable[[Kept, Node, Node], None]] = {
    aten.reshape.default: _sizes,
    aten.view.default: _sizes,
    aten.expand.default: _sizes,
    aten.full.default: _sizes,
    aten.slice.Tensor: _slice,
    GATHER: _gather,
    aten.select.int: _select,
    aten.constant_pad_nd.default: _pad,
    aten.convolution.default: _convolution,
    aten.group_norm.default: _group_norm,
    aten.scaled_dot_product_attention.default: _attention,
    aten.repeat_interleave.self_int: _repeat_interleave,
}
