"""Block-circulant matrices: found whatever their sizes, and stored as one value a class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxloom import circulant_layout
from fxloom.circulant_layout import (
    CirculantLayout,
    find_block,
    input_blocks,
    lay_out_circulant,
    stored_values,
)
from fxloom.sparse_layout import lanes_for


def circulant(taps: int, channels: int, n_out: int, block: int, seed: int) -> np.ndarray:
    """A random block-circulant matrix [taps * channels, n_out]."""
    rng = np.random.default_rng(seed)
    rows, columns = -(-channels // block), -(-n_out // block)
    values = rng.integers(-128, 128, (taps, rows, columns, block))
    channel, output = np.arange(channels)[:, None], np.arange(n_out)
    found = values[:, channel // block, output // block, (output - channel) % block]
    return found.reshape(taps * channels, n_out)


def read_back(layout: CirculantLayout, taps: int, channels: int, n_out: int) -> np.ndarray:
    """The matrix that lanes compute, as the C++ goes through them."""
    k, begin = layout.block, 0
    columns = max(layout.outputs) + 1
    matrix = np.zeros((layout.blocks * k, columns * k), np.int64)
    for end, output in zip(layout.ends, layout.outputs, strict=True):
        assert begin // layout.reuse == end // layout.reuse  # a span lies in one lane
        for place in range(begin, end + 1):
            block = place // k % layout.blocks
            for j in range(k):
                to = output * k + (j + place) % k
                matrix[block * k + j, to] += layout.values.flat[place]
        begin = end + 1
    assert begin == layout.values.size
    by_tap = matrix.reshape(taps, -1, columns * k)[:, :channels, :n_out]
    return by_tap.reshape(taps * channels, n_out)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(2, 9),
    st.integers(1, 60),
)
def test_a_layout_read_back_is_the_matrix(
    seed: int, taps: int, channels: int, n_out: int, block: int, reuse: int
) -> None:
    matrix = circulant(taps, channels, n_out, block, seed)
    layout = lay_out_circulant(matrix, taps, block, reuse)
    assert np.array_equal(read_back(layout, taps, channels, n_out), matrix)
    count = stored_values(taps * channels, n_out, taps, block)
    assert (layout.lanes, layout.reuse) == lanes_for(count, reuse)
    assert layout.reuse <= reuse
    assert layout.blocks == input_blocks(taps * channels, taps, block)
    assert layout.values.size < count + layout.lanes  # padding
    assert not layout.values.reshape(-1)[count:].any()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.integers(2, 40),
    st.integers(2, 40),
    st.integers(2, 16),
)
def test_the_largest_block_is_found_and_a_changed_weight_noticed(
    seed: int, taps: int, channels: int, n_out: int, block: int
) -> None:
    matrix = circulant(taps, channels, n_out, block, seed)
    found = find_block(matrix, taps)
    if block <= min(channels, n_out):
        assert found >= block
    if found > 1:
        layout = lay_out_circulant(matrix, taps, found, 8)
        assert np.array_equal(read_back(layout, taps, channels, n_out), matrix)
        rng = np.random.default_rng(seed)
        row, column = rng.integers(channels // found * found), rng.integers(n_out // found * found)
        matrix[rng.integers(taps) * channels + row, column] += 1
        assert find_block(matrix, taps) != found


def test_a_matrix_is_found_where_sizes_are_no_multiples_of_the_block() -> None:
    assert find_block(circulant(1, 64, 300, 8, 0)) == 8
    assert find_block(circulant(1, 300, 100, 7, 0)) == 7
    assert find_block(circulant(9, 10, 13, 4, 0), 9) == 4
    assert find_block(circulant(9, 10, 13, 4, 0)) == 1  # blocks do not reach over taps


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (5, 7)])
def test_other_matrices_have_no_block(shape: tuple[int, int]) -> None:
    assert find_block(np.arange(shape[0] * shape[1]).reshape(shape)) == 1


def test_few_weights_that_are_not_zero_say_that_a_matrix_is_not_circulant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Zeros are block-circulant with every block: not every one may be tried on all of them."""
    compared = []
    is_circulant = circulant_layout._is_circulant

    def counted(part: np.ndarray, block: int) -> bool:
        compared.append(part.size)
        return is_circulant(part, block)

    monkeypatch.setattr(circulant_layout, "_is_circulant", counted)
    matrix = np.zeros((3_000, 1_000), np.int8)
    matrix[1_700, 333] = 1
    assert find_block(matrix) == 1
    assert sum(compared) == 0
    assert find_block(np.zeros((300, 100), np.int8)) == 100
    assert sum(compared) == 300 * 100


def test_a_layout_of_a_matrix() -> None:
    matrix = np.array([[1, 2], [2, 1], [5, 6]])
    assert find_block(matrix) == 2
    layout = lay_out_circulant(matrix, 1, 2, 3)
    # Of the block that is cut off both classes are there: 5 is class 0, 6 class 1.
    assert layout.values.tolist() == [[1, 2], [5, 6]]
    assert (layout.blocks, layout.ends, layout.outputs) == (2, (1, 3), (0, 0))
