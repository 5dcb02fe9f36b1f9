"""Pools and reductions."""

import torch
from torch.fx.node import Node

from fxloom.graph import arguments
from fxloom.support.core import checks, is_image, is_signal

aten = torch.ops.aten


@checks(aten.max_pool1d.default, aten.max_pool2d.default)
def _max_pool(node: Node) -> str | None:
    if any(n != 1 for n in arguments(node)[4]):
        return f"a max pool with dilation {tuple(arguments(node)[4])} has no lowering"
    x = arguments(node)[0]
    return is_signal(x) if node.target is aten.max_pool1d.default else is_image(x)


@checks(aten.avg_pool1d.default)
def _avg_pool1d(node: Node) -> str | None:
    return is_signal(arguments(node)[0])


@checks(aten.avg_pool2d.default)
def _avg_pool(node: Node) -> str | None:
    divisor = arguments(node)[6]
    if divisor is not None and divisor < 1:
        return f"divisor_override must be positive, got {divisor}"
    return is_image(arguments(node)[0])


@checks(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default)
def _adaptive_pool(node: Node) -> str | None:
    x, outputs = arguments(node)
    problem = is_signal(x) if len(outputs) == 1 else is_image(x)
    if problem is not None:
        return problem
    for size, count in zip(x.meta["val"].shape[-len(outputs) :], outputs, strict=True):
        if count < 1 or size % count:
            return (
                f"adaptive pooling of {size} positions to {count} has windows of unequal size. "
                f"Choose an output size that divides {size}"
            )
    return None


@checks(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
def _reduction(node: Node) -> str | None:
    if not arguments(node)[1]:
        return "needs the dimensions to reduce; none means all, the batch among them"
    if any(arguments(node)[3:]):
        return "a dtype of its own has no lowering. Leave the dtype out"
    return None
