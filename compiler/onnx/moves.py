"""What moves values: reshapes, permutations, pieces, padding, repetition."""

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import Function, builds


@builds("Flatten")
def _flatten(node: Node) -> Function:
    axis = node.integer("axis", 1)
    rank = node.rank()
    if not -rank <= axis <= rank:
        raise Refused(f"axis {axis} of {rank} dimensions")
    axis = axis + rank if axis < 0 else axis
    targets = [[prod(shape[:axis]), prod(shape[axis:])] for shape in node.value(0).shapes]
    return _reshaped(*targets)


@builds("Reshape")
def _reshape(node: Node) -> Function:
    shapes = node.value(0).shapes
    targets = node.sizes(1, "sizes")
    zero = node.flag("allowzero")
    wanted = [_filled(target, shape, zero) for target, shape in zip(targets, shapes, strict=True)]
    if node.fixed and targets[0] == targets[1] and node.value(0).batch_axis is not None:
        wanted = _of_one_batch(wanted[0], shapes, node.samples)
    if any(prod(target) != prod(shape) for target, shape in zip(wanted, shapes, strict=True)):
        raise Refused(f"it makes {targets[0]} of {list(shapes[0])}")
    return _reshaped(*wanted)


def _filled(target: list[int], shape: tuple[int, ...], zero: bool) -> list[int]:
    """A target without 0, which takes a size over, and -1, which is what remains."""
    if not zero and any(size == 0 and dim >= len(shape) for dim, size in enumerate(target)):
        raise Refused(f"{target} takes sizes over that {list(shape)} does not have")
    taken = [shape[dim] if size == 0 and not zero else size for dim, size in enumerate(target)]
    if taken.count(-1) > 1 or any(size < -1 for size in taken):
        raise Refused(f"{target} is no shape")
    known = prod(size for size in taken if size != -1)
    rest = prod(shape) // known if known else 0
    return [rest if size == -1 else size for size in taken]


def _of_one_batch(
    target: list[int], shapes: tuple[tuple[int, ...], ...], samples: tuple[int, int]
) -> list[list[int]]:
    """A target that was written for one batch size, at both sizes.

    The batch lies behind as many values as before, and there is the dimension that grows.
    """
    first, second = shapes
    axis = next(dim for dim, (one, other) in enumerate(zip(*shapes, strict=True)) if one != other)
    outside = prod(first[:axis])
    for dim, size in enumerate(target):
        grown = [*target[:dim], size // samples[0] * samples[1], *target[dim + 1 :]]
        # Between two dimensions it could be of either, if it has none for itself.
        whole = size == samples[0] or (outside == 1 and size % samples[0] == 0)
        if prod(target[:dim]) == outside and whole and prod(grown) == prod(second):
            return [target, grown]
    raise Refused(
        f"it makes {target} of {list(first)}, which is for one batch size only. Export the model "
        "with a dynamic batch dimension"
    )


def _reshaped(first: list[int], second: list[int]) -> Function:
    """A reshape to one of two shapes, by the batch size."""
    grows = [
        dim for dim, (one, other) in enumerate(zip(first, second, strict=True)) if one != other
    ]
    if len(grows) > 1:
        raise Refused(f"several sizes of {first} depend on the batch size")
    shape = [-1 if dim in grows else size for dim, size in enumerate(first)]
    return lambda x: x.reshape(shape)


@builds("Transpose")
def _transpose(node: Node) -> Function:
    order = node.integers("perm", list(range(node.rank()))[::-1])
    return lambda x: x.permute(order)


def _axes(node: Node, since: int, rank: int) -> list[int] | None:
    """Axes as an attribute, since a version as the second input."""
    if node.version < since:
        found = node.attribute("axes", None)
    else:
        found = node.numbers(1, "axes") if node.has(1) else None
    return None if found is None else [node.counted(int(axis), rank) for axis in found]


@builds("Squeeze")
def _squeeze(node: Node) -> Function:
    axes = _axes(node, 13, node.rank())
    shapes = node.value(0).shapes
    if axes is None:
        axes = [dim for dim, size in enumerate(shapes[0]) if size == 1]
    if any(shape[axis] != 1 for shape in shapes for axis in axes):
        raise Refused(f"it removes dimensions {axes} of {list(shapes[0])}, the batch among them")
    kept = [[s for dim, s in enumerate(shape) if dim not in axes] for shape in shapes]
    return _reshaped(*kept)


@builds("Unsqueeze")
def _unsqueeze(node: Node) -> Function:
    given = node.attribute("axes", None) if node.version < 13 else node.numbers(1, "axes")
    if not given:
        raise Refused("its axes are missing")
    axes = sorted(node.counted(int(axis), node.rank() + len(given)) for axis in given)

    def unsqueezed(x: Tensor) -> Tensor:
        for axis in axes:
            x = x.unsqueeze(axis)
        return x

    return unsqueezed


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
        count = node.integer("num_outputs", count)
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
        pieces.append((axis, slice(start, end, step), node.shape()[axis]))

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


@builds("Expand")
def _expand(node: Node) -> Function:
    targets = node.sizes(1, "sizes")
    value = node.value(0)
    try:
        shapes = [
            np.broadcast_shapes(shape, tuple(target))
            for shape, target in zip(value.shapes, targets, strict=True)
        ]
    except ValueError:
        if not node.fixed or node.samples[0] not in targets[0]:
            raise Refused(f"{list(node.shape())} does not expand to {targets[0]}") from None
        # A shape that was written for one batch size.
        shapes = [_expanded(shape, targets[0], node.samples[0]) for shape in value.shapes]
    grown = [dim for dim, (one, other) in enumerate(zip(*shapes, strict=True)) if one != other]
    had = len(shapes[0]) - node.rank()
    if value.known or not grown:
        return lambda x: x.expand(shapes[0])
    if value.batch_axis is None or [value.batch_axis + had] != grown:
        raise Refused("it repeats samples of the batch")
    kept = [-1 if dim in grown else size for dim, size in enumerate(shapes[0])]
    return lambda x: x.expand(kept)


def _expanded(shape: tuple[int, ...], target: list[int], samples: int) -> tuple[int, ...]:
    wide = (1,) * (len(target) - len(shape)) + shape
    if len(wide) != len(target):
        raise Refused(f"{list(shape)} does not expand to {target}")
    return tuple(
        have if want in (1, samples) and have != 1 else want
        for have, want in zip(wide, target, strict=True)
    )


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
