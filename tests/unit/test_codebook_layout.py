"""Layouts of matrices with few values: read back as the C++ reads them, they are the matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxloom.codebook_layout import (
    ProductsLayout,
    SumsLayout,
    occurrence,
    products_layout,
    sums_layout,
    turns_for,
)
from fxloom.sparse_layout import SparseLayout
from tests.unit.test_sparse_layout import dense_of


def spans(layout: SparseLayout) -> list[tuple[int, list[int], list[int]]]:
    """Owner, weights and indices of every span, each of which lies in one lane."""
    found, begin = [], 0
    for end, output in zip(layout.ends, layout.outputs, strict=True):
        assert begin // layout.reuse == end // layout.reuse
        places = slice(begin, end + 1)
        weights, indices = (part.reshape(-1)[places] for part in (layout.weights, layout.indices))
        found.append((output, weights.tolist(), indices.tolist()))
        begin = end + 1
    return found


def sums_read_back(layout: SumsLayout, inputs: int, n_out: int) -> np.ndarray:
    """The matrix that sums, multiplied once, make."""
    of_sums = np.zeros((inputs, layout.sums), np.int64)
    for owner, _, indices in spans(layout.adding):
        np.add.at(of_sums[:, owner], indices, 1)
    values = np.zeros((layout.sums, n_out), np.int64)
    for owner, weights, indices in spans(layout.multiplying):
        np.add.at(values[:, owner], indices, weights)
    return of_sums @ values


def products_read_back(layout: ProductsLayout, n_in: int, n_out: int) -> np.ndarray:
    """The matrix that indices into codebooks make, step by step."""
    books, turns = layout.books, layout.turns
    matrix = np.zeros((n_in, n_out), np.int64)
    lanes_of_book = max(n_out // books.books // turns, 1) if books.books > 1 else layout.lanes
    for lane in range(layout.lanes):
        for t in range(layout.wide):
            for step in range(layout.reuse):
                k, o = step // turns * layout.wide + t, lane * turns + step % turns
                symbol = layout.indices[lane, t, step]
                if k < n_in and o < n_out and symbol < books.size:
                    matrix[k, o] = books.values[lane // lanes_of_book, symbol]
    return matrix


def shared(seed: int, kernel: tuple[int, ...], values: int, sparsity: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centroids = rng.choice(np.arange(-60, 60), values, replace=False)
    weight = rng.choice(centroids, kernel).astype(np.int8)
    weight[rng.random(kernel) < sparsity] = 0
    return weight


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(1, 60),
)
def test_sums_read_back_are_the_matrix(
    seed: int, groups: int, values: int, sparsity: float, reuse: int
) -> None:
    rng = np.random.default_rng(seed)
    kernel = (*rng.integers(1, 4, 3).tolist(), groups * int(rng.integers(1, 5)))
    weight = shared(seed, kernel, values, sparsity)
    layout = sums_layout(weight, groups, reuse)
    dense = dense_of(weight, groups)
    assert np.array_equal(sums_read_back(layout, *dense.shape), dense)
    assert layout.multiplying.reuse <= layout.adding.reuse <= reuse
    different = sum(len(np.unique(column[column != 0])) for column in dense.T)
    assert layout.sums == max(different, 1)
    nonzero = int(np.count_nonzero(dense))
    assert layout.adding.lanes == -(-max(nonzero, 1) // min(reuse, max(nonzero, 1)))
    assert layout.multiplying.weights.size < layout.sums + layout.multiplying.lanes


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.integers(1, 200),
)
def test_products_read_back_are_the_matrix(
    seed: int, n_in: int, n_out: int, values: int, sparsity: float, reuse: int
) -> None:
    weight = shared(seed, (n_in, n_out), values, sparsity)
    layout = products_layout(weight, 1, reuse)
    assert np.array_equal(products_read_back(layout, n_in, n_out), weight)
    assert layout.reuse <= reuse
    assert layout.indices.max(initial=0) < layout.books.symbols
    assert (layout.wide, layout.turns) == turns_for(n_in, n_out, reuse)


@pytest.mark.parametrize("reuse", [1, 3, 5, 10, 20])
@pytest.mark.parametrize("books", [2, 4])
def test_every_group_of_outputs_has_its_codebook(books: int, reuse: int) -> None:
    rng = np.random.default_rng(books)
    parts = [rng.choice([3 * n + 1, 3 * n + 2, -n - 40], (5, 4)) for n in range(books)]
    weight = np.concatenate(parts, 1)
    layout = products_layout(weight, books, reuse)
    assert (layout.books.books, layout.books.size) == (books, 3)
    assert occurrence(weight[None, None]).codebooks(1).size == 3 * books
    assert np.array_equal(products_read_back(layout, *weight.shape), weight)


def test_layouts_of_a_matrix() -> None:
    weight = np.array([[5, 0], [7, 7], [5, 7], [5, -3]])
    first = sums_layout(weight, 1, 3)
    assert first.adding.indices.tolist() == [[0, 2, 3], [1, 3, 1], [2, 0, 0]]
    assert (first.adding.ends, first.adding.outputs) == ((2, 3, 4, 5, 6), (0, 1, 2, 3, 3))
    assert first.multiplying.weights.tolist() == [[5, 7], [-3, 7]]
    products = products_layout(weight, 1, 4)
    assert products.books.values.tolist() == [[-3, 5, 7]]
    assert products.indices.tolist() == [[[1, 2, 1, 1]], [[3, 2, 2, 0]]]
