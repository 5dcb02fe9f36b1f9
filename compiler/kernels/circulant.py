"""The circulant kernel: of a block of k inputs by k outputs only k values are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fxloom import features
from fxloom.allotment import Allotment
from fxloom.circulant_layout import (
    MOST,
    blocks_reached,
    find_block,
    input_blocks,
    stored_values,
)
from fxloom.kernels.base import Declined, Offer, Rhythm, counted, enough
from fxloom.matrices import Matrix
from fxloom.sparse_layout import lanes_for
from fxloom.target import LayerSettings

if TYPE_CHECKING:
    from fxloom.costs import Cost
    from fxloom.product_costs import Product


SOURCE = (
    "rule: circulant kernel: k multipliers a lane, (values of all blocks) / reuse lanes, DSP as of "
    "dense Resource layers; not yet compared with a synthesis"
)
CYCLES = (
    "rule: circulant kernel: its reuse factor in cycles, for every position and at the beginning "
    "of every row of windows",
    "unknown: cycles in which the pipeline of a circulant kernel fills, so these are at least",
)


class Circulant:
    """Lanes of k multipliers each that share a memory of values."""

    name: ClassVar[str] = "circulant"

    def offer(self, matrix: Matrix, wanted: LayerSettings) -> Offer | Declined:
        """Only of matrices that are block-circulant, which two weights of most others tell."""
        n_in, n_out = matrix.shape
        if matrix.groups > 1:
            return Declined("a convolution without groups", f"{matrix.groups} groups")
        block = find_block(matrix.weights, matrix.taps)
        if block == 1:
            return Declined(
                "a block-circulant matrix, as the pass circulant makes it: integers that depend "
                "on (output - input) mod k only, in blocks of k inputs by k outputs",
                f"one of {n_in} x {n_out} that is so for no k from 2 to {MOST}",
            )
        count = stored_values(n_in, n_out, matrix.taps, block)
        lanes, reuse = lanes_for(count, wanted.reuse)
        bits = lanes * reuse * matrix.width
        multipliers = lanes * block
        note = enough(reuse, wanted.reuse, multipliers)
        what = (
            f"{count:,} values for {n_in * n_out:,} weights in blocks of {block}, "
            f"{counted(multipliers)} at reuse {reuse:,} ({bits:,} bits)"
        )
        least = features.SPARSE_BOUNDS[0]
        luts = least * _luts(matrix, block, lanes, reuse, matrix.sum_width)
        return Offer(multipliers, reuse, bits, multipliers * reuse, luts, lanes, what, note)

    def dense_is_better(
        self, matrix: Matrix, wanted: LayerSettings, dense: Allotment
    ) -> str | None:
        """Where weights are constants nothing is stored of them."""
        if matrix.groups > 1 or find_block(matrix.weights, matrix.taps) == 1:
            return None
        if wanted.strategy == "latency":
            return "the Latency strategy stores no weights"
        if dense.reuse == 1:
            return "without reuse no weights are stored"
        return ""

    def cost(self, product: Product) -> Cost:
        """k multipliers a lane, and a choice among the blocks that it reaches; nobody has
        synthesised it."""
        from fxloom.product_costs import lane_cost

        matrix, given = product.matrix, product.given
        block = given.products // (given.lanes * given.reuse)
        luts = _luts(matrix, block, given.lanes, given.reuse, product.accumulator)
        word = given.lanes * matrix.width
        sums = 2 * given.lanes * block * product.accumulator
        registers = matrix.inputs * product.data + sums + word
        multipliers = given.lanes * block
        return lane_cost(product, luts, registers, multipliers, word, SOURCE, CYCLES)

    def rhythm(self, matrix: Matrix, given: Allotment) -> Rhythm:
        """The result after the last step; the first iteration of a row fetches its window."""
        return Rhythm(given.reuse, given.reuse - 1, 1)


def _luts(matrix: Matrix, block: int, lanes: int, reuse: int, accumulator: int) -> float:
    n_in, n_out = matrix.shape
    blocks = input_blocks(n_in, matrix.taps, block)
    choices = min(blocks_reached(reuse, block), blocks)
    return features.sparse_lut(lanes * block, choices, n_out, matrix.data, accumulator)
