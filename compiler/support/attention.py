"""Attention and masks."""

import math

import torch
from torch import Tensor
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX
from fxloom.forms_norms import MASKING
from fxloom.graph import BATCH, arguments, constant
from fxloom.support.core import checks, is_constant

aten = torch.ops.aten


@checks(aten.scaled_dot_product_attention.default)
def _attention(node: Node) -> str | None:
    query, key, value, mask, dropout, _ = arguments(node)
    if dropout:
        return f"dropout_p={dropout} has no meaning in inference. Use 0"
    if set(node.kwargs) - {"scale", "enable_gqa"}:
        return f"arguments {', '.join(node.kwargs)} have no lowering"
    scale = node.kwargs.get("scale")
    if isinstance(scale, int | float) and not (math.isfinite(scale) and scale > 0):
        return f"its scale must be finite and positive, got {scale}"
    if any(is_constant(argument) for argument in (query, key, value)):
        return "its query, key and value must be computed from an input"
    if any(argument.meta["val"].dim() < 3 for argument in (query, key, value)):
        return "its query, key and value need a batch"
    if mask is None:
        return None
    rows, columns = query.meta["val"].shape[-2], key.meta["val"].shape[-2]
    return _mask(node, mask, (*node.meta["val"].shape[:-2], rows, columns))


@checks(MASKED_SOFTMAX)
def _masked_softmax(node: Node) -> str | None:
    x, mask, dim, _ = arguments(node)
    if mask is None:
        return None
    return _mask(node, mask, tuple(x.meta["val"].shape), dim)


def _mask(node: Node, mask: Node, shape: tuple[int, ...], dim: int = -1) -> str | None:
    """Whether a mask is a constant that leaves something in every row."""
    if not is_constant(mask):
        return "only a mask that is a constant has a lowering"
    if node.graph.owning_module is None:
        return None
    keep, _ = split_mask(constant(node.graph.owning_module, mask.target).detach())
    sample = [size if size % BATCH else size // BATCH for size in shape]
    try:
        full = keep.expand(sample)
    except RuntimeError:
        return f"its mask of shape {list(keep.shape)} does not fit its scores"
    if not full.any(dim).all():
        return "its mask leaves nothing in some row. Keep at least one position of each"
    return None


def split_mask(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a mask keeps, as booleans, and what it adds there, or None where that is nothing."""
    if mask.dtype == torch.bool:
        return mask, None
    keep = mask > MASKING
    added = torch.where(keep, mask, 0)
    return keep, added if bool((added != 0).any()) else None
