"""Huffman codes: optimal, no longer than allowed, and back without loss; damage is said by name."""

import heapq
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxloom import huffman_pack, huffman_unpack
from fxloom.bit_fields import BitReader, BitWriter
from fxloom.errors import CodingError
from fxloom.huffman import Code, code_of, read_code, write_code
from fxloom.huffman_stream import count_symbols, decode, encode, sizes_of

BLOCK = huffman_pack.BLOCK


def stored(code: Code) -> bytes:
    writer = BitWriter()
    write_code(writer, code)
    assert -(-writer.size // 8) == len(writer.to_bytes())
    return writer.to_bytes()


def huffman_bits(counts: list[int]) -> int:
    """Bits that Huffman's algorithm (1952) needs, of any length."""
    heap = list(counts)
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, both)
        total += both
    return total


def test_a_code_is_canonical() -> None:
    code = code_of(np.array([5, 0, 9, 12, 13, 16, 45]))
    assert code.symbols.tolist() == [6, 3, 4, 5, 0, 2]
    assert code.lengths.tolist() == [1, 3, 3, 3, 4, 4]
    words = [f"{word:0{n}b}" for word, n in zip(code.words, code.lengths, strict=True)]
    assert words == sorted(words)
    assert not [a for a in words for b in words if a != b and b.startswith(a)]
    assert code.bits(np.array([5, 0, 9, 12, 13, 16, 45])) == huffman_bits([5, 9, 12, 13, 16, 45])


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=300))
def test_codes_without_a_limit_take_what_huffmans_take(counts: list[int]) -> None:
    code = code_of(np.array(counts))
    if code.longest < 16:
        assert code.bits(np.array(counts)) == huffman_bits(counts)
    assert sum(2.0**-n for n in code.lengths) == 1


@given(st.lists(st.integers(1, 500), min_size=2, max_size=5), st.integers(0, 2))
def test_limited_codes_are_the_best_of_all(counts: list[int], more: int) -> None:
    longest = (len(counts) - 1).bit_length() + more
    found = code_of(np.array(counts), longest)
    assert found.longest <= longest
    possible = product(range(1, longest + 1), repeat=len(counts))
    best = min(
        sum(map(int.__mul__, counts, lengths))
        for lengths in possible
        if sum(2.0**-n for n in lengths) <= 1
    )
    assert found.bits(np.array(counts)) == best


def test_lengths_never_fall_where_counts_never_rise() -> None:
    counts = np.sort(np.random.default_rng(0).geometric(0.05, 200))[::-1]
    code = code_of(counts)
    assert code.symbols.tolist() == list(range(200))
    # So that the table takes one bit a symbol, and two where codes get longer.
    assert len(stored(code)) * 8 <= 200 + 2 * code.longest + 8 + 2 * 15


def test_one_symbol_takes_no_bits_and_none_is_no_code() -> None:
    assert code_of(np.array([0, 0, 7])).lengths.tolist() == [0]
    assert encode(np.full(10**6, 2)) == stored(code_of(np.array([0, 0, 7])))
    assert code_of(np.zeros(4, np.int64)).symbols.size == 0
    assert decode(encode(np.zeros(0, np.int64)), 0).size == 0


@pytest.mark.parametrize("counts", [np.ones(5), np.ones(65537)])
def test_a_limit_that_cannot_be_kept_is_refused(counts: np.ndarray) -> None:
    with pytest.raises(CodingError, match="requires at most 65,536 symbols and a longest code of"):
        code_of(counts.astype(np.int64), 2)


# -- the table ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40), max_size=400), st.booleans())
def test_a_stored_code_comes_back(counts: list[int], sparse: bool) -> None:
    spread = np.zeros(60_000, np.int64)
    at = np.arange(len(counts)) * (149 if sparse else 1)
    spread[at] = counts
    code = code_of(spread)
    back = read_code(BitReader(stored(code)))
    assert back.symbols.tolist() == code.symbols.tolist()
    assert back.lengths.tolist() == code.lengths.tolist()


@given(st.binary(max_size=40))
def test_what_is_no_table_is_refused_by_name(data: bytes) -> None:
    try:
        code = read_code(BitReader(data))
    except CodingError:
        return
    assert code.symbols.size < 2 or sum(2.0**-n for n in code.lengths) == 1


# -- streams --------------------------------------------------------------------------------------

SIZES = [1, 2, 3, 4, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2, 16 * BLOCK, 64 * BLOCK + 5]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("alphabet", [2, 3, 17, 256, 300])
def test_symbols_come_back(size: int, alphabet: int) -> None:
    rng = np.random.default_rng(size * alphabet)
    symbols = (rng.random(size) ** 3 * alphabet).astype(np.int64)
    data = encode(symbols)
    back = decode(data, size)
    assert np.array_equal(back, symbols)
    assert back.dtype == (np.uint8 if symbols.max() < 256 else np.uint16)
    counts = count_symbols(symbols)
    assert counts.tolist() == np.bincount(symbols).tolist()
    assert sizes_of(code_of(counts), counts).total == 8 * len(data)


def test_every_symbol_of_16_bits_comes_back() -> None:
    symbols = np.random.default_rng(0).permutation(65536)
    data = encode(symbols)
    assert np.array_equal(decode(data, 65536), symbols)
    assert 65536 * 2 < len(data) < 65536 * 2.2  # 16 bits each, and a bit or two in the table


def test_blocks_are_decoded_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huffman_unpack, "_LANES", 3)
    symbols = np.random.default_rng(0).integers(0, 100, 10 * BLOCK + 77)
    assert np.array_equal(decode(encode(symbols), symbols.size), symbols)


@given(st.lists(st.integers(0, 65535), max_size=50), st.sampled_from([None, "u1", "i8"]))
def test_any_symbols_come_back(symbols: list[int], kind: str | None) -> None:
    array = np.array(symbols, np.int64)
    if kind == "u1":
        array = array.astype(np.uint8)
    assert decode(encode(array), array.size).tolist() == array.tolist()


@pytest.mark.parametrize("wrong", [-1, 65536])
def test_what_are_no_symbols_is_refused(wrong: int) -> None:
    with pytest.raises(CodingError, match=rf"from 0 to 65535, got .*{wrong}"):
        encode(np.array([3, wrong]))


# -- damage ---------------------------------------------------------------------------------------


def test_damaged_streams_are_an_error_or_other_symbols_but_never_a_crash() -> None:
    """Data is not guarded against other symbols of the same length: artefacts have checksums."""
    rng = np.random.default_rng(0)
    symbols = np.minimum(rng.geometric(0.1, 2 * BLOCK + 9), 60)
    data = encode(symbols)
    refused = 0
    for _ in range(30):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data) if rng.random() < 0.7 else 60, rng.integers(1, 4)):
            damaged[at] ^= 1 << int(rng.integers(8))
        try:
            found = decode(bytes(damaged), symbols.size)
        except CodingError:
            refused += 1
        else:
            assert found.shape == symbols.shape
    assert refused > 10


@pytest.mark.parametrize("count", [0, 1, BLOCK])
def test_truncated_and_longer_streams_are_refused(count: int) -> None:
    symbols = np.arange(count) % 50
    data = encode(symbols)
    for changed in (*(data[:end] for end in range(0, len(data), 397)), data[:-1], data + b"\0"):
        with pytest.raises(CodingError):
            decode(changed, count)


@pytest.mark.parametrize("count", [0, 1, 4900, 5100, 3 * BLOCK, 10**9])
def test_another_count_is_refused(count: int) -> None:
    data = encode(np.random.default_rng(1).integers(0, 9, 5000))
    with pytest.raises(CodingError):
        decode(data, count)
