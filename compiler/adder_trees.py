"""Balanced trees of adders over shifted terms with signs, level by level for many sums at once.

Every node carries the exact interval of its value, that of a linear function of the inputs: where
digits of one input's weight meet, it is that of the sum of these digits.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fxloom.fixed_point import Int64Array

ZERO = -1
"""In place of a node: nothing, the constant 0."""

Flags = npt.NDArray[np.bool_]


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


def signed_digits(numbers: Int64Array) -> tuple[Int64Array, Int64Array, Flags]:
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


class Terms(NamedTuple):
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


class Roots(NamedTuple):
    """The sum of every group is node << shift, negated where negative; ZERO where it is empty."""

    node: Int64Array
    shift: Int64Array
    negative: Flags


class Adders(NamedTuple):
    """Nodes, first + or - second, of which at least one is not shifted; first may be ZERO."""

    first: Int64Array
    second: Int64Array
    first_shift: Int64Array
    second_shift: Int64Array
    subtracts: Flags


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


class TreeBuilder:
    """Collects adders, some arrays for every level of every sum."""

    def __init__(self, lo: Int64Array, hi: Int64Array) -> None:
        self._inputs = len(lo)
        self._nodes = [(lo, hi, np.zeros(len(lo), np.int64))]
        none = np.zeros(0, np.int64)
        self._adders = [Adders(none, none, none, none, none.astype(bool))]

    def products(self, row: Int64Array, odd: Int64Array) -> Roots:
        """Inputs (row) times odd numbers."""
        owner, shift, negative = signed_digits(odd)
        return self.sums(Terms(owner, row[owner], shift, negative, owner), len(odd))

    def sums(self, terms: Terms, groups: int) -> Roots:
        """Balanced trees over the terms of every group.

        Neighbours are added level by level. Of two signs the sum takes that of what begins at the
        lower bit, whose low bits stay wire then; the very first term takes the other's instead
        where it would make the whole sum negative.
        """
        node_lo, node_hi, node_level = self.nodes()
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
                Adders(
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
        roots = Roots(np.full(groups, ZERO), np.zeros(groups, np.int64), np.zeros(groups, bool))
        roots.node[group], roots.shift[group], roots.negative[group] = node, shift, negative
        return roots

    def positive(self, roots: Roots) -> Roots:
        """The same sums, those that are negated subtracted from zero."""
        groups = np.flatnonzero(roots.negative)
        node = roots.node[groups]
        lo, hi, level = (part[node] for part in self.nodes())
        zero = np.zeros(len(node), np.int64)
        made = self._count + np.arange(len(node))
        self._adders.append(Adders(zero + ZERO, node, zero, zero, np.ones(len(node), bool)))
        self._nodes.append((-hi, -lo, level + 1))
        roots.node[groups] = made
        return roots._replace(negative=np.zeros_like(roots.negative))

    def adders(self) -> Adders:
        """All so far."""
        first, second, first_shift, second_shift, subtracts = map(
            np.concatenate, zip(*self._adders, strict=True)
        )
        return Adders(first, second, first_shift, second_shift, subtracts)

    @property
    def _count(self) -> int:
        return sum(len(part[0]) for part in self._nodes)

    def nodes(self) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Intervals and levels of all nodes so far."""
        lo, hi, level = map(np.concatenate, zip(*self._nodes, strict=True))
        self._nodes = [(lo, hi, level)]
        return lo, hi, level


def _signed(lo: Int64Array, hi: Int64Array, negative: Flags) -> tuple[Int64Array, Int64Array]:
    """Intervals, of the opposite where negative."""
    return np.where(negative, -hi, lo), np.where(negative, -lo, hi)
