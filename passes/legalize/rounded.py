"""Weights that a model rounds itself, where a rewrite rearranges them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.editing import release_tensor, tensor_node
from fxloom.graph import arguments, constant, infer
from fxloom.quantized_ops import REQUANTIZE, REQUANTIZE_WEIGHTS, is_given


def rearranged(
    module: GraphModule, before: Node, argument: Node, move: Callable[[Tensor], Tensor]
) -> Node:
    """A constant argument of a node with its values moved; rounded as it was.

    move: rearranges values, and puts zeros between them. Channels that have binary points of their
    own are no first axis any more: they get the steps of the finest, which hold all of them.
    """
    if not is_given(argument):
        values = constant(module, argument.target).detach()
        name = release_tensor(module, argument)
        return tensor_node(module, before, name, move(values), move=move)
    source, *_, width, integer, signed, rounding, overflow = arguments(argument)
    values = constant(module, source.target).detach()
    if argument.target is REQUANTIZE_WEIGHTS:
        values = REQUANTIZE_WEIGHTS(values, *arguments(argument)[1:])
        width += max(arguments(argument)[1], default=0)
    name = release_tensor(module, source) if len(argument.users) == 1 else str(source.target)
    moved = tensor_node(module, before, name, move(values), move=move)
    with module.graph.inserting_before(before):
        node = module.graph.call_function(
            REQUANTIZE, (moved, width, integer, signed, rounding, overflow)
        )
    node.meta = dict(argument.meta) | {"val": infer(module, node)}
    return node
