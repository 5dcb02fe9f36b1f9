"""Fold batch normalisation into the layers before it, or else write it as scale and shift.

In inference a batch norm is ``x * s + t`` for every channel, with s = gamma / sqrt(var + eps) and
t = beta - mean * s (Ioffe & Szegedy 2015; Jacob et al. 2018, section 3.2). On its way to
the layer it may pass what it commutes with: moves, averages, concatenations, and maxima where it
does not turn the order around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.editing import broadcastable, copy_graph, finish, float64, release_tensor, tensor_node
from fxloom.graph import arguments, constant, insert_like, origin, refresh_shapes
from fxloom.passes.commuting import commuted, is_transposed
from fxloom.recipe import PassResult

if TYPE_CHECKING:
    from fxloom.data import Data

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldBatchnorm:
    """Remove every batch norm; the graph computes the same up to float rounding."""

    name: ClassVar[str] = "fold_batchnorm"

    def __call__(self, graph: GraphModule, data: Data | None = None) -> PassResult:
        result = copy_graph(graph)
        folded: list[str] = []
        affine: list[str] = []
        for node in list(result.graph.nodes):
            if node.target is not aten.batch_norm.default:
                continue
            scale, shift = _scale_and_shift(result, node)
            folds = commuted(node.all_input_nodes[0], 1, scale, shift)
            if folds is not None and len({fold.layer for fold in folds}) == len(folds):
                for fold in folds:
                    _fold(result, fold.layer, fold.scale, fold.shift)
                node.replace_all_uses_with(node.all_input_nodes[0])
                result.graph.erase_node(node)  # the layer's only reader is what follows
                folded.append(origin(node))
            else:
                _as_affine(result, node, scale, shift)
                affine.append(origin(node))
        if not folded and not affine:
            return PassResult(graph, False, {"folded": [], "affine": []})
        finish(result)
        refresh_shapes(result)
        return PassResult(result, True, {"folded": folded, "affine": affine})


def _scale_and_shift(module: GraphModule, node: Node) -> tuple[Tensor, Tensor]:
    """Scale and shift of every channel, float64."""
    gamma, beta, mean, var = (
        None if arg is None else float64(constant(module, arg.target))
        for arg in arguments(node)[1:5]
    )
    assert mean is not None
    assert var is not None
    scale = 1 / torch.sqrt(var + arguments(node)[7])
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    if beta is not None:
        shift = shift + beta
    return scale, shift


def _fold(module: GraphModule, layer: Node, scale: Tensor, shift: Tensor) -> None:
    weight_node, bias_node = arguments(layer)[1:3]
    assert isinstance(weight_node, Node)
    weight = constant(module, weight_node.target)
    if is_transposed(layer):  # [inputs, outputs / groups, ...], group after group of inputs
        groups = arguments(layer)[8]
        split = float64(weight).reshape(groups, -1, *weight.shape[1:])
        factors = scale.reshape(groups, 1, -1, *(1,) * (weight.dim() - 2))
        folded = (split * factors).reshape(weight.shape).to(weight.dtype)
    else:
        factors = scale.reshape(-1, *(1,) * (weight.dim() - 1))
        folded = (float64(weight) * factors).to(weight.dtype)
    bias = shift
    if isinstance(bias_node, Node):
        bias = float64(constant(module, bias_node.target)) * scale + shift
    name = release_tensor(module, weight_node)
    layer.update_arg(1, tensor_node(module, layer, name, folded))
    if isinstance(bias_node, Node):
        name = release_tensor(module, bias_node)
    else:
        name = f"{origin(layer)}.bias"
    layer.update_arg(2, tensor_node(module, layer, name, bias.to(weight.dtype)))


def _as_affine(module: GraphModule, node: Node, scale: Tensor, shift: Tensor) -> None:
    x = arguments(node)[0]
    assert isinstance(x, Node)
    dtype = x.meta["val"].dtype
    s = tensor_node(
        module, node, f"{origin(node)}.scale", broadcastable(scale, x).to(dtype).contiguous()
    )
    t = tensor_node(
        module, node, f"{origin(node)}.shift", broadcastable(shift, x).to(dtype).contiguous()
    )
    with module.graph.inserting_before(node):
        scaled = insert_like(module.graph, node, aten.mul.Tensor, (x, s))
        shifted = insert_like(module.graph, node, aten.add.Tensor, (scaled, t))
    for new in (scaled, shifted):
        new.meta |= {"val": node.meta["val"], "batch_axis": node.meta["batch_axis"]}
    node.replace_all_uses_with(shifted)
