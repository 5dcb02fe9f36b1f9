"""The table of rewrites that `normalize` applies, and what its rules are written with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node, map_arg

from fxloom.graph import BATCH, aten, insert_like

Rule = Callable[[fx.Graph, Node], Node | None]
RULES: dict[Any, Rule] = {}


def rewrites(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the rule of one or more ops."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def unknown(node: Node) -> str:
    """What to say of an op that nobody lowers as it is."""
    if node.target in RULES:
        return (
            "it has no lowering with these arguments. Indices and the like must be constants, and "
            "samples must stay apart"
        )
    return "it has no lowering: fxloom does not know it. `fxloom list ops` shows what it knows"


def sizes_of(node: Node, batch: int) -> list[int]:
    """The node's shape with `batch` written for symbolic entries."""
    return [size if isinstance(size, int) else batch for size in node.meta["val"].shape]


def sizes_of_constant(node: Node) -> list[int]:
    """The shape of a constant's tensor: what is spread over the batch has one sample."""
    sizes = [size if isinstance(size, int) else _number(size) for size in node.meta["val"].shape]
    return [size // BATCH if size and size % BATCH == 0 else size for size in sizes]


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


def make(graph: fx.Graph, node: Node, target: Any, *args: Any) -> Node:
    """A call of `target` on the way to what replaces `node`, with a `meta["val"]` of its own."""
    made = insert_like(graph, node, target, args)
    tensors = [argument.meta["val"] for argument in made.all_input_nodes]
    # On meta tensors, whose batch is a number: evaluating symbols would record guards on them.
    values = map_arg(args, lambda argument: _sized(argument.meta["val"]))
    with torch.no_grad():
        result = target(*values)
    made.meta["val"] = tensors[0].new_empty(_symbolic(result.shape, tensors), dtype=result.dtype)
    return made


def filled(
    graph: fx.Graph, node: Node, shape: Sequence[int], fill: float, dtype: torch.dtype
) -> Node:
    """A constant of one number."""
    made = insert_like(graph, node, aten.full.default, (list(shape), fill))
    made.kwargs = {"dtype": dtype}
    made.meta["val"] = node.meta["val"].new_empty(list(shape), dtype=dtype)
    return made


def numbered(graph: fx.Graph, node: Node, start: int, stop: int) -> Node:
    """The constant start, start + 1, ... stop - 1, in int64."""
    made = insert_like(graph, node, aten.arange.start, (start, stop))
    made.meta["val"] = node.meta["val"].new_empty([stop - start], dtype=torch.int64)
    return made


def _sized(tensor: Tensor) -> Tensor:
    sizes = [size if isinstance(size, int) else _number(size) for size in tensor.shape]
    return torch.empty(sizes, dtype=tensor.dtype, device="meta")


def _number(size: torch.SymInt) -> int:
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, BATCH)))


def _symbolic(shape: Sequence[int], tensors: Sequence[Tensor]) -> list[int | torch.SymInt]:
    """Sizes with multiples of BATCH as multiples of the symbol for the batch."""
    sizes: list[Any] = [size for tensor in tensors for size in tensor.shape]
    symbols = {_number(size) // BATCH: size for size in sizes if not isinstance(size, int)}
    if not symbols:
        return list(shape)
    least = min(symbols)
    return [
        symbols[least] * (size // BATCH) // least if size and size % BATCH == 0 else size
        for size in shape
    ]
