"""What the rewrites of legalize share: their registry, and how they insert nodes."""

from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.batch_axis import result_axis
from fxloom.graph import infer, insert_like

Rewrite = Callable[[GraphModule, Node], Node | None]
"""Inserts primitives in front of a node and returns the one that takes its place, or None where
the node is a primitive as it is. Its attributes are those that `support` lets through."""

REWRITES: dict[Any, Rewrite] = {}


def legalizes(*targets: Any) -> Callable[[Rewrite], Rewrite]:
    """Register the rewrite of one or more ops."""

    def register(rewrite: Rewrite) -> Rewrite:
        REWRITES.update(dict.fromkeys(targets, rewrite))
        return rewrite

    return register


def insert(module: GraphModule, like: Node, target: Any, *args: Any) -> Node:
    """A node with the origin of `like`; its shape and its batch axis are inferred."""
    node = insert_like(module.graph, like, target, args)
    node.meta["val"] = infer(module, node)
    node.meta["batch_axis"] = result_axis(node)
    return node
