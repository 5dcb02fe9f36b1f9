"""The sparse kernel: only weights that are not zero are stored and multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fxloom import features
from fxloom.allotment import Allotment
from fxloom.kernels.base import Offer, Rhythm, counted, enough
from fxloom.matrices import Matrix
from fxloom.sparse_layout import index_width, lanes_for, sparse_bits
from fxloom.target import LayerSettings

if TYPE_CHECKING:
    from fxloom.costs import Cost
    from fxloom.product_costs import Product


class Sparse:
    """Lanes of one multiplier each, with a memory of weights and of the inputs' numbers."""

    name: ClassVar[str] = "sparse"

    def offer(self, matrix: Matrix, wanted: LayerSettings) -> Offer:
        """Any matrix will do."""
        nonzero, size = int(np.count_nonzero(matrix.weights)), matrix.weights.size
        lanes, reuse = lanes_for(nonzero, wanted.reuse)
        bits = sparse_bits(lanes, reuse, matrix.width, matrix.inputs)
        what = (
            f"{nonzero:,} of {size:,} weights, {counted(lanes)} at reuse {reuse:,} "
            f"({bits:,} bits with indices)"
        )
        luts = features.SPARSE_BOUNDS[0] * self._luts(matrix, lanes)
        return Offer(
            lanes, reuse, bits, lanes * reuse, luts, lanes, what, enough(reuse, wanted.reuse, lanes)
        )

    @staticmethod
    def _luts(matrix: Matrix, lanes: int) -> float:
        return features.sparse_lut(
            lanes, matrix.inputs, matrix.outputs, matrix.data, matrix.sum_width
        )

    def dense_is_better(self, matrix: Matrix, wanted: LayerSettings, dense: Allotment) -> str:
        """Where weights are constants products with zero are not there anyway."""
        if wanted.strategy == "latency":
            return "the Latency strategy drops products with zero anyway"
        if dense.reuse == 1:
            return "without reuse products with zero are dropped anyway"
        return ""

    def cost(self, product: Product) -> Cost:
        """A multiplier and a choice among all inputs a lane; nobody has synthesised it."""
        from fxloom.product_costs import RULE_SPARSE, SPARSE_CYCLES, lane_cost

        matrix, given = product.matrix, product.given
        luts = features.sparse_lut(
            given.lanes, matrix.inputs, matrix.outputs, product.data, product.accumulator
        )
        word = given.lanes * (matrix.width + index_width(matrix.inputs))
        registers = matrix.inputs * product.data + 2 * given.lanes * product.accumulator + word
        return lane_cost(product, luts, registers, given.lanes, word, RULE_SPARSE, SPARSE_CYCLES)

    def rhythm(self, matrix: Matrix, given: Allotment) -> Rhythm:
        """The result after the last step; the first iteration of a row fetches its window."""
        return Rhythm(given.reuse, given.reuse - 1, 1)
