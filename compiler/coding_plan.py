"""How weights are coded: of all ways the one that takes least (`fxloom.coding` says which)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fxloom.bit_fields import BitReader, BitWriter
from fxloom.bit_patterns import Distinct, distinct, integer_width, to_patterns
from fxloom.errors import CodingError
from fxloom.fixed_point import Int64Array
from fxloom.huffman import LONGEST, SYMBOLS, code_of
from fxloom.huffman_stream import Sizes, sizes_of
from fxloom.storage import Storage

Array = npt.NDArray[Any]

_MOSTLY_KEPT = 0.75
"""Above this share run lengths are not tried: zero as a value takes less than a code a weight."""


@dataclass(frozen=True, slots=True)
class Head:
    """How weights are stored. plain: as they are; values: in the codebook; stored: how many weights
    have a run length."""

    width: int
    signed: bool
    plain: bool
    index_bits: int
    values: int
    stored: int

    def write(self) -> BitWriter:
        writer = BitWriter()
        writer.bits(self.width - 1, 6)
        writer.bits(self.signed, 1)
        writer.bits(self.plain, 1)
        if not self.plain:
            writer.bits(self.index_bits, 5)
            writer.number(self.values)
        if self.index_bits:
            writer.number(self.stored)
        return writer


def read_head(reader: BitReader, weights: int) -> Head:
    width, signed, plain = reader.bits(6) + 1, bool(reader.bits(1)), bool(reader.bits(1))
    if plain:
        return Head(width, signed, plain, 0, 0, weights)
    index_bits = reader.bits(5)
    if index_bits > LONGEST:
        raise CodingError(
            f"damaged coded weights: run lengths of at most {LONGEST} bits are required, got "
            f"{index_bits}. Get the file again"
        )
    values = reader.number(SYMBOLS)
    stored = reader.number(weights) if index_bits else weights
    return Head(width, signed, plain, index_bits, values, stored)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How weights are coded.

    patterns: all of them; where: those that are not zero, None without run lengths; codebook: the
    values, most frequent first; runs: how often each run length occurs.
    """

    head: Head
    patterns: Array
    where: Int64Array | None
    codebook: Distinct
    runs: Int64Array
    storage: Storage

    def symbols(self) -> tuple[Array, Array]:
        """Of every stored weight, padding zeros among them, its index in the codebook and how many
        zeros come before it."""
        if self.where is None:
            return _indices(self.codebook, self.patterns), np.zeros(0, np.uint8)
        kept = _indices(self.codebook, self.patterns[self.where])
        gaps = gaps_of(self.where)
        full = (1 << self.head.index_bits) - 1
        padding = gaps >> self.head.index_bits
        at = np.arange(gaps.size) + np.cumsum(padding)  # of each kept weight among all stored ones
        runs = np.full(self.head.stored, full, np.uint8 if full < 256 else np.uint16)
        runs[at] = gaps & full
        zero = np.flatnonzero(self.codebook.values == 0)
        indices = np.full(self.head.stored, zero[0] if zero.size else 0, kept.dtype)
        indices[at] = kept
        return indices, runs


def _indices(codebook: Distinct, patterns: Array) -> Array:
    """Numbers in a codebook that is not sorted."""
    order = np.argsort(codebook.values)
    places = order.astype(np.uint8 if order.size <= 256 else np.uint16)
    return places[Distinct(codebook.values[order], codebook.counts).indices(patterns)]


def plan_of(weights: Array, index_bits: int | None, width: int | None) -> Plan:
    """Of all ways that are asked for the one that takes least."""
    if index_bits is not None and not 0 <= index_bits <= LONGEST:
        raise CodingError(
            f"index_bits must be 0 to {LONGEST}, got {index_bits}. 0 stores no run lengths"
        )
    patterns, width, signed = _patterns_of(weights, width)
    plans = []
    if not index_bits:
        plans.append(_plain(Head(width, signed, True, 0, 0, patterns.size), patterns))
    choices = range(LONGEST + 1) if index_bits is None else [index_bits]
    plans += _coded(patterns, width, signed, choices)
    if not plans:
        raise CodingError(
            f"run lengths require at most {SYMBOLS - 1:,} distinct weights that are not zero, got "
            "more. Share or quantize the weights, or leave out index_bits"
        )
    return least(plans)


def coded_plans(weights: Array, choices: Sequence[int], width: int) -> list[Plan]:
    """With Huffman codes, and run lengths of so many bits; none where there are too many distinct
    values. Choices that cannot help are left out."""
    patterns, width, signed = _patterns_of(weights, width)
    return _coded(patterns, width, signed, choices)


def least(plans: list[Plan]) -> Plan:
    """The one that takes least."""
    return min(plans, key=lambda plan: plan.storage.huffman_bits or 0)


def _coded(patterns: Array, width: int, signed: bool, choices: Sequence[int]) -> list[Plan]:
    """With Huffman codes. choices: bits of a run length, 0 for none; where there are several, not
    those that cannot help."""
    plans = []
    if 0 in choices:
        codebook = distinct(patterns)
        if codebook is not None:
            plans.append(_dense(width, signed, patterns, codebook))
    bits = [each for each in choices if each]
    kept = int(np.count_nonzero(patterns))
    if bits and (len(choices) == 1 or kept < _MOSTLY_KEPT * patterns.size):
        plans += _with_runs(width, signed, patterns, bits)
    return plans


def _patterns_of(weights: Array, width: int | None) -> tuple[Array, int, bool]:
    """The bits of all weights, how many each has, and whether there is a sign among them."""
    if weights.dtype.kind == "f" and weights.dtype.itemsize <= 8:
        width = weights.dtype.itemsize * 8
        return to_patterns(weights, width), width, True
    if weights.dtype.kind not in "iu":
        raise CodingError(f"weights must be integers or floats, got {weights.dtype}. Convert them")
    needed = integer_width(weights)
    width = needed if width is None else width
    if not needed <= width <= 64:
        raise CodingError(
            f"integers of {needed} bits require a width of {needed} to 64, got {width}"
        )
    signed = bool(weights.size and weights.min() < 0)
    return to_patterns(weights, width), width, signed


def _plain(head: Head, patterns: Array) -> Plan:
    counts, codes = head.write().size, patterns.size * head.width
    storage = Storage(
        weights=patterns.size,
        kept=int(np.count_nonzero(patterns)),
        padding=0,
        values=0,
        weight_bits=head.width,
        index_bits=0,
        weight_codes=codes,
        index_codes=0,
        codebook=0,
        counts=counts,
        tables=-counts % 8 + -codes % 8,
    )
    none = np.zeros(0, np.int64)
    return Plan(head, patterns, None, Distinct(patterns[:0], none), none, storage)


def _dense(width: int, signed: bool, patterns: Array, found: Distinct) -> Plan:
    codebook = _by_frequency(found)
    head = Head(width, signed, False, 0, codebook.values.size, patterns.size)
    kept = int(np.count_nonzero(patterns))
    none = np.zeros(0, np.int64)
    storage = _storage(head, patterns.size, kept, codebook.counts, none)
    return Plan(head, patterns, None, codebook, none, storage)


def _by_frequency(found: Distinct) -> Distinct:
    """Values in the order of their codes, so that the table of the code is short."""
    order = np.argsort(-found.counts, kind="stable")
    return Distinct(found.values[order], found.counts[order])


def _with_runs(width: int, signed: bool, patterns: Array, choices: Sequence[int]) -> list[Plan]:
    """With run lengths of so many bits each; of several choices, only those that may help."""
    where = np.flatnonzero(patterns)
    values = distinct(patterns[where])
    if values is None or values.values.size >= SYMBOLS:  # one is for padding
        return []
    gaps, counts = np.unique(gaps_of(where), return_counts=True)
    plans: list[Plan] = []
    for bits in choices:
        if plans and not plans[-1].storage.padding:
            break
        full = (1 << bits) - 1
        padding = int((gaps >> bits) @ counts)
        runs = np.bincount(gaps & full, counts, full + 1).astype(np.int64)
        runs[full] += padding
        codebook = _by_frequency(_with_zero(values, padding))
        stored = where.size + padding
        head = Head(width, signed, False, bits, codebook.values.size, stored)
        storage = _storage(head, patterns.size, where.size, codebook.counts, runs)
        plans.append(Plan(head, patterns, where, codebook, runs, storage))
    return plans


def _with_zero(found: Distinct, padding: int) -> Distinct:
    if not padding:
        return found
    values = np.insert(found.values, 0, 0)
    return Distinct(values, np.insert(found.counts, 0, padding))


def _storage(head: Head, weights: int, kept: int, indices: Int64Array, runs: Int64Array) -> Storage:
    """indices, runs: how often each occurs."""
    counts = head.write().size
    codebook = head.values * head.width
    of_indices = sizes_of(code_of(indices), indices)
    of_runs = sizes_of(code_of(runs), runs) if head.index_bits else Sizes(0, 0, 0, 0)
    tables = of_indices.total + of_runs.total - of_indices.symbols - of_runs.symbols
    return Storage(
        weights=weights,
        kept=kept,
        padding=head.stored - kept if head.index_bits else 0,
        values=head.values,
        weight_bits=max(head.values - 1, 0).bit_length(),
        index_bits=head.index_bits,
        weight_codes=of_indices.symbols,
        index_codes=of_runs.symbols,
        codebook=codebook,
        counts=counts,
        tables=tables + -(counts + codebook) % 8,
    )


def gaps_of(where: Int64Array) -> Int64Array:
    """How many zeros are before each kept weight."""
    return np.diff(where, prepend=-1) - 1
