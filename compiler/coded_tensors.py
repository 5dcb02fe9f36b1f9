"""One tensor as bytes that take less room, and back: the same bits, or an error that says why not.

raw: the tensor as it is. coded: as `coding` does, distinct values with a Huffman code and, where
many are zero, run lengths. Which one is taken is a matter of size. What a file says is not
trusted: sizes are compared with the bytes that are there before anything is allocated for them.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fxloom.bit_fields import BitReader
from fxloom.coding import CodedWeights, account, decode_weights, encode_weights
from fxloom.coding_plan import read_head
from fxloom.errors import CodingError, WeightsError
from fxloom.storage import Storage

Array = np.ndarray[Any, np.dtype[Any]]

ITEMSIZES = MappingProxyType(
    {
        **dict.fromkeys(("BOOL", "U8", "I8"), 1),
        **dict.fromkeys(("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ"), 1),
        **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
        **dict.fromkeys(("U32", "I32", "F32"), 4),
        **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
    }
)
"""Bytes of a number of each type, by the names that the safetensors format has."""

CODINGS = ("raw", "coded")

SMALL = 2**16
EXPANSION = 1024
"""Decoding gives SMALL bytes and EXPANSION times those that were read at most: a file of a few
bytes cannot fill a memory. A tensor that could be coded in fewer is stored in more."""

Count = Annotated[int, Field(ge=0, lt=2**48)]
Shape = Annotated[list[Count], Field(max_length=32)]

_HASHED = 2**22


@dataclass(frozen=True, slots=True)
class Pattern:
    """A tensor as bits: -0.0 and 0.0 differ, every NaN stays what it was, and types that NumPy does
    not have need no arithmetic.

    dtype: a key of ITEMSIZES; bits: unsigned integers as wide, of the tensor's shape, contiguous.
    """

    dtype: str
    bits: Array

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.bits.shape
        return shape

    def sha256(self) -> str:
        """Of type, shape and little-endian bytes."""
        flat = self.bits.reshape(-1)
        parts = (flat[start : start + _HASHED] for start in range(0, flat.size, _HASHED))
        return sha256_of(self.dtype, self.shape, parts)


def sha256_of(dtype: str, shape: Sequence[int], parts: Iterable[Array]) -> str:
    """The checksum of a tensor whose bits come in parts."""
    digest = hashlib.sha256(f"{dtype} {list(shape)}".encode())
    for part in parts:
        digest.update(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def unsigned(dtype: str) -> np.dtype[Any]:
    """What the bits of a number are held in."""
    return np.dtype(f"u{ITEMSIZES[dtype]}")


def size_of(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of that type and shape."""
    return ITEMSIZES[dtype] * prod(shape)


def of_integers(array: Array) -> Pattern:
    """The bits of an array of integers."""
    whole = np.ascontiguousarray(array).reshape(array.shape)  # it makes a 0-d array 1-d
    size = whole.dtype.itemsize
    return Pattern(f"{whole.dtype.kind.upper()}{8 * size}", whole.view(f"u{size}"))


def to_integers(pattern: Pattern) -> Array:
    """The signed integers that the bits mean."""
    assert pattern.dtype.startswith("I"), pattern.dtype
    return pattern.bits.view(f"i{pattern.bits.dtype.itemsize}")


class Stored(BaseModel):
    """How a tensor is stored: what a file's header says of it.

    coding: one of CODINGS. streams: bytes of the codebook, of the weights and of the run lengths,
    which follow each other.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    dtype: str
    shape: Shape
    coding: str = "coded"
    streams: Annotated[list[Count], Field(max_length=3)] = []

    @property
    def nbytes(self) -> int:
        """Of the decoded tensor."""
        return size_of(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor in one of the codings. data: the tensor itself, or bytes."""

    stored: Stored
    data: Pattern

    @property
    def nbytes(self) -> int:
        """Of what is stored."""
        return self.data.bits.nbytes


def plain(pattern: Pattern) -> Coded:
    """A tensor stored as it is."""
    return Coded(Stored(dtype=pattern.dtype, shape=list(pattern.shape), coding="raw"), pattern)


def encode(pattern: Pattern, index_bits: int | None = None) -> Coded:
    """A tensor coded in the fewest bytes from which it may be decoded again, or as it is.

    index_bits: of run lengths, 1 to 16, where they take less than none do; 0 for none.
    """
    found = [plain(pattern), *_coded(pattern, index_bits)]
    return min(found, key=lambda each: each.nbytes)


def decode(stored: Stored, data: Pattern) -> Pattern:
    """The tensor that was encoded, if nothing is damaged.

    Raises WeightsError where this cannot be such a tensor.
    """
    require(stored, data.bits.nbytes)
    if stored.coding == "raw":
        return _raw(stored, data)
    kind = _numbers(stored.dtype)
    if kind is None:
        raise WeightsError(f"required {stored.dtype} as it is, got it coded")
    if (data.dtype, data.shape) != ("U8", (sum(stored.streams),)):
        raise WeightsError(
            f"required {sum(stored.streams)} bytes, got {data.dtype} of shape {list(data.shape)}"
        )
    streams = _streams(data.bits.tobytes(), stored.streams)
    try:
        numbers = decode_weights(CodedWeights(tuple(stored.shape), kind.name, *streams))
    except CodingError as fault:
        raise WeightsError(str(fault)) from None
    return _checked(Pattern(stored.dtype, numbers.view(unsigned(stored.dtype))))


def _streams(data: bytes, sizes: list[int]) -> tuple[bytes, bytes, bytes]:
    if len(sizes) != 3:
        raise WeightsError(f"required three streams, got {len(sizes)}")
    first, second = sizes[0], sizes[0] + sizes[1]
    return data[:first], data[first:second], data[second:]


def accounted(coded: Coded, pattern: Pattern) -> Storage:
    """What a coded tensor takes, bit by bit. pattern: the decoded one."""
    kind = _numbers(pattern.dtype)
    assert kind is not None, pattern.dtype
    first = coded.data.bits[: coded.stored.streams[0]].tobytes()
    head = read_head(BitReader(first), pattern.bits.size)
    return account(pattern.bits.view(kind), index_bits=head.index_bits)


def require(stored: Stored, given: int) -> None:
    """Raise WeightsError for a type or a coding that is not known, or a tensor that is too large to
    come from `given` bytes."""
    for key, value, known in (
        ("coding", stored.coding, CODINGS),
        ("type", stored.dtype, tuple(ITEMSIZES)),
    ):
        if value not in known:
            raise WeightsError(f"{key}: required one of {', '.join(known)}, got {value!r}")
    if prod(max(size, 1) for size in stored.shape) >= 2**48 or not _is_allowed(stored, given):
        raise WeightsError(
            f"required at most {SMALL + EXPANSION * given:,} bytes decoded from {given:,}, got a "
            f"shape of {stored.shape} with {stored.nbytes:,}"
        )


def _is_allowed(stored: Stored, given: int) -> bool:
    return stored.nbytes <= SMALL + EXPANSION * given


def _coded(pattern: Pattern, index_bits: int | None) -> Iterator[Coded]:
    """The first that may be decoded again of the codings that are asked for, the smallest first."""
    kind = _numbers(pattern.dtype)
    if kind is None or pattern.bits.size == 0:
        return
    numbers = pattern.bits.view(kind)
    # Of those that choose freely the second and the third are for what is next to nothing: run
    # lengths of 8 bits and one bit a weight are enough to be believed.
    for bits in (None, 8, 0) if index_bits is None else _by_size(numbers, {index_bits, 0}):
        try:
            coded = encode_weights(numbers, index_bits=bits)
        except CodingError:  # too many distinct values for run lengths
            continue
        streams = (coded.codebook, coded.weights, coded.runs)
        data = Pattern("U8", np.frombuffer(bytearray(b"".join(streams)), np.uint8))
        stored = Stored(
            dtype=pattern.dtype,
            shape=list(pattern.shape),
            coding="coded",
            streams=[len(each) for each in streams],
        )
        if _is_allowed(stored, data.bits.nbytes):
            yield Coded(stored, data)
            return


def _by_size(numbers: Array, choices: Iterable[int]) -> list[int]:
    """Widths of run lengths, the one that takes least first; those that cannot be are left out."""
    sizes = {}
    for bits in choices:
        with suppress(CodingError):
            sizes[bits] = account(numbers, index_bits=bits).huffman_bits or 0
    return sorted(sizes, key=lambda bits: sizes[bits])


def _numbers(dtype: str) -> np.dtype[Any] | None:
    """What the bits of a type are coded as: integers that zero bits are 0 of; None for types that
    are stored as they are."""
    if dtype.startswith("I"):
        return np.dtype(f"i{ITEMSIZES[dtype]}")
    return unsigned(dtype) if ITEMSIZES[dtype] <= 4 else None


def _raw(stored: Stored, data: Pattern) -> Pattern:
    if (data.dtype, list(data.shape)) != (stored.dtype, stored.shape):
        raise WeightsError(
            f"required {stored.dtype} of shape {stored.shape}, got {data.dtype} of shape "
            f"{list(data.shape)}"
        )
    return _checked(Pattern(data.dtype, data.bits.copy()))  # not of the file, which may change


def _checked(pattern: Pattern) -> Pattern:
    if pattern.dtype == "BOOL" and pattern.bits.max(initial=0) > 1:
        raise WeightsError("required truth values as bytes of 0 and 1, got others")
    return pattern
