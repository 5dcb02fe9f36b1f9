"""The codebook kernel: one multiplication for all weights of an output, or of an input, that are
the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fxloom import features
from fxloom.allotment import Allotment
from fxloom.codebook_layout import Codebooks, Occurrence, occurrence, turns_for
from fxloom.fixed_point import IntArray
from fxloom.kernels.base import Declined, Offer, Rhythm
from fxloom.logic import LUT_ROM_BITS
from fxloom.matrices import Matrix
from fxloom.multipliers import HARD_DIGITS, are_powers, csd_digits, hard_multiplications
from fxloom.sparse_layout import index_width, lanes_for
from fxloom.target import LayerSettings

if TYPE_CHECKING:
    from fxloom.costs import Cost
    from fxloom.product_costs import Product

MOST_VALUES = 64
"""Of an output or an input, up to which the kernel is considered where nobody asked for it."""

MOST_SYMBOLS = 1 << 12
"""Values up to which products first are considered: those of an input are there at once."""

SAMPLED = 4
"""Outputs and inputs in which values are counted first, at most SAMPLED_WEIGHTS of each."""

SAMPLED_WEIGHTS = 1 << 12

RULE_CODEBOOK = (
    "rule: codebook kernel: adders, choices and registers counted, a multiplier for each product "
    "that is formed at a time; nobody has synthesised it"
)
CODEBOOK_CYCLES = (
    "rule: codebook kernel: its steps in cycles, for every position and at the beginning of every "
    "row of windows; sums first, a position more in the end",
    "unknown: cycles in which the pipeline of a codebook kernel fills, so these are at least",
)


@dataclass(frozen=True, slots=True)
class Form:
    """One way to compute a product with a matrix, and what it takes.

    order: what comes first; reuse: steps; lanes: adders side by side; multipliers: side by side;
    products: multiplications for one position; values: of an output or a codebook, at most; bits:
    in memory; luts, registers: in C synthesis; word: bits read in a step; books: codebooks.
    """

    order: Literal["sums", "products"]
    reuse: int
    lanes: int
    multipliers: int
    products: int
    values: int
    bits: int
    luts: float
    registers: float
    word: int
    books: int = 1

    def worth(self, width: int) -> float:
        """LUTs, multipliers and memory in LUTs. width: bits of a weight."""
        multiplier = features.LUTS_OF_DSP if width > features.NO_DSP_BITS else 0
        return self.luts + multiplier * self.multipliers + self.bits / LUT_ROM_BITS


class Codebook:
    """Sums of inputs that are multiplied once, or products that are chosen many times."""

    name: ClassVar[str] = "codebook"

    def offer(self, matrix: Matrix, wanted: LayerSettings) -> Offer | Declined:
        """Any matrix will do where somebody asks for it; else at least every second multiplication
        must be saved."""
        found = list(forms(matrix, wanted.reuse))
        if wanted.kernel == "auto":
            most = int(np.count_nonzero(matrix.weights)) // 2
            found = [form for form in found if form.products <= most]
        if not found:
            return Declined("weights of which many are the same", "too many different ones")
        form = min(found, key=lambda each: each.worth(matrix.width))
        rounds = 2 if form.order == "sums" and _lags(form.reuse) and not _overlaps(matrix) else 1
        note = ""
        if rounds * form.reuse != wanted.reuse:
            note = f"reuse {wanted.reuse} asked for, a position takes {rounds * form.reuse} steps"
        within = "for an output" if form.order == "sums" else "in all"
        if form.books > 1:
            within = f"for each of {form.books} groups of outputs"
        what = (
            f"{form.values:,} value{'s' if form.values != 1 else ''} {within}, {form.order} first, "
            f"{form.products:,} multiplications instead of {matrix.weights.size:,}, "
            f"{form.multipliers:,} multiplier{'s' if form.multipliers != 1 else ''} at reuse "
            f"{rounds * form.reuse:,} ({form.bits:,} bits with indices)"
        )
        return Offer(
            form.multipliers,
            form.reuse,
            form.bits,
            form.products,
            form.luts,
            form.lanes,
            what,
            note,
            form.order,
        )

    def dense_is_better(
        self, matrix: Matrix, wanted: LayerSettings, dense: Allotment
    ) -> str | None:
        """Where products take no DSP block, or samples show too many values; without reuse, where
        equal products of an input are formed once anyway, unless multipliers are halved."""
        if matrix.width <= features.NO_DSP_BITS or are_powers(_some(matrix.weights), matrix.width):
            return None
        samples = _some(matrix.weights.T), _some(matrix.weights)
        if not any(_repeats(sample) for sample in samples):
            return None
        return None if dense.reuse == 1 and not self._halves(matrix, wanted) else ""

    def _halves(self, matrix: Matrix, wanted: LayerSettings) -> bool:
        """Whether there would be at most half of the multipliers of constant weights."""
        offer = self.offer(matrix, wanted)
        hard = hard_multiplications(matrix.weights)
        return not isinstance(offer, Declined) and 2 * offer.multipliers <= hard

    def cost(self, product: Product) -> Cost:
        """Counted: adders, choices, registers; nobody has synthesised it."""
        from fxloom.product_costs import lane_cost

        matrix, given = product.matrix, product.given
        form = form_of(matrix, given, product.accumulator)
        ends = max(matrix.rows, 1) * lag(given)
        cycles = (matrix.positions + matrix.rows + ends) * given.reuse
        return lane_cost(
            product,
            form.luts,
            form.registers,
            form.multipliers,
            form.word,
            RULE_CODEBOOK,
            CODEBOOK_CYCLES,
            cycles,
        )

    def rhythm(self, matrix: Matrix, given: Allotment) -> Rhythm:
        """With sums first products are formed in the steps of the next position."""
        return Rhythm(given.reuse, (1 + lag(given)) * given.reuse - 1, 1)


def lag(given: Allotment) -> int:
    """Positions by which results come later."""
    return int(given.form == "sums" and _lags(given.reuse))


def _lags(steps: int) -> bool:
    """In a single step sums and products are wires."""
    return steps > 1


def _overlaps(matrix: Matrix) -> bool:
    """Whether a position's sums are added up while another one's are multiplied."""
    return matrix.positions > 1


def forms(matrix: Matrix, reuse: int) -> Iterator[Form]:
    """Those in which positions can follow each other every `reuse` steps."""
    found, bits = occurrence(_by_groups(matrix)), matrix.sum_width
    yield _sums(matrix, found, reuse if _overlaps(matrix) else max(reuse // 2, 1), bits)
    if matrix.groups == 1 and len(found.values) <= MOST_SYMBOLS:
        n_in, n_out = matrix.shape
        _, turns = turns_for(n_in, n_out, reuse)
        for books in range(1, n_out + 1):
            if n_out % books == 0 and (books == 1 or n_out // books % turns == 0):
                yield _products(matrix, found.codebooks(books), reuse, bits)


def form_of(matrix: Matrix, given: Allotment, accumulator: int | None = None) -> Form:
    """The form that a product was allotted. accumulator: bits of its sums."""
    bits, found = accumulator or matrix.sum_width, occurrence(_by_groups(matrix))
    if given.form == "sums":
        return _sums(matrix, found, given.reuse, bits)
    possible = [form for form in forms(matrix, given.reuse) if form.order == "products"]
    books = min(possible, key=lambda each: each.worth(matrix.width)).books
    return _products(matrix, found.codebooks(books), given.reuse, bits)


def _sums(matrix: Matrix, found: Occurrence, reuse: int, accumulator: int) -> Form:
    """Of at most so many steps, and no more than there are inputs: a lane chooses one of as many
    wires as it has steps."""
    n_out, width, data = matrix.outputs, matrix.width, matrix.data
    of_outputs = found.by_output.sum(1)
    count, most = max(int(of_outputs.sum()), 1), max(int(of_outputs.max()), 1)
    nonzero = max(found.nonzero, 1)
    lanes, steps = lanes_for(nonzero, min(reuse, matrix.inputs))
    multiplying, rounds = lanes_for(count, steps)
    multipliers = multiplying
    if are_powers(matrix.weights, width):
        multipliers = 0
    elif steps == 1:  # constants
        multipliers = int(found.by_output[:, csd_digits(found.values) >= HARD_DIGITS].sum())
    bits = data + (-(-nonzero // count) - 1).bit_length()
    spans = count + lanes * (1 - count / nonzero)
    product_spans = max(n_out, multiplying)
    adders = spans - count + (lanes if steps > 1 else 0)
    product_adders = product_spans - n_out + (multiplying if rounds > 1 else 0)
    luts = adders * _adder(bits) + product_adders * _adder(accumulator)
    luts += 2 * (lanes * wired_luts(steps, data) + multiplying * wired_luts(rounds, bits))
    luts += _luts_of_products(matrix, multipliers, bits)
    registers = matrix.inputs * data + (spans + count) * bits + product_spans * accumulator
    if steps > 1:
        registers += lanes * bits + multiplying * (accumulator + width)
    # Indices are wires. What says them in fewest bits: a value for each weight, or an input for
    # each that is not zero.
    indices = min(
        matrix.weights.size * index_width(most + found.zeros),
        nonzero * index_width(matrix.inputs),
    )
    return Form(
        "sums",
        steps,
        lanes,
        multipliers,
        multiplying * rounds,
        most,
        indices + multiplying * rounds * width,
        luts,
        registers,
        multiplying * width,
    )


def _products(matrix: Matrix, found: Codebooks, reuse: int, accumulator: int) -> Form:
    """All products of an input at a time, for each codebook."""
    (n_in, n_out), width, data = matrix.shape, matrix.width, matrix.data
    wide, turns = turns_for(n_in, n_out, reuse)
    blocks, lanes = -(-n_in // wide), -(-n_out // turns)
    products = wide * found.values.size
    hard = wide * int((csd_digits(found.values) >= HARD_DIGITS).sum())
    bits = data + width
    index = index_width(found.symbols)
    luts = lanes * wide * (_adder(accumulator) + 2 * chosen_luts(found.symbols, bits))
    luts += 2 * (wide * wired_luts(blocks, data) + lanes * wired_luts(turns, accumulator))
    luts += _luts_of_products(matrix, hard, data)
    word = lanes * wide * index
    registers = matrix.inputs * data + n_out * accumulator + products * bits + word
    return Form(
        "products",
        blocks * turns,
        lanes,
        hard,
        blocks * products,
        found.size,
        word * blocks * turns + found.values.size * width,
        luts,
        registers,
        word,
        found.books,
    )


def _adder(bits: int) -> int:
    return bits + features.ADDER_OVERHEAD


def wired_luts(count: int, bits: int) -> float:
    """Of a choice of one of so many wires, by the step (benchmarks/sparse_operands)."""
    return count * bits / 4 + bits if count > 1 else 0


def chosen_luts(symbols: int, bits: int) -> float:
    """Of a choice of one of so many products, by an index (benchmarks/codebook_lanes)."""
    return symbols * bits / 4


def _luts_of_products(matrix: Matrix, multipliers: int, bits: int) -> float:
    """Of products that no DSP block forms."""
    if matrix.width > features.NO_DSP_BITS or are_powers(matrix.weights, matrix.width):
        return 0
    return multipliers * bits * matrix.width


def _by_groups(matrix: Matrix) -> IntArray:
    """[kernel positions, groups, inputs of a group, outputs of a group]."""
    weights: IntArray = matrix.weights.reshape(
        -1, matrix.groups, matrix.inputs_of_group, matrix.shape[1]
    )
    return weights


def _some(matrix: IntArray) -> IntArray:
    """Some rows of a matrix, of long ones the beginning."""
    rows = np.linspace(0, len(matrix) - 1, min(SAMPLED, len(matrix))).astype(int)
    found: IntArray = matrix[rows, :SAMPLED_WEIGHTS]
    return found


def _repeats(lines: IntArray) -> bool:
    """Whether at least every second weight of some outputs, or inputs, has a value that another one
    of the same has as well."""
    different = [int(np.unique(line[line != 0]).size) for line in lines]
    return max(different) <= MOST_VALUES and 2 * sum(different) <= int(np.count_nonzero(lines))
