"""Tensors made by torch.empty: nothing is in them, so every element must be assigned before use.

Which elements are, follows from the indices alone. It is looked at before anything is rewritten:
once it is sure that nobody reads what was never assigned, the tensor may as well begin as zeros.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node, map_arg

from fxloom.errors import UnsupportedLayer
from fxloom.exporting import source_line
from fxloom.graph import aten, op_name

_AS_ZEROS: dict[Any, Any] = {
    aten.empty.memory_format: aten.zeros.default,
    aten.new_empty.default: aten.new_zeros.default,
    aten.empty_like.default: aten.zeros_like.default,
}
_MOVES = (
    *(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints),
    *(aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
    *(aten.unsqueeze.default, aten.transpose.int, aten.t.default, aten.permute.default),
    *(aten.slice.Tensor, aten.select.int, aten.expand.default, aten.alias.default),
    *(aten.clone.default, aten.detach.default, aten.copy.default),
    *(aten.slice_scatter.default, aten.select_scatter.default),
)
"""What moves elements or writes some among others, and so moves what is known of them."""
_FILLS = (aten.fill.Scalar, aten.fill.Tensor, aten.zero.default)
_SAMPLES = 3


def begin_as_zeros(graph: fx.Graph) -> None:
    """Let tensors of torch.empty begin as zeros.

    graph: functional ATen with the `meta["val"]` of torch.export. Raises UnsupportedLayer naming
    who reads one before all of it was assigned.
    """
    made = [node for node in graph.nodes if node.target in _AS_ZEROS]
    if made:
        _check_assigned(graph)
    for node in made:
        node.target = _AS_ZEROS[node.target]
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "memory_format"}


def _check_assigned(graph: fx.Graph) -> None:
    """Follow, as truth values, which elements are assigned, for a few samples."""
    assigned: dict[Node, Tensor] = {}
    makers: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.target in _AS_ZEROS:
            assigned[node], makers[node] = _all(node, False), node
            continue
        partial = [source for source in node.all_input_nodes if source in assigned]
        if not partial or node.target in _FILLS or node.target is aten.sym_size.int:
            continue
        maker = makers[partial[0]]
        if node.target not in _MOVES:
            who = (
                "forward returns it" if node.op == "output" else f"{op_name(node.target)} reads it"
            )
            raise UnsupportedLayer(
                [
                    f"{op_name(maker.target)}{source_line(maker)}: {who}{source_line(node)}, and "
                    "not every element was assigned before, by slices or single indices. Begin "
                    "with torch.zeros"
                ]
            )
        args, kwargs = map_arg((node.args, node.kwargs), lambda arg: _known(arg, assigned))
        held = _all(node, True) & node.target(*args, **kwargs)
        if not bool(held.all()):
            assigned[node], makers[node] = held, maker


def _known(argument: Node, assigned: dict[Node, Tensor]) -> Any:
    if argument in assigned:
        return assigned[argument]
    if isinstance(argument.meta.get("val"), Tensor):
        return _all(argument, True)
    return _size(argument.meta.get("val"))


def _all(node: Node, value: bool) -> Tensor:
    return torch.full([_size(size) for size in node.meta["val"].shape], value)


def _size(size: Any) -> int:
    """A size, with a few samples for the batch."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, _SAMPLES)))
