"""Batch norms between the parts of a factored layer: statistics with which they change nothing.

Tai et al. (2015, arXiv 1511.06067) put them between the two layers that a convolution becomes, so
that the pair trains. Here training begins at the layer that was factored.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.graph import arguments, constant
from fxloom.passes.calibration import Batch, observe
from fxloom.passes.layerwise import replace_tensor


def measure_norms(module: fx.GraphModule, norms: Iterable[Node], batches: Iterable[Batch]) -> None:
    """Give batch norms that were just written the statistics of data, and the scale and offset with
    which they still change nothing.

    batches: as the graph takes them.
    """
    seen = {node: Moments() for node in norms}
    observe(module, batches, {arguments(node)[0]: [each] for node, each in seen.items()})
    for node, moments in seen.items():
        variance = moments.variance
        values = ((variance + arguments(node)[7]).sqrt(), moments.mean, moments.mean, variance)
        for source, tensor in zip(arguments(node)[1:5], values, strict=True):
            name = str(source.target)
            replace_tensor(module, name, tensor.to(constant(module, name).dtype))


class Moments:
    """Mean and variance of every channel, the second axis, in float64."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def see(self, x: Tensor) -> None:
        """Add the values of a tensor."""
        values = x.to(torch.float64).transpose(0, 1).flatten(1)
        self._count += values.shape[1]
        self._sum = self._sum + values.sum(1)
        self._squares = self._squares + values.square().sum(1)

    @property
    def mean(self) -> Tensor:
        """Of every channel."""
        return self._sum / self._count

    @property
    def variance(self) -> Tensor:
        """Of every channel, not below zero."""
        return (self._squares / self._count - self.mean.square()).clamp_(min=0)
