"""Which weights of a tensor are one number, whatever that number is.

    Codebook   an index is stored for each weight (Han et al. 2016, arXiv 1510.00149)
    Hashed     nothing is stored: a hash of its place says it (Chen et al. 2015, arXiv 1504.04788)
    Products   an index for each piece of a row (Gong et al. 2014, arXiv 1412.6115)
    Circulant  nothing is stored: blocks of a weight matrix are circulant (Cheng et al. 2015,
               arXiv 1502.03436)

All say the same thing of a tensor, a class for each weight, and what is done with weights that are
shared needs nothing else: they are averaged, trained and compared by class. A weight that was
pruned is zero and in no class. Classes are made a block at a time: tensors may be large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]

BLOCK = 1 << 18
"""Weights whose classes are looked at together."""


class Shared(Protocol):
    """A class for each weight of a tensor; weights of one class are one number, up to their sign.

    shape: of the tensor. classes: how many there are at most.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def classes(self) -> int: ...

    @property
    def is_signed(self) -> bool:
        """Whether weights of a class may differ in their sign."""
        ...

    @property
    def identity(self) -> tuple[str | Tensor, ...]:
        """What tells it from all others: first its text for people."""
        ...

    def part(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Of weights start to stop - 1, in the order of memory: their classes, int64, and signs,
        1 or -1 of int8; None where all are 1."""
        ...

    def index_bits(self, kept: int) -> int:
        """Bits that must be stored to know the class of each weight; kept: weights that are not
        pruned."""
        ...


@dataclass(frozen=True, eq=False)
class Codebook:
    """An index for each weight, into one of `books` codebooks of `size` numbers.

    indices: of the tensor's shape, in the fewest bytes; nothing writes to it. The outputs (the
    first axis) are divided into as many groups of neighbours as there are codebooks.
    """

    indices: Tensor
    size: int
    books: int = 1

    is_signed = False

    @classmethod
    def of(cls, indices: Tensor, size: int, books: int = 1) -> Codebook:
        """A codebook of indices of any integer type; those of pruned weights say nothing."""
        return cls(_packed(indices, size), size, books)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.indices.shape)

    @property
    def classes(self) -> int:
        """Numbers of all codebooks."""
        return self.size * self.books

    @property
    def identity(self) -> tuple[str | Tensor, ...]:
        """Text for people, then the indices."""
        one = f"a codebook of {self.size} numbers"
        return one if self.books == 1 else f"{self.books} times {one}", self.indices

    def part(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Classes: the numbers of one codebook behind those of the one before."""
        found = self.indices.reshape(-1)[start:stop].to(torch.int64)
        if self.books > 1:
            rows = len(self.indices)
            places = torch.arange(start, stop) // max(self.indices[0].numel(), 1)
            found += places * self.books // rows * self.size
        return found, None

    def index_bits(self, kept: int) -> int:
        """An index a weight."""
        return kept * (self.size - 1).bit_length()


@dataclass(frozen=True)
class Hashed:
    """Weights in `buckets` by a hash of their place and a seed; another bit of it is their sign."""

    shape: tuple[int, ...]
    buckets: int
    seed: int

    is_signed = True

    @property
    def classes(self) -> int:
        """A bucket each."""
        return self.buckets

    @property
    def identity(self) -> tuple[str | Tensor, ...]:
        """Text for people."""
        return (f"{self.buckets} hash buckets, seed {self.seed}, for {list(self.shape)}",)

    def part(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Of the hash, the upper half says the bucket and the last bit the sign."""
        places = np.arange(start, stop, dtype=np.uint64)
        hashed = _mixed(places + _mixed(np.array([self.seed], np.uint64)))
        upper = (hashed >> np.uint64(32)) * np.uint64(self.buckets) >> np.uint64(32)
        signs = 1 - 2 * (hashed & np.uint64(1)).astype(np.int8)
        return torch.from_numpy(upper.astype(np.int64)), torch.from_numpy(signs)

    def index_bits(self, kept: int) -> int:
        """None: all is computed."""
        return 0


@dataclass(frozen=True, eq=False)
class Products:
    """Every row cut into pieces of `dim` weights, each of them one of `size` codewords.

    shape: of the tensor; a row is what belongs to one index of its first axis. indices: [rows,
    pieces] in the fewest bytes. Pieces at the same place of all rows share a codebook.
    """

    shape: tuple[int, ...]
    indices: Tensor
    size: int
    dim: int

    is_signed = False

    @classmethod
    def of(cls, shape: tuple[int, ...], indices: Tensor, size: int, dim: int) -> Products:
        """Products of indices of any integer type; the last piece of a row may be shorter."""
        assert list(indices.shape) == [shape[0], -(-prod(shape[1:]) // dim)]
        return cls(tuple(shape), _packed(indices, size), size, dim)

    @property
    def classes(self) -> int:
        """The numbers of all codewords of all codebooks."""
        return self.indices.shape[1] * self.size * self.dim

    @property
    def identity(self) -> tuple[str | Tensor, ...]:
        """Text for people, then the indices."""
        text = f"{self.size} codewords of {self.dim} weights for each place in {list(self.shape)}"
        return text, self.indices

    def part(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Classes: by place, codeword and position in it."""
        pieces, columns = self.indices.shape[1], prod(self.shape[1:])
        places = torch.arange(start, stop)
        rows, column = places // columns, places % columns
        piece = column // self.dim
        word = self.indices.reshape(-1)[rows * pieces + piece].to(torch.int64)
        return (piece * self.size + word) * self.dim + column % self.dim, None

    def index_bits(self, kept: int) -> int:
        """An index a piece."""
        return self.indices.numel() * (self.size - 1).bit_length()


@dataclass(frozen=True)
class Circulant:
    """Blocks of `block` outputs and inputs whose diagonals, wrapped around, are one number each.

    shape: [outputs, inputs, *kernel]; every position of the kernel is a matrix of its own. Blocks
    at the last outputs and inputs may be partial. positions: of an image that the inputs are,
    flattened channel by channel; blocks then go over them position by position, as they are stored.
    """

    shape: tuple[int, ...]
    block: int
    positions: int = 1

    is_signed = False

    @property
    def classes(self) -> int:
        """`block` numbers a block and position of the kernel."""
        down, across = (-(-size // self.block) for size in self.shape[:2])
        return down * across * prod(self.shape[2:]) * self.block

    @property
    def identity(self) -> tuple[str | Tensor, ...]:
        """Text for people."""
        image = f", {self.positions} positions" if self.positions > 1 else ""
        return (f"circulant blocks of {self.block} in {list(self.shape)}{image}",)

    def part(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Classes: by block, position of the kernel and diagonal, (output - input) mod block."""
        inputs, taps, k = self.shape[1], prod(self.shape[2:]), self.block
        places = torch.arange(start, stop)
        tap, matrix = places % taps, places // taps
        output, column = matrix // inputs, matrix % inputs
        if self.positions > 1:
            channel, position = column // self.positions, column % self.positions
            column = position * (inputs // self.positions) + channel
        number = output // k * -(-inputs // k) + column // k
        return (number * taps + tap) * k + (output - column) % k, None

    def index_bits(self, kept: int) -> int:
        """None: all is computed."""
        return 0


# What is done with weights by class --------------------------------------------------------------


def holds(shared: Shared, values: Tensor, kept: Tensor | None = None) -> bool:
    """Whether weights of a class are one number. kept: those that are not pruned, None for all."""
    if tuple(values.shape) != shared.shape:
        return False
    numbers = torch.full((shared.classes,), torch.nan, dtype=torch.float64)
    for found, classes in _members(shared, values, kept):
        known = numbers[classes]
        if bool((unseen := known.isnan()).any()):
            numbers[classes[unseen]] = found[unseen]
            known = numbers[classes]
        if not torch.equal(known, found):
            return False
    return True


def means(shared: Shared, values: Tensor, kept: Tensor | None = None) -> Tensor:
    """The number of each class that comes nearest to its weights: their mean, float64 [classes].

    Zero for a class without weights.
    """
    return sums(shared, values, kept) / counts(shared, values, kept).clamp(min=1)


def counts(shared: Shared, values: Tensor, kept: Tensor | None = None) -> Tensor:
    """How many weights are in each class, int64 [classes]."""
    count = torch.zeros(shared.classes, dtype=torch.int64)
    for _, classes, _, present in _parts(shared, values, kept):
        chosen = classes if present is None else classes[present]
        count += torch.bincount(chosen, minlength=shared.classes)
    return count


def sums(shared: Shared, values: Tensor, kept: Tensor | None = None) -> Tensor:
    """The sum of each class, float64 [classes]: of slopes, the slope of its number."""
    total = torch.zeros(shared.classes, dtype=torch.float64)
    for found, classes in _members(shared, values, kept):
        total += torch.bincount(classes, found, shared.classes)
    return total


def _members(
    shared: Shared, values: Tensor, kept: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights that are there, float64 and without their signs, and their classes."""
    for part, classes, signs, present in _parts(shared, values, kept):
        found = part.to(torch.float64)
        if signs is not None:
            found *= signs
        yield (found, classes) if present is None else (found[present], classes[present])


def expanded(shared: Shared, numbers: Tensor, kept: Tensor | None = None) -> Tensor:
    """The tensor whose weights are the numbers [classes] of their classes; zero where pruned."""
    values = torch.empty(shared.shape, dtype=numbers.dtype)
    for part, classes, signs, present in _parts(shared, values, kept):
        torch.index_select(numbers, 0, classes, out=part)
        if signs is not None:
            part *= signs
        if present is not None:
            part.masked_fill_(~present, 0)
    return values


def _parts(
    shared: Shared, values: Tensor, kept: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Weights, their classes and signs, and which are there: a block at a time, on the CPU."""
    assert tuple(values.shape) == shared.shape, (tuple(values.shape), shared.shape)
    flat = values.detach().reshape(-1)
    present = None if kept is None else kept.reshape(-1)
    for start in range(0, flat.numel(), BLOCK):
        stop = min(start + BLOCK, flat.numel())
        there = None if present is None else present[start:stop].cpu()
        yield flat[start:stop].cpu(), *shared.part(start, stop), there


def classes_of(shared: Shared) -> Tensor:
    """The class of each weight: int32, of the tensor's shape."""
    found = torch.empty(prod(shared.shape), dtype=torch.int32)
    for start in range(0, len(found), BLOCK):
        stop = min(start + BLOCK, len(found))
        found[start:stop] = shared.part(start, stop)[0]
    return found.reshape(shared.shape)


def signs_of(shared: Shared) -> Tensor | None:
    """The sign of each weight: int8, of the tensor's shape; None where all are 1."""
    if not shared.is_signed:
        return None
    size = prod(shared.shape)
    found = [shared.part(start, min(start + BLOCK, size))[1] for start in range(0, size, BLOCK)]
    return torch.cat([each for each in found if each is not None]).reshape(shared.shape)


def _packed(indices: Tensor, size: int) -> Tensor:
    """Indices below `size` in the fewest bytes."""
    assert size >= 1
    kind = torch.uint8 if size <= 1 << 8 else torch.uint16 if size <= 1 << 16 else torch.int32
    return indices.to(kind).contiguous()


def _mixed(x: Words) -> Words:
    """SplitMix64, a hash of 64 bits (Steele, Lea and Flood 2014, OOPSLA)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
