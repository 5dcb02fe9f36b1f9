"""Convolutions as a 1x1 to as many channels as there are terms, a depthwise convolution along each
axis of the kernel, and a 1x1 behind (Lebedev et al. 2015, arXiv 1412.6553)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fxloom.passes.factorable import (
    Factors,
    Layer,
    Ranks,
    axes_of,
    merged,
    part,
    pointwise,
    reason_against_mixing,
    shaped,
)
from fxloom.passes.factors import Chain
from fxloom.passes.polyadic import enough, polyadic


@dataclass(frozen=True)
class Canonical:
    """One rank: how many terms there are, the channels between the parts.

    How many a layer needs is not known; as many as its full rank always suffice.
    """

    name: str = "cp"

    def problem(self, layer: Layer) -> str:
        if found := reason_against_mixing(layer):
            return found
        if prod(layer.kernel) == 1:
            what = "a linear layer" if layer.is_linear else "a 1x1 convolution"
            return f"it is {what}, a matrix, of which terms are those of svd. Use svd"
        return ""

    def full(self, layer: Layer) -> Ranks:
        return (enough(self._sizes(layer)),)

    def feasible(self, layer: Layer, ranks: Ranks) -> Ranks:
        return (min(ranks[0], *self.full(layer)),)

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        (rank,) = ranks
        n_out, n_in, *kernel = self._sizes(layer)
        groups = layer.groups
        between = ((groups, rank, 1, size) for size in kernel)
        return (groups, rank, n_in), *between, (groups, n_out, rank)

    def factors(self, layer: Layer, ranks: Ranks, seed: int) -> Factors:
        last, first, *between = polyadic(self._tensor(layer), ranks[0], seed)
        return first.mT, *(each.mT.unsqueeze(2) for each in between), last

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        first, *between, last = factors
        kernels = []
        for factor, axes in zip(between, axes_of(layer), strict=True):
            weight = shaped(layer, merged(layer, factor), axes[0])
            kernels.append(part(layer, weight, axes, len(weight)))
        return pointwise(layer, first), *kernels, pointwise(layer, last)

    def unfoldings(self, layer: Layer) -> tuple[tuple[Tensor, ...], ...]:
        tensor = self._tensor(layer)
        return (tuple(tensor.movedim(axis, 1).flatten(2) for axis in range(1, tensor.dim())),)

    def _sizes(self, layer: Layer) -> tuple[int, ...]:
        return layer.n_out, layer.n_in, *(layer.kernel[axes[0]] for axes in axes_of(layer))

    def _tensor(self, layer: Layer) -> Tensor:
        """[groups, outputs, inputs, *sizes], without axes of length 1."""
        weight = layer.grouped().to(torch.float64)
        return weight.reshape(layer.groups, *self._sizes(layer))
