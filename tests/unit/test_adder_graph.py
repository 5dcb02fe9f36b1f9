"""Adder graphs: exact products, exact intervals, and costs that follow from them."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fxloom.adder_graph import ZERO, AdderGraph, adder_cost, adder_graph
from fxloom.errors import VerifyError
from fxloom.multipliers import csd_digits


@st.composite
def products(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """A matrix and the intervals of its inputs."""
    n_in, n_out = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    bits = draw(st.sampled_from([1, 3, 8, 20]))
    weight = st.one_of(
        st.just(0), st.integers(-(2**bits), 2**bits), st.sampled_from([-8, -3, 3, 6, 5, 45])
    )
    matrix = [draw(st.lists(weight, min_size=n_out, max_size=n_out)) for _ in range(n_in)]
    ends = st.lists(st.integers(-300, 300), min_size=2, max_size=2).map(sorted)
    intervals = np.array([draw(ends) for _ in range(n_in)])
    return np.array(matrix), intervals[:, 0], intervals[:, 1]


def coefficients(graph: AdderGraph) -> list[list[Fraction]]:
    """What every node is of the inputs, followed from the inputs adder by adder."""
    found = [[Fraction(i == j) for j in range(graph.inputs)] for i in range(graph.inputs)]
    zero = [Fraction(0)] * graph.inputs
    for n, (first, second) in enumerate(zip(graph.first, graph.second, strict=True)):
        assert max(first, second) < len(found)
        a = zero if first == ZERO else found[first]
        sign = -1 if graph.subtracts[n] else 1
        left, right = 2 ** int(graph.first_shift[n]), 2 ** int(graph.second_shift[n])
        found.append([p * left + sign * q * right for p, q in zip(a, found[second], strict=True)])
    return found


def interval(row: list[Fraction], lo: Any, hi: Any) -> tuple[Fraction, Fraction]:
    ends = [sorted((c * int(a), c * int(b))) for c, a, b in zip(row, lo, hi, strict=True)]
    return sum((e[0] for e in ends), Fraction(0)), sum((e[1] for e in ends), Fraction(0))


@given(products())
@example((np.array([[-1, -3], [-2, 7]]), np.array([0, 0]), np.array([3, 5])))
@example((np.zeros((2, 3), int), np.array([0, 0]), np.array([3, 5])))
def test_outputs_are_the_columns_of_the_matrix_and_intervals_are_exact(case: Any) -> None:
    matrix, lo, hi = case
    graph = adder_graph(matrix, lo, hi)
    nodes = coefficients(graph)
    for column, node, shift in zip(matrix.T, graph.outputs, graph.output_shift, strict=True):
        row = nodes[node] if node != ZERO else [Fraction(0)] * len(column)
        assert [c * 2 ** int(shift) for c in row] == column.tolist()
    ends = [interval(row, lo, hi) for row in nodes]
    assert ends == list(zip(graph.lo.tolist(), graph.hi.tolist(), strict=True))


@given(products(), st.integers(0, 2**32 - 1))
def test_evaluation_equals_the_integer_product(case: Any, seed: int) -> None:
    matrix, lo, hi = case
    x = np.random.default_rng(seed).integers(lo, hi + 1, (5, len(lo)))
    x = np.concatenate([x, [lo, hi]])
    assert np.array_equal(adder_graph(matrix, lo, hi).evaluate(x), x @ matrix)


def bit(n: int, width: int, signed: bool) -> int | None:
    """Which bit of an operand is at place n of it; the last one from the sign on, None for none."""
    if n < 0:
        return None
    return n if n < width else width - 1 if signed else None


@given(products())
@example((np.array([[1], [-4]]), np.array([0, 0]), np.array([1, 0])))
@example((np.array([[3, -1], [1, 0]]), np.array([0, -5]), np.array([7, 5])))
def test_the_cost_is_what_the_nodes_say_one_by_one(case: Any) -> None:
    matrix, lo, hi = case
    graph = adder_graph(matrix, lo, hi)
    levels = [0] * graph.inputs
    ends = list(zip(graph.lo.tolist(), graph.hi.tolist(), strict=True))
    widths = [max(high, ~low, 0).bit_length() + (low < 0) for low, high in ends]
    bits, luts = [], 0
    for n, (first, second) in enumerate(zip(graph.first, graph.second, strict=True)):
        levels.append(1 + max(levels[second], levels[first] if first != ZERO else 0))
        a, b = int(graph.first_shift[n]), int(graph.second_shift[n])
        width = widths[graph.inputs + n]
        alone = b if graph.subtracts[n] else a + b
        apart = not graph.subtracts[n] and ends[first][0] >= 0 and ends[first][1] < 2**b
        bits.append(0 if apart else max(width - alone, 0))
        pairs = {
            (
                bit(j - a, max(widths[first], 1), ends[first][0] < 0)
                if first != ZERO
                else bit(j, 1, False),
                bit(j - b, max(widths[second], 1), ends[second][0] < 0),
            )
            for j in range(max(width, 1))
        }
        added, found = max(width, 1) - alone, sum(None not in pair for pair in pairs)
        luts += max(added, 1) if found and added <= 2 else found
    used = [levels[node] for node in graph.outputs if node != ZERO]
    adders = sum(each > 0 for each in bits)
    assert adder_cost(matrix, lo, hi) == (adders, sum(bits), max(used, default=0), luts)


def test_zeros_and_powers_of_two_with_a_positive_sign_are_free() -> None:
    matrix = np.diag([1, 2, 64, 0])
    assert adder_cost(matrix, -128, 127) == (0, 0, 0, 0)


def test_sums_of_single_digits_have_an_adder_for_each_but_one() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.integers(-127, 128, (9, 1))  # one output: nothing to share
    assert adder_cost(matrix, 0, 255).adders == csd_digits(matrix).sum() - 1


def test_a_product_is_shared_by_all_shifts_and_signs_of_it() -> None:
    # 11x takes two adders, -22x and 44x none beside a negation.
    assert adder_cost(np.array([[11, 44, 88]]), -8, 7).adders == 2
    assert adder_cost(np.array([[11, 44, -22]]), -8, 7).adders == 3


def test_low_bits_of_one_operand_are_wire() -> None:
    # x + 4y, both of 0..15: 75 has 7 bits, the lowest 2 are x's.
    assert adder_cost(np.array([[1], [4]]), 0, 15) == (1, 5, 1, 2)
    # 4y - x: nothing is wire; -60..15 has 7 bits, x - 4y would have 5 in the adder.
    assert adder_cost(np.array([[-1], [4]]), 0, 15) == (1, 7, 1, 2)
    # 16y + x is a concatenation.
    assert adder_cost(np.array([[1], [16]]), 0, 15) == (0, 0, 1, 0)


def test_inputs_are_read_with_their_own_intervals() -> None:
    matrix = np.ones((2, 1), int)
    assert adder_cost(matrix, np.array([0, 0]), np.array([1, 255])) == (1, 9, 1, 1)
    assert adder_cost(matrix, 0, 1) == (1, 2, 1, 2)  # without a carry chain


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_graph_of_nothing_has_no_adders(name: str) -> None:
    graph = adder_graph(np.zeros((3, 2), np.int8), 0, 1)
    assert len(getattr(graph, name)) == 0
    assert graph.evaluate(np.ones((4, 3), np.int64)).tolist() == [[0, 0]] * 4


def test_sums_beyond_62_bits_are_refused() -> None:
    with pytest.raises(VerifyError, match=r"partial sums may need 6\d bits, 62 are possible"):
        adder_graph(np.array([[2**40]]), 0, 2**22)
