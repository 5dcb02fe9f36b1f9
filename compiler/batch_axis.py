"""Where the batch lies in every tensor of a graph, and which layers mix its samples.

Hardware computes one sample at a time, so a graph converts only if no op reduces, normalises,
orders or slices over the batch. `track` interprets a canonical graph abstractly; the value of a
node is its batch axis:
    None        the tensor holds no batch: every sample sees the same constant
    int         the dimension that is the batch
    Merged      the dimension holds outer * batch * inner, row-major, as `view(B * T, C)` makes it
Each rule (`@batch_rule`) gets the node and the axes of its arguments and returns the result's axis
or raises `Mixed` with the reason. An op without a rule is refused, not guessed at, unless ATen
tags it as pointwise.
"""

from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.batch_rules import RULES, BatchAxis, Merged, Mixed, batch_rule, broadcast
from fxloom.graph import aten, describe, infer, output_nodes, sample_dims, shape_problem
from fxloom.rewriting import unknown

__all__ = [
    "BatchAxis",
    "Merged",
    "Mixed",
    "batch_rule",
    "result_axis",
    "sample_axis",
    "sample_shape",
    "track",
]


def track(graph_module: fx.GraphModule, line: Callable[[Node], str] = lambda _: "") -> list[str]:
    """Set `meta["val"]` and `meta["batch_axis"]` of every node; return all problems found.

    line: says where the user wrote a node; asked for ops that nobody knows. Placeholders must carry
    both. After a problem, what depends on it is left out: one line a cause.
    """
    problems: list[str] = []
    left_out: set[Node] = set()
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            node.meta |= {"val": infer(graph_module, node), "batch_axis": None}
        if node.op != "call_function":
            continue
        if node.target is aten.sym_size.int or not left_out.isdisjoint(node.all_input_nodes):
            left_out.add(node)
            continue
        try:
            node.meta["val"] = value = infer(graph_module, node)
            if isinstance(value, Tensor) and value.numel() == 0:
                raise Mixed(f"its result of shape {list(sample_dims(value))} is empty. Remove it.")
            node.meta["batch_axis"] = result_axis(node)
        except Mixed as mixed:
            where = "" if node.target in RULES else line(node)
            problems.append(f"{describe(node)}{where}: {mixed}")
            left_out.add(node)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            problems.append(shape_problem(node, error))
            left_out.add(node)
    return problems + [
        f"output {index} {problem}"
        for index, node in enumerate(output_nodes(graph_module))
        if node not in left_out
        for problem in _output_problems(node)
    ]


def _output_problems(node: Node) -> list[str]:
    axis = node.meta["batch_axis"]
    if axis is None:
        return [f"({node.name}): it does not depend on the input. Leave it out."]
    if isinstance(axis, Merged):
        return [
            f"of {describe(node)}: the batch is merged with another dimension. "
            "Return it with the batch as a dimension of its own."
        ]
    return []


def sample_shape(node: Node) -> tuple[int, ...]:
    """The shape of one sample: without the batch axis, a merged axis without its batch."""
    shape, axis = list(node.meta["val"].shape), node.meta["batch_axis"]
    if isinstance(axis, Merged):
        shape[axis.axis] = axis.outer * axis.inner
    elif axis is not None:
        del shape[axis]
    return tuple(shape)


def sample_axis(node: Node, dim: int) -> int:
    """A dimension of a tensor as an axis of one sample (a merged batch axis stays an axis)."""
    batch = node.meta["batch_axis"]
    return dim - 1 if isinstance(batch, int) and dim > batch else dim


def result_axis(node: Node) -> BatchAxis:
    """Where the batch lies in a node's result, from its arguments; Mixed where samples meet."""
    if all(argument.meta["batch_axis"] is None for argument in node.all_input_nodes):
        return None
    rule = RULES.get(node.target)
    if rule is not None:
        return rule(node)
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return broadcast(node)
    raise Mixed(f"{unknown(node)}.")
