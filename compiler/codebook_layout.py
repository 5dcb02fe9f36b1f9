"""Matrices of few different values, laid out for one multiplication in place of many.

Two orders compute the same. Sums first: for every output the inputs that meet the same value are
added up, and each sum is multiplied once. Products first: every input is multiplied by every value
once, and each output adds up the products that it wants, by their numbers in the codebook. The
first has one multiplication for every value of every output, the second one for every value of
every input.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fxloom.distinct import codebook, kept
from fxloom.fixed_point import Int64Array, IntArray
from fxloom.sparse_layout import SparseLayout, entries, in_lanes

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

CHUNK = 1 << 20
"""Weights that are looked at together."""


@dataclass(frozen=True, slots=True)
class SumsLayout:
    """Sums first.

    adding: lanes that add one input a step; its outputs are sums, numbered output by output and
    value by value, its weights are 1. multiplying: lanes that multiply these sums by their values.
    """

    adding: SparseLayout
    multiplying: SparseLayout

    @property
    def sums(self) -> int:
        """How many there are."""
        return self.adding.outputs[-1] + 1


def sums_layout(weight: IntArray, groups: int, reuse: int) -> SumsLayout:
    """The layout of w[..., channels / groups, n_out] for lanes of at most `reuse` steps.

    A matrix of zeros has one sum, which is multiplied by zero.
    """
    outputs, indices, values = entries(weight, groups)
    if not outputs.size:
        outputs = indices = np.zeros(1, np.int64)
        values = np.zeros(1, np.int8)
    order = np.lexsort((values, outputs))
    outputs, indices, values = outputs[order], indices[order], values[order]
    fresh = np.ones(outputs.size, bool)
    fresh[1:] = (outputs[1:] != outputs[:-1]) | (values[1:] != values[:-1])
    owners = np.cumsum(fresh) - 1
    adding = in_lanes(owners, indices, np.ones(owners.size, np.int8), reuse)
    multiplying = in_lanes(outputs[fresh], np.arange(owners[-1] + 1), values[fresh], adding.reuse)
    return SumsLayout(adding, multiplying)


@dataclass(frozen=True, slots=True)
class Codebooks:
    """The different values of a matrix that are not zero.

    values: [codebooks, k], filled up with zeros; the outputs are divided evenly among them. zeros:
    whether weights are zero, which takes a symbol of its own.
    """

    values: IntArray
    zeros: bool

    @property
    def books(self) -> int:
        return len(self.values)

    @property
    def size(self) -> int:
        """Values of the largest codebook."""
        size: int = self.values.shape[1]
        return size

    @property
    def symbols(self) -> int:
        """How many different indices there are."""
        return self.size + self.zeros


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Which values a matrix has, and for which outputs.

    values: those that are not zero, ascending; by_output: [outputs, values]; nonzero: how many
    weights are not zero; zeros: whether some are.
    """

    values: IntArray
    by_output: BoolArray
    nonzero: int
    zeros: bool

    def codebooks(self, books: int) -> Codebooks:
        """One for each of so many equal parts of the outputs."""
        part = len(self.by_output) // books
        found = self.by_output.reshape(books, part, len(self.values)).any(1)
        sizes = found.sum(1)
        filled = np.zeros((books, max(int(sizes.max(initial=0)), 1)), self.values.dtype)
        book, value = np.nonzero(found)
        place = np.arange(len(book)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        filled[book, place] = self.values[value]
        return Codebooks(filled, self.zeros)


def occurrence(weights: IntArray) -> Occurrence:
    """Of weights [kernel positions, groups, inputs of a group, outputs of a group].

    Kept as long as the array is that it is all of: constants of programs do not change.
    """
    return kept(_KEPT, weights, (weights.shape, weights.strides), _occurrence)


_KEPT: dict[Any, Occurrence] = {}


def _occurrence(weights: IntArray) -> Occurrence:
    _, groups, inputs, outputs = weights.shape
    few = codebook(weights)
    seen: IntArray = np.unique(weights) if few is None else few
    values = seen[seen != 0]
    rows = weights.reshape(-1, outputs)
    first = np.arange(len(rows)) // inputs % groups * outputs
    found = np.zeros((groups * outputs, len(values) + 1), bool)
    nonzero = 0
    for start in range(0, len(rows), CHUNK // outputs + 1):
        part = slice(start, start + CHUNK // outputs + 1)
        nonzero += int(np.count_nonzero(rows[part]))
        found[first[part, None] + np.arange(outputs), _numbers(rows[part], values)] = True
    return Occurrence(values, found[:, :-1], nonzero, len(values) < len(seen))


def _numbers(weights: IntArray, values: IntArray) -> Int64Array:
    """Where weights are among ascending values, behind them where they are zero."""
    if weights.dtype.itemsize > 2:
        return np.where(weights == 0, len(values), np.searchsorted(values, weights))
    unsigned = f"u{weights.dtype.itemsize}"
    table = np.full(1 << (8 * weights.dtype.itemsize), len(values))
    table[values.astype(weights.dtype).view(unsigned)] = np.arange(len(values))
    found: Int64Array = table[weights.view(unsigned)]
    return found


def turns_for(inputs: int, outputs: int, reuse: int) -> tuple[int, int]:
    """Products first: how many inputs come in at a step, and how many outputs a lane has, one after
    the other, while their products stay; so that a position takes no more than `reuse` steps."""
    turns = min(max(reuse // inputs, 1), outputs)
    return -(-inputs // min(reuse, inputs)), turns


@dataclass(frozen=True, slots=True)
class ProductsLayout:
    """Products first.

    books: the values; indices: [lanes, wide, steps], of the values in the lane's codebook, their
    number standing for zero; what pads is index 0 of an input that is not there. lanes: side by
    side, each for `turns` outputs; wide: inputs a step.
    """

    books: Codebooks
    indices: Int64Array
    turns: int

    @property
    def lanes(self) -> int:
        lanes: int = self.indices.shape[0]
        return lanes

    @property
    def wide(self) -> int:
        wide: int = self.indices.shape[1]
        return wide

    @property
    def reuse(self) -> int:
        """Steps of a position."""
        steps: int = self.indices.shape[2]
        return steps


def products_layout(weight: IntArray, books: int, reuse: int) -> ProductsLayout:
    """The layout of w[..., n_out], of which each lane has one of so many codebooks."""
    matrix = weight.reshape(prod(weight.shape[:-1]), weight.shape[-1])
    n_in, n_out = matrix.shape
    wide, turns = turns_for(n_in, n_out, reuse)
    blocks, lanes = -(-n_in // wide), -(-n_out // turns)
    found = occurrence(matrix[None, None]).codebooks(books)
    symbols = np.zeros((blocks * wide, lanes * turns), np.int64)
    part = n_out // books
    for book, values in enumerate(found.values):
        columns = matrix[:, book * part : (book + 1) * part]
        order = np.argsort(values, kind="stable")
        at = np.searchsorted(values, columns, sorter=order)
        at = order[np.minimum(at, len(values) - 1)]
        symbols[:n_in, book * part : (book + 1) * part] = np.where(columns == 0, found.size, at)
    # [blocks, wide, lanes, turns] to lanes, wide, steps.
    by_lane = symbols.reshape(blocks, wide, lanes, turns).transpose(2, 1, 0, 3)
    return ProductsLayout(found, by_lane.reshape(lanes, wide, blocks * turns), turns)
