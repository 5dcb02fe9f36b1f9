"""What moves values."""

import torch
from torch.fx.node import Node

from fxloom.graph import arguments
from fxloom.moves import GATHER
from fxloom.support.core import checks, is_constant

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


@checks(
    GATHER, aten.slice.Tensor, aten.select.int, aten.flip.default, aten.roll.default,
    aten.expand.default, aten.repeat.default, aten.repeat_interleave.self_int,
)  # fmt: skip
def _choice(node: Node) -> str | None:
    return None  # the batch rules see to it that no sample is lost or moved


@checks(aten.index_select.default, aten.index.Tensor)
def _index(node: Node) -> str | None:
    if node.target is aten.index_select.default:
        indices = [arguments(node)[2]]
    else:
        indices = [index for index in arguments(node)[1] if index is not None]
    if not all(is_constant(index) for index in indices):
        return "only indices that are constants have a lowering"
    if any(index.meta["val"].is_floating_point() for index in indices):
        return "indices must be integers"
    if any(index.meta["val"].dtype == torch.bool for index in indices):
        return "a mask as index has no lowering. Use the indices, mask.nonzero()[:, 0]"
    return None
