"""Canonical Huffman codes of limited length, and how a code itself is stored.

The lengths are optimal among codes of at most `longest` bits (package-merge: Larmore and
Hirschberg, A fast algorithm for optimal length-limited Huffman codes, 1990). Codes are canonical:
ascending in the order of (length, symbol), so that the lengths say everything (RFC 1951, section
3.2.2). One symbol alone takes no bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fxloom.bit_fields import BitReader, BitWriter
from fxloom.errors import CodingError
from fxloom.fixed_point import Int64Array, IntArray

LONGEST = 16
"""Bits of the longest code, if nothing else is asked for; more are never used."""

SYMBOLS = 1 << LONGEST
"""Symbols are numbers below this."""


@dataclass(frozen=True, slots=True, eq=False)
class Code:
    """symbols, in the order of their codes; lengths: bits of each, which never fall."""

    symbols: Int64Array
    lengths: Int64Array

    @property
    def longest(self) -> int:
        return int(self.lengths[-1]) if self.lengths.size else 0

    @property
    def per_length(self) -> Int64Array:
        """How many codes there are of 0, 1, ... `longest` bits."""
        return np.bincount(self.lengths, minlength=1).astype(np.int64)

    @property
    def first_codes(self) -> Int64Array:
        """The first code of every length, its first bit the most significant."""
        first = np.zeros(self.longest + 1, np.int64)
        counts = self.per_length
        for length in range(1, self.longest + 1):
            # The one code of no bits has none after it.
            first[length] = (first[length - 1] + counts[length - 1] * (length > 1)) << 1
        return first

    @property
    def words(self) -> Int64Array:
        """The codes, their first bits the most significant."""
        ranks = np.arange(self.symbols.size) - np.searchsorted(self.lengths, self.lengths)
        return self.first_codes[self.lengths] + ranks

    def length_of(self, alphabet: int) -> Int64Array:
        """Bits of every symbol below `alphabet`, 0 where there is none."""
        found = np.zeros(alphabet, np.int64)
        found[self.symbols] = self.lengths
        return found

    def bits(self, counts: IntArray) -> int:
        """What so many of every symbol take."""
        return int(counts[self.symbols] @ self.lengths)


def code_of(counts: IntArray, longest: int = LONGEST) -> Code:
    """The optimal code of symbols that occur so often.

    counts: [alphabet]; symbols that never occur have no code. Raises CodingError where `longest`
    bits cannot tell the symbols apart, or more symbols are asked for than a code may have.
    """
    often = counts.astype(np.int64)
    symbols = np.flatnonzero(often)
    needed = max(symbols.size - 1, 0).bit_length()
    if counts.size > SYMBOLS or not needed <= longest <= LONGEST:
        raise CodingError(
            f"a Huffman code requires at most {SYMBOLS:,} symbols and a longest code of {needed} "
            f"to {LONGEST} bits for {symbols.size:,} that occur, got {counts.size:,} symbols and "
            f"{longest} bits. Share or quantize the weights to fewer values, or allow longer codes"
        )
    if symbols.size < 2:
        return Code(symbols, np.zeros(symbols.size, np.int64))
    # Rare symbols first; of equally rare ones the last, so that lengths never fall from symbol to
    # symbol where counts never rise.
    order = symbols.size - 1 - np.argsort(often[symbols][::-1], kind="stable")
    lengths = np.empty(symbols.size, np.int64)
    lengths[order] = _package_merge(often[symbols][order], longest)
    sort = np.argsort(lengths, kind="stable")
    return Code(symbols[sort], lengths[sort])


def _package_merge(weights: Int64Array, longest: int) -> Int64Array:
    """Lengths for two or more ascending weights."""
    levels = [np.ones(weights.size, bool)]  # of every item whether it is a weight, not a package
    items = weights
    for _ in range(longest - 1):
        packages = items[: items.size // 2 * 2].reshape(-1, 2).sum(1)
        both = np.concatenate([weights, packages])
        order = np.argsort(both, kind="stable")
        items = both[order]
        levels.append(order < weights.size)
    lengths = np.zeros(weights.size, np.int64)
    taken = 2 * weights.size - 2
    for is_weight in reversed(levels):
        own = int(np.count_nonzero(is_weight[:taken]))
        lengths[:own] += 1
        taken = 2 * (taken - own)
    return lengths


# ---- stored -----------------------------------------------------------------------------------
#
# number of symbols, and the least number of alphabet bits that they need; then either
#   steps:  for every symbol of the alphabet how its length differs from the one before: 0 ends,
#           10 is one more, 11 one fewer (as in bzip2; a length of 0 says that there is no code), or
#   sorted: how many codes each length has, then the symbols in the order of the codes.
# One bit says which; what is shorter is written.


def write_code(writer: BitWriter, code: Code) -> None:
    """Store a code; `read_code` gives it back."""
    count = code.symbols.size
    writer.number(count)
    if not count:
        return
    last = int(code.symbols.max())
    writer.number(last)
    if count == 1:  # the last symbol is the only one
        return
    steps = list(_steps(code.length_of(last + 1)))
    width, of_count = last.bit_length(), count.bit_length()
    as_sorted = 5 + code.longest * of_count + count * width
    writer.bits(int(len(steps) > as_sorted), 1)
    if len(steps) <= as_sorted:
        writer.text("".join(steps))
        return
    writer.bits(code.longest, 5)
    for each in code.per_length[1:].tolist():
        writer.bits(each, of_count)
    for symbol in code.symbols.tolist():
        writer.bits(symbol, width)


def _steps(lengths: Int64Array) -> Iterator[str]:
    before = 0
    for length in lengths.tolist():
        step = "10" if length > before else "11"
        yield from step * abs(length - before)
        yield "0"
        before = length


def read_code(reader: BitReader) -> Code:
    """The code that was stored. Raises CodingError for what is none."""
    count = reader.number(SYMBOLS)
    if not count:
        return Code(np.zeros(0, np.int64), np.zeros(0, np.int64))
    last = reader.number(SYMBOLS - 1)
    if count == 1:
        return Code(np.array([last]), np.zeros(1, np.int64))
    symbols, lengths = (_read_sorted if reader.bits(1) else _read_steps)(reader, count, last)
    complete = (1 << LONGEST >> lengths).sum() == 1 << LONGEST
    order = np.lexsort((symbols, lengths))
    same = np.array_equal(order, np.arange(symbols.size)) and (np.diff(np.sort(symbols)) > 0).all()
    if not complete or not same or symbols.size != count or symbols.max() != last:
        raise CodingError(
            f"damaged table of a Huffman code: {count} codes that use up all bit patterns are "
            f"required, got {symbols.size} that do not"
        )
    return Code(symbols, lengths)


def _read_steps(reader: BitReader, count: int, last: int) -> tuple[Int64Array, Int64Array]:
    found = np.zeros(last + 1, np.int64)
    length = 0
    for symbol in range(last + 1):
        while reader.bits(1):
            length += -1 if reader.bits(1) else 1
        if not 0 <= length <= LONGEST:
            raise CodingError(
                f"damaged table of a Huffman code: codes have 1 to {LONGEST} bits, got {length}"
            )
        found[symbol] = length
    symbols = np.flatnonzero(found)
    order = np.argsort(found[symbols], kind="stable")
    return symbols[order], found[symbols][order]


def _read_sorted(reader: BitReader, count: int, last: int) -> tuple[Int64Array, Int64Array]:
    longest = reader.bits(5)
    per_length = [reader.bits(count.bit_length()) for _ in range(longest)]
    if longest > LONGEST or sum(per_length) != count:
        raise CodingError(
            f"damaged table of a Huffman code: {count} codes of at most {LONGEST} bits are "
            f"required, got {sum(per_length)} of at most {longest}"
        )
    symbols = [reader.bits(last.bit_length()) for _ in range(count)]
    lengths = np.repeat(np.arange(1, longest + 1), per_length)
    return np.array(symbols, np.int64), lengths.astype(np.int64)
