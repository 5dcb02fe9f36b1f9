"""What the adder graph of a large matrix costs, from a sample of its outputs.

How many adders there are follows from counts of all weights; only negations, and adders that turn
out to be wire, come from the sample. How many bits an adder has is the mean over sampled products
and over the sums of sampled outputs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fxloom.adder_graph import (
    AdderCost,
    AdderGraph,
    Weights,
    adder_cost,
    input_intervals,
    sums,
)
from fxloom.adder_trees import ZERO, Flags, TreeBuilder, trailing_zeros
from fxloom.fixed_point import Int64Array, IntArray
from fxloom.multipliers import csd_digits

SAMPLED = 2**12
"""Non-zero weights in a sample; matrices of up to four times as many are looked at whole."""

_BLOCK = 2**18
_TABLED = 2**17


def estimated_cost(
    matrix: IntArray, lo: int | Int64Array, hi: int | Int64Array, sampled: int = SAMPLED
) -> AdderCost:
    """About the cost of adder_graph(matrix, lo, hi); up to 4 * sampled non-zero weights just that.

    The depth is that of the sampled outputs. How near the figures are: benchmarks/adder_sampling.
    Raises VerifyError as adder_graph does.
    """
    count = int(np.count_nonzero(matrix))
    if count <= 4 * sampled:
        return adder_cost(matrix, lo, hi)
    ends = input_intervals(matrix, lo, hi)
    n_in = len(matrix)
    filled = np.flatnonzero(matrix.any(axis=0))
    columns = filled[_spread(len(filled), sampled * len(filled) // count)]
    weights = Weights.of(matrix[:, columns])
    census = _census(matrix, weights, sampled)

    products = TreeBuilder(*ends)
    products.products(census.row, census.odd)
    builder = TreeBuilder(*ends)
    shared = np.flatnonzero(census.shared)
    step = int(weights.odd.max(initial=1)) + 1
    key, number = np.unique(weights.row[shared] * step + weights.odd[shared], return_inverse=True)
    product = np.full(len(weights.odd), ZERO)
    product[shared] = number
    used = builder.products(key // step, key % step)
    inner = len(builder.adders().first)
    roots = builder.positive(sums(builder, weights, product, used, len(columns)))
    graph = AdderGraph(n_in, *builder.adders(), *builder.nodes(), roots.node, roots.shift)
    bits, luts = graph.fa_bits[inner:], graph.luts[inner:]

    own = AdderGraph(n_in, *products.adders(), *products.nodes(), roots.node[:0], roots.shift[:0])
    terms = np.where(census.shared, 1, csd_digits(weights.odd)).sum()
    plain = int(terms) - int(np.count_nonzero(roots.node != ZERO))
    scale = (census.terms - len(filled)) / max(plain, 1)
    inner_scale = census.product_adders / max(len(own.first), 1)
    return AdderCost(
        round(np.count_nonzero(own.fa_bits) * inner_scale + np.count_nonzero(bits) * scale),
        round(own.fa_bits.sum() * inner_scale + bits.sum() * scale),
        graph.cost.depth,
        round(own.luts.sum() * inner_scale + luts.sum() * scale),
    )


class _Census(NamedTuple):
    """terms: of all sums; product_adders: of all shared products; shared: whether each of the given
    weights is such a product; row, odd: a sample of shared products."""

    terms: int
    product_adders: int
    shared: Flags
    row: Int64Array
    odd: Int64Array


def _census(matrix: IntArray, weights: Weights, sampled: int) -> _Census:
    terms, adders = 0, 0
    flags = np.zeros(len(weights.odd), bool)
    some = []
    # As many of every block, so that none is missing where weights lie unevenly.
    share = sampled * _height(matrix) // len(matrix)
    step = max(int(matrix.max()), -int(matrix.min())) + 1
    table = csd_digits(np.arange(step)) if step < _TABLED else None
    for start, found in _blocks(matrix):
        digits = csd_digits(found.odd) if table is None else table[found.odd]
        shared = (found.uses > 1) & (digits > 1)
        terms += int(np.where(shared, found.uses, found.uses * digits).sum())
        adders += int((digits - 1)[shared].sum())
        first, last = np.searchsorted(weights.row, (start, start + _height(matrix)))
        key = weights.row[first:last] * step + weights.odd[first:last]
        flags[first:last] = shared[np.searchsorted(found.row * step + found.odd, key)]
        products = np.flatnonzero(shared)
        products = products[_spread(len(products), share)]
        some.append((found.row[products], found.odd[products]))
    row, odd = map(np.concatenate, zip(*some, strict=True))
    return _Census(terms, adders, flags, row, odd)


class _Distinct(NamedTuple):
    """Odd parts of the weights of every row, and how many weights have them; no zeros."""

    row: Int64Array
    odd: Int64Array
    uses: Int64Array


def _height(matrix: IntArray) -> int:
    return max(1, _BLOCK // int(matrix.shape[1]))


def _blocks(matrix: IntArray) -> Iterator[tuple[int, _Distinct]]:
    """First row and odd parts, ordered by row and odd part, of block after block of rows."""
    lo, hi, height = int(matrix.min()), int(matrix.max()), _height(matrix)
    table = _odd(np.arange(lo, hi + 1, dtype=np.int64)) if hi - lo < _TABLED else None
    for start in range(0, len(matrix), height):
        block: Int64Array = matrix[start : start + height].astype(np.int64)
        odd = _odd(block) if table is None else table[block - lo]
        found = _by_count(odd) if hi - lo < 4 * matrix.shape[1] else _by_order(odd)
        some = np.flatnonzero(found.odd)
        yield start, _Distinct(found.row[some] + start, found.odd[some], found.uses[some])


def _by_count(block: Int64Array) -> _Distinct:
    """For few possible odd parts, which the block has: each has a counter in every row."""
    step = int(block.max()) // 2 + 2
    rows: Int64Array = np.arange(len(block))[:, None] * step
    counts = np.bincount((((block + 1) >> 1) + rows).reshape(-1), minlength=len(block) * step)
    some = np.flatnonzero(counts)
    place: Int64Array = some % step
    return _Distinct(some // step, np.maximum(2 * place - 1, 0), counts[some])


def _by_order(block: Int64Array) -> _Distinct:
    """For many possible odd parts, which the block has: equal ones become neighbours."""
    ordered = np.sort(block, axis=1)
    fresh = np.ones(ordered.shape, bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    some = np.flatnonzero(fresh)
    uses: Int64Array = np.diff(some, append=ordered.size)
    return _Distinct(some // block.shape[1], ordered.reshape(-1)[some], uses)


def _odd(numbers: Int64Array) -> Int64Array:
    """Magnitudes without their powers of two, 0 for 0."""
    zeros: Int64Array = np.maximum(trailing_zeros(numbers), 0)
    odd: Int64Array = np.abs(numbers) >> zeros
    return odd


def _spread(count: int, wanted: int) -> Int64Array:
    """Evenly spread indices, at least one where there are any."""
    wanted = min(count, max(wanted, 1))
    return (np.arange(wanted) * 2 + 1) * count // (2 * wanted)
