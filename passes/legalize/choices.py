"""Smallest values and rows of tables, by what there is for the largest."""

import torch
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.graph import arguments
from fxloom.passes.legalize.core import insert, legalizes
from fxloom.quantized_ops import EMBEDDING

aten = torch.ops.aten


@legalizes(aten.amin.default)
def _amin(module: GraphModule, node: Node) -> Node:
    x, dims, keep = arguments(node)[:3]
    opposite = insert(module, node, aten.neg.default, x)
    largest = insert(module, node, aten.amax.default, opposite, dims, keep)
    return insert(module, node, aten.neg.default, largest)


@legalizes(aten.embedding.default)
def _embedding(module: GraphModule, node: Node) -> Node:
    weight, indices = arguments(node)[:2]
    return insert(module, node, EMBEDDING, indices, weight)
