"""Products of two computed matrices."""

from collections.abc import Sequence

import torch
from torch.fx.node import Node

from fxloom import ops
from fxloom.lowering.core import Lowered, Lowering, lowers
from fxloom.program import Value

aten = torch.ops.aten


@lowers(aten.matmul.default, aten.bmm.default)
def _matmul(lowering: Lowering, node: Node) -> Lowered:
    """Leading axes broadcast; the batch is one of them in the graph, so none is a vector here."""
    left, right = (lowering.in_order(lowering.tensor(node, n), node) for n in (0, 1))
    rank = max(len(left.shape), len(right.shape))
    leading = [
        max(sizes)
        for sizes in zip(_padded(left, rank)[:-2], _padded(right, rank)[:-2], strict=True)
    ]
    pair = [_expanded(lowering, node, value, leading) for value in (left, right)]
    value = lowering.emit(ops.MatMul(), pair, node)
    return Lowered(value, tuple(range(rank)))


def _padded(value: Value, rank: int) -> list[int]:
    return [1] * (rank - len(value.shape)) + list(value.shape)


def _expanded(lowering: Lowering, node: Node, value: Value, leading: Sequence[int]) -> Value:
    """The value with these leading axes: what has length 1 along one of them is repeated."""
    shape = _padded(value, len(leading) + 2)
    if shape != list(value.shape):
        value = lowering.emit(ops.Reshape(tuple(shape)), [value], node)
    for axis, size in enumerate(leading):
        if shape[axis] != size:
            value = lowering.emit(ops.Gather(axis, (0,) * size), [value], node)
    return value
