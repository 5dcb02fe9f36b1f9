"""The weights of a matrix, laid out for multipliers that do one product after another.

A lane is one multiplier with a memory of weights and indices: in every step it multiplies the
weight by the input that the index names, and adds to its sum. Weights are in the order of their
outputs, and lanes are cut from that order wherever they are full, so that no lane but the last has
padding, which nothing adds up. What a lane adds up for one output is a span; an output is the sum
of its spans.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from fxloom.fixed_point import Int64Array, IntArray


@dataclass(frozen=True, slots=True)
class SparseLayout:
    """Weights and indices, [lanes, reuse]; padding is weight 0 of input 0.

    ends: number lane * reuse + step of the last product of every span; outputs: the output that
    each adds to, ascending. Every lane's last product ends a span.
    """

    weights: IntArray
    indices: Int64Array
    ends: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def lanes(self) -> int:
        return len(self.weights)

    @property
    def reuse(self) -> int:
        return self.weights.size // len(self.weights)


def lanes_for(nonzero: int, reuse: int) -> tuple[int, int]:
    """How many lanes that many products take at a reuse factor, and how many steps: no more than
    so many lanes need. A matrix of zeros has one product."""
    count = max(nonzero, 1)
    lanes = -(-count // min(reuse, count))
    return lanes, -(-count // lanes)


def index_width(inputs: int) -> int:
    """Bits of a number below `inputs`."""
    return max((inputs - 1).bit_length(), 1)


def sparse_bits(lanes: int, reuse: int, width: int, inputs: int) -> int:
    """What lanes keep in memory: weights, indices, padding."""
    return lanes * reuse * (width + index_width(inputs))


def lay_out(weight: IntArray, groups: int, reuse: int, zeros: bool = False) -> SparseLayout:
    """The layout of w[..., channels / groups, n_out] for lanes of at most `reuse` steps.

    Indices count the values of one position: kernel position by kernel position, all channels of
    each, whatever group they are in. zeros: whether weights that are zero have a place as well.
    """
    return in_lanes(*entries(weight, groups, zeros), reuse)


def entries(
    weight: IntArray, groups: int, zeros: bool = False
) -> tuple[Int64Array, Int64Array, IntArray]:
    """Outputs, indices and weights of what lay_out gives a place, in the order of outputs."""
    *taps, per_group, n_out = weight.shape
    places = np.moveaxis(weight, -1, 0).reshape(n_out, prod(taps), per_group)
    outputs, tap, channel = np.nonzero(np.ones_like(places) if zeros else places)
    first = outputs // (n_out // groups) * per_group
    indices = tap * (per_group * groups) + first + channel
    return outputs, indices, places[outputs, tap, channel]


def in_lanes(
    outputs: Int64Array, indices: Int64Array, values: IntArray, reuse: int
) -> SparseLayout:
    """Entries in the order of their outputs, cut into lanes of at most `reuse` steps."""
    lanes, steps = lanes_for(outputs.size, reuse)
    weights = np.zeros(lanes * steps, values.dtype)
    weights[: outputs.size] = values
    owners = np.full(lanes * steps, outputs[-1] if outputs.size else 0)
    owners[: outputs.size] = outputs
    padded = np.zeros(lanes * steps, np.int64)
    padded[: outputs.size] = indices
    where = span_ends(owners, max(outputs.size, 1), steps)
    return SparseLayout(
        weights.reshape(lanes, steps),
        padded.reshape(lanes, steps),
        tuple(where.tolist()),
        tuple(owners[where].tolist()),
    )


def span_ends(owners: Int64Array, count: int, steps: int) -> Int64Array:
    """Where spans end: the last product of an output, or of a lane. owners: the output that each
    product adds to; count: products that are no padding."""
    ends = np.ones(count, bool)
    ends[:-1] = owners[1:count] != owners[: count - 1]
    ends[steps - 1 :: steps] = True
    return np.flatnonzero(ends)
