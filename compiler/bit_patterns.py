"""Numbers as bit patterns of a width, and the distinct ones among many."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fxloom.errors import CodingError
from fxloom.fixed_point import Int64Array
from fxloom.huffman import SYMBOLS

Array = npt.NDArray[Any]

_CHUNK = 1 << 20


def unsigned_type(width: int) -> np.dtype[Any]:
    """The least built-in type of at least `width` bits."""
    return np.dtype(next(f"<u{n // 8}" for n in (8, 16, 32, 64) if width <= n))


def integer_width(numbers: Array) -> int:
    """Bits that hold all of these integers, with a sign where one is negative."""
    least, most = (int(numbers.min()), int(numbers.max())) if numbers.size else (0, 0)
    if least >= 0:
        return max(most.bit_length(), 1)
    return max((-least - 1).bit_length(), max(most, 0).bit_length()) + 1


def to_patterns(numbers: Array, width: int) -> Array:
    """Unsigned numbers of `width` bits, one for each: two's complement of integers, IEEE 754 bits
    of floats, where -0.0 becomes 0.0."""
    if numbers.dtype.kind == "f":
        return np.ravel(numbers + 0).view(unsigned_type(width))
    kind = unsigned_type(width)
    patterns = np.ravel(numbers).astype(kind)
    patterns &= kind.type((1 << width) - 1)
    return patterns


def from_patterns(patterns: Array, width: int, signed: bool, dtype: np.dtype[Any]) -> Array:
    """The numbers that `to_patterns` was given."""
    if dtype.kind == "f":
        return patterns.astype(unsigned_type(width)).view(dtype)
    numbers = np.empty(patterns.size, dtype)
    sign = np.uint64(1 << (width - 1))
    for start in range(0, patterns.size, _CHUNK):
        wide = patterns[start : start + _CHUNK].astype(np.uint64)
        if signed and width < 64:
            wide = (wide ^ sign) - sign  # modulo 2**64
        numbers[start : start + _CHUNK] = wide.view(np.int64)
    return numbers


def pack_patterns(patterns: Array, width: int) -> bytes:
    """All of them one after the other, lowest bits first, padded to whole bytes."""
    kind = unsigned_type(width)
    if width == kind.itemsize * 8:
        return patterns.astype(kind, copy=False).tobytes()
    parts = []
    for start in range(0, patterns.size, _CHUNK):
        chunk = patterns[start : start + _CHUNK].astype(kind).view(np.uint8)
        bits = np.unpackbits(chunk.reshape(-1, kind.itemsize), axis=1, bitorder="little")
        parts.append(np.packbits(bits[:, :width].reshape(-1), bitorder="little").tobytes())
    return b"".join(parts)


def unpack_patterns(data: bytes, width: int, count: int) -> Array:
    """What `pack_patterns` was given. Raises CodingError where there is more or less data."""
    if len(data) != -(-count * width // 8):
        raise CodingError(
            f"damaged coded weights: {-(-count * width // 8):,} bytes are required for {count:,} "
            f"values of {width} bits, got {len(data):,}. Get the file again"
        )
    kind = unsigned_type(width)
    packed = np.frombuffer(data, np.uint8)
    if width == kind.itemsize * 8:
        return packed.view(kind)
    found = np.empty(count, kind)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        part = packed[start * width // 8 : -(-(start + size) * width // 8)]
        bits = np.zeros((size, kind.itemsize * 8), np.uint8)
        bits[:, :width] = np.unpackbits(part, count=size * width, bitorder="little").reshape(
            size, width
        )
        found[start : start + size] = np.packbits(bits, axis=1, bitorder="little").view(kind)[:, 0]
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Distinct:
    """values: the distinct patterns, ascending; counts: how often each occurs."""

    values: Array
    counts: Int64Array

    def indices(self, patterns: Array) -> Array:
        """Which value each pattern is: uint8 or uint16."""
        kind = np.uint8 if self.values.size <= 256 else np.uint16
        if patterns.dtype.itemsize <= 2:
            table = np.zeros(1 << 8 * patterns.dtype.itemsize, kind)
            table[self.values] = np.arange(self.values.size)
            return table[patterns]
        found = np.empty(patterns.size, kind)
        for start in range(0, patterns.size, _CHUNK):
            chunk = patterns[start : start + _CHUNK]
            found[start : start + _CHUNK] = np.searchsorted(self.values, chunk)
        return found


def distinct(patterns: Array) -> Distinct | None:
    """The distinct patterns, None where there are more than a Huffman code may have symbols."""
    if patterns.dtype.itemsize <= 2:
        counts = np.zeros(1 << 8 * patterns.dtype.itemsize, np.int64)
        for start in range(0, patterns.size, _CHUNK):
            counts += np.bincount(patterns[start : start + _CHUNK], minlength=counts.size)
        values = np.flatnonzero(counts)
        return Distinct(values.astype(patterns.dtype), counts[values])
    values, counts = patterns[:0], np.zeros(0, np.int64)
    for start in range(0, patterns.size, _CHUNK):
        some, often = np.unique(patterns[start : start + _CHUNK], return_counts=True)
        both = np.concatenate([values, some])
        values, number = np.unique(both, return_inverse=True)
        if values.size > SYMBOLS:
            return None
        # Exact: below 2**53 floats are integers.
        total = np.bincount(number, np.concatenate([counts, often]), values.size)
        counts = total.astype(np.int64)
    return Distinct(values, counts)
