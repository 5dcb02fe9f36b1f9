"""What a layer is factored into: a chain of ordinary smaller layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """One layer of a chain: linear where its weight has two axes, else a convolution.

    weight: [outputs, inputs], or [outputs, inputs / groups, *kernel]. stride, padding, dilation: of
    a convolution, one number an axis of the kernel. view, order: of a linear layer that reads its
    input in another order (tensor trains): the last axis of the input is reshaped to `view` and
    permuted by `order`, the last axes of that which together have as many numbers as the layer has
    inputs are read as one, and the result is flattened to one axis again. Empty: read as it is.
    """

    weight: Tensor
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    view: tuple[int, ...] = ()
    order: tuple[int, ...] = ()

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear layer."""
        return self.weight.dim() == 2


Chain = tuple[Part, ...]
"""Layers one after another. The bias of the layer that they replace is added behind the last."""


def parameters(chain: Sequence[Part]) -> int:
    """How many weights a chain has."""
    return sum(part.weight.numel() for part in chain)


def macs(chain: Sequence[Part], positions: Sequence[int]) -> int:
    """Multiply-adds of one sample. positions: of each part, how often its weights are used."""
    return sum(part.weight.numel() * count for part, count in zip(chain, positions, strict=True))


def positions_of_row(part: Part) -> int:
    """How often a linear part's weights are used for one row of input."""
    return prod(part.view) // part.weight.shape[1] if part.view else 1
