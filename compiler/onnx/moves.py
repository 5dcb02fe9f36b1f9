"""What moves values: permutations, pieces, padding, repetition."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import Function, builds


@builds("Transpose")
def _transpose(node: Node) -> Function:
    order = node.integers("perm", list(range(node.rank()))[::-1])
    return lambda x: x.permute(order)


@builds("Concat")
def _concat(node: Node) -> Function:
    axis = node.axis()
    return lambda *x: torch.cat(x, axis)


@builds("Split")
def _split(node: Node) -> Function:
    axis = node.axis(0)
    size, count = node.shape()[axis], len(node.read)
    if node.version < 13:
        pieces = node.attribute("split", None)
    else:
        pieces = node.numbers(1, "sizes") if node.has(1) else None
    if pieces is None:
        if node.integer("num_outputs", count) != count:
            raise Refused(f"num_outputs is not {count}, as many as it has")
        each = -(-size // max(count, 1))
        pieces = [max(min(each, size - place * each), 0) for place in range(count)]
    return lambda x: torch.split(x, pieces, axis)


@builds("Slice")
def _slice(node: Node) -> Function:
    rank = node.rank()
    if node.version < 10:
        starts, ends = node.integers("starts"), node.integers("ends")
        axes, steps = node.integers("axes", range(len(starts))), [1] * len(starts)
    else:
        starts, ends = node.numbers(1, "starts"), node.numbers(2, "ends")
        axes = node.numbers(3, "axes") if node.has(3) else list(range(len(starts)))
        steps = node.numbers(4, "steps") if node.has(4) else [1] * len(starts)
    if len({len(starts), len(ends), len(axes), len(steps)}) != 1 or 0 in steps:
        raise Refused("its starts, ends, axes and steps do not belong together")
    grows = node.value(0).batch_axis
    pieces = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = node.counted(axis, rank)
        if axis == grows and (start, step) == (0, 1) and end >= 2**31 - 1:
            continue
        if axis == grows:
            raise Refused("it takes a part of the batch")
        size = node.shape()[axis]
        if step < 0 and end >= 2**31 - 1:
            raise Refused(
                f"it goes backwards to {end}, which is nowhere or the first place, by the runtime. "
                f"Write {-(2**63)} for the first place"
            )
        if step < 0 and size and start < -size:
            start = 0  # there is no place before the first one; Python would take nothing
        pieces.append((axis, slice(start, end, step), size))

    def sliced(x: Tensor) -> Tensor:
        for axis, piece, size in pieces:
            start, end, step = piece.indices(size)
            if step < 0:
                count = len(range(start, end, step))
                first = start + (count - 1) * step
                x = x.narrow(axis, first, start - first + 1) if count else x.narrow(axis, 0, 0)
                x, start, end, step = x.flip(axis), 0, x.shape[axis], -step
            index = [slice(None)] * axis + [slice(start, end, step)]
            x = x[tuple(index)]
        return x

    return sliced


@builds("Gather")
def _gather(node: Node) -> Function:
    axis = node.axis(0)
    size = node.shape()[axis]
    if not node.value(1).known:
        if not node.value(0).constant or axis != 0 or node.rank() != 2:
            raise Refused("computed positions are for rows of a constant table only")
        table = node.constant(0, "table")
        return _Rows(table)
    index = node.constant(1, "positions")
    if index.is_floating_point() or (
        index.numel() and not -size <= index.min() <= index.max() < size
    ):
        raise Refused(f"a position is outside of the {size} that there are")
    index = torch.where(index < 0, index + size, index).to(torch.int64)
    if index.dim() == 0:
        place = int(index)
        return lambda x: x.select(axis, place)
    shape, flat = list(index.shape), index.reshape(-1)

    def gathered(x: Tensor) -> Tensor:
        picked = x.index_select(axis, flat)
        if len(shape) == 1:
            return picked
        return picked.reshape(*picked.shape[:axis], *shape, *picked.shape[axis + 1 :])

    return gathered


class _Rows(torch.nn.Module):
    """Rows of a table by their numbers."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(table)

    def forward(self, index: Tensor) -> Tensor:
        return functional.embedding(index, self.weight)


_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@builds("Pad")
def _pad(node: Node) -> Function:
    rank, mode = node.rank(), node.text("mode", "constant")
    value: float = 0.0
    axes = list(range(rank))
    if node.version < 11:
        pads, value = node.integers("pads"), node.number("value", 0.0)
    else:
        pads = node.numbers(1, "pads")
        given = node.optional(2, "value")
        value = 0.0 if given is None else given.item()
        axes = node.numbers(3, "axes") if node.has(3) else axes
    if len(pads) != 2 * len(axes) or mode not in _MODES:
        raise Refused(f"pads has {len(pads)} numbers for {len(axes)} dimensions, mode is {mode!r}")
    sides = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        sides[node.counted(axis, rank)] = (pads[place], pads[place + len(axes)])
    if all(side == (0, 0) for side in sides):
        return lambda x: x
    if mode != "constant" and sides[:2] != [(0, 0), (0, 0)]:
        raise Refused(f"mode {mode!r} is for spatial dimensions alone")
    flat = [size for pair in reversed(sides[2:] if mode != "constant" else sides) for size in pair]
    if mode == "constant":
        return lambda x: functional.pad(x, flat, value=value)
    return lambda x: functional.pad(x, flat, mode=_MODES[mode])


@builds("Tile")
def _tile(node: Node) -> Function:
    repeats = node.numbers(1, "repeats")
    if len(repeats) != node.rank() or any(count < 0 for count in repeats):
        raise Refused(f"repeats {repeats} are not for {node.rank()} dimensions")
    return lambda x: x.repeat(*repeats)


@builds("DepthToSpace")
def _depth_to_space(node: Node) -> Function:
    size, mode = node.integer("blocksize"), node.text("mode", "DCR")
    channels, height, width = _image(node)
    if size < 1 or channels % size**2:
        raise Refused(f"{channels} channels are no blocks of {size} by {size}")
    if mode == "CRD":
        return lambda x: functional.pixel_shuffle(x, size)
    if mode != "DCR":
        raise Refused(f"mode {mode!r} is not known")
    rest = channels // size**2

    def shuffled(x: Tensor) -> Tensor:
        # as pixel_shuffle has them: block positions inside channels
        order = x.reshape(-1, size * size, rest, height, width).transpose(1, 2)
        return functional.pixel_shuffle(order.reshape(-1, channels, height, width), size)

    return shuffled


@builds("SpaceToDepth")
def _space_to_depth(node: Node) -> Function:
    size, mode = node.integer("blocksize"), node.text("mode", "DCR")
    channels, height, width = _image(node)
    if size < 1 or height % size or width % size:
        raise Refused(f"{height} by {width} are no blocks of {size} by {size}")
    if mode == "CRD":
        return lambda x: functional.pixel_unshuffle(x, size)
    if mode != "DCR":
        raise Refused(f"mode {mode!r} is not known")

    def unshuffled(x: Tensor) -> Tensor:
        y = functional.pixel_unshuffle(x, size)
        blocks = y.reshape(-1, channels, size * size, height // size, width // size)
        return blocks.transpose(1, 2).reshape(y.shape[0], *y.shape[1:])

    return unshuffled


def _image(node: Node) -> tuple[Any, ...]:
    shape = node.shape()
    if len(shape) != 4 or node.value(0).batch_axis not in (0, None):
        raise Refused(f"required [batch, channels, height, width], {list(shape)} arrived")
    return shape[1:]
