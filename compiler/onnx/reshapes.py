"""Other shapes for the same values. Each is known at both batch sizes when the graph is read."""

from math import prod

import numpy as np
from torch import Tensor

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
