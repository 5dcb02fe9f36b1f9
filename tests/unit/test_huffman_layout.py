"""Huffman-coded ROMs: what the step decoder makes of them is the matrix, in the bits accounted."""

from math import prod
from typing import Any

import numpy as np
import pytest

from fxloom.coding import account
from fxloom.errors import TargetError
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint
from fxloom.huffman import code_of
from fxloom.huffman_decoder import decoded, number_of, tables_of
from fxloom.huffman_layout import HuffmanLayout, lay_out_codes, rows_of
from fxloom.huffman_pack import reversed_words
from fxloom.matrices import KERNEL, Matrix
from fxloom.ops import MatMul
from fxloom.program import Program, ProgramBuilder
from fxloom.target import Target

REUSE = (1, 2, 3, 7, 16, 10**9)


def matrix_with(
    kept: float, shape: tuple[int, int] = (40, 24), groups: int = 1, taps: int = 1, values: int = 12
) -> Matrix:
    """Weights of which so many are not zero, the frequent ones often."""
    rng = np.random.default_rng(prod(shape) + groups)
    weights = (rng.random(shape) ** 2 * values).astype(np.int64) + 1
    weights *= np.where(rng.random(shape) < 0.5, -1, 1)
    weights[rng.random(shape) >= kept] = 0
    per_group = shape[0] // (groups * taps)
    return Matrix(weights, 8, 1, KERNEL, shape[0], groups=groups, inputs_of_group=per_group)


def summed(layout: HuffmanLayout, outputs: int) -> np.ndarray[Any, Any]:
    """What the lanes add up, [outputs, inputs]."""
    found = np.zeros((outputs, layout.inputs), np.int64)
    for lane, words in enumerate(layout.rom()):
        for step, (weight, place) in enumerate(decoded(layout, lane, words)):
            product = lane * layout.steps + step
            if product <= layout.ends[-1]:
                span = np.searchsorted(layout.ends, product)
                found[layout.outputs[span], place] += weight
    return found


@pytest.mark.parametrize("kept", [0.0, 0.004, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    ("shape", "groups", "taps"),
    [((40, 24), 1, 1), ((1, 9), 1, 1), ((31, 1), 1, 1), ((54, 4), 3, 9), ((45, 1), 5, 9)],
)
def test_lanes_multiply_every_weight_by_its_input(
    kept: float, shape: tuple[int, int], groups: int, taps: int
) -> None:
    matrix = matrix_with(kept, shape, groups, taps)
    rows = rows_of(matrix)
    for reuse in REUSE:
        layout = lay_out_codes(matrix, reuse)
        assert layout is not None
        assert np.array_equal(summed(layout, len(rows)), rows)
        # The reuse factor is codes a lane, and what the fullest lane has.
        assert layout.steps <= reuse
        assert layout.steps == max(1, -(-layout.indices.size // layout.lanes))


def test_grouped_convolutions_see_their_own_channels() -> None:
    matrix = matrix_with(1.0, (54, 4), 3, 9)  # 9 taps of 6 channels, 12 outputs
    rows = rows_of(matrix).reshape(3, 4, 9, 3, 2)
    for group in range(3):
        own = matrix.weights.reshape(9, 3, 2, 4)[:, group]
        assert np.array_equal(rows[group, :, :, group], np.moveaxis(own, -1, 0))
        assert not np.delete(rows[group], group, axis=2).any()


@pytest.mark.parametrize("kept", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("reuse", [2, 13, 64])
def test_roms_have_the_bits_of_the_accounting(kept: float, reuse: int) -> None:
    matrix = matrix_with(kept, (128, 64))
    layout = lay_out_codes(matrix, reuse)
    assert layout is not None
    counted = account(np.ascontiguousarray(rows_of(matrix)), index_bits=layout.index_bits, width=8)
    codes = (counted.weight_codes or 0) + (counted.index_codes or 0)
    assert layout.bits.sum() == codes
    assert layout.rom_bits == sum(-(-bits // layout.word) for bits in layout.bits) * layout.word
    assert codes <= layout.rom_bits < codes + layout.lanes * layout.word
    assert [len(words) for words in layout.rom()] == layout.words.tolist()
    assert layout.indices.size == counted.stored
    assert layout.word == layout.weights.longest + layout.runs.longest


def test_padding_zeros_are_few() -> None:
    """They would be steps: run lengths of 4 bits would save 24 bits, and have 28 of them."""
    matrix = matrix_with(0.1, (60, 20), values=2)
    layout = lay_out_codes(matrix, 8)
    assert layout is not None
    kept = np.count_nonzero(matrix.weights)
    assert kept <= layout.indices.size <= kept * 17 / 16


def test_weights_that_are_alike_take_no_bits() -> None:
    matrix = Matrix(np.full((12, 5), -3), 8, 1, KERNEL, 12)
    layout = lay_out_codes(matrix, 7)
    assert layout is not None
    assert (layout.rom_bits, layout.values.tolist()) == (0, [-3])
    assert np.array_equal(summed(layout, 5), rows_of(matrix))


def test_tables_decode_every_code() -> None:
    code = code_of(np.random.default_rng(0).geometric(0.02, 90))
    tables = tables_of(code)
    for number, (word, length) in enumerate(zip(reversed_words(code), code.lengths, strict=True)):
        for behind in (0, 1, 0b1011):
            assert number_of(tables, int(word) | behind << int(length)) == (number, length)


# -- the kernel's own words ----------------------------------------------------------------------


def program_of(weights: np.ndarray[Any, Any], width: int) -> Program:
    b = ProgramBuilder()
    x = b.input("x", (weights.shape[0],), FixedPoint(8, 8))
    held = b.constant("w", weights, FixedPoint(width, width))
    b.output(b.emit(MatMul(), [x, held], "fc"), "y")
    return b.build()


def test_the_estimate_counts_roms_and_tables() -> None:
    matrix = matrix_with(0.1, (300, 100))
    layer = estimate(
        program_of(matrix.weights, 8), Target(strategy="resource", reuse=16, kernel="huffman")
    ).layers[0]
    layout = lay_out_codes(matrix, 16)
    assert layout is not None
    assert layer.stored_bits == layout.rom_bits + layout.table_bits
    assert layer.csynth.dsp.value == layout.lanes
    assert layer.interval.value == layout.steps == 16
    assert layer.macs == layout.lanes * layout.steps
    assert layer.kernel.startswith("huffman: asked for, ")
    sparse = estimate(
        program_of(matrix.weights, 8), Target(strategy="resource", reuse=16, kernel="sparse")
    ).layers[0]
    assert layer.stored_bits < 0.65 * sparse.stored_bits
    assert layer.csynth.lut.value > sparse.csynth.lut.value


def test_nobody_gets_it_unasked() -> None:
    matrix = matrix_with(0.1, (300, 100), values=3)
    target = Target(strategy="resource", reuse=64)
    assert not estimate(program_of(matrix.weights, 8), target).layers[0].kernel.startswith("huffm")


def test_more_weights_than_codes_are_refused_by_name() -> None:
    weights = np.arange(1, 70_001).reshape(350, 200)
    message = r'fc: kernel = "huffman" requires fewer than 65,536 different weights .* got more'
    with pytest.raises(TargetError, match=message):
        estimate(program_of(weights, 18), Target(kernel="huffman"))
