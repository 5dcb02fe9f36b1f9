"""What can be lowered exactly: one check for each ATen op, asked at capture.

An op that is not in ``CHECKS`` is refused, and so is an attribute that its check does not know: a
model either fails here, with all its problems at once, or goes all the way to hardware.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.functions import FUNCTIONS
from fxloom.graph import arguments, describe, op_name, output_nodes

aten = torch.ops.aten

Check = Callable[[Node], str | None]
CHECKS: dict[Any, Check] = {}


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
        return f"no lowering. Supported: {', '.join(supported_ops())}"
    if node.kwargs and node.target not in FUNCTIONS:
        return f"arguments {', '.join(node.kwargs)} have no lowering. Leave them at their defaults"
    if node.meta.get("batch_axis", 0) is None:
        return "it depends on constants only and is computed anew. Store its result as a buffer"
    return check(node)


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


def supported_ops() -> list[str]:
    """Names of all ops that can be lowered, sorted."""
    return sorted({op_name(target).removeprefix("aten.").split(".")[0] for target in CHECKS})


def _is_constant(argument: Any) -> bool:
    return isinstance(argument, Node) and argument.op == "get_attr"


def _is_image(argument: Any) -> str | None:
    dims = argument.meta["val"].dim()
    if dims != 4 or argument.meta.get("batch_axis", 0) != 0:
        return f"needs images [batch, channels, height, width], got {dims} dimensions"
    return None


def _is_signal(argument: Any) -> str | None:
    dims = argument.meta["val"].dim()
    if dims != 3 or argument.meta.get("batch_axis", 0) != 0:
        return f"needs signals [batch, channels, length], got {dims} dimensions"
    return None


def _weights(node: Node, positions: Sequence[int]) -> str | None:
    for position in positions:
        argument = arguments(node)[position]
        if argument is not None and not _is_constant(argument):
            return "its weight is computed. Only weights that are constants have a lowering"
    return None


@checks(aten.linear.default)
def _linear(node: Node) -> str | None:
    return _weights(node, (1, 2))


@checks(aten.convolution.default)
def _convolution(node: Node) -> str | None:
    x, weight, _, _, _, _, transposed, _, _ = arguments(node)
    if transposed:
        return "transposed convolution has no lowering"
    spatial = weight.meta["val"].dim() - 2
    if spatial not in (1, 2):
        return f"only 1-D and 2-D convolution have a lowering, got {spatial}-D"
    return _weights(node, (1, 2)) or (_is_signal(x) if spatial == 1 else _is_image(x))


@checks(aten.batch_norm.default)
def _batch_norm(node: Node) -> str | None:
    if arguments(node)[5]:
        return "it is in training mode. Call set_training(graph, False)"
    if arguments(node)[3] is None or arguments(node)[4] is None:
        return "it keeps no running statistics. Use track_running_stats=True"
    if arguments(node)[0].meta.get("batch_axis", 0) != 0:
        return "the batch must be its first dimension"
    return _weights(node, (1, 2, 3, 4))


@checks(aten.relu.default, aten.reshape.default, aten.view.default, aten.permute.default)
def _anything(node: Node) -> str | None:
    return None


@checks(*FUNCTIONS)
def _function(node: Node) -> str | None:
    numbers = [n for n in (*arguments(node)[1:], *node.kwargs.values()) if isinstance(n, float)]
    bad = [n for n in numbers if not isfinite(n)]
    return f"its parameters must be finite, got {bad[0]}" if bad else None


@checks(aten.softmax.int)
def _softmax(node: Node) -> str | None:
    if arguments(node)[2] not in (None, arguments(node)[0].meta["val"].dtype):
        return f"dtype={arguments(node)[2]} has no lowering. Leave the dtype out"
    return None


@checks(aten.clamp.default, aten.leaky_relu.default)
def _numbers(node: Node) -> str | None:
    bad = [n for n in arguments(node)[1:] if n is not None and not isfinite(n)]
    return f"its bounds must be finite, got {bad[0]}" if bad else None


@checks(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor)
def _merge(node: Node) -> str | None:
    for argument in arguments(node)[:2]:
        if isinstance(argument, complex) or (
            isinstance(argument, int | float) and not isfinite(argument)
        ):
            return f"needs finite real numbers, got {argument}"
    return None


@checks(aten.div.Tensor)
def _division(node: Node) -> str | None:
    dividend, divisor = arguments(node)[:2]
    if not isinstance(dividend, Node) or dividend.meta.get("batch_axis", 0) is None:
        return "a constant divided by a computed tensor has no lowering"
    if isinstance(divisor, Node):
        if not _is_constant(divisor):
            return "division by a computed tensor has no lowering"
        return None
    if not isfinite(divisor) or divisor == 0:
        return f"needs a finite divisor that is not zero, got {divisor}"
    return None


@checks(aten.max_pool1d.default, aten.max_pool2d.default)
def _max_pool(node: Node) -> str | None:
    if any(n != 1 for n in arguments(node)[4]):
        return f"a max pool with dilation {tuple(arguments(node)[4])} has no lowering"
    x = arguments(node)[0]
    return _is_signal(x) if node.target is aten.max_pool1d.default else _is_image(x)


@checks(aten.avg_pool1d.default)
def _avg_pool1d(node: Node) -> str | None:
    return _is_signal(arguments(node)[0])


@checks(aten.avg_pool2d.default)
def _avg_pool(node: Node) -> str | None:
    divisor = arguments(node)[6]
    if divisor is not None and divisor < 1:
        return f"divisor_override must be positive, got {divisor}"
    return _is_image(arguments(node)[0])


@checks(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default)
def _adaptive_pool(node: Node) -> str | None:
    x, outputs = arguments(node)
    problem = _is_signal(x) if len(outputs) == 1 else _is_image(x)
    if problem is not None:
        return problem
    for size, count in zip(x.meta["val"].shape[-len(outputs) :], outputs, strict=True):
        if count < 1 or size % count:
            return (
                f"adaptive pooling of {size} positions to {count} has windows of unequal size. "
                f"Choose an output size that divides {size}"
            )
    return None


@checks(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default)
def _reduction(node: Node) -> str | None:
    if not arguments(node)[1]:
        return "needs the dimensions to reduce; none means all, the batch among them"
    return None


@checks(aten.cat.default)
def _cat(node: Node) -> str | None:
    for part in arguments(node)[0]:
        if part.op == "get_attr":
            return "a constant among the concatenated tensors has no lowering"
    return None


@checks(aten.constant_pad_nd.default)
def _pad(node: Node) -> str | None:
    x, amounts, fill = arguments(node)[:3]
    if fill != 0:
        return f"padding with {fill} has no lowering, only with 0"
    if min(amounts, default=0) < 0:
        return "negative padding (cropping) has no lowering"
    if len(amounts) // 2 > x.meta["val"].dim() - 1:
        return "the batch cannot be padded"
    return None
