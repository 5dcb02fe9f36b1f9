"""Linear maps from data, of full and of low rank.

Reduced-rank regression (Izenman 1975, doi 10.1016/0047-259X(75)90042-1): the map of rank r that
gives outputs best from inputs is the one of full rank, projected onto the leading eigenvectors of
what it gives. Where inputs say little the old weights pull. With fewer rows than inputs nothing
here is as large as a covariance of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxloom.passes.low_rank import balanced
from fxloom.passes.second_order import NOISE

DOUBLE = 1024
"""Inputs up to which products are float64."""


Roots = tuple[Tensor, Tensor]
"""[groups, outputs, outputs]: the symmetric root of a metric, and its inverse."""


class Fitted(Protocol):
    """A map W [groups, outputs, inputs] of full rank."""

    def given(self) -> Tensor:
        """[groups, rows, outputs]: of the rows that it was fitted to."""

    def squares(self) -> Tensor:
        """[groups, outputs, outputs]: W W'."""

    def onto(self, directions: Tensor) -> Tensor:
        """[groups, rank, inputs]: directions [groups, rank, outputs] times W."""

    def weights(self) -> Tensor:
        """W."""


@dataclass(frozen=True, eq=False)
class Regression:
    """Rows x [groups, rows, inputs] and what is wanted y [groups, rows, outputs].

    weights: [groups, outputs, inputs], which pull. noise: [groups, 1, 1], how much.
    """

    x: Tensor
    y: Tensor
    weights: Tensor
    noise: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weights: Tensor, ridge: float, centred: bool) -> Regression:
        """ridge: pull of the weights, relative to the mean variance of an input. centred: whether
        a bias takes care of the means."""
        dtype = torch.float64 if x.shape[2] <= DOUBLE else torch.float32
        x, y = x.to(dtype), y.to(dtype)
        square = x.square().mean((1, 2), dtype=torch.float64)
        if centred:
            x, y = (each - each.mean(1, keepdim=True) for each in (x, y))
        level = x.square().mean((1, 2), dtype=torch.float64)
        # Constant inputs say nothing: then all weights count alike.
        noise = torch.where(level > NOISE * square, ridge * level, 1.0) * x.shape[1]
        return cls(x, y, weights.to(dtype), noise[:, None, None])

    def fitted(self) -> Fitted:
        """The map that comes nearest."""
        wrong = self.y - self.x @ self.weights.transpose(1, 2)
        flipped = self.x.transpose(1, 2)
        if self.x.shape[1] < self.x.shape[2]:
            gram = (self.x @ flipped).double()
            return _FewRows(self, self.y - wrong, gram, _solved(gram, self.noise, wrong))
        change = _solved((flipped @ self.x).double(), self.noise, flipped @ wrong)
        return _ManyRows(self.x, self.weights + change.transpose(1, 2))

    def reduced(self, rank: int, roots: Roots) -> tuple[Tensor, Tensor]:
        """[groups, outputs, rank] and [groups, rank, inputs]: the two maps that come nearest."""
        fitted = self.fitted()
        given = fitted.given()
        spread = (given.transpose(1, 2) @ given).to(roots[0].dtype)
        spread += self.noise.to(spread.dtype) * fitted.squares().to(spread.dtype)
        return projected(fitted, spread, rank, roots)


def projected(
    fitted: Fitted | Fixed, spread: Tensor, rank: int, roots: Roots
) -> tuple[Tensor, Tensor]:
    """[groups, outputs, rank] and [groups, rank, inputs]: a map projected onto the leading
    directions of what it gives.

    spread: mean products of that, [groups, outputs, outputs]. roots: of the metric in which outputs
    are near.
    """
    root, inverse = roots
    basis = torch.linalg.eigh(root @ spread @ root)[1][..., -rank:].flip(-1)
    right = fitted.onto(basis.transpose(1, 2) @ root)
    right, left = balanced((right, (inverse @ basis).to(right.dtype)))
    return left, right


@dataclass(frozen=True, eq=False)
class Fixed:
    """A map as it is."""

    map: Tensor

    def onto(self, directions: Tensor) -> Tensor:
        """Directions times the map."""
        return directions.to(self.map.dtype) @ self.map


@dataclass(frozen=True, eq=False)
class _ManyRows:
    x: Tensor
    map: Tensor

    def given(self) -> Tensor:
        return self.x @ self.map.transpose(1, 2)

    def squares(self) -> Tensor:
        return self.map @ self.map.transpose(1, 2)

    def onto(self, directions: Tensor) -> Tensor:
        return directions.to(self.map.dtype) @ self.map

    def weights(self) -> Tensor:
        return self.map


@dataclass(frozen=True, eq=False)
class _FewRows:
    """The weights and steps' x: what is added to them is combined of the rows.

    before: what the weights give. gram: x x'. steps: [groups, rows, outputs].
    """

    problem: Regression
    before: Tensor
    gram: Tensor
    steps: Tensor

    def given(self) -> Tensor:
        return self.before + self.gram.to(self.steps.dtype) @ self.steps

    def squares(self) -> Tensor:
        weights, steps = self.problem.weights, self.steps.transpose(1, 2)
        crossed = steps @ self.before
        added = steps @ (self.gram.to(steps.dtype) @ self.steps)
        return weights @ weights.transpose(1, 2) + crossed + crossed.transpose(1, 2) + added

    def onto(self, directions: Tensor) -> Tensor:
        directions = directions.to(self.steps.dtype)
        combined = (directions @ self.steps.transpose(1, 2)) @ self.problem.x
        return directions @ self.problem.weights + combined

    def weights(self) -> Tensor:
        return self.problem.weights + self.steps.transpose(1, 2) @ self.problem.x


def _solved(gram: Tensor, noise: Tensor, right: Tensor) -> Tensor:
    """(gram + noise) ** -1 right, in the type of the right side."""
    matrix = gram.clone()
    matrix.diagonal(dim1=1, dim2=2).add_(noise[:, :, 0])
    factor = torch.linalg.cholesky(matrix)
    return torch.cholesky_solve(right.double(), factor).to(right.dtype)
