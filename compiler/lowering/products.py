"""Products of two computed matrices."""

import torch
from torch.fx.node import Node

from fxloom import ops
from fxloom.lowering.core import Lowered, Lowering, lowers

aten = torch.ops.aten


@lowers(aten.matmul.default)
def _matmul(lowering: Lowering, node: Node) -> Lowered:
    pair = [lowering.in_order(lowering.tensor(node, position), node) for position in (0, 1)]
    value = lowering.emit(ops.MatMul(), pair, node)
    return Lowered(value, tuple(range(len(value.shape))))
