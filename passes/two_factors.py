"""Layers as pairs of smaller ones, by the singular value decomposition of one matrix.

svd      a linear layer: two; a convolution: one of the same kernel with few filters, and a 1x1
         that mixes them (Zhang et al. 2015, arXiv 1505.06798; Denton et al. 2014, arXiv
         1404.0736)
spatial  a convolution of two axes: a column of it, and a row (Jaderberg et al. 2014, arXiv
         1405.3866; in closed form Tai et al. 2015, arXiv 1511.06067)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxloom.passes.factorable import (
    Factors,
    Layer,
    Ranks,
    TwoFactors,
    merged,
    part,
    pointwise,
    reason_against_all,
    reason_against_mixing,
)
from fxloom.passes.factors import Chain
from fxloom.passes.low_rank import bases, split


@dataclass(frozen=True)
class Svd:
    """Few outputs in the layer's own form, and what mixes them."""

    name: str = "svd"

    def problem(self, layer: Layer) -> str:
        return reason_against_mixing(layer)

    def full(self, layer: Layer) -> Ranks:
        return (min(layer.n_out, layer.weight[0].numel()),)

    def feasible(self, layer: Layer, ranks: Ranks) -> Ranks:
        return (min(ranks[0], *self.full(layer)),)

    def matrix(self, layer: Layer) -> Tensor:
        return layer.grouped().flatten(2)

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        (rank,) = ranks
        columns = layer.weight[0].numel()
        return (layer.groups, layer.n_out, rank), (layer.groups, rank, columns)

    def factors(self, layer: Layer, ranks: Ranks, seed: int) -> Factors:
        return _factors(self, layer, ranks, seed)

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        left, right = factors
        weight = merged(layer, right.reshape(*right.shape[:2], *layer.weight.shape[1:]))
        return part(layer, weight, range(len(layer.kernel))), pointwise(layer, left)

    def unfoldings(self, layer: Layer) -> tuple[tuple[Tensor, ...], ...]:
        return ((self.matrix(layer),),)


@dataclass(frozen=True)
class Spatial:
    """A column of the kernel with few outputs, and a row of it that mixes them."""

    name: str = "spatial"

    def problem(self, layer: Layer) -> str:
        if found := reason_against_all(layer):
            return found
        if len(layer.kernel) != 2 or min(layer.kernel) < 2:
            shown = "x".join(map(str, layer.kernel)) or "none: it is a linear layer"
            return f"required a kernel of two axes, both longer than 1, got {shown}"
        return ""

    def full(self, layer: Layer) -> Ranks:
        height, width = layer.kernel
        return (min(layer.n_in * height, layer.n_out * width),)

    def feasible(self, layer: Layer, ranks: Ranks) -> Ranks:
        return (min(ranks[0], *self.full(layer)),)

    def matrix(self, layer: Layer) -> Tensor:
        """Rows: outputs times the kernel's width; columns: inputs times its height."""
        weight = layer.grouped().permute(0, 1, 4, 2, 3)
        return weight.flatten(3).flatten(1, 2)

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        (rank,) = ranks
        height, width = layer.kernel
        rows, columns = layer.n_out * width, layer.n_in * height
        return (layer.groups, rows, rank), (layer.groups, rank, columns)

    def factors(self, layer: Layer, ranks: Ranks, seed: int) -> Factors:
        return _factors(self, layer, ranks, seed)

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        left, right = factors
        height, width = layer.kernel
        column = right.reshape(*right.shape[:2], layer.n_in, height, 1)
        row = left.reshape(layer.groups, layer.n_out, width, 1, -1).permute(0, 1, 4, 3, 2)
        return part(layer, merged(layer, column), [0]), part(layer, merged(layer, row), [1])

    def unfoldings(self, layer: Layer) -> tuple[tuple[Tensor, ...], ...]:
        return ((self.matrix(layer),),)


def _factors(method: TwoFactors, layer: Layer, ranks: Ranks, seed: int) -> Factors:
    matrix = method.matrix(layer)
    return split(matrix, bases(matrix, ranks[0], seed))
