"""gather, the operator that writes slices, flips, repetitions and the like in a graph.

fxloom::gather takes entries along one dimension at indices that are literal numbers; Program has
an operation of the same name.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from fxloom.batch_rules import BatchAxis, Mixed, batch_rule, position_of


@torch.library.custom_op("fxloom::gather", mutates_args=())
def gather(x: Tensor, dim: int, indices: Sequence[int]) -> Tensor:
    """x[..., indices, ...] along dim. indices: in any order and number, non-negative."""
    return x.index_select(dim, torch.tensor(indices, device=x.device))


@gather.register_fake
def _shape(x: Tensor, dim: int, indices: Sequence[int]) -> Tensor:
    shape = list(x.shape)
    shape[dim] = len(indices)
    return x.new_empty(shape)


def _keep_shape(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.dim, ctx.indices = inputs
    ctx.shape = x.shape


def _scattered(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    index = torch.tensor(ctx.indices, device=gradient.device)
    return (gradient.new_zeros(ctx.shape).index_add(ctx.dim, index, gradient), None, None)


gather.register_autograd(_scattered, setup_context=_keep_shape)

GATHER = torch.ops.fxloom.gather.default


@batch_rule(GATHER)
def _gather(node: Node) -> BatchAxis:
    source, dim = node.args[:2]
    assert isinstance(source, Node)
    axis: BatchAxis = source.meta["batch_axis"]
    if position_of(axis) == dim:
        raise Mixed(f"it works along dimension {dim}, which holds the batch.")
    return axis
