"""One canonical form per operation: readers of a graph need to know one spelling only.

`normalize` rewrites the ops that torch.export leaves (a dozen spellings of a view, four of a
convolution) by the table `rewriting.RULES`: op -> small function that returns what replaces the
node, or None to keep it. Arguments come out positional, defaults filled in, dimensions
non-negative; only keyword-only arguments that are not at their default stay in `kwargs`.

Shapes are read from the symbolic `meta["val"]` of torch.export: a symbolic size is the batch. No
literal batch size and no `sym_size` survives: the batch entry of a reshape is -1, and a constant
spread over the batch (`zeros(B, n)`, `token.expand(B, -1)`) keeps size 1 there and broadcasts.
"""

from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument, Node

from fxloom import (  # noqa: F401 - they fill the table
    forms_assigned,
    forms_choices,
    forms_compound,
    forms_joins,
    forms_layers,
    forms_masks,
    forms_norms,
    forms_products,
    forms_views,
)
from fxloom.graph import aten
from fxloom.rewriting import RULES

# Keyword-only arguments that say nothing about values on one CPU.
_PLACEMENT = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking"})
_ONE_MORE = (aten.stack.default, aten.unsqueeze.default, aten.diag_embed.default)
"""Their dimensions are those of the result."""
_ASSERTIONS = (
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
)

UNTOUCHED = (*_ASSERTIONS, aten.sym_size.int)
"""What is taken as it is: no value comes from it."""


def normalize(graph: fx.Graph) -> None:
    """Rewrite `graph` in place; every node must carry the `meta["val"]` of torch.export."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
            continue
        _fill_arguments(node)
        rule = RULES.get(node.target)
        with graph.inserting_before(node):
            replacement = rule(graph, node) if rule is not None else None
        if replacement is None or replacement is node:
            continue
        replacement.meta.setdefault("val", node.meta["val"])
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def _fill_arguments(node: Node) -> None:
    """Make arguments positional with defaults filled in, and dimensions non-negative."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    args, kwargs = list(node.args), dict(node.kwargs)
    rest: dict[str, Argument] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        if argument.kwarg_only:
            if argument.name not in _PLACEMENT and kwargs.get(argument.name, default) != default:
                rest[argument.name] = kwargs[argument.name]
        elif position >= len(args):
            args.append(kwargs.get(argument.name, default))
    for position, argument in enumerate(node.target._schema.arguments[: len(args)]):
        named = argument.name in ("dim", "dims", "dim0", "dim1") and node.all_input_nodes
        if named and node.target is not aten.tile.default:  # its "dims" are repetitions
            first = node.all_input_nodes[0].meta["val"]
            rank = first.dim() + (node.target in _ONE_MORE)
            args[position] = _non_negative(args[position], max(rank, 1))
    node.args, node.kwargs = tuple(args), rest


def _non_negative(dims: Any, rank: int) -> Any:
    if isinstance(dims, int):
        return dims % rank
    return [dim % rank for dim in dims] if isinstance(dims, (list, tuple)) else dims
