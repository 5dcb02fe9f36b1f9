"""The kernel that reads the number of each weight in a codebook, and looks the weight up."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fxloom import features
from fxloom.allotment import Allotment
from fxloom.distinct import MOST, code_width, codebook
from fxloom.fixed_point import Int64Array
from fxloom.kernels.base import Declined, Offer, Rhythm, counted, enough
from fxloom.logic import rom_blocks
from fxloom.matrices import Matrix
from fxloom.sparse_layout import index_width, lanes_for
from fxloom.target import LayerSettings

if TYPE_CHECKING:
    from fxloom.costs import Cost
    from fxloom.product_costs import Product

SOURCE = (
    "rule: indexed kernel: a multiplier and a table of the codebook a lane, weights / reuse lanes, "
    "DSP as of dense Resource layers; not yet compared with a synthesis"
)
CYCLES = (
    "rule: indexed kernel: its reuse factor in cycles, for every position and at the beginning of "
    "every row of windows",
    "unknown: cycles in which the pipeline of an indexed kernel fills, so these are at least",
)
TABLE_BITS = 6
"""Inputs of a LUT."""


@dataclass(frozen=True, slots=True)
class Numbering:
    """What is stored of a matrix of few different weights.

    values: the codebook, ascending; width: bits of a number in it; implied: whether all weights are
    stored, in the order of the inputs, and not only those that are not zero, with the numbers of
    their inputs; count: how many.
    """

    values: Int64Array
    width: int
    implied: bool
    count: int

    @classmethod
    def of(cls, matrix: Matrix) -> Numbering | None:
        """Whichever takes fewer bits; None where there are more than MOST values. With groups
        inputs do not simply follow each other: only what is not zero."""
        values = codebook(matrix.weights)
        if values is None:
            return None
        count = max(int(np.count_nonzero(matrix.weights)), 1)
        kept = values[values != 0] if values.any() else values
        width = code_width(len(kept))
        all_bits = matrix.weights.size * code_width(len(values))
        if matrix.groups == 1 and all_bits <= count * (width + index_width(matrix.inputs)):
            return cls(values, code_width(len(values)), True, matrix.weights.size)
        return cls(kept, width, False, count)

    def word(self, matrix: Matrix) -> int:
        """Bits of a lane's word."""
        return self.width if self.implied else self.width + index_width(matrix.inputs)


class Indexed:
    """Lanes of one multiplier each, with a memory of numbers and a table of weights."""

    name: ClassVar[str] = "indexed"

    def offer(self, matrix: Matrix, wanted: LayerSettings) -> Offer | Declined:
        """For matrices with few different weights."""
        kept = Numbering.of(matrix)
        if kept is None:
            n_in, n_out = matrix.shape
            return Declined(
                f"at most {MOST} different weights in a layer",
                f"more in one of {n_in:,} x {n_out:,}",
            )
        values = len(kept.values)
        lanes, reuse = lanes_for(kept.count, wanted.reuse)
        bits = lanes * reuse * kept.word(matrix) + values * matrix.width
        if kept.implied:  # each lane knows the input that it begins at
            bits += lanes * index_width(matrix.inputs)
        what = (
            f"{values} value{'s' if values != 1 else ''} for {kept.count:,} of "
            f"{matrix.weights.size:,} weights, "
            f"{counted(lanes)} at reuse "
            f"{reuse:,} ({bits:,} bits with the codebook)"
        )
        luts = features.SPARSE_BOUNDS[0] * _luts(
            matrix, lanes, values, matrix.data, matrix.sum_width
        )
        return Offer(
            lanes, reuse, bits, lanes * reuse, luts, lanes, what, enough(reuse, wanted.reuse, lanes)
        )

    def dense_is_better(
        self, matrix: Matrix, wanted: LayerSettings, dense: Allotment
    ) -> str | None:
        """Wherever no block of memory is saved: DSP blocks are as many, and LUTs more."""
        if dense.strategy == "latency" or dense.reuse == 1:  # weights are constants
            return None
        offer = self.offer(matrix, wanted)
        if isinstance(offer, Declined):
            return None
        blocks = (
            rom_blocks(reuse, ceil(bits / reuse))
            for reuse, bits in (
                (offer.reuse, offer.bits),
                (dense.reuse, matrix.weights.size * matrix.width),
            )
        )
        return "" if next(blocks) < next(blocks) else None

    def cost(self, product: Product) -> Cost:
        """As of the sparse kernel, and a table a lane; nobody has synthesised it."""
        from fxloom.product_costs import lane_cost

        matrix, given = product.matrix, product.given
        kept = Numbering.of(matrix)
        assert kept is not None
        luts = _luts(matrix, given.lanes, len(kept.values), product.data, product.accumulator)
        word = given.lanes * kept.word(matrix)
        registers = matrix.inputs * product.data + 2 * given.lanes * product.accumulator + word
        return lane_cost(product, luts, registers, given.lanes, word, SOURCE, CYCLES)

    def rhythm(self, matrix: Matrix, given: Allotment) -> Rhythm:
        """As the sparse kernel, whose loops it has."""
        return Rhythm(given.reuse, given.reuse - 1, 1)


def _luts(matrix: Matrix, lanes: int, values: int, data: int, sums: int) -> float:
    tables = lanes * matrix.width * ceil(values / (1 << TABLE_BITS))
    return features.sparse_lut(lanes, matrix.inputs, matrix.outputs, data, sums) + tables
