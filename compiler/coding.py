"""Weights in few bits, and back.

After Deep Compression (Han, Mao, Dally, 2016, arXiv 1510.00149, sections 2 and 4): the distinct
values are a codebook; what is stored of a weight is its index there, and how many zeros come before
it. Where there are more zeros than `index_bits` can say, a zero is stored (a padding zero, figure
2). Indices and run lengths have a Huffman code each. Where that takes less, zero is a value like
others and there are no run lengths, or all values are written as they are. To get the weights back
nothing else is needed but their shape and type, and every bit of it is counted.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fxloom.bit_fields import BitReader
from fxloom.bit_patterns import from_patterns, pack_patterns, unpack_patterns
from fxloom.coding_plan import plan_of, read_head
from fxloom.errors import CodingError
from fxloom.huffman_stream import decode, encode
from fxloom.storage import Storage

Array = npt.NDArray[Any]

_TYPES = tuple(
    f"{kind}{bits}"
    for kind, widths in {
        "int": (8, 16, 32, 64),
        "uint": (8, 16, 32, 64),
        "float": (16, 32, 64),
    }.items()
    for bits in widths
)


@dataclass(frozen=True, slots=True)
class CodedWeights:
    """Coded weights, from which `decode_weights` gets them back.

    shape, dtype: of the weights. codebook: how they are stored, how many, and the distinct values;
    weights: a Huffman stream of indices, or the values as they are; runs: one of run lengths.
    """

    shape: tuple[int, ...]
    dtype: str
    codebook: bytes
    weights: bytes
    runs: bytes

    @property
    def bits(self) -> int:
        """All that is stored."""
        return 8 * (len(self.codebook) + len(self.weights) + len(self.runs))


def account(weights: Array, *, index_bits: int | None = None, width: int | None = None) -> Storage:
    """What `encode_weights` stores of these weights, without coding them."""
    return plan_of(weights, index_bits, width).storage


def encode_weights(
    weights: Array, *, index_bits: int | None = None, width: int | None = None
) -> CodedWeights:
    """Weights in as few bits as the format knows.

    weights: integers or floats of any shape; few distinct values take little. index_bits: of a run
    length, 1 to 16, 0 for none; by default what takes least. width: bits of an integer in the
    codebook, else as many as needed; floats keep their own. Raises CodingError for integers that
    `width` bits do not hold, and for run lengths of more than 65,535 distinct values.
    """
    plan = plan_of(weights, index_bits, width)
    head, patterns = plan.head, plan.patterns
    start = plan.head.write()
    runs = b""
    if head.plain:
        coded = pack_patterns(patterns, head.width)
    else:
        for value in plan.codebook.values.tolist():
            start.bits(value, head.width)
        indices, between = plan.symbols()
        coded = encode(indices)
        runs = encode(between) if head.index_bits else b""
    return CodedWeights(weights.shape, weights.dtype.name, start.to_bytes(), coded, runs)


def decode_weights(coded: CodedWeights) -> Array:
    """The weights that were coded; -0.0 comes back as 0.0. Raises CodingError for damaged data."""
    if coded.dtype not in _TYPES:
        raise CodingError(f"coded weights must be one of {', '.join(_TYPES)}, got {coded.dtype!r}")
    count, dtype = prod(coded.shape), np.dtype(coded.dtype)
    reader = BitReader(coded.codebook)
    head = read_head(reader, count)
    room = 8 * dtype.itemsize
    if head.width > room or (dtype.kind == "f" and head.width < room):
        raise CodingError(
            f"damaged coded weights: {dtype} has {room} bits, got values of {head.width}. Get the "
            "file again"
        )
    if head.plain:
        patterns = unpack_patterns(coded.weights, head.width, count)
        weights = from_patterns(patterns, head.width, head.signed, dtype)
    else:
        values = [reader.bits(head.width) for _ in range(head.values)]
        reader.align()
        codebook = from_patterns(np.array(values, np.uint64), head.width, head.signed, dtype)
        indices = decode(coded.weights, head.stored)
        if indices.size and indices.max() >= codebook.size:
            raise CodingError(
                f"damaged coded weights: indices below {codebook.size} are required, got "
                f"{indices.max()}. Get the file again"
            )
        weights = codebook[indices]
        if head.index_bits:
            weights = _spread(weights, decode(coded.runs, head.stored), count)
    return weights.reshape(coded.shape)


def _spread(stored: Array, runs: Array, count: int) -> Array:
    """Stored weights where they belong, zero between them."""
    where = np.cumsum(runs, dtype=np.int64)
    where += np.arange(runs.size)
    if runs.size and where[-1] >= count:
        raise CodingError(
            f"damaged coded weights: run lengths must end within {count:,} weights, got "
            f"{where[-1] + 1:,}. Get the file again"
        )
    found = np.zeros(count, stored.dtype)
    found[where] = stored
    return found
