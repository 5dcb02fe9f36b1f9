"""Attention and masks."""

import math

import torch
from torch import Tensor
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX
from fxloom.forms_masks import MASKING
from fxloom.graph import BATCH, arguments, constant
from fxloom.support.core import ON_INTEGERS, checks, is_constant
from fxloom.support.masks import masking_behind

aten = torch.ops.aten

ON_INTEGERS.update((aten.scaled_dot_product_attention.default, MASKED_SOFTMAX))  # masks


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
        return (
            "its query, key and value must be computed from an input; where they are learned, its "
            "query or its key must be, and is_causal and enable_gqa be left at False: write a "
            "mask and the heads out"
        )
    if any(argument.meta["val"].dim() < 3 for argument in (query, key, value)):
        return "its query, key and value need a batch"
    if mask is None:
        return None
    rows, columns = query.meta["val"].shape[-2], key.meta["val"].shape[-2]
    return _mask(node, mask, (*node.meta["val"].shape[:-2], rows, columns))


@checks(MASKED_SOFTMAX)
def _masked_softmax(node: Node) -> str | None:
    x, mask, dim, _ = arguments(node)
    if is_constant(x):
        return "its scores must be computed from an input"
    hidden = masking_behind(x)
    if hidden is not None or mask is None:
        return hidden
    return _mask(node, mask, tuple(x.meta["val"].shape), dim)


def _mask(node: Node, mask: Node, shape: tuple[int, ...], dim: int = -1) -> str | None:
    """Whether a mask is a condition, or a constant that leaves something in every row."""
    if not is_constant(mask):
        if mask.meta["val"].dtype == torch.bool:
            return None
        return (
            "a computed mask must be a condition, as mask > 0.5 is: where it is true scores are "
            "kept. Numbers that are added may only be constants"
        )
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
