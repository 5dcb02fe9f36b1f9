"""Packs: what a stream carries at a time, one position of a tensor with its channels.

Used by the kernels between streams and by their schedule, so that they cannot disagree.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from fxloom.ops import Shape

_ELEMENTWISE = {
    *("add", "sub", "mul", "max", "min", "requantize", "divide", "shift", "compare", "select"),
}


def packs_of(shape: Shape) -> int:
    """Packs of a tensor in a stream: one holds the last axis."""
    return prod(shape[:-1])


def pads_packs(op: Any) -> bool:
    """Whether padding leaves the packs as they are: zero packs between those that come in."""
    return bool(op is not None and op.name == "pad" and op.padding[-1:] == ((0, 0),))


def pack_by_pack(
    op: Any, arguments: Sequence[Shape], constant: Sequence[bool], result: Shape
) -> bool:
    """Whether every pack of the result follows from one pack of each streamed argument.

    op: None for a copy; constant: which of the arguments come in no stream.
    """
    if op is None:
        return True
    shapes = [shape for shape, fixed in zip(arguments, constant, strict=True) if not fixed]
    if op.name in _ELEMENTWISE:
        return all(each == result for each in shapes)
    if op.name in ("concat", "gather"):
        return bool(op.axis == len(result) - 1)
    if op.name == "reshape":
        return all(each[-1:] == result[-1:] for each in shapes)
    return bool(op.name == "matmul" and constant[1])
