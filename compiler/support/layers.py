"""Layers with weights, and batch normalisation."""

import torch
from torch.fx.node import Node

from fxloom.graph import arguments
from fxloom.support.core import checks, is_image, is_signal, weights

aten = torch.ops.aten


@checks(aten.linear.default)
def _linear(node: Node) -> str | None:
    return weights(node, (1, 2))


@checks(aten.convolution.default)
def _convolution(node: Node) -> str | None:
    x, weight = arguments(node)[:2]
    spatial = weight.meta["val"].dim() - 2
    if spatial not in (1, 2):
        return f"only 1-D and 2-D convolution have a lowering, got {spatial}-D"
    return weights(node, (1, 2)) or (is_signal(x) if spatial == 1 else is_image(x))


@checks(aten.batch_norm.default)
def _batch_norm(node: Node) -> str | None:
    if arguments(node)[5]:
        return "it is in training mode. Call set_training(graph, False)"
    if arguments(node)[3] is None or arguments(node)[4] is None:
        return "it keeps no running statistics. Use track_running_stats=True"
    if arguments(node)[0].meta.get("batch_axis", 0) != 0:
        return "the batch must be its first dimension"
    return weights(node, (1, 2, 3, 4), rounded=False)
