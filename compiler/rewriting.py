"""The table of rewrites that `normalize` applies, and what its rules are written with."""

from collections.abc import Callable
from typing import Any

from torch import fx
from torch.fx.node import Node

Rule = Callable[[fx.Graph, Node], Node | None]
RULES: dict[Any, Rule] = {}


def rewrites(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the rule of one or more ops."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def sizes_of(node: Node, batch: int) -> list[int]:
    """The node's shape with `batch` written for symbolic entries."""
    return [size if isinstance(size, int) else batch for size in node.meta["val"].shape]


def spread(sizes: Any, count: int) -> list[int]:
    """[3] -> [3, 3]: ATen takes one entry for all spatial dimensions."""
    entries = [sizes] if isinstance(sizes, int) else list(sizes)
    return entries * count if len(entries) == 1 else entries


def input_of(node: Node, position: int = 0) -> Node:
    source = node.args[position]
    assert isinstance(source, Node)
    return source


def same_shape(node: Node, other: Node) -> bool:
    """Compares symbols as text: `==` on a SymInt would answer for the example's batch size."""
    first, second = node.meta["val"].shape, other.meta["val"].shape
    return [str(size) for size in first] == [str(size) for size in second]


def is_constant(node: Node) -> bool:
    """Computed from no input: parameters, buffers, and whatever follows from them alone."""
    seen, pending = {node}, [node]
    while pending:
        node = pending.pop()
        if node.op == "placeholder":
            return False
        pending += [source for source in node.all_input_nodes if source not in seen]
        seen.update(node.all_input_nodes)
    return True
