"""Huffman-coded symbols from one string of bits: blocks side by side, in NumPy's loops."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fxloom.errors import CodingError
from fxloom.fixed_point import Int64Array
from fxloom.huffman import Code
from fxloom.huffman_pack import BLOCK, SHIFT, Pieces, reversed_words

_LANES = 8192
"""Blocks decoded at a time."""

_FLUSH = 64
"""Steps after which decoded symbols are put in order."""


def unpack(
    payload: npt.NDArray[np.uint8], lengths: Int64Array, count: int, code: Code
) -> npt.NDArray[Any]:
    """The symbols of blocks of so many bits each; the last one has what is left.

    Raises CodingError where blocks do not end where they must.
    """
    kind = np.uint8 if not code.symbols.size or code.symbols.max() < 256 else np.uint16
    if code.symbols.size < 2:
        if payload.size or (count and not code.symbols.size):
            raise CodingError(
                f"damaged coded weights: a code of {code.symbols.size} symbols has no bits and "
                f"{'any' if code.symbols.size else 'no'} symbols, got {payload.size:,} bytes and "
                f"{count:,} symbols. Get the file again"
            )
        return np.full(count, code.symbols[0] if count else 0, kind)
    begins = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if begins[-1] > 8 * payload.size:
        raise CodingError(
            f"damaged coded weights: the last block begins at bit {begins[-1]:,}, after the end "
            f"of {payload.size:,} bytes. Get the file again"
        )
    table = _lookup(code)
    found = np.empty((begins.size, BLOCK), kind)
    ends = np.empty(begins.size, np.int64)
    for start in range(0, begins.size, _LANES):
        stop = min(start + _LANES, begins.size)
        first = int(begins[start]) // 32 * 32
        final = stop == begins.size
        words = _overlapping(payload[first // 8 : None if final else -(-int(begins[stop]) // 8)])
        steps = count - (begins.size - 1) * BLOCK if final else BLOCK
        rows = found[start:stop]
        ends[start:stop] = first + _decode_blocks(
            words, begins[start:stop] - first, table, code.longest, rows, steps
        )
    _require_ends(ends, begins, payload)
    return found.reshape(-1)[:count]


def _require_ends(ends: Int64Array, begins: Int64Array, payload: npt.NDArray[np.uint8]) -> None:
    """Every block ends where the next begins, the last within the last byte; the rest is 0."""
    last = int(ends[-1])
    wrong = np.flatnonzero(ends[:-1] != begins[1:])
    if wrong.size or -(-last // 8) != payload.size or (last % 8 and payload[-1] >> last % 8):
        block = int(wrong[0]) if wrong.size else ends.size - 1
        end = f"bit {begins[block + 1]:,}" if wrong.size else f"the end of {payload.size:,} bytes"
        raise CodingError(
            f"damaged coded weights: the symbols of block {block} must end at {end}, got bit "
            f"{ends[block]:,}. Get the file again"
        )


def _lookup(code: Code) -> Pieces:
    """For all next `longest` bits the symbol, and from bit 32 on how many bits it takes."""
    table = np.zeros(1 << code.longest, np.uint64)
    words = reversed_words(code)
    entries = (code.symbols | code.lengths << 32).astype(np.uint64)
    for length in range(1, code.longest + 1):
        of_length = code.lengths == length
        upper = np.arange(1 << code.longest - length) << length
        table[words[of_length, None] + upper] = entries[of_length, None]
    return table


def _overlapping(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The 64 bits from every 32nd bit on."""
    padded = np.zeros(-(-data.size // 4) + 2, "<u4")
    padded.view(np.uint8)[: data.size] = data
    words = padded[1:].astype(np.uint64)
    words <<= SHIFT
    words |= padded[:-1]
    return words


def _decode_blocks(
    words: npt.NDArray[np.uint64],
    begin: Int64Array,
    table: Pieces,
    longest: int,
    found: npt.NDArray[Any],
    last: int,
) -> Int64Array:
    """Decode blocks that begin at these bits into the rows of `found`, side by side.

    Returns the bit that each block ends at, the last block after `last` symbols. Everything is
    written to arrays that are there already: a step is a few passes over memory in cache.
    """
    lanes = begin.size
    at = begin.astype(np.uint64)
    window, entry, length, index = (np.empty(lanes, np.uint64) for _ in range(4))
    rows = np.empty((_FLUSH, lanes), found.dtype)
    mask, five, low = np.uint64((1 << longest) - 1), np.uint64(5), np.uint64(31)
    per_window = 33 // longest
    steps = BLOCK if lanes > 1 else last
    end_of_last = 0
    for step in range(steps):
        if step % per_window == 0:
            np.right_shift(at, five, out=index)
            # "clip": damaged blocks may run over the end.
            np.take(words, index.view(np.int64), out=window, mode="clip")
            np.bitwise_and(at, low, out=index)
            np.right_shift(window, index, out=window)
        np.bitwise_and(window, mask, out=index)
        np.take(table, index.view(np.int64), out=entry, mode="clip")
        np.copyto(rows[step % _FLUSH], entry, casting="unsafe")
        np.right_shift(entry, SHIFT, out=length)
        np.right_shift(window, length, out=window)
        np.add(at, length, out=at)
        if step + 1 == last:
            end_of_last = int(at[-1])
        if step % _FLUSH == _FLUSH - 1 or step == steps - 1:
            start = step // _FLUSH * _FLUSH
            np.copyto(found[:, start : step + 1], rows[: step + 1 - start].T)
    reached = at.astype(np.int64)
    reached[-1] = end_of_last
    return reached
