"""The Huffman kernel: weights and run lengths come from memory as Huffman codes."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, ClassVar

from fxloom import features
from fxloom.allotment import Allotment
from fxloom.huffman import SYMBOLS, Code
from fxloom.huffman_layout import HuffmanLayout, lay_out_codes
from fxloom.kernels.base import Declined, Offer, Rhythm, counted, enough
from fxloom.logic import rom_blocks
from fxloom.matrices import Matrix
from fxloom.target import LayerSettings

if TYPE_CHECKING:
    from fxloom.costs import Cost
    from fxloom.product_costs import Product

SOURCE = (
    "rule: Huffman kernel: a multiplier, a decoder and a memory a lane, (weights and padding zeros "
    "that are stored) / reuse lanes, DSP as of dense Resource layers; not yet compared with a "
    "synthesis"
)
CYCLES = (
    "rule: Huffman kernel: its reuse factor in cycles, for every position and at the beginning of "
    "every row of windows",
    "unknown: cycles in which the pipeline of a Huffman kernel fills, and whether two codes are "
    "decoded in a cycle of this clock, so these are at least",
)
TABLE_BITS = 6
"""Inputs of a LUT."""


class Huffman:
    """Lanes of one multiplier each, with a decoder and a memory of codes."""

    name: ClassVar[str] = "huffman"

    def offer(self, matrix: Matrix, wanted: LayerSettings) -> Offer | Declined:
        """For matrices of fewer different weights than a code may have."""
        layout = lay_out_codes(matrix, wanted.reuse)
        if layout is None:
            n_in, n_out = matrix.shape
            return Declined(
                f"fewer than {SYMBOLS:,} different weights that are not zero in a layer",
                f"more in one of {n_in:,} x {n_out:,}",
            )
        lanes, reuse = layout.lanes, layout.steps
        bits = layout.rom_bits + layout.table_bits
        what = (
            f"{layout.indices.size:,} codes for {matrix.weights.size:,} weights, {counted(lanes)} "
            f"at reuse {reuse:,} ({bits:,} bits: {layout.rom_bits:,} in ROMs, the rest in tables)"
        )
        luts = features.SPARSE_BOUNDS[0] * _luts(matrix, layout, matrix.sum_width)
        return Offer(
            lanes, reuse, bits, lanes * reuse, luts, lanes, what, enough(reuse, wanted.reuse, lanes)
        )

    def dense_is_better(self, matrix: Matrix, wanted: LayerSettings, dense: Allotment) -> None:
        """Never chosen unasked: whether a decoder keeps up with the clock nobody has seen."""

    def cost(self, product: Product) -> Cost:
        """As of the sparse kernel, with a decoder a lane; nobody has synthesised it."""
        from fxloom.costs import bounded
        from fxloom.product_costs import lane_cost

        matrix, given = product.matrix, product.given
        layout = lay_out_codes(matrix, given.reuse)
        assert layout is not None
        lanes = given.lanes
        luts = _luts(matrix, layout, product.accumulator)
        window = 2 * layout.word
        registers = matrix.inputs * product.data + lanes * (2 * product.accumulator + 2 * window)
        cost = lane_cost(product, luts, registers, lanes, lanes * layout.word, SOURCE, CYCLES)
        blocks = sum(rom_blocks(words, layout.word) for words in layout.words.tolist())
        # Lanes share no memory: each reads words of its own.
        bram18 = bounded((blocks, 0, max(lanes, blocks)), "BRAM18", SOURCE)
        return replace(
            cost,
            csynth=replace(cost.csynth, bram18=bram18),
            synthesis=replace(cost.synthesis, bram18=bram18),
        )

    def rhythm(self, matrix: Matrix, given: Allotment) -> Rhythm:
        """As the sparse kernel, whose loops it has."""
        return Rhythm(given.reuse, given.reuse - 1, 1)


def _luts(matrix: Matrix, layout: HuffmanLayout, accumulator: int) -> float:
    """LUTs of the sparse kernel, and for each lane twice what decoders are counted at: comparisons
    with the end of every length, a choice of its first number, tables of weights and run lengths,
    and shifts of two words by two codes and by what is left."""
    lanes = layout.lanes
    tables = _table(layout.values.size, matrix.width)
    tables += _table(layout.runs.symbols.size, layout.index_bits)
    shifts = 3 * 2 * layout.word * (layout.word.bit_length() + 1) / 2
    decoder = _decoder(layout.weights) + _decoder(layout.runs) + tables + shifts
    sparse = features.sparse_lut(lanes, matrix.inputs, matrix.outputs, matrix.data, accumulator)
    return sparse + 2 * lanes * decoder


def _decoder(code: Code) -> float:
    return code.longest * (code.longest / 2 + (code.longest + code.symbols.size.bit_length()) / 3)


def _table(count: int, width: int) -> int:
    return width * ceil(count / (1 << TABLE_BITS))
