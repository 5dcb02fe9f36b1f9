"""Symbols as Huffman codes, with all that decodes them, and back.

The code comes first, then how many bits every block of symbols takes, then from the next byte on
the symbols. So that many symbols are decoded in one step, one of each block, blocks may begin
anywhere.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fxloom.bit_fields import BitReader, BitWriter
from fxloom.errors import CodingError
from fxloom.fixed_point import Int64Array, IntArray
from fxloom.huffman import LONGEST, SYMBOLS, Code, code_of, read_code, write_code
from fxloom.huffman_pack import BLOCK, pack
from fxloom.huffman_unpack import unpack

_COUNTED = 1 << 18
"""Symbols counted at a time: bincount makes 64-bit integers of them."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bits of a stream: its code, where blocks begin, symbols, and what is left of last bytes."""

    table: int
    blocks: int
    symbols: int
    padding: int

    @property
    def total(self) -> int:
        return self.table + self.blocks + self.symbols + self.padding


def sizes_of(code: Code, counts: IntArray) -> Sizes:
    """What `encode` gives for so many of every symbol."""
    writer = BitWriter()
    write_code(writer, code)
    blocks = _lengths(int(counts.sum()), code) * _length_width(code)
    symbols = code.bits(counts)
    return Sizes(writer.size, blocks, symbols, -(writer.size + blocks) % 8 + -symbols % 8)


def count_symbols(symbols: IntArray) -> Int64Array:
    """How often each number occurs. Raises CodingError for what are no symbols."""
    symbols = _as_symbols(symbols)
    if symbols.dtype == np.uint8:  # two at a time
        even = symbols[: symbols.size // 2 * 2].view(np.uint16)
        pairs = _count(even, SYMBOLS).reshape(256, 256)
        return _trim(pairs.sum(0) + pairs.sum(1) + np.bincount(symbols[even.size * 2 :], None, 256))
    return _trim(_count(symbols, SYMBOLS))


def _count(symbols: IntArray, alphabet: int) -> Int64Array:
    counts = np.zeros(alphabet, np.int64)
    for start in range(0, symbols.size, _COUNTED):
        counts += np.bincount(symbols[start : start + _COUNTED], minlength=alphabet)
    return counts


def _trim(counts: Int64Array) -> Int64Array:
    present = np.flatnonzero(counts)
    return counts[: present[-1] + 1 if present.size else 0]


def _as_symbols(symbols: IntArray) -> npt.NDArray[Any]:
    symbols = np.asarray(symbols).reshape(-1)
    if symbols.dtype in (np.uint8, np.uint16):
        return np.ascontiguousarray(symbols)
    if symbols.size and not 0 <= symbols.min() <= symbols.max() < SYMBOLS:
        raise CodingError(
            f"symbols must be numbers from 0 to {SYMBOLS - 1}, got {symbols.min()} to "
            f"{symbols.max()}. Number the distinct values"
        )
    small = not symbols.size or symbols.max() < 256
    return symbols.astype(np.uint8 if small else np.uint16)


# ---- encode -----------------------------------------------------------------------------------


def encode(symbols: IntArray, longest: int = LONGEST) -> bytes:
    """The symbols in the fewest bits that codes of at most `longest` bits take, for `decode`.

    symbols: numbers below 65,536, any shape; fastest where they have 8 bits. Raises CodingError for
    other numbers, and where `longest` bits cannot tell them apart.
    """
    symbols = _as_symbols(symbols)
    counts = count_symbols(symbols)
    code = code_of(counts, longest)
    payload, blocks = pack(symbols, code, code.bits(counts))
    writer = BitWriter()
    write_code(writer, code)
    for bits in blocks[: _lengths(symbols.size, code)].tolist():
        writer.bits(bits, _length_width(code))
    return b"".join([writer.to_bytes(), payload.data])


def _lengths(count: int, code: Code) -> int:
    """How many blocks' lengths are stored: none where all symbols are alike, nor the last one's."""
    return max(-(-count // BLOCK) - 1, 0) if code.symbols.size > 1 else 0


def _length_width(code: Code) -> int:
    return (BLOCK * code.longest).bit_length()


def decode(data: bytes, count: int) -> npt.NDArray[Any]:
    """The `count` symbols that `encode` was given: uint8 where all are below 256, else uint16.

    Raises CodingError for data that cannot be its result.
    """
    reader = BitReader(data[: _table_limit(data, count)])
    code = read_code(reader)
    width = _length_width(code)
    blocks = np.array([reader.bits(width) for _ in range(_lengths(count, code))], np.int64)
    reader.align()
    payload = np.frombuffer(data, np.uint8)[reader.position // 8 :]
    return unpack(payload, blocks, count, code)


def _table_limit(data: bytes, count: int) -> int:
    """Bytes that hold the table and the lengths of all blocks, however long the table is."""
    most_of_table = 64 + SYMBOLS * (2 * LONGEST + 1)
    most_of_length = (BLOCK * LONGEST).bit_length()
    return min(len(data), (most_of_table + count // BLOCK * most_of_length) // 8 + 1)
