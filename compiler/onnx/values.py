"""Tensors while a graph is read: each is known at two batch sizes, by its values or its shape.

What an exporter computes from shapes (Shape, Gather, Concat, Reshape, ...) thus becomes numbers,
and what depends on the batch size is what differs between the two.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fxloom.onnx.given import Integers


@dataclass(frozen=True)
class Value:
    """A tensor at both batch sizes. known: by its values; else only its shape and type count.

    A constant is the same object at both. A constant that a quantizer rounded keeps in `rounding`
    what integers it consists of, for layers that have weights. pair: scale and zero point of a
    QuantizeLinear that only a DequantizeLinear can follow.
    """

    first: Tensor
    second: Tensor
    known: bool = False
    rounding: Integers | None = None
    pair: tuple[Tensor, Tensor] | None = None

    @property
    def constant(self) -> bool:
        return self.known and self.first is self.second

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return tuple(self.first.shape), tuple(self.second.shape)

    @property
    def batch_axis(self) -> int | None:
        """The dimension that grows with the batch, None where none does."""
        pairs = zip(*self.shapes, strict=True)
        return next((dim for dim, (one, other) in enumerate(pairs) if one != other), None)

    def at(self, place: int) -> Tensor:
        return (self.first, self.second)[place]


def constant(tensor: Tensor, rounding: Integers | None = None) -> Value:
    """A value that does not depend on the batch."""
    return Value(tensor, tensor, True, rounding)


def joined(first: Tensor, second: Tensor) -> Value:
    """What was computed from known values at both batch sizes: a constant where it is the same."""
    same = first.shape == second.shape and first.dtype == second.dtype
    if same and torch.equal(first, second):
        return constant(first)
    return Value(first, second, True)
