"""The table of what is stored: every constant in it once, bits as the encoder writes them."""

import numpy as np
import pytest

from fxloom import ops
from fxloom.coding import account, encode_weights
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.program import Program, ProgramBuilder
from fxloom.storage import published
from fxloom.storage_table import HEADER, row_of, storage_rows, table, total


def small_program() -> Program:
    """Two matrices, one of them used twice, a bias, a table and the zero of a rectifier."""
    generator = np.random.default_rng(0)
    narrow = FixedPoint(4, 2, False)
    b = ProgramBuilder()
    x = b.input("x", (32,), narrow)
    sparse = generator.integers(-3, 4, (32, 16)) * (generator.random((32, 16)) < 0.2)
    w = b.constant("fc1.weight", sparse, FixedPoint(8, 1))
    square = b.constant("fc2.weight", generator.integers(-8, 8, (16, 16)), FixedPoint(4, 1))
    bias = b.constant("fc1.bias", generator.integers(-99, 99, 16), FixedPoint(8, 1))
    squares = b.constant("squares", np.arange(16) ** 2, FixedPoint(8, 4, False))
    zero = b.constant("zero", np.array([0]), FixedPoint(1, 1, False))
    y = b.emit(ops.Add(), [b.emit(ops.MatMul(), [x, w], "fc1"), bias], "fc1")
    for layer in ("fc2", "fc2_again"):
        y = b.emit(ops.Max(), [y, zero], layer)
        y = b.emit(ops.Requantize(narrow, Rounding.TRN, Overflow.SAT), [y], layer)
        y = b.emit(ops.MatMul(), [y, square], layer)
    y = b.emit(ops.Requantize(narrow, Rounding.TRN, Overflow.SAT), [y], "squares")
    b.output(b.emit(ops.Lookup(narrow), [y, squares], "squares"), "y")
    return b.build()


def test_every_constant_is_in_the_table_once_with_all_its_bits() -> None:
    program = small_program()
    rows = storage_rows(program)
    assert [(row.name, row.what, row.weights) for row in rows] == [
        ("fc1.weight", "weights", 512),
        ("fc2.weight", "weights", 256),
        ("biases and other numbers", "biases", 17),
        ("tables of functions", "tables", 16),
    ]
    written = sum(encode_weights(c.data).bits for c in program.constants.values())
    assert total(rows).huffman_bits == written
    for row in rows:
        assert row.huffman_bits == row.weight_codes + row.index_codes + row.codebook + row.tables
        if row.weight_bits is not None and row.index_bits is not None:
            each = row.weight_bits + row.index_bits
            assert row.bits == row.stored * each + row.codebook


def test_cells_are_without_and_with_huffman_codes() -> None:
    rows = storage_rows(small_program())
    found = dict(zip(HEADER, rows[0].cells(), strict=True))
    storage = account(small_program().constants["fc1.weight"].data)
    assert found["kept"] == f"{100 * storage.kept / 512:.1f}%"
    assert found["bits"] == f"{storage.bits:,} → {storage.huffman_bits:,}"
    rate, huffman_rate = storage.rate, storage.huffman_rate
    assert huffman_rate is not None
    assert found["of float32"] == f"{100 * rate:.2f}% → {100 * huffman_rate:.2f}%"
    assert storage.weight_codes is not None
    mean = storage.weight_codes / storage.stored
    assert found["weight bits"] == f"{storage.weight_bits} → {mean:.2f}"


def test_tables_count_in_the_sum_and_floats_do_not_have_them() -> None:
    rows = storage_rows(small_program())
    assert rows[-1].cells()[-1] == ""
    last = table(rows)[-1]
    assert last[-1].endswith(f"{100 * total(rows).huffman_bits / (32 * 785):.2f}%")
    given = table(rows, 32 * 1000)[-1]
    assert given[-1].endswith(f"{100 * total(rows).huffman_bits / 32000:.2f}%")


@pytest.mark.parametrize(
    ("weights", "kept", "weight_bits", "index_bits", "rate"),
    [(235200, 0.08, 6, 5, 3.1), (400000, 0.08, 5, 5, 2.7)],
)
def test_published_rows_of_deep_compression_are_as_published(
    weights: int, kept: float, weight_bits: int, index_bits: int, rate: float
) -> None:
    """ip1 of LeNet-300-100 and of LeNet-5, Han et al. 2016, tables 3 and 4."""
    paper = published(weights, kept, weight_bits, index_bits, weight_code=5, index_code=4)
    cells = row_of("ip1", "weights", paper).cells()
    assert float(cells[-1].partition("%")[0]) == pytest.approx(rate, rel=0.1)


def test_of_circulant_weights_a_diagonal_is_one_number() -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(-128, 128, (3, 5, 4, 8))  # taps, blocks of inputs and outputs
    channel, output = np.arange(40)[:, None], np.arange(32)
    weights = values[:, channel // 8, output // 8, (output - channel) % 8]
    b = ProgramBuilder()
    w = b.constant("w", weights.reshape(1, 3, 40, 32), FixedPoint(8, 1))
    x = b.input("x", (1, 5, 40), FixedPoint(8, 1))
    b.output(b.emit(ops.Conv(), [x, w], "conv"), "y")
    (row,) = storage_rows(b.build())
    diagonals = account(values.reshape(-1))
    assert (row.name, row.weights, row.stored) == ("w, circulant 8", 3 * 40 * 32, values.size)
    assert row.huffman_bits == (diagonals.huffman_bits or 0) + 8
    assert row.bits == diagonals.bits + 8
