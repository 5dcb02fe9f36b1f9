"""Attention: two products of computed matrices, and between them a softmax with its mask.

The scale of the scores becomes part of the table of exponentials: it costs nothing and is exact.
"""

from math import sqrt
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX
from fxloom.editing import tensor_node
from fxloom.graph import arguments, constant, origin
from fxloom.passes.legalize.core import insert, legalizes
from fxloom.support.attention import split_mask

aten = torch.ops.aten


@legalizes(aten.scaled_dot_product_attention.default)
def _attention(module: GraphModule, node: Node) -> Node:
    query, key, value, mask, _, is_causal = arguments(node)
    scale: Any = node.kwargs.get("scale")
    if scale is None:
        scale = 1 / sqrt(query.meta["val"].shape[-1])
    groups = query.meta["val"].shape[-3] // key.meta["val"].shape[-3]
    if node.kwargs.get("enable_gqa") and groups > 1:
        key, value = (_repeated(module, node, heads, groups) for heads in (key, value))
    order = list(range(key.meta["val"].dim()))
    order[-2:] = order[-1], order[-2]
    flipped = insert(module, node, aten.permute.default, key, order)
    scores = insert(module, node, aten.matmul.default, query, flipped)
    rows, columns = scores.meta["val"].shape[-2:]
    if is_causal:
        causal = torch.ones(rows, columns, dtype=torch.bool).tril()
        mask = tensor_node(module, scores, f"{origin(node)}.causal", causal)
    dim = scores.meta["val"].dim() - 1
    weights = insert(module, node, MASKED_SOFTMAX, scores, mask, dim, scale)
    result = insert(module, node, aten.matmul.default, weights, value)
    if mask is None or mask.op == "get_attr":
        return result
    # Where a computed mask leaves nothing of a row, attention gives zeros, unlike a softmax.
    some = insert(module, node, aten.amax.default, mask, [mask.meta["val"].dim() - 1], True)
    return insert(module, node, aten.where.ScalarOther, some, result, 0.0)


def _repeated(module: GraphModule, node: Node, heads: Node, times: int) -> Node:
    """Every head of a key or value for as many heads of the query."""
    dim = heads.meta["val"].dim() - 3
    return insert(module, node, aten.repeat_interleave.self_int, heads, times, dim)


@legalizes(MASKED_SOFTMAX)
def _masked_softmax(module: GraphModule, node: Node) -> Node | None:
    """A constant mask in two: what it hides, as booleans, and what it adds."""
    x, mask, dim, scale = arguments(node)
    if mask is not None and _adds_nothing(module, x):
        return insert(module, node, MASKED_SOFTMAX, arguments(x)[0], mask, dim, scale)
    if mask is None or mask.op != "get_attr":
        return None
    values = constant(module, mask.target).detach()
    keep, added = split_mask(values)
    if bool(keep.all()):
        hidden = None
    elif values.dtype == torch.bool:
        return None
    else:
        hidden = tensor_node(module, node, f"{mask.target}.kept", keep)
    if added is not None:
        offset = tensor_node(module, node, f"{mask.target}.added", added / scale)
        x = insert(module, node, aten.add.Tensor, x, offset)
    return insert(module, node, MASKED_SOFTMAX, x, hidden, dim, scale)


def _adds_nothing(module: GraphModule, x: Node) -> bool:
    """Whether scores are a sum with zeros: all that is left of a mask whose rest is a condition."""
    if x.target is not aten.add.Tensor:
        return False
    scores, added = arguments(x)[:2]
    if not isinstance(added, Node) or added.op != "get_attr" or not isinstance(scores, Node):
        return False
    same = scores.meta["val"].shape == x.meta["val"].shape
    return same and not bool(constant(module, added.target).any())
