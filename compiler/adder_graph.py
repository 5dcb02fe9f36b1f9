"""Products with a constant integer matrix as a graph of adders and subtracters.

A weight is a sum of powers of two with signs, its canonical signed digits: a shift is wire, every
digit beyond the first an adder. Products that two or more weights need, whatever power of two and
sign they take them with, are made once; digits of the others go into the sum of their output.
Every sum is a balanced tree over terms that are ordered by shift, so that most adders see operands
that begin at the same bit.

Every node knows the exact interval of its value, and its width follows from that. Low bits that
only one operand has are wire, unless that operand is subtracted; where no bit has two operands
there is no adder at all. Sources: Reitwiesner 1960 (digits); Voronenko and Pueschel 2007 (many
constants; of what they share, whole products are shared here).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fxloom.adder_trees import (
    ZERO,
    Flags,
    Roots,
    Terms,
    TreeBuilder,
    signed_digits,
    trailing_zeros,
    widths,
)
from fxloom.errors import VerifyError
from fxloom.fixed_point import Int64Array, IntArray

NO_CHAIN = 2
"""Bits up to which yosys builds an adder from logic alone."""

MOST_BITS = 62
"""Widest magnitude of a partial sum."""


class AdderCost(NamedTuple):
    """adders: with at least one bit; fa_bits: full adders in them; depth: adders in a row; luts: of
    their carry chains, one for every pair of bits that is added."""

    adders: int
    fa_bits: int
    depth: int
    luts: int


@dataclass(frozen=True)
class AdderGraph:
    """Nodes 0 to inputs - 1 are the inputs, then come the adders, operands before results.

    value = (first << first_shift) + or - (second << second_shift), - where subtracts; first may be
    ZERO. lo, hi, levels: of all nodes, the inputs included: exact interval, adders in a row.
    outputs: a node each or ZERO; output = node << output_shift.
    """

    inputs: int
    first: Int64Array
    second: Int64Array
    first_shift: Int64Array
    second_shift: Int64Array
    subtracts: Flags
    lo: Int64Array
    hi: Int64Array
    levels: Int64Array
    outputs: Int64Array
    output_shift: Int64Array

    @cached_property
    def widths(self) -> Int64Array:
        """Bits of every node: unsigned where it is never negative."""
        return widths(self.lo, self.hi)

    @cached_property
    def wires(self) -> Int64Array:
        """Low bits of every adder that only one operand has, and that is not subtracted."""
        free = np.where(self.subtracts, 0, self.first_shift) + self.second_shift
        low: Int64Array = np.minimum(free, self.widths[self.inputs :])
        return low

    @property
    def fa_bits(self) -> Int64Array:
        """Full-adder bits of every adder; 0 where no bit has two operands."""
        inside = np.maximum(self.first, 0)
        apart = ~self.subtracts & (self.lo[inside] >= 0)
        apart &= self.second_shift >= self.first_shift + self.widths[inside]
        bits: Int64Array = np.where(apart, 0, self.widths[self.inputs :] - self.wires)
        return bits

    @property
    def luts(self) -> Int64Array:
        """LUTs of every adder, as yosys counts them: those in front of its carry chain.

        One for every pair of operand bits: where one operand has no bit the other's goes into the
        chain as it is, and where both only repeat their signs the pair is one that is there
        already. Up to two bits there is no chain, but a LUT for every bit of the result.
        """
        bits = np.maximum(self.widths, 1)
        first = np.maximum(self.first, 0)
        missing = self.first == ZERO
        first_end = np.where(missing, 1, self.first_shift + bits[first])
        second_end = self.second_shift + bits[self.second]
        first_signed = ~missing & (self.lo[first] < 0)
        second_signed = self.lo[self.second] < 0
        last = np.maximum(first_end, second_end)
        end = np.where(
            first_signed,
            np.where(second_signed, last, second_end),
            np.where(second_signed, first_end, np.minimum(first_end, second_end)),
        )
        begin = np.maximum(self.first_shift, self.second_shift)
        pairs = np.maximum(np.minimum(end, bits[self.inputs :]) - begin, 0)
        added = bits[self.inputs :] - np.minimum(self.wires, bits[self.inputs :] - 1)
        luts: Int64Array = np.where((pairs > 0) & (added <= NO_CHAIN), added, pairs)
        return luts

    @property
    def cost(self) -> AdderCost:
        """The figures of the whole graph."""
        bits = self.fa_bits
        depth = int(self.levels[np.maximum(self.outputs, 0)].max(initial=0))
        return AdderCost(int(np.count_nonzero(bits)), int(bits.sum()), depth, int(self.luts.sum()))

    def evaluate(self, x: Int64Array) -> Int64Array:
        """x: [N, inputs] within their intervals. Returns [N, outputs], exact."""
        values = np.zeros((self.inputs + len(self.first) + 1, len(x)), np.int64)  # the last: ZERO
        values[: self.inputs] = x.T
        order = np.argsort(self.levels[self.inputs :], kind="stable")
        ends = np.flatnonzero(np.diff(self.levels[self.inputs :][order], append=-1)) + 1
        for some in np.split(order, ends[:-1]) if len(order) else ():
            left = values[self.first[some]] << self.first_shift[some, None]
            right = values[self.second[some]] << self.second_shift[some, None]
            subtracts = self.subtracts[some, None]
            values[some + self.inputs] = left + np.where(subtracts, -right, right)
        result: Int64Array = (values[self.outputs] << self.output_shift[:, None]).T
        return result


def adder_graph(matrix: IntArray, lo: int | Int64Array, hi: int | Int64Array) -> AdderGraph:
    """The graph that computes x @ matrix.

    matrix: [inputs, outputs]; lo, hi: the interval of all inputs, or one for each. Raises
    VerifyError where a partial sum may need more than 62 bits.
    """
    ends = input_intervals(matrix, lo, hi)
    builder = TreeBuilder(*ends)
    weights = Weights.of(matrix)
    product, sample = _shared(weights.row, weights.odd)
    products = builder.products(weights.row[sample], weights.odd[sample])
    roots = builder.positive(sums(builder, weights, product, products, matrix.shape[1]))
    inputs = len(ends[0])
    return AdderGraph(inputs, *builder.adders(), *builder.nodes(), roots.node, roots.shift)


def adder_cost(matrix: IntArray, lo: int | Int64Array, hi: int | Int64Array) -> AdderCost:
    """What the graph of x @ matrix costs; arguments and errors as of adder_graph."""
    return adder_graph(matrix, lo, hi).cost


class Weights(NamedTuple):
    """Those that are not zero: value = +-odd << shift."""

    value: Int64Array
    row: Int64Array
    column: Int64Array
    odd: Int64Array
    shift: Int64Array

    @classmethod
    def of(cls, matrix: IntArray) -> "Weights":
        """The weights of a matrix, row by row."""
        flat = matrix.astype(np.int64).reshape(-1)
        where = np.flatnonzero(flat)
        value = flat[where]
        shift = trailing_zeros(value)
        columns = matrix.shape[1]
        return cls(value, where // columns, where % columns, np.abs(value) >> shift, shift)


def sums(
    builder: TreeBuilder, weights: Weights, product: Int64Array, products: Roots, outputs: int
) -> Roots:
    """Sums of the columns. product: of every weight the one of products that it is, or ZERO."""
    shared, single = np.flatnonzero(product != ZERO), np.flatnonzero(product == ZERO)
    used = product[shared]
    owner, digit_shift, negative = signed_digits(weights.value[single])
    owner = single[owner]
    opposite = (weights.value[shared] < 0) ^ products.negative[used]
    terms = Terms(
        group=np.concatenate([weights.column[shared], weights.column[owner]]),
        node=np.concatenate([products.node[used], weights.row[owner]]),
        shift=np.concatenate([weights.shift[shared], digit_shift]),
        negative=np.concatenate([opposite, negative]),
        weight=np.concatenate([np.full(len(shared), ZERO), owner]),
    )
    return builder.sums(terms, outputs)


def input_intervals(
    matrix: IntArray, lo: int | Int64Array, hi: int | Int64Array
) -> tuple[Int64Array, Int64Array]:
    """One interval for every input; VerifyError where sums are too wide."""
    low, high = (np.broadcast_to(np.asarray(end, np.int64), matrix.shape[:1]) for end in (lo, hi))
    largest = np.maximum(np.abs(low.astype(np.float64)), np.abs(high.astype(np.float64)))
    # Digits of a weight add up to twice its magnitude at most.
    bound = 2.0 * max(abs(float(matrix.max())), abs(float(matrix.min()))) * float(largest.sum())
    if bound >= 2.0**MOST_BITS:
        bound = 2.0 * float((np.abs(matrix.astype(np.float64)).T @ largest).max())
    if bound >= 2.0**MOST_BITS:
        raise VerifyError(
            f"adder graph: partial sums may need {int(bound).bit_length() + 1} bits, "
            f"{MOST_BITS} are possible. Use narrower weights or activations"
        )
    return low, high


def _shared(row: Int64Array, odd: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Products (an input times an odd number) of two digits or more that two weights need.

    Returns the number of the product for every weight, ZERO where it has none, and for every
    product one weight that needs it.
    """
    many = np.flatnonzero(odd & (odd - 1))
    step = int(odd.max(initial=1)) // 2 + 1
    key = row[many] * step + (odd[many] >> 1)
    size = (int(row.max(initial=0)) + 1) * step
    if size <= 4 * len(odd) + 4096:
        counts = np.bincount(key, minlength=size)
        number = np.cumsum(counts > 1) - 1
        which, uses = number[key], counts[key]
    else:
        _, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
        which, uses = (np.cumsum(counts > 1) - 1)[inverse], counts[inverse]
    product = np.full(len(odd), ZERO)
    product[many] = np.where(uses > 1, which, ZERO)
    sample = np.zeros(int((counts > 1).sum()), np.int64)
    users = np.flatnonzero(product != ZERO)
    sample[product[users]] = users
    return product, sample
