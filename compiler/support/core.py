"""The registry of checks, and the questions that they share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.batch_rules import Merged
from fxloom.functions import FUNCTIONS
from fxloom.graph import arguments, constant, describe, output_nodes
from fxloom.moves import GATHER
from fxloom.quantized_ops import REQUANTIZE, REQUANTIZE_WEIGHTS
from fxloom.rewriting import unknown

aten = torch.ops.aten

Check = Callable[[Node], str | None]
CHECKS: dict[Any, Check] = {}
ON_INTEGERS: set[Any] = {
    aten.reshape.default,
    aten.permute.default,
    aten.cat.default,
    GATHER,
    aten.slice.Tensor,
    aten.select.int,
    aten.flip.default,
    aten.roll.default,
    aten.expand.default,
    aten.repeat.default,
    aten.repeat_interleave.self_int,
    aten.index_select.default,
    aten.index.Tensor,
}
"""What may meet integers and conditions: it computes no numbers from them."""


KEYWORDS = (
    *FUNCTIONS,
    aten.scaled_dot_product_attention.default,
    aten.var.correction,
    aten.std.correction,
    aten._to_copy.default,
)
"""Ops whose checks know their keyword-only arguments."""


def checks(*targets: Any) -> Callable[[Check], Check]:
    """Register the check of one or more ops: it returns why a node cannot be lowered, or None."""

    def register(check: Check) -> Check:
        CHECKS.update(dict.fromkeys(targets, check))
        return check

    return register


def refusal(node: Node) -> str | None:
    """Why a node has no exact lowering, and what to do; None where it has one."""
    check = CHECKS.get(node.target)
    if check is None:
        return unknown(node)
    if node.kwargs and node.target not in KEYWORDS:
        return f"arguments {', '.join(node.kwargs)} have no lowering. Leave them at their defaults"
    is_format = node.target in (REQUANTIZE, REQUANTIZE_WEIGHTS)
    if node.meta.get("batch_axis", 0) is None and not is_format:
        return "it depends on constants only and is computed anew. Store its result as a buffer"
    return check(node) or _of_integers(node)


def _of_integers(node: Node) -> str | None:
    """Arithmetic rounds, and so needs numbers: integers and conditions are but compared, chosen
    and moved."""
    if node.target in ON_INTEGERS:
        return None
    for argument in (*node.all_input_nodes, node):
        dtype = argument.meta["val"].dtype
        if not is_constant(argument) and not dtype.is_floating_point:
            if _leads_to_rows(node):
                return (
                    f"it computes indices with {dtype}, and arithmetic on integers has no "
                    "lowering. Compute them before the model, or use an nn.Embedding for each "
                    "offset"
                )
            return f"it computes with {dtype}. Convert it with .float() first"
    return None


def _leads_to_rows(node: Node) -> bool:
    """Whether an integer becomes the index of an embedding."""
    pending, seen = [node], {node}
    while pending:
        for user in pending.pop().users:
            if user.target is aten.embedding.default:
                return True
            value = user.meta.get("val")
            is_whole = isinstance(value, Tensor) and not value.is_floating_point()
            if is_whole and user not in seen:
                seen.add(user)
                pending.append(user)
    return False


def refused_ports(graph_module: fx.GraphModule) -> list[str]:
    """Inputs and outputs that hardware cannot have: one line each, none where all is well.

    A program takes and gives batches first. A model may keep its batch elsewhere, but then its
    outputs must keep it where its inputs do: anything else would hide a permutation of results.
    """
    inputs = graph_module.graph.find_nodes(op="placeholder")
    problems = [
        f"input {node.target}: nothing uses it. Leave it out of forward."
        for node in inputs
        if not node.users
    ]
    allowed = {0} | {node.meta.get("batch_axis", 0) for node in inputs}
    return problems + [
        f"output of {describe(node)}: its batch is dimension {node.meta['batch_axis']}, it must be "
        "the first. Permute it back before it is returned."
        for node in output_nodes(graph_module)
        if node.meta.get("batch_axis", 0) not in allowed
    ]


MAX_CHOSEN = 2**32
"""Largest number that is chosen or put beside computed values as it is: they share a format."""


def too_large(node: Node, positions: Sequence[int]) -> str | None:
    """Whether a number or a constant among the arguments is so large that no format holds it
    together with computed values: they would need as many fraction bits as those have."""
    module = node.graph.owning_module
    for position in positions:
        argument = arguments(node)[position]
        if is_constant(argument) and module is not None:
            values = constant(module, argument.target).detach()
            largest = float(values.abs().max()) if values.is_floating_point() else 0
        else:
            largest = abs(argument) if isinstance(argument, int | float) else 0
        if largest > MAX_CHOSEN:
            return (
                f"it puts {largest:.3g} beside computed values, and no format holds both. Use a "
                f"number up to 2**32 ({MAX_CHOSEN:.1g}), best one just beyond what the values reach"
            )
    return None


def is_constant(argument: Any) -> bool:
    return isinstance(argument, Node) and argument.op == "get_attr"


def is_weight(argument: Any) -> bool:
    """Whether something is a constant, or one that the model itself rounds into a format."""
    if isinstance(argument, Node) and argument.target in (REQUANTIZE, REQUANTIZE_WEIGHTS):
        argument = argument.args[0]
    return is_constant(argument)


def is_image(argument: Any) -> str | None:
    return _is_sample(argument, 4, "images [batch, channels, height, width]")


def is_signal(argument: Any) -> str | None:
    return _is_sample(argument, 3, "signals [batch, channels, length]")


def _is_sample(argument: Any, rank: int, what: str) -> str | None:
    """What is wrong with an argument that must have that many dimensions, the batch first."""
    dims, axis = argument.meta["val"].dim(), argument.meta.get("batch_axis", 0)
    if dims != rank:
        return f"needs {what}, got {dims} dimensions"
    if isinstance(axis, Merged):
        return (
            f"needs {what}, and the batch here is merged with others: several a sample. Loop over "
            "them, or make them channels of a convolution with groups"
        )
    return None if axis == 0 else f"needs {what}, and the batch here is dimension {axis}"


def weights(node: Node, positions: Sequence[int], rounded: bool = True) -> str | None:
    """rounded: whether the model itself may round them into formats."""
    for position in positions:
        argument = arguments(node)[position]
        if argument is not None and not is_weight(argument):
            return "its weight is computed. Only weights that are constants have a lowering"
        if not rounded and argument is not None and not is_constant(argument):
            return (
                "the model rounds its weight into a format, and what it computes before that has "
                "none. Leave the weight out and multiply by the rounded one behind it"
            )
    return None
