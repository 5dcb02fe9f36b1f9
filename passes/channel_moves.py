"""How channels move: reshapes, permutations, slices, concatenations, pads, constants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch
from torch.fx.node import Node

from fxloom.graph import arguments, describe
from fxloom.moves import GATHER
from fxloom.passes.channel_rules import channel_rule
from fxloom.passes.channel_ties import Channels, Ids, Value, fixed, sizes_of

aten = torch.ops.aten


@channel_rule(aten.permute.default)
def _permute(c: Channels, node: Node) -> Value:
    x = _source(c, node)
    return tuple(x[axis] for axis in arguments(node)[1])


@channel_rule(aten.reshape.default, aten.view.default)
def _reshape(c: Channels, node: Node) -> Value:
    """Dimensions that meet are one list of entries; a list that is split goes by one of its parts.

    Of several dimensions that could shrink only one may, since what stays must be a rectangle:
    whole heads, or the same entries of all heads. Which one is a choice.
    """
    x = _source(c, node)
    result: list[Ids] = []
    for part, (before, sizes) in enumerate(_blocks(x, sizes_of(node))):
        together = _merged(c, node, 2 * part, before)
        result += _divided(c, node, 2 * part + 1, together, sizes)
    return tuple(result)


def _blocks(x: Value, sizes: Sequence[int]) -> Iterator[tuple[list[Ids], list[int]]]:
    """The shortest runs of dimensions before and after a reshape with as many entries."""
    before, after = list(x), list(sizes)
    while before or after:
        ids, lengths = before[:1], after[:1]
        del before[:1], after[:1]
        while (have := prod(each.size for each in ids)) != (want := prod(lengths)):
            if have < want:
                ids.append(before.pop(0))
            else:
                lengths.append(after.pop(0))
        if not lengths:
            continue
        while not before and after and after[0] == 1:
            lengths.append(after.pop(0))
        yield ids, lengths


def _merged(c: Channels, node: Node, part: int, dims: Sequence[Ids]) -> Ids:
    """One number for every entry of several dimensions, row-major."""
    shape = [ids.size for ids in dims]
    free = [axis for axis, ids in enumerate(dims) if not c.ties.is_fixed(ids)]
    if not free:
        return fixed(prod(shape))
    kept = free[0]
    if len(free) > 1:
        kept = free[c.choose(node, part, [dims[axis] for axis in free])]
        for axis in free:
            if axis != kept:
                c.ties.pin(dims[axis], f"{describe(node)} merges it with channels that may go")
    along = [1] * len(dims)
    along[kept] = -1
    return np.ascontiguousarray(np.broadcast_to(dims[kept].reshape(along), shape)).reshape(-1)


def _divided(c: Channels, node: Node, part: int, ids: Ids, sizes: Sequence[int]) -> list[Ids]:
    """The numbers of every dimension that a list of entries is split into."""
    long = [axis for axis, size in enumerate(sizes) if size > 1]
    result = [fixed(size) for size in sizes]
    if len(long) <= 1 or c.ties.is_fixed(ids):
        if long and not c.ties.is_fixed(ids):
            result[long[0]] = ids
        else:
            c.ties.pin(ids, f"{describe(node)} leaves one entry of it")
        return result
    rows = {axis: np.moveaxis(ids.reshape(sizes), axis, 0).reshape(sizes[axis], -1)
            for axis in long}  # fmt: skip
    kept = next((axis for axis in long if _is_constant(c, rows[axis])), None)
    if kept is None:
        kept = long[c.choose(node, part, [rows[axis][:, 0] for axis in long])]
        for column in rows[kept].T[1:]:
            c.ties.tie(rows[kept][:, 0], column, f"{describe(node)} splits it into equal parts")
    result[kept] = rows[kept][:, 0].copy()
    return result


def _is_constant(c: Channels, rows: Ids) -> bool:
    """Whether the entries of every row go together already."""
    roots = c.ties.roots(rows)
    return bool((roots == roots[:, :1]).all())


@channel_rule(aten.cat.default)
def _cat(c: Channels, node: Node) -> Value:
    """Side by side along one dimension; along all others they go together."""
    parts, dim = arguments(node)[:2]
    values = [c.values[part] for part in parts]
    result = list(values[0])
    result[dim] = np.concatenate([value[dim] for value in values])
    for axis in range(len(result)):
        if axis == dim:
            continue
        for part, value in zip(parts, values, strict=True):
            c.ties.tie(result[axis], value[axis], f"{describe(node)} puts it beside what must stay")
            if part not in c.computed:
                c.ties.pin(result[axis], f"{describe(node)} puts a constant beside it")
    return tuple(result)


@channel_rule(aten.slice.Tensor)
def _slice(c: Channels, node: Node) -> Value:
    _, dim, start, end, step = arguments(node)
    x = list(_source(c, node))
    x[dim] = x[dim][start:end:step].copy()  # never along the batch: capture refuses that
    return _alone(c, node, dim, x)


@channel_rule(GATHER)
def _gather(c: Channels, node: Node) -> Value:
    _, dim, indices = arguments(node)
    x = list(_source(c, node))
    x[dim] = x[dim][list(indices)]
    return _alone(c, node, dim, x)


@channel_rule(aten.flip.default)
def _flip(c: Channels, node: Node) -> Value:
    x = list(_source(c, node))
    for dim in arguments(node)[1]:
        x[dim] = x[dim][::-1].copy()
    return tuple(x)


def _alone(c: Channels, node: Node, dim: int, x: list[Ids]) -> Value:
    """A single entry that is left of a dimension must stay."""
    if x[dim].size == 1:
        c.ties.pin(x[dim], f"{describe(node)} takes this one alone")
        x[dim] = fixed(1)
    return tuple(x)


@channel_rule(aten.select.int)
def _select(c: Channels, node: Node) -> Value:
    _, dim, index = arguments(node)
    x = list(_source(c, node))
    taken = x.pop(dim)
    c.ties.pin(taken[[index]], f"{describe(node)} takes this one alone")
    return tuple(x)


@channel_rule(aten.roll.default, aten.index_select.default)
def _roll(c: Channels, node: Node) -> Value:
    x = list(_source(c, node))
    is_roll = node.target is aten.roll.default
    dims = arguments(node)[2 if is_roll else 1]
    for dim in [dims] if isinstance(dims, int) else dims or range(len(x)):
        c.ties.pin(x[dim], f"{describe(node)} counts along it")
        x[dim] = fixed(sizes_of(node)[dim])
    return tuple(x)


@channel_rule(aten.glu.default)
def _glu(c: Channels, node: Node) -> Value:
    x = list(_source(c, node))
    dim = arguments(node)[1]
    first, second = np.split(x[dim], 2)
    c.ties.tie(first, second, f"{describe(node)} multiplies its halves")
    if first.size == 1:
        c.ties.pin(first, f"{describe(node)} takes this one alone")
        first = fixed(1)
    x[dim] = first
    return tuple(x)


@channel_rule(aten.constant_pad_nd.default)
def _pad(c: Channels, node: Node) -> Value:
    """Entries that are added along a dimension are new ones."""
    widths = arguments(node)[1]
    x = list(_source(c, node))
    for index, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        axis = len(x) - 1 - index
        if min(before, after) < 0:
            c.ties.pin(x[axis], f"{describe(node)} cuts it")
            x[axis] = fixed(sizes_of(node)[axis])
        else:
            x[axis] = np.concatenate([c.ties.fresh(before), x[axis], c.ties.fresh(after)])
    return tuple(x)


@channel_rule(aten.pad.default)
def _pad_by_copies(c: Channels, node: Node) -> Value:
    """What is around an image is made of it; other dimensions pass."""
    x = list(_source(c, node))
    for axis in range(len(x) - len(arguments(node)[1]) // 2, len(x)):
        c.ties.pin(x[axis], f"{describe(node)} copies some of it")
        x[axis] = fixed(sizes_of(node)[axis])
    return tuple(x)


@channel_rule(aten.repeat.default)
def _repeat(c: Channels, node: Node) -> Value:
    times = arguments(node)[1]
    x = _source(c, node)
    x = (*(fixed(1) for _ in range(len(times) - len(x))), *x)
    return tuple(np.tile(ids, count) for ids, count in zip(x, times, strict=True))


@channel_rule(aten.repeat_interleave.self_int)
def _repeat_interleave(c: Channels, node: Node) -> Value:
    count, dim = arguments(node)[1:3]
    x = list(_source(c, node))
    x[dim] = np.repeat(x[dim], count)
    return tuple(x)


@channel_rule(aten.expand.default)
def _expand(c: Channels, node: Node) -> Value:
    """Entries that are copies of one are new; of a computed one they must stay."""
    sizes = sizes_of(node)
    x = _source(c, node)
    x = (*(fixed(1) for _ in range(len(sizes) - len(x))), *x)
    constant = arguments(node)[0] not in c.computed
    return tuple(
        ids if ids.size == size else c.ties.fresh(size) if constant else fixed(size)
        for ids, size in zip(x, sizes, strict=True)
    )


@channel_rule(aten.full.default)
def _full(c: Channels, node: Node) -> Value:
    return tuple(c.ties.fresh(size) for size in sizes_of(node))


@channel_rule(aten.pixel_shuffle.default)
def _pixel_shuffle(c: Channels, node: Node) -> Value:
    """The channels that become one image go together."""
    x, factor = _source(c, node), arguments(node)[1]
    groups = x[1].reshape(-1, factor * factor)
    reason = f"{describe(node)} makes one image of these channels"
    for column in groups.T[1:]:
        c.ties.tie(groups[:, 0], column, reason)
    if len(groups) == 1:
        c.ties.pin(groups, reason)
    return (x[0], groups[:, 0].copy(), *_places(c, node, x))


@channel_rule(aten.pixel_unshuffle.default)
def _pixel_unshuffle(c: Channels, node: Node) -> Value:
    x, factor = _source(c, node), arguments(node)[1]
    return (x[0], np.repeat(x[1], factor * factor), *_places(c, node, x))


def _places(c: Channels, node: Node, x: Value) -> Value:
    for ids in x[2:]:
        c.ties.pin(ids, f"{describe(node)} rearranges it")
    return tuple(fixed(n) for n in sizes_of(node)[2:])


@channel_rule(aten.channel_shuffle.default)
def _channel_shuffle(c: Channels, node: Node) -> Value:
    """The same channel of every group goes, so that groups stay equal."""
    x, count = list(_source(c, node)), arguments(node)[1]
    groups = x[1].reshape(count, -1)
    for row in groups[1:]:
        c.ties.tie(groups[0], row, f"{describe(node)} needs equal groups")
    if groups.shape[1] == 1:
        c.ties.pin(groups, f"{describe(node)} needs a channel in every group")
    x[1] = groups.T.reshape(-1)
    return tuple(x)


def _source(c: Channels, node: Node) -> Value:
    return c.values[arguments(node)[0]]
