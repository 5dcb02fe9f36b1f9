"""Block-circulant matrices: found among integers, and laid out for multipliers that share a value.

A matrix w[taps, channels, outputs] is block-circulant if in blocks of k channels by k outputs of a
tap w[i, o] depends on (o - i) mod k only (Cheng et al. 2015, arXiv 1502.03436; Ding et al. 2017,
CirCNN). Then k values are stored for a block instead of k * k; the blocks at the edges may be cut
off. A lane has k multipliers and a memory of such values: in every step it multiplies the next one
by the k inputs of its block, and adds to the sums of k outputs. Values are in the order of
their outputs, block of inputs after block of inputs, and lanes are cut from that order wherever
they are full, so that no lane but the last has padding. What a lane adds up for one block of
outputs is a span.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fxloom.fixed_point import IntArray
from fxloom.sparse_layout import lanes_for

MOST = 128
"""The largest block that is looked for: a lane has as many multipliers."""

_CHUNK = 1 << 20
"""About how many weights are compared at once."""


@dataclass(frozen=True, slots=True)
class CirculantLayout:
    """What lanes store, [lanes, reuse]; padding is 0.

    block: k; blocks: of inputs, those of all taps; ends: number lane * reuse + step of the last
    value of every span; outputs: the block of outputs that each adds to, ascending. Every lane's
    last step ends a span.
    """

    values: IntArray
    block: int
    blocks: int
    ends: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def lanes(self) -> int:
        return len(self.values)

    @property
    def reuse(self) -> int:
        return self.values.size // len(self.values)


def input_blocks(n_in: int, taps: int, block: int) -> int:
    """How many blocks of inputs a matrix with n_in rows has, those of all taps."""
    return taps * -(-(n_in // taps) // block)


def stored_values(n_in: int, n_out: int, taps: int, block: int) -> int:
    """How many values stand for an n_in x n_out matrix."""
    return input_blocks(n_in, taps, block) * -(-n_out // block) * block


def blocks_reached(reuse: int, block: int) -> int:
    """The most blocks of inputs that a lane of so many steps reads from."""
    return reuse // block if reuse % block == 0 else (reuse + block - 2) // block + 1


def find_block(matrix: IntArray, taps: int = 1) -> int:
    """The largest k, up to MOST, for which matrix[n_in, n_out] is block-circulant; 1 if none is.

    Inputs are taps of n_in / taps channels each. A block is at most as large as the matrix: larger
    ones would store no less. Of most matrices that are not block-circulant two weights say so.
    """
    n_in, n_out = matrix.shape
    weights = matrix.reshape(taps, n_in // taps, n_out)
    most = min(n_in // taps, n_out, MOST)
    if most < 2 or weights[0, 0, 0] != weights[0, 1, 1]:
        return 1
    first, second = weights[0, :2, :most]
    blocks = [k for k in range(most, 1, -1) if np.array_equal(np.roll(first[:k], 1), second[:k])]
    places = _nonzero(weights) if blocks else ()
    for block in blocks:
        if _may_be(weights, places, block) and all(
            _is_circulant(part, block) for part in _parts(weights, block)
        ):
            return block
    return 1


def _nonzero(weights: IntArray) -> tuple[IntArray, ...]:
    """Tap, channel and output of some weights that are not zero, from all over a matrix: where
    most is zero the rest says most."""
    flat = weights.reshape(-1)
    found = [np.zeros(0, np.int64)]
    for start in range(0, flat.size, _CHUNK):
        places = np.flatnonzero(flat[start : start + _CHUNK])
        found.append(start + places[:: max(places.size // 16, 1)])
    return np.unravel_index(np.concatenate(found), weights.shape)


def _may_be(weights: IntArray, places: tuple[IntArray, ...], block: int) -> bool:
    """Whether each of these weights is the same as the next of its class, if there is one."""
    tap, channel, output = places
    start, first = channel // block * block, output // block * block
    is_last = (channel + 1 == start + block) | (channel + 1 == weights.shape[1])
    other = np.where(is_last, start, channel + 1)
    there = first + (output - first + other - channel) % block
    inside = there < weights.shape[2]
    tap, channel, output, other, there = (
        each[inside] for each in (tap, channel, output, other, there)
    )
    return np.array_equal(weights[tap, channel, output], weights[tap, other, there])


def _parts(weights: IntArray, block: int) -> Iterator[IntArray]:
    """Blocks [rows, height, columns, width] of equal size; few at first, that most matrices need
    not be looked at whole."""
    channels, n_out = weights.shape[1:]
    whole, rows = n_out // block * block, 1
    for tap in weights:
        start = 0
        while start < channels:
            stop = min(start + rows * block, channels)
            if stop - start > block:  # a block that is cut off comes alone
                stop -= (stop - start) % block
            height = min(block, stop - start)
            for columns in (tap[start:stop, :whole], tap[start:stop, whole:]):
                if columns.size:
                    width = min(block, columns.shape[1])
                    yield columns.reshape(-1, height, columns.shape[1] // width, width)
            start = stop
            rows = min(2 * rows, max(_CHUNK // (block * n_out), 1))


def _is_circulant(part: IntArray, block: int) -> bool:
    """Whether blocks [rows, height, columns, width], maybe cut off, have one value a class."""
    _, height, _, width = part.shape
    classes = (np.arange(width) - np.arange(height)[:, None]) % block
    _, first, members = np.unique(classes, return_index=True, return_inverse=True)
    flat = part.transpose(0, 2, 1, 3).reshape(-1, height * width)
    return np.array_equal(flat, flat[:, first[members.reshape(-1)]])


def diagonals(matrix: IntArray, taps: int, block: int) -> IntArray:
    """The value of every class of a block-circulant matrix[n_in, n_out], by block of outputs, tap,
    block of inputs and class; 0 where a block that is cut off has no weight of a class."""
    n_in, n_out = matrix.shape
    weights = matrix.reshape(taps, n_in // taps, n_out)
    rows, columns = input_blocks(n_in, taps, block), -(-n_out // block)
    found = np.zeros((columns, taps, rows // taps, block), matrix.dtype)
    for channel in range(block):
        for output in range(block):
            members = weights[:, channel::block, output::block].transpose(2, 0, 1)
            n_columns, _, n_rows = members.shape
            found[:n_columns, :, :n_rows, (output - channel) % block] = members
    return found


def lay_out_circulant(matrix: IntArray, taps: int, block: int, reuse: int) -> CirculantLayout:
    """The layout of a block-circulant matrix[n_in, n_out] for lanes of at most `reuse` steps."""
    found = diagonals(matrix, taps, block)
    columns, rows = found.shape[0], found.shape[1] * found.shape[2]
    lanes, steps = lanes_for(found.size, reuse)
    values = np.zeros(lanes * steps, matrix.dtype)
    values[: found.size] = found.reshape(-1)
    owners = np.minimum(np.arange(lanes * steps) // (rows * block), columns - 1)
    ends = np.ones(lanes * steps, bool)
    ends[:-1] = owners[1:] != owners[:-1]
    ends[steps - 1 :: steps] = True
    where = np.flatnonzero(ends)
    return CirculantLayout(
        values.reshape(lanes, steps),
        block,
        rows,
        tuple(where.tolist()),
        tuple(owners[where].tolist()),
    )
