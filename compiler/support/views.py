"""What moves values."""

import torch
from torch.fx.node import Node

from fxloom.graph import arguments
from fxloom.support.core import checks

aten = torch.ops.aten


@checks(aten.cat.default)
def _cat(node: Node) -> str | None:
    for part in arguments(node)[0]:
        if part.op == "get_attr":
            return "a constant among the concatenated tensors has no lowering"
    return None


@checks(aten.constant_pad_nd.default)
def _pad(node: Node) -> str | None:
    x, amounts, fill = arguments(node)[:3]
    if fill != 0:
        return f"padding with {fill} has no lowering, only with 0"
    if min(amounts, default=0) < 0:
        return "negative padding (cropping) has no lowering"
    if len(amounts) // 2 > x.meta["val"].dim() - 1:
        return "the batch cannot be padded"
    return None
