"""Few numbers for the weights of one tensor: codebooks, hash buckets, products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fxloom.fixed_point import FixedPoint
from fxloom.passes.calibration import candidates
from fxloom.passes.kmeans import (
    Bins,
    Floats,
    Points,
    best_centroids,
    counts_of,
    least_errors,
    nearest,
    points_of,
)
from fxloom.passes.product_codes import product_indices
from fxloom.sharing import Codebook, Hashed, Products, Shared, counts, expanded, means

FLOAT_BITS = 32
"""Of a number that has no fixed-point format."""
MOST_CLUSTERS = 1024
"""Numbers of a codebook up to which one is looked for that keeps to an error."""
TRIED = (16, 64, 256, MOST_CLUSTERS)


@dataclass(frozen=True, eq=False)
class Coded:
    """What the weights of a tensor become: classes, and the number of each, float64 [classes]."""

    shared: Shared
    numbers: Tensor


@dataclass(eq=False)
class Weights:
    """The weights of one tensor. kept: those that are not pruned, None for all. centroid_bits: of
    the fixed-point numbers that they become; None for floats. books: codebooks, each for as many
    outputs as the others."""

    values: Tensor
    kept: Tensor | None
    centroid_bits: int | None
    books: int = 1
    _points: list[tuple[Points, Bins | None] | None] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Weights that are not pruned."""
        return self.values.numel() if self.kept is None else int(self.kept.sum())

    def by_kmeans(self, clusters: int) -> Coded:
        """At most that many numbers a codebook, with the least squared error."""
        found = self._of_books()
        books = [np.zeros(0) if each is None else best_centroids(each[0], clusters)
                 for each in found]  # fmt: skip
        if self.centroid_bits is not None:
            sizes = [np.zeros(0) if each is None else counts_of(each[0], book)
                     for each, book in zip(found, books, strict=True)]  # fmt: skip
            flat = in_fixed_point(np.concatenate(books), np.concatenate(sizes), self.centroid_bits)
            ends = np.cumsum([len(book) for book in books])
            books = [np.unique(book) for book in np.split(flat, ends[:-1])]
        size = max(len(book) for book in books)
        indices = torch.zeros(self.values.shape, dtype=torch.uint8 if size <= 256 else torch.int16)
        numbers = torch.zeros(self.books, size, dtype=torch.float64)
        for index, (points, book) in enumerate(zip(found, books, strict=True)):
            if points is None:
                continue
            numbers[index, : len(book)] = torch.from_numpy(book)
            rows = self._rows(index)
            chosen = nearest(self._values(rows), book, *points).to(indices.dtype)
            if self.kept is None:
                indices[rows] = chosen.reshape(indices[rows].shape)
            else:
                indices[rows].masked_scatter_(self.kept[rows], chosen)
        return Coded(Codebook.of(indices, size, self.books), numbers.flatten())

    def by_hash(self, buckets: int, seed: int) -> Coded:
        """Means of what falls into the same bucket."""
        return self.again(Hashed(tuple(self.values.shape), buckets, seed))

    def by_products(self, clusters: int, dim: int, seed: int) -> Coded:
        """Pieces of rows replaced by codewords (Lloyd's algorithm)."""
        rows = self.values.flatten(1).to(torch.float32)
        kept = None if self.kept is None else self.kept.flatten(1)
        indices = product_indices(rows, kept, clusters, dim, seed)
        size = int(indices.max()) + 1
        return self.again(Products.of(tuple(self.values.shape), indices, size, dim))

    def again(self, shared: Shared) -> Coded:
        """The best numbers for classes that are given."""
        numbers = means(shared, self.values, self.kept)
        if self.centroid_bits is not None:
            sizes = counts(shared, self.values, self.kept).double()
            rounded = in_fixed_point(numbers.numpy(), sizes.numpy(), self.centroid_bits)
            numbers = torch.from_numpy(rounded)
        return Coded(shared, numbers)

    def errors(self, most: int) -> Floats:
        """The least squared error with 1 to `most` numbers a codebook, relative to the squares of
        all weights; before their numbers are rounded."""
        total = np.zeros(most)
        for each in self._of_books():
            if each is not None:
                found = least_errors(each[0], most)
                total[: len(found)] += found
        return np.asarray(total / self._power)

    def fewest(self, error: float) -> int | None:
        """The fewest numbers a codebook that keep to a relative squared error; None where
        MOST_CLUSTERS do not."""
        for most in TRIED:
            fits = np.flatnonzero(self.errors(most) <= error)
            if len(fits):
                break
        else:
            return None
        # Rounded to fixed point, or joined in bins, they may take some more.
        clusters = int(fits[0]) + 1
        while clusters <= MOST_CLUSTERS:
            if self.error(self.by_kmeans(clusters)) <= error:
                return clusters
            clusters += max(clusters // 16, 1)
        return None

    def error(self, coded: Coded) -> float:
        """The squared error of coded weights, relative to the squares of all."""
        got = expanded(coded.shared, coded.numbers.to(self.values.dtype), self.kept)
        total = 0.0
        for rows, wanted in zip(
            torch.split(got, self._few), torch.split(self.values, self._few), strict=True
        ):
            total += float((rows.double() - wanted.double()).square().sum())
        return total / self._power

    @property
    def _power(self) -> float:
        parts = torch.split(self.values, self._few)
        squares = [float(rows.double().square().sum()) for rows in parts]
        return max(sum(squares), float(np.finfo(np.float64).tiny))

    @property
    def _few(self) -> int:
        """Rows of about a million weights."""
        return max((1 << 20) // max(self.values[0].numel(), 1), 1)

    def _rows(self, book: int) -> slice:
        rows = len(self.values)
        return slice(-(-book * rows // self.books), -(-(book + 1) * rows // self.books))

    def _values(self, rows: slice) -> Tensor:
        """What is kept of some outputs' weights, in one row."""
        part = self.values[rows]
        return part.reshape(-1) if self.kept is None else part[self.kept[rows]]

    def _of_books(self) -> Sequence[tuple[Points, Bins | None] | None]:
        """The different weights of each codebook; None where none are kept."""
        if not self._points:
            for book in range(self.books):
                values = self._values(self._rows(book))
                self._points.append(points_of(values) if values.numel() else None)
        return self._points


def in_fixed_point(numbers: Floats, sizes: Floats, bits: int) -> Floats:
    """Numbers rounded into the format of that many bits, sign included, with the least squared
    error. sizes: how often each occurs."""
    most = float(np.abs(numbers).max())
    rounded = [_in(numbers, to) for to in candidates(-most, most, bits, signed=True)]
    return min(rounded, key=lambda found: float(sizes @ np.square(found - numbers)))


def _in(numbers: Floats, to: FixedPoint) -> Floats:
    most = to.hi * to.step  # of both signs, so that a number may stand for its negative
    return np.clip(np.round(numbers / to.step) * to.step, -most, most)
