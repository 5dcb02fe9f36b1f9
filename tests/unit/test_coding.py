"""Coded weights: every number back, every bit counted, and as few bits as papers have."""

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarks.published_rates import INDEX_BITS, NETWORKS, TOTALS, records
from fxloom.coding import CodedWeights, account, decode_weights, encode_weights
from fxloom.errors import CodingError
from fxloom.storage import published

TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint64", "float16", "float32", "float64")


def weights_of(
    shape: tuple[int, ...], kept: float, values: int, dtype: str = "float32", seed: int = 0
) -> np.ndarray[Any, Any]:
    """Zeros, and so many other values, the frequent ones often."""
    rng = np.random.default_rng(seed)
    numbers = (rng.random(shape) ** 2 * values).astype(np.int64) + 1
    if not dtype.startswith("u"):
        numbers = np.where(rng.random(shape) < 0.5, numbers, -numbers)
    numbers = np.where(rng.random(shape) < kept, numbers, 0)
    scale = 0.37 if dtype.startswith("float") else 1
    return np.asarray(numbers * scale).astype(dtype)


def check(weights: np.ndarray[Any, Any], **options: Any) -> CodedWeights:
    """They come back, in the bits that are counted."""
    coded = encode_weights(weights, **options)
    back = decode_weights(coded)
    assert back.dtype == weights.dtype
    assert np.array_equal(back, weights, equal_nan=weights.dtype.kind == "f")
    assert back.shape == weights.shape
    counted = account(weights, **options)
    assert counted.huffman_bits == coded.bits
    assert counted.kept == np.count_nonzero(weights)
    assert counted.weights == weights.size
    return coded


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("index_bits", [None, 0, 1, 3, 5, 16])
def test_weights_come_back_in_the_bits_that_are_counted(dtype: str, index_bits: int | None) -> None:
    for number, kept in enumerate((0.01, 0.2, 1.0)):
        check(weights_of((40, 60), kept, 5**number + 8, dtype, number), index_bits=index_bits)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4, 5)])
@pytest.mark.parametrize("index_bits", [None, 0, 2])
def test_any_shape_comes_back(shape: tuple[int, ...], index_bits: int | None) -> None:
    check(weights_of(shape, 0.6, 5), index_bits=index_bits)
    check(np.zeros(shape, np.int64), index_bits=index_bits)


@settings(max_examples=30)
@given(
    arrays.arrays(
        st.sampled_from(TYPES), arrays.array_shapes(max_side=9), elements={"allow_nan": True}
    )
)
def test_any_numbers_come_back(weights: np.ndarray[Any, Any]) -> None:
    check(weights)
    check(weights, index_bits=2)


def test_many_weights_come_back() -> None:
    """More than a block, more than a group of values is looked up at once, more than 256 values."""
    check(weights_of((1100, 1000), 0.03, 300))
    check(weights_of((1100, 1000), 0.9, 1000, "int64"))


def test_negative_zeros_are_zeros() -> None:
    weights = np.array([-0.0, 0.5, -0.0, 0.0], np.float32)
    assert account(weights, index_bits=2).kept == 1
    assert not np.signbit(decode_weights(encode_weights(weights))).any()


# -- what is counted ------------------------------------------------------------------------------


def test_gaps_that_are_too_long_have_padding_zeros() -> None:
    """Figure 2 of Deep Compression: at most 8 from one weight to the next with 3 bits."""
    weights = np.zeros(16)
    weights[[1, 4, 15]] = 3.4, 0.9, 1.7
    counted = account(weights, index_bits=3)
    assert (counted.kept, counted.padding, counted.stored) == (3, 1, 4)
    assert counted.values == 4  # 3.4, 0.9, 1.7 and 0
    assert counted.bits == 4 * (2 + 3) + 4 * 64 + counted.counts
    check(weights, index_bits=3)
    long = np.zeros(1000, np.int64)
    long[[0, 8, 17, 999]] = 1
    assert account(long, index_bits=3).padding == 1 + (999 - 17 - 1) // 8
    check(long, index_bits=3)


def test_all_that_is_stored_is_in_the_sum() -> None:
    weights = weights_of((300, 200), 0.08, 30)
    counted = account(weights, index_bits=5)
    assert counted.codebook == 32 * counted.values == 32 * (np.unique(weights).size)
    assert counted.weight_bits == (counted.values - 1).bit_length()
    assert counted.bits == counted.stored * (counted.weight_bits + 5) + 32 * counted.values + (
        counted.counts
    )
    codes = (counted.weight_codes or 0) + (counted.index_codes or 0)
    assert counted.huffman_bits == codes + counted.codebook + counted.counts + counted.tables
    assert counted.rate == counted.bits / (32 * weights.size)
    assert counted.huffman_rate == (counted.huffman_bits or 0) / (32 * weights.size)
    # A table of so few symbols is a few bits a symbol.
    assert 0 < counted.tables < 3 * (counted.values + 32) + 16 * 20


def test_codes_are_near_the_entropy() -> None:
    weights = weights_of((1000, 300), 0.1, 200)
    counted = account(weights, index_bits=8)
    _, counts = np.unique(weights[weights != 0], return_counts=True)
    share = counts / counts.sum()
    entropy = -(share * np.log2(share)).sum()
    assert entropy * counted.kept <= (counted.weight_codes or 0) <= 1.02 * entropy * counted.stored


@pytest.mark.parametrize("kept", [0.02, 0.6, 0.95])
@pytest.mark.parametrize("values", [1, 300])
def test_the_way_that_takes_least_is_taken(kept: float, values: int) -> None:
    weights = weights_of((100, 90), kept, values, "int64")
    best = check(weights).bits
    for index_bits in (0, *range(1, 17)):
        assert best <= encode_weights(weights, index_bits=index_bits).bits
    assert best <= 8 * (weights.size * 10 // 8 + 3)


def test_what_does_not_shrink_is_written_as_it_is() -> None:
    noise = np.random.default_rng(0).standard_normal((50, 21)).astype(np.float32)
    counted = account(noise)
    assert (counted.values, counted.index_bits) == (0, 0)
    assert check(noise).bits == 32 * noise.size + 8
    odd = np.arange(-100, 101)
    assert check(odd).bits == -(-8 * odd.size // 8) * 8 + 8
    assert check(odd, width=9).bits == -(-9 * odd.size // 8) * 8 + 8


def test_more_values_than_codes_are_written_as_they_are() -> None:
    many = np.arange(70_000).astype(np.float32)
    assert check(many).bits == 32 * many.size + 8
    with pytest.raises(CodingError, match=r"at most 65,535 distinct weights .* Share or quantize"):
        encode_weights(many, index_bits=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 7}, r"integers of 8 bits require a width of 8 to 64, got 7"),
        ({"index_bits": 17}, r"index_bits must be 0 to 16, got 17"),
        ({"index_bits": -1}, r"index_bits must be 0 to 16, got -1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(CodingError, match=message):
        encode_weights(np.array([-128, 127]), **options)  # type: ignore[arg-type]
    with pytest.raises(CodingError, match="must be integers or floats, got bool"):
        account(np.array([True]))


# -- damage ---------------------------------------------------------------------------------------


def test_damaged_weights_are_an_error_or_other_weights_but_never_a_crash() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for index_bits, kept in ((None, 0.1), (0, 0.5), (4, 0.1), (None, 1.0)):
        coded = encode_weights(weights_of((30, 40), kept, 40, "int64"), index_bits=index_bits)
        for name in ("codebook", "weights", "runs"):
            for _ in range(12):
                data = bytearray(getattr(coded, name))
                if not data:
                    continue
                data[rng.integers(min(len(data), 12))] ^= 1 << int(rng.integers(8))
                if rng.random() < 0.3:
                    data = data[: rng.integers(len(data))]
                try:
                    found = decode_weights(replace(coded, **{name: bytes(data)}))
                except CodingError:
                    refused += 1
                else:
                    assert found.shape == coded.shape
    assert refused > 40


@pytest.mark.parametrize(("dtype", "message"), [("object", "must be one of"), ("int8", "has 8 bi")])
def test_foreign_types_are_refused(dtype: str, message: str) -> None:
    coded = encode_weights(weights_of((5, 5), 0.5, 1000, "int64"))
    with pytest.raises(CodingError, match=message):
        decode_weights(replace(coded, dtype=dtype))


# -- published ------------------------------------------------------------------------------------


def test_published_ratios_have_the_padding_of_independent_draws() -> None:
    weights = weights_of((1000, 400), 0.08, 31)
    real = account(weights, index_bits=5)
    said = published(weights.size, real.kept / weights.size, 6, 5)
    assert said.padding == pytest.approx(real.padding, rel=0.05)
    assert said.rate == pytest.approx(real.rate, rel=0.02)
    assert said.huffman_bits is None
    assert said.huffman_rate is None


def test_published_means_are_bits_of_codes() -> None:
    said = published(1000, 0.5, 4, 0, weight_code=2.5, index_code=9.0)
    assert said.bits == 1000 * 4 + 16 * 32
    assert said.huffman_bits == 2500 + 16 * 32


@pytest.mark.parametrize("wrong", [(0, 0.5, 4, 4), (10, 0.0, 4, 4), (10, 0.5, 0, 4)])
def test_impossible_ratios_are_refused(wrong: tuple[int, float, int, int]) -> None:
    with pytest.raises(CodingError, match="published storage requires"):
        published(*wrong)


@pytest.mark.parametrize("name", NETWORKS)
def test_rates_of_deep_compression_come_out_of_its_ratios(name: str) -> None:
    total = 0
    for layer, of in NETWORKS[name].items():
        said = published(prod(of.shape), of.kept, of.bits, INDEX_BITS)
        assert said.rate == pytest.approx(of.rate, rel=0.1), layer
        total += said.bits
    weights = sum(prod(of.shape) for of in NETWORKS[name].values())
    assert weights == {"LeNet-300-100": 266_200, "LeNet-5": 430_500}[name]
    assert total / (32 * weights) == pytest.approx(TOTALS[name][0], rel=0.1)


def test_rates_of_deep_compression_come_out_of_coded_weights() -> None:
    """A trained LeNet-300-100, with and without Huffman coding; LeNet-5 takes half a minute."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for row in records("LeNet-300-100"):
        assert row["coded"] == pytest.approx(row["published"], rel=0.1), row
        assert row["coded_huffman"] == pytest.approx(row["published_huffman"], rel=0.1), row
