"""What each layer holds and computes: parameters, those that are not zero, multiply-adds.

Counted from the graph and its shapes, float or quantized. Multiply-adds are those of one sample in
linear layers, convolutions, products of matrices and attention; sums, norms and functions have
none. A tensor that several layers read counts once, for the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.graph import BATCH, arguments, constant, origin

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """nonzero: of the parameters. macs: multiply-adds of one sample."""

    parameters: int = 0
    nonzero: int = 0
    macs: int = 0

    def __add__(self, other: LayerFigures) -> LayerFigures:
        return LayerFigures(
            self.parameters + other.parameters,
            self.nonzero + other.nonzero,
            self.macs + other.macs,
        )


def layer_figures(graph: fx.GraphModule) -> dict[str, LayerFigures]:
    """The figures of every layer that has any, by its name, in the order of the graph.

    Parameters are those that train; buffers such as running statistics do not count.
    """
    found: dict[str, LayerFigures] = {}
    counted: set[object] = set()
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        figures = LayerFigures(macs=multiply_adds(node))
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                figures += _held(constant(graph, source.target), str(source.target), counted)
        if figures != LayerFigures():
            found[origin(node)] = found.get(origin(node), LayerFigures()) + figures
    return found


def total(figures: Mapping[str, LayerFigures] | Iterable[LayerFigures]) -> LayerFigures:
    """The sum over all layers."""
    each = figures.values() if isinstance(figures, Mapping) else figures
    return sum(each, LayerFigures())


def multiply_adds(node: Node) -> int:
    """Multiply-adds of one sample; 0 where a node multiplies no matrix."""
    count = _COUNTS.get(node.target)
    return 0 if count is None else count(node)


def _held(tensor: Tensor, name: str, counted: set[object]) -> LayerFigures:
    if not isinstance(tensor, torch.nn.Parameter):
        return LayerFigures()
    where = (tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
    key: object = name if tensor.is_meta or not tensor.numel() else where
    if key in counted:
        return LayerFigures()
    counted.add(key)
    nonzero = 0 if tensor.is_meta else int(tensor.count_nonzero())
    return LayerFigures(tensor.numel(), nonzero)


def _sizes(argument: Any) -> list[int]:
    """A shape for one sample."""
    shape = argument.meta["val"].shape
    return [size // BATCH if size and size % BATCH == 0 else size for size in shape]


def _linear(node: Node) -> int:
    return prod(_sizes(node)) * _sizes(arguments(node)[1])[1]


def _convolution(node: Node) -> int:
    source, weight, transposed = arguments(node)[0], arguments(node)[1], arguments(node)[6]
    return prod(_sizes(source if transposed else node)) * prod(_sizes(weight)[1:])


def _product(node: Node) -> int:
    return prod(_sizes(node)) * _sizes(arguments(node)[0])[-1]


def _attention(node: Node) -> int:
    """Queries times keys, and their weights times the values."""
    query, key, value = (_sizes(argument) for argument in arguments(node)[:3])
    scores = prod(query[:-1]) * key[-2]
    return scores * (query[-1] + value[-1])


_COUNTS: dict[Any, Callable[[Node], int]] = {
    aten.linear.default: _linear,
    aten.convolution.default: _convolution,
    aten.matmul.default: _product,
    aten.bmm.default: _product,
    aten.scaled_dot_product_attention.default: _attention,
}
