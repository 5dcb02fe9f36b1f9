"""Convolutions as a 1x1 to few channels, the kernel between few channels, and a 1x1 behind: the
Tucker decomposition along inputs and outputs (Kim et al. 2015, arXiv 1511.06530).

Found by higher-order orthogonal iteration (De Lathauwer et al. 2000) from the eigenvectors of both
unfoldings times their transposes: those matrices are only channels by channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fxloom.passes.factorable import (
    Factors,
    Layer,
    Ranks,
    merged,
    part,
    pointwise,
    reason_against_mixing,
)
from fxloom.passes.factors import Chain
from fxloom.passes.low_rank import balanced, bases

SWEEPS = 100
"""At most so many; they end where one adds less than `GAIN` of what is there."""

GAIN = 1e-5


@dataclass(frozen=True)
class Tucker:
    """Ranks: channels behind the first 1x1, and channels before the last."""

    name: str = "tucker"

    def problem(self, layer: Layer) -> str:
        if found := reason_against_mixing(layer):
            return found
        if prod(layer.kernel) == 1:
            what = "a linear layer" if layer.is_linear else "a 1x1 convolution"
            return f"it is {what}, of which there is nothing between two 1x1. Use svd"
        return ""

    def full(self, layer: Layer) -> Ranks:
        places = prod(layer.kernel)
        n_in, n_out = layer.n_in, layer.n_out
        return min(n_in, n_out * places), min(n_out, n_in * places)

    def feasible(self, layer: Layer, ranks: Ranks) -> Ranks:
        inputs, outputs = (min(pair) for pair in zip(ranks, self.full(layer), strict=True))
        places = prod(layer.kernel)
        inputs = min(inputs, outputs * places)
        return inputs, min(outputs, inputs * places)

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        inputs, outputs = ranks
        groups = layer.groups
        core = (groups, outputs, inputs, *layer.kernel)
        return (groups, inputs, layer.n_in), core, (groups, layer.n_out, outputs)

    def factors(self, layer: Layer, ranks: Ranks, seed: int) -> Factors:
        weight = layer.grouped()
        flat = weight.flatten(3)
        first, last = iterated(flat, ranks)
        core = torch.einsum("gock,goq,gcp->gqpk", flat, last, first)
        core = core.reshape(*core.shape[:3], *layer.kernel)
        return balanced((first.transpose(1, 2), core, last))

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        first, core, last = factors
        kernel = part(layer, merged(layer, core), range(len(layer.kernel)))
        return pointwise(layer, first), kernel, pointwise(layer, last)

    def unfoldings(self, layer: Layer) -> tuple[tuple[Tensor, ...], ...]:
        flat = layer.grouped().flatten(3)
        return (flat.transpose(1, 2).flatten(2),), (flat.flatten(2),)


def iterated(weight: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the inputs, [groups, inputs, rank], and of the outputs, for weights
    [groups, outputs, inputs, places]: each the best beside the other."""
    inputs, outputs = ranks
    by_input = weight.transpose(1, 2)
    first = bases(by_input.flatten(2), inputs)
    last, kept = first, 0.0
    for _ in range(SWEEPS):
        last = bases(torch.einsum("gock,gcp->gopk", weight, first).flatten(2), outputs)
        seen = torch.einsum("gock,goq->gcqk", weight, last).flatten(2)
        first = bases(seen, inputs)
        before, kept = kept, float((first.transpose(1, 2) @ seen).square().sum())
        if kept - before <= GAIN * kept:
            break
    return first, last
