"""Codes of many symbols joined to one string of bits, at the speed of NumPy's loops.

Codes follow each other without gaps, each with its first bit lowest, from the lowest bit of the
first byte on.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fxloom.fixed_point import Int64Array
from fxloom.huffman import SYMBOLS, Code

BLOCK = 4096
"""Symbols in a block, of which the bits are counted."""

_CHUNK = 16 * BLOCK
"""Symbols encoded at a time: as many as a cache holds."""

Pieces = npt.NDArray[np.uint64]
"""Codes with their first bits lowest, and from bit 32 on how many bits each has."""

SHIFT = np.uint64(32)
_MASK = np.uint64((1 << 32) - 1)


def pack(
    symbols: npt.NDArray[Any], code: Code, total: int
) -> tuple[npt.NDArray[np.uint8], Int64Array]:
    """The codes of all symbols, and how many bits each block takes.

    symbols: uint8 or uint16; those of 8 bits are looked up in pairs. total: bits of all.
    """
    return join(_pieces(symbols, code), total)


def _pieces(symbols: npt.NDArray[Any], code: Code) -> Iterator[Pieces]:
    """For every chunk the codes of four symbols each."""
    narrow = symbols.dtype == np.uint8
    single = pieces_of(code, 256 if narrow else SYMBOLS)
    whole = symbols.size // _CHUNK * _CHUNK if narrow and symbols.size >= 4 * _CHUNK else 0
    if whole:
        low = np.tile(single, 256)
        high = np.repeat(single, 256)
        double = two(low, high)  # of two symbols, the first of which is the lower byte
        for start in range(0, whole, _CHUNK):
            yield double.take(symbols[start : start + _CHUNK].view("<u2"))
    for start in range(whole, symbols.size, _CHUNK):
        chunk = symbols[start : start + _CHUNK]
        pieces = np.zeros(-(-chunk.size // 4) * 4, np.uint64)
        pieces[: chunk.size] = single.take(chunk)
        yield two(pieces[0::2], pieces[1::2])


def two(first: Pieces, second: Pieces) -> Pieces:
    """Pieces of at most 16 bits in pairs."""
    length = first >> SHIFT
    return first + ((second & _MASK) << length) + (second >> SHIFT << SHIFT)


def join(chunks: Iterable[Pieces], total: int) -> tuple[npt.NDArray[np.uint8], Int64Array]:
    """All pieces one after the other, two at a time, and how many bits each block takes.

    chunks: pieces of at most 32 bits for two symbols each, an even number of them, and blocks whole
    in all chunks but the last; total: bits of all.
    """
    words = np.zeros(total // 64 + 2, np.uint64)
    blocks = [np.zeros(0, np.int64)]
    begun = 0
    for chunk in chunks:
        first, second = chunk[0::2], chunk[1::2]
        lengths = first >> SHIFT
        bits = (second & _MASK) << lengths
        bits |= first & _MASK
        lengths += second >> SHIFT
        ends = np.cumsum(lengths.view(np.int64))
        starts = ends - lengths.view(np.int64)
        starts += begun
        offset = (starts & 63).view(np.uint64)
        starts >>= 6
        # No piece is longer than a word, so that one begins in every word up to the last.
        last = np.append(np.flatnonzero(starts[1:] != starts[:-1]), starts.size - 1)
        begin = np.append(0, last[:-1] + 1)
        word, count = int(starts[0]), last.size
        words[word : word + count] |= np.bitwise_or.reduceat(bits << offset, begin)
        # In two shifts, for a shift by 64 is none.
        rest = bits[last] >> np.uint64(1) >> np.uint64(63) - offset[last]
        words[word + 1 : word + 1 + count] |= rest
        begun += int(ends[-1])
        of_block = ends[BLOCK // 4 - 1 :: BLOCK // 4]
        if ends.size % (BLOCK // 4):
            of_block = np.append(of_block, ends[-1])
        blocks.append(np.diff(of_block, prepend=0))
    data = words.astype("<u8", copy=False).view(np.uint8)
    return data[: -(-total // 8)], np.concatenate(blocks)


def pieces_of(code: Code, alphabet: int = SYMBOLS) -> Pieces:
    """The code of every symbol below `alphabet`, as `join` takes it."""
    pieces = np.zeros(alphabet, np.uint64)
    pieces[code.symbols] = reversed_words(code) | code.lengths << 32
    return pieces


def reversed_words(code: Code) -> Int64Array:
    """The codes with their first bits lowest."""
    words, found = code.words, np.zeros(code.symbols.size, np.int64)
    for bit in range(code.longest):
        found = found << 1 | words >> bit & 1
    # `longest` bits were turned around, of which the upper ones of shorter codes are 0.
    return found >> code.longest - code.lengths
