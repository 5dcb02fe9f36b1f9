"""Products with a constant integer matrix as a graph of adders and subtracters.

A weight is a sum of powers of two with signs, its canonical signed digits: a shift is wire, every
digit beyond the first an adder. Products that two or more outputs need, whatever power of two and
sign they take them with, are made once; digits of the others go into the sum of their output.
Every sum is a balanced tree over terms that are ordered by shift, so that most adders see operands
that begin at the same bit.

Every node knows the exact interval of its value, and its width follows from that. Low bits that
only one operand has are wire, unless that operand is subtracted; where no bit has two operands
there is no adder at all. Source: Reitwiesner 1960 (digits); Voronenko and Pueschel 2007 (graphs of
adders for many constants, of which this one shares whole products only).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fxloom.errors import VerifyError
from fxloom.fixed_point import Int64Array, IntArray

ZERO = -1
"""In place of a node: nothing, the constant 0."""

MOST_BITS = 62
"""Widest magnitude of a partial sum."""

Flags = npt.NDArray[np.bool_]


class AdderCost(NamedTuple):
    """adders: with at least one bit; fa_bits: full adders in them; depth: adders in a row."""

    adders: int
    fa_bits: int
    depth: int


@dataclass(frozen=True)
class AdderGraph:
    """Nodes 0 to inputs - 1 are the inputs, then come the adders, operands before results.

    value = (first << first_shift) + or - (second << second_shift), - where subtracts; first may be
    ZERO. lo, hi, levels: of all nodes, the inputs included: exact interval, adders in a row.
    outputs: a node each or ZERO; output = node << output_shift. wires: low bits of an adder that
    are wire.
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

    @property
    def widths(self) -> Int64Array:
        """Bits of every node: unsigned where it is never negative."""
        return widths(self.lo, self.hi)

    @property
    def fa_bits(self) -> Int64Array:
        """Full-adder bits of every adder: those behind the low bits that are wire."""
        inside = np.maximum(self.first, 0)
        apart = ~self.subtracts & (self.lo[inside] >= 0)
        apart &= self.second_shift >= self.first_shift + self.widths[inside]
        free = np.where(self.subtracts, 0, self.first_shift) + self.second_shift
        bits: Int64Array = np.where(apart, 0, np.maximum(self.widths[self.inputs :] - free, 0))
        return bits

    @property
    def cost(self) -> AdderCost:
        """The figures of the whole graph."""
        bits = self.fa_bits
        depth = int(self.levels[np.maximum(self.outputs, 0)].max(initial=0))
        return AdderCost(int(np.count_nonzero(bits)), int(bits.sum()), depth)

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
    n_in, n_out = matrix.shape
    ends = [np.broadcast_to(np.asarray(end, np.int64), (n_in,)) for end in (lo, hi)]
    _require_bits(matrix, *ends)
    builder = _Builder(*ends)
    flat = matrix.astype(np.int64).reshape(-1)
    where = np.flatnonzero(flat)
    weights, row, column = flat[where], where // n_out, where % n_out
    shift = trailing_zeros(weights)
    odd = np.abs(weights) >> shift
    product, sample = _shared(row, odd)
    products = builder.products(row[sample], odd[sample])
    shared, single = np.flatnonzero(product != ZERO), np.flatnonzero(product == ZERO)
    used = product[shared]
    owner, digit_shift, negative = _digits(weights[single])
    owner = single[owner]
    terms = _Terms(
        group=np.concatenate([column[shared], column[owner]]),
        node=np.concatenate([products.node[used], row[owner]]),
        shift=np.concatenate([shift[shared], digit_shift]),
        negative=np.concatenate([(weights[shared] < 0) ^ products.negative[used], negative]),
        weight=np.concatenate([np.full(len(shared), ZERO), owner]),
    )
    return builder.graph(builder.positive(builder.sums(terms, n_out)))


def adder_cost(matrix: IntArray, lo: int | Int64Array, hi: int | Int64Array) -> AdderCost:
    """What the graph of x @ matrix costs; arguments and errors as of adder_graph."""
    return adder_graph(matrix, lo, hi).cost


def widths(lo: Int64Array, hi: Int64Array) -> Int64Array:
    """Bits that hold every integer of an interval, unsigned where none is negative."""
    bits: Int64Array = _bit_length(np.maximum(np.where(lo < 0, ~lo, 0), np.maximum(hi, 0)))
    return bits + (lo < 0)


def trailing_zeros(numbers: Int64Array) -> Int64Array:
    """By which power of two every number, none of them 0, can be divided."""
    return _bit_length(numbers & -numbers) - 1


def _bit_length(numbers: Int64Array) -> Int64Array:
    """Of numbers that are not negative. The exponents of doubles, in halves that these hold."""
    high = numbers >> 32
    halves = np.where(high > 0, high, numbers).astype(np.float64)
    exponents = (halves.view(np.int64) >> 52) - 1022
    bits: Int64Array = np.maximum(exponents, 0) + np.where(high > 0, 32, 0)
    return bits


def _require_bits(matrix: IntArray, lo: Int64Array, hi: Int64Array) -> None:
    largest = np.maximum(np.abs(lo.astype(np.float64)), np.abs(hi.astype(np.float64)))
    # Digits of a weight add up to twice its magnitude at most.
    bound = 2.0 * float((np.abs(matrix.astype(np.float64)) * largest[:, None]).sum(axis=0).max())
    if bound >= 2.0**MOST_BITS:
        raise VerifyError(
            f"adder graph: partial sums may need {int(bound).bit_length() + 1} bits, "
            f"{MOST_BITS} are possible. Use narrower weights or activations"
        )


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


def _digits(numbers: Int64Array) -> tuple[Int64Array, Int64Array, Flags]:
    """Canonical signed digits: for each, whose it is, its shift, and whether it is negative."""
    magnitude = np.abs(numbers)
    thrice = 3 * magnitude
    negative = (magnitude & ~thrice) >> 1
    digits = (magnitude ^ thrice) >> 1
    owners, shifts = [], []
    for shift in range(int(digits.max(initial=0)).bit_length()):
        found = np.flatnonzero(digits & (1 << shift))
        owners.append(found)
        shifts.append(np.full(len(found), shift))
    owner = np.concatenate([*owners, np.zeros(0, np.int64)])
    place = np.concatenate([*shifts, np.zeros(0, np.int64)])
    return owner, place, (negative[owner] >> place & 1).astype(bool) ^ (numbers[owner] < 0)


class _Terms(NamedTuple):
    """What is added up: node << shift, negated where negative, into the sum of its group.

    weight: terms with the same one are digits of one input's weight, and in one group; ZERO where
    the term is a whole product.
    """

    group: Int64Array
    node: Int64Array
    shift: Int64Array
    negative: Flags
    weight: Int64Array

    def order(self, bits: Int64Array) -> Int64Array:
        """By group, then by lowest bit, narrow ones first. bits: widths of nodes."""
        key = (self.group << 13) + (self.shift << 7) + (bits[self.node] << 1) + self.negative
        order: Int64Array = np.argsort(key, kind="stable")
        return order


class _Roots(NamedTuple):
    """The sum of every group is node << shift, negated where negative; ZERO where it is empty."""

    node: Int64Array
    shift: Int64Array
    negative: Flags


@dataclass(frozen=True)
class _Digits:
    """Digits of the same weights, as far as they are added up: their intervals do not add.

    at: the element of the sums that they are in; coefficient: of the input with the interval lo to
    hi, in that element. Ordered by weight, then element.
    """

    at: Int64Array
    weight: Int64Array
    coefficient: Int64Array
    lo: Int64Array
    hi: Int64Array

    def merged(self, parent: Int64Array) -> "_Digits":
        """With elements that have become parent[element]."""
        at = parent[self.at]
        fresh = np.ones(len(at), bool)
        fresh[1:] = (self.weight[1:] != self.weight[:-1]) | (at[1:] != at[:-1])
        first = np.flatnonzero(fresh)
        if len(first) == len(at):
            return replace(self, at=at)
        return _Digits(
            at[first],
            self.weight[first],
            np.add.reduceat(self.coefficient, first),
            self.lo[first],
            self.hi[first],
        )

    def widen(self, lo: Int64Array, hi: Int64Array) -> None:
        """Add the intervals to those of the elements."""
        ends = self.coefficient * self.lo, self.coefficient * self.hi
        np.add.at(lo, self.at, np.minimum(*ends))
        np.add.at(hi, self.at, np.maximum(*ends))


class _Builder:
    """Collects adders, some arrays for every level of every sum."""

    def __init__(self, lo: Int64Array, hi: Int64Array) -> None:
        none = np.zeros(0, np.int64)
        self._inputs = len(lo)
        self._nodes = [(lo, hi, np.zeros(len(lo), np.int64))]
        self._adders: list[tuple[Int64Array, Int64Array, Int64Array, Int64Array, Flags]] = [
            (none, none, none, none, none.astype(bool))
        ]

    def products(self, row: Int64Array, odd: Int64Array) -> _Roots:
        """Inputs (row) times odd numbers."""
        owner, shift, negative = _digits(odd)
        return self.sums(_Terms(owner, row[owner], shift, negative, owner), len(odd))

    def sums(self, terms: _Terms, groups: int) -> _Roots:
        """Balanced trees over the terms of every group.

        Neighbours are added level by level. Of two signs the sum takes that of what begins at the
        lower bit, whose low bits stay wire then; the very first term takes the other's instead
        where it would make the whole sum negative.
        """
        node_lo, node_hi, node_level = self._known()
        order = terms.order(widths(node_lo, node_hi))
        group, node, shift = terms.group[order], terms.node[order], terms.shift[order]
        negative, weight = terms.negative[order], terms.weight[order]
        place = np.arange(len(group)) - np.searchsorted(group, group)
        level = node_level[node]
        lo, hi = _signed(node_lo[node] << shift, node_hi[node] << shift, negative)
        of_digits = np.flatnonzero(weight != ZERO)
        of_digits = of_digits[np.argsort(weight[of_digits], kind="stable")]
        inputs = node[of_digits]
        digits = _Digits(
            of_digits,
            weight[of_digits],
            (1 - 2 * negative[of_digits].astype(np.int64)) << shift[of_digits],
            node_lo[inputs],
            node_hi[inputs],
        )
        lo[of_digits] = hi[of_digits] = 0  # intervals of all but digits
        while place.any():
            even = (place & 1) == 0
            left, b = np.flatnonzero(even), np.flatnonzero(~even)
            a, parent = b - 1, np.cumsum(even) - 1
            into = parent[b]
            lo_b, hi_b = lo[b], hi[b]
            swapped = negative[a] & ~negative[b] & (place[a] == 0)
            made = self._count + np.arange(len(b))
            above = np.maximum(level[a], level[b]) + 1
            step = shift[b] - shift[a]
            self._adders.append(
                (
                    np.where(swapped, node[b], node[a]),
                    np.where(swapped, node[a], node[b]),
                    np.where(swapped, step, 0),
                    np.where(swapped, 0, step),
                    negative[a] ^ negative[b],
                )
            )
            place, group, shift = place[left] >> 1, group[left], shift[left]
            node, level, lo, hi = node[left], level[left], lo[left], hi[left]
            negative = negative[left]
            node[into], level[into] = made, above
            negative[into] &= ~swapped
            lo[into] += lo_b
            hi[into] += hi_b
            digits = digits.merged(parent)
            full_lo, full_hi = lo.copy(), hi.copy()
            digits.widen(full_lo, full_hi)
            ends = _signed(full_lo[into], full_hi[into], negative[into])
            self._nodes.append((ends[0] >> shift[into], ends[1] >> shift[into], above))
        roots = _Roots(np.full(groups, ZERO), np.zeros(groups, np.int64), np.zeros(groups, bool))
        roots.node[group], roots.shift[group], roots.negative[group] = node, shift, negative
        return roots

    def positive(self, roots: _Roots) -> _Roots:
        """The same sums, those that are negated subtracted from zero."""
        groups = np.flatnonzero(roots.negative)
        node = roots.node[groups]
        lo, hi, level = (part[node] for part in self._known())
        zero = np.zeros(len(node), np.int64)
        made = self._count + np.arange(len(node))
        self._adders.append((zero + ZERO, node, zero, zero, np.ones(len(node), bool)))
        self._nodes.append((-hi, -lo, level + 1))
        roots.node[groups] = made
        return roots._replace(negative=np.zeros_like(roots.negative))

    def graph(self, roots: _Roots) -> AdderGraph:
        """All that was collected, with these outputs."""
        first, second, first_shift, second_shift, subtracts = map(
            np.concatenate, zip(*self._adders, strict=True)
        )
        return AdderGraph(
            self._inputs,
            first,
            second,
            first_shift,
            second_shift,
            subtracts,
            *self._known(),
            roots.node,
            roots.shift,
        )

    @property
    def _count(self) -> int:
        return sum(len(part[0]) for part in self._nodes)

    def _known(self) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Intervals and levels of all nodes so far."""
        lo, hi, level = map(np.concatenate, zip(*self._nodes, strict=True))
        self._nodes = [(lo, hi, level)]
        return lo, hi, level


def _signed(lo: Int64Array, hi: Int64Array, negative: Flags) -> tuple[Int64Array, Int64Array]:
    """Intervals, of the opposite where negative."""
    return np.where(negative, -hi, lo), np.where(negative, -lo, hi)
