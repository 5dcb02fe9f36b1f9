"""Layers of several tensors: sums, products, choices, concatenation."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from fxloom.keras.description import Layer
from fxloom.keras.registry import Order, Refused, builds

Join = Callable[[Tensor, Tensor], Tensor]


class Merge(nn.Module):
    """keras.layers.Add, Subtract, Multiply, Average, Maximum, Minimum."""

    order: Order = "any"

    def __init__(self, join: Join, count: int | None = None, average: bool = False) -> None:
        """count: how many tensors there must be, if not any number."""
        super().__init__()
        self.join, self.count, self.average = join, count, average

    def forward(self, inputs: Any, *, channels_first: bool) -> Tensor:
        given = _list(inputs)
        if self.count not in (None, len(given)):
            raise ValueError(f"{self.count} tensors are required, {len(given)} arrived")
        joined = reduce(self.join, of_one_rank(given, channels_first))
        return joined / len(given) if self.average else joined


def of_one_rank(tensors: Sequence[Tensor], channels_first: bool) -> list[Tensor]:
    """Tensors of fewer dimensions get some of length 1 behind the batch, as Keras does."""
    most = max(tensor.dim() for tensor in tensors)
    wider = []
    for tensor in tensors:
        for _ in range(most - tensor.dim()):
            tensor = tensor.unsqueeze(2 if channels_first and tensor.dim() > 1 else 1)
        wider.append(tensor)
    return wider


class Concatenate(nn.Module):
    """keras.layers.Concatenate along any axis but the batch."""

    order: Order = "any"

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, inputs: Any, *, channels_first: bool) -> Tensor:
        given = _list(inputs)
        return torch.cat(given, axis_of(self.axis, given[0].dim(), channels_first))


def axis_of(axis: int, dims: int, channels_first: bool) -> int:
    """Where an axis of Keras is. Raises ValueError for the batch."""
    if axis % dims == 0:
        raise ValueError(f"axis {axis} of {dims} is the batch, required another")
    axis %= dims
    if not channels_first or dims < 3:
        return axis
    return 1 if axis == dims - 1 else axis + 1


def _list(inputs: Any) -> list[Tensor]:
    return [inputs] if isinstance(inputs, Tensor) else list(inputs)


_JOINS: dict[str, Join] = {
    "Add": torch.add,
    "Multiply": torch.mul,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
}


@builds(*_JOINS)
def _merge(layer: Layer) -> nn.Module:
    return Merge(_JOINS[layer.class_name])


@builds("Subtract")
def _subtract(layer: Layer) -> nn.Module:
    return Merge(torch.sub, count=2)


@builds("Average")
def _average(layer: Layer) -> nn.Module:
    return Merge(torch.add, average=True)


@builds("Concatenate")
def _concatenate(layer: Layer) -> nn.Module:
    if layer.config["axis"] == 0:
        raise Refused("axis=0 is the batch. Required another axis")
    return Concatenate(int(layer.config["axis"]))
