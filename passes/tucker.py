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

SMALL = 1 << 15
"""Up to so many weights there are random starts as well."""

STARTS = 3
"""That many."""

SWEEPS = 100
"""At most so many; they end where one takes less than `GAIN` of the squared error away."""

GAIN = 1e-4


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
        first, last = iterated(flat, ranks, seed)
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

    def kept(self, layer: Layer) -> Tensor:
        """[inputs, outputs], float64: of the squared weights what is kept at least at each pair of
        ranks, groups added."""
        flat = layer.grouped().flatten(3)
        inputs, outputs = self.full(layer)
        first = bases(flat.transpose(1, 2).flatten(2), inputs)
        last = bases(flat.flatten(2), outputs)
        core = torch.einsum("gock,goq,gcp->gpqk", flat, last, first)
        return core.to(torch.float64).square().sum((0, 3)).cumsum(0).cumsum(1)

    def cheapest(self, layer: Layer, energy: float) -> Ranks:
        """The ranks with the fewest weights at which so much of the squared weights is kept."""
        kept = self.kept(layer)
        inputs, outputs = (torch.arange(1, size + 1) for size in kept.shape)
        weights = inputs[:, None] * outputs * prod(layer.kernel)
        weights = weights + inputs[:, None] * layer.n_in + outputs * layer.n_out
        enough = kept >= (energy - 1e-12) * kept[-1, -1]
        place = int(torch.where(enough, weights, weights.max() + 1).argmin())
        return place // len(outputs) + 1, place % len(outputs) + 1


def iterated(weight: Tensor, ranks: Ranks, seed: int) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the inputs, [groups, inputs, rank], and of the outputs, for weights
    [groups, outputs, inputs, places]: each the best beside the other.

    seed: of the starts that are random, which small weights have besides.
    """
    inputs, _ = ranks
    groups, _, n_in, _ = weight.shape
    starts = [bases(weight.transpose(1, 2).flatten(2), inputs)]
    if weight.numel() <= SMALL:
        generator = torch.Generator().manual_seed(seed)
        shape = STARTS, groups, n_in, inputs
        starts += torch.linalg.qr(torch.randn(shape, generator=generator, dtype=weight.dtype))[0]
    found = (_iterated(weight, ranks, start) for start in starts)
    return max(found, key=lambda each: each[0])[1:]


def _iterated(weight: Tensor, ranks: Ranks, first: Tensor) -> tuple[float, Tensor, Tensor]:
    """What is kept of the squared weights, and both bases. first: of the inputs, to begin with."""
    inputs, outputs = ranks
    groups, n_out, n_in, places = weight.shape
    by_output = weight.transpose(2, 3).reshape(groups, n_out * places, n_in)
    by_input = weight.permute(0, 2, 3, 1).reshape(groups, n_in * places, n_out)
    total = float(weight.square().sum())
    last, kept = first, 0.0
    for _ in range(SWEEPS):
        last = bases((by_output @ first).reshape(groups, n_out, -1), outputs)
        seen = (by_input @ last).reshape(groups, n_in, -1)
        first = bases(seen, inputs)
        before, kept = kept, float((first.mT @ seen).square().sum())
        if kept - before <= GAIN * (total - kept):
            break
    return kept, first, last
