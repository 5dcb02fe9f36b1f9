"""Layouts of non-zero weights: read back, they are the matrix, and nothing is stored twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxloom.sparse_layout import SparseLayout, index_width, lanes_for, lay_out, sparse_bits


def read_back(layout: SparseLayout, inputs: int, n_out: int) -> np.ndarray:
    """The matrix [inputs, n_out] that lanes compute, as the C++ goes through them."""
    matrix = np.zeros((inputs, n_out), np.int64)
    begin = 0
    for end, output in zip(layout.ends, layout.outputs, strict=True):
        assert begin // layout.reuse == end // layout.reuse  # a span lies in one lane
        for place in range(begin, end + 1):
            matrix[layout.indices.flat[place], output] += layout.weights.flat[place]
        begin = end + 1
    assert not layout.weights.reshape(-1)[begin:].any()  # padding, which nothing adds up
    return matrix


def dense_of(weight: np.ndarray, groups: int) -> np.ndarray:
    """w[kh, kw, channels / groups, n_out] as a matrix from all values of a window."""
    height, width, per_group, n_out = weight.shape
    full = np.zeros((height, width, per_group * groups, n_out), np.int64)
    for output in range(n_out):
        first = output // (n_out // groups) * per_group
        full[:, :, first : first + per_group, output] = weight[..., output]
    return full.reshape(-1, n_out)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.integers(1, 60),
)
def test_a_layout_read_back_is_the_matrix(
    seed: int, groups: int, sparsity: float, reuse: int
) -> None:
    rng = np.random.default_rng(seed)
    kernel = (*rng.integers(1, 4, 3), groups * int(rng.integers(1, 5)))
    weight = rng.integers(-8, 8, kernel)
    weight[rng.random(kernel) < sparsity] = 0
    layout = lay_out(weight, groups, reuse)
    dense = dense_of(weight, groups)
    assert np.array_equal(read_back(layout, *dense.shape), dense)
    assert layout.reuse <= reuse
    nonzero = int(np.count_nonzero(weight))
    assert layout.lanes == -(-max(nonzero, 1) // reuse) or nonzero < reuse
    assert (layout.lanes, layout.reuse) == lanes_for(nonzero, reuse)
    assert layout.weights.size < max(nonzero, 1) + layout.lanes  # padding
    assert not layout.weights.reshape(-1)[nonzero:].any()


def test_a_layout_of_a_matrix() -> None:
    weight = np.array([[0, 5, 0], [7, 0, 0], [0, -3, 0], [0, 2, 0]])
    layout = lay_out(weight, 1, 3)
    assert layout.weights.tolist() == [[7, 5], [-3, 2]]
    assert layout.indices.tolist() == [[1, 0], [2, 3]]
    assert layout.ends == (0, 1, 3)
    assert layout.outputs == (0, 1, 1)


@pytest.mark.parametrize(
    ("nonzero", "reuse", "expected"),
    [
        (0, 8, (1, 1)),
        (1, 8, (1, 1)),
        (8, 8, (1, 8)),
        (9, 8, (2, 5)),
        (100, 64, (2, 50)),
        (5, 1, (5, 1)),
        (409, 10**9, (1, 409)),
    ],
)
def test_lanes_are_as_few_as_the_reuse_factor_allows_and_no_longer_than_they_need(
    nonzero: int, reuse: int, expected: tuple[int, int]
) -> None:
    assert lanes_for(nonzero, reuse) == expected


def test_indices_are_as_wide_as_the_inputs_need() -> None:
    assert [index_width(n) for n in (1, 2, 3, 64, 65, 300)] == [1, 1, 2, 6, 7, 9]
    assert sparse_bits(lanes=52, reuse=8, width=8, inputs=64) == 416 * 14
