"""Classes of weights: what the structures say, and what is done with weights by class."""

from collections.abc import Callable
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxloom import sharing
from fxloom.sharing import (
    Circulant,
    Codebook,
    Hashed,
    Products,
    Shared,
    classes_of,
    expanded,
    holds,
    means,
    signs_of,
    sums,
)

SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
)


def random_codebook(shape: tuple[int, ...], size: int) -> Codebook:
    return Codebook.of(torch.randint(0, size, shape), size)


def random_books(shape: tuple[int, ...], size: int) -> Codebook:
    return Codebook.of(torch.randint(0, size, shape), size, books=min(shape[0], 2))


def random_products(shape: tuple[int, ...], size: int) -> Products:
    pieces = -(-prod(shape[1:]) // 3)
    return Products.of(shape, torch.randint(0, size, (shape[0], pieces)), size, 3)


STRUCTURES: dict[str, Callable[[tuple[int, ...], int], Shared]] = {
    "codebook": random_codebook,
    "codebooks": random_books,
    "hashed": lambda shape, size: Hashed(shape, size, seed=size),
    "products": random_products,
    "circulant": Circulant,
}


@pytest.mark.parametrize("name", STRUCTURES)
@given(shape=SHAPES, size=st.integers(1, 6), seed=st.integers(0, 2**16), block=st.integers(1, 64))
def test_a_fact_holds_of_its_own_numbers_and_of_no_others(
    name: str, shape: tuple[int, ...], size: int, seed: int, block: int
) -> None:
    torch.manual_seed(seed)
    shared = STRUCTURES[name](shape, size)
    kept = torch.rand(shape) < 0.7
    numbers = torch.arange(1, shared.classes + 1, dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "BLOCK", block)
        values = expanded(shared, numbers, kept)
        classes, signs = classes_of(shared), signs_of(shared)
        assert values.shape == shape
        wanted = (classes + 1) * (1 if signs is None else signs) * kept
        assert torch.equal(values, wanted.float())
        assert int(classes.max()) < shared.classes
        assert holds(shared, values, kept)
        # A pruned weight is another number than those of its class that are not.
        is_split = bool(torch.isin(classes[kept], classes[~kept]).any())
        assert holds(shared, values) != is_split
        found = means(shared, values, kept)
        used = torch.zeros(shared.classes, dtype=torch.bool)
        used[classes[kept].long()] = True
        assert torch.equal(found, torch.where(used, numbers, 0).double())
        counts = torch.bincount(classes[kept].long(), minlength=shared.classes)
        torch.testing.assert_close(sums(shared, values, kept), found * counts)
        others = torch.bincount(classes[kept].long(), minlength=shared.classes)[classes.long()] > 1
        for place in (others & kept).nonzero()[:1]:
            values[tuple(place)] += 0.5
            assert not holds(shared, values, kept)


def test_what_each_structure_says() -> None:
    shape = (3, 3)
    books = Codebook.of(torch.tensor([[0, 1, 2], [2, 1, 0], [0, 0, 1]]), 3, books=2)
    assert classes_of(books).tolist() == [[0, 1, 2], [2, 1, 0], [3, 3, 4]]
    words = Products.of(shape, torch.tensor([[0, 1], [1, 0], [1, 1]]), 2, 2)
    assert classes_of(words).tolist() == [[0, 1, 6], [2, 3, 4], [2, 3, 6]]
    blocks = Circulant(shape, 2)
    assert classes_of(blocks).tolist() == [[0, 1, 2], [1, 0, 3], [4, 5, 6]]
    kernels = classes_of(Circulant((2, 2, 1, 2), 2))
    assert kernels.tolist() == [[[[0, 2]], [[1, 3]]], [[[1, 3]], [[0, 2]]]]


@pytest.mark.parametrize("size", [1, 256, 257, 65536, 65537])
def test_indices_take_as_few_bytes_as_they_need(size: int) -> None:
    book = Codebook.of(torch.tensor([[0, size - 1]]), size)
    assert book.indices.element_size() == {1: 1, 256: 1, 257: 2, 65536: 2, 65537: 4}[size]
    assert classes_of(book).tolist() == [[0, size - 1]]
    assert book.index_bits(kept=10) == 10 * (size - 1).bit_length()


def test_hashes_spread_evenly_and_depend_on_the_seed() -> None:
    shape, buckets = (400, 300), 64
    first, second = (Hashed(shape, buckets, seed) for seed in (0, 1))
    counts = torch.bincount(classes_of(first).flatten(), minlength=buckets)
    mean = prod(shape) / buckets
    # Chi squared with 63 degrees of freedom is below 120 with all but 1e-5 of probability.
    assert float((counts - mean).square().sum() / mean) < 120
    signs = signs_of(first)
    assert signs is not None
    assert abs(float(signs.double().mean())) < 0.02
    assert float((classes_of(first) == classes_of(second)).double().mean()) < 0.03


def test_weights_that_are_no_numbers_are_not_shared() -> None:
    book = Codebook.of(torch.zeros(2, 2, dtype=torch.int64), 1)
    assert not holds(book, torch.full((2, 2), torch.nan))
    assert not holds(book, torch.zeros(4))
