"""The weights of a matrix as Huffman codes, laid out for lanes that decode one after the other.

A lane is one multiplier with a memory of codes (a ROM): in every step it decodes the run length and
the weight that come next, so that it knows which input meets which weight, and adds the product to
its sum. Weights are in the order of their outputs, and all inputs of each, as `fxloom.coding` has
them: lanes are cut from that order, and their codes have as many bits as the accounting says. Every
lane has words of its own, the last of which is not full, and knows where its first run begins.
"""

from dataclasses import dataclass

import numpy as np

from fxloom.bit_patterns import from_patterns
from fxloom.coding_plan import Plan, coded_plans, least
from fxloom.fixed_point import Int64Array, IntArray
from fxloom.huffman import LONGEST, Code, code_of
from fxloom.huffman_pack import join, pieces_of, two
from fxloom.matrices import Matrix
from fxloom.sparse_layout import index_width, lanes_for, span_ends

_MOSTLY_KEPT = 0.75
"""Above this share of weights that are not zero all are stored."""

_PADDING = 1 / 16
"""Padding zeros that may be for a weight that is kept, where that saves bits."""


@dataclass(frozen=True, slots=True, eq=False)
class HuffmanLayout:
    """A matrix in lanes.

    weights, runs: codes of a weight's number in `values`, and of run lengths, none where all
    weights are stored; index_bits: of the longest run, 0 for none. lanes, steps: how many weights
    each lane has at most; width: bits of one. word: bits of a word; bits: of the codes of each
    lane; first: where the first run of each lane begins, in the order of a position's `inputs`.
    ends, outputs: as those of SparseLayout. indices, between: what is coded, of all weights.
    """

    weights: Code
    runs: Code
    values: Int64Array
    width: int
    index_bits: int
    inputs: int
    lanes: int
    steps: int
    word: int
    bits: Int64Array
    first: Int64Array
    ends: tuple[int, ...]
    outputs: tuple[int, ...]
    indices: IntArray
    between: IntArray

    @property
    def words(self) -> Int64Array:
        """Of each lane's ROM."""
        return -(-self.bits // self.word)

    @property
    def rom_bits(self) -> int:
        """Of all ROMs."""
        return int(self.words.sum()) * self.word

    @property
    def table_bits(self) -> int:
        """The codebook, the run lengths in the order of their codes, of every length of a code
        where it ends and which number comes first, and the lanes' first inputs."""
        lengths = sum(
            each.longest * (each.longest + each.symbols.size.bit_length())
            for each in (self.weights, self.runs)
        )
        books = self.values.size * self.width + self.runs.symbols.size * self.index_bits
        return books + lengths + self.lanes * index_width(self.inputs)

    def rom(self) -> list[list[int]]:
        """The words of every lane; the first bit of each code is the lowest that is left."""
        pieces = pieces_of(self.weights)[self.indices]
        if self.index_bits:
            pieces = two(pieces_of(self.runs)[self.between], pieces)
        found = []
        for lane, words in enumerate(self.words.tolist()):
            of_lane = np.zeros(self.steps + self.steps % 2, np.uint64)
            codes = pieces[lane * self.steps : (lane + 1) * self.steps]
            of_lane[: codes.size] = codes
            text = int.from_bytes(join([of_lane], int(self.bits[lane]))[0].tobytes(), "little")
            found.append([text >> self.word * at & (1 << self.word) - 1 for at in range(words)])
        return found


def rows_of(matrix: Matrix) -> IntArray:
    """The weights that every output has for all inputs of a position: [outputs, inputs], zero for
    those of other groups."""
    weights, groups = matrix.weights, matrix.groups
    inputs, n_out = weights.shape
    if groups == 1:
        return weights.T
    of_group = weights.reshape(matrix.taps, groups, -1, n_out)
    rows = np.zeros((groups, n_out, *of_group.shape[:3]), weights.dtype)
    for group in range(groups):
        rows[group, :, :, group] = np.moveaxis(of_group[:, group], -1, 0)
    return rows.reshape(groups * n_out, inputs)


def plan_rows(matrix: Matrix) -> Plan | None:
    """How the weights of all outputs are coded; None where too many are distinct.

    Where most weights are not zero, all are stored, and what meets which input is implied: with run
    lengths these would take more bits, and without them few multipliers more are needed. Run
    lengths are shorter than all inputs of a position, so that a lane that counts them passes the
    last input once at most. A padding zero is a step, so that few are better than the fewest bits.
    """
    rows = rows_of(matrix)
    most = min(matrix.inputs.bit_length() - 1, LONGEST)
    implied = not most or np.count_nonzero(rows) >= _MOSTLY_KEPT * rows.size
    plans = coded_plans(rows, [0] if implied else range(1, most + 1), matrix.width)
    if not plans:
        return None
    fewest = min(plan.storage.padding for plan in plans)
    few = [plan for plan in plans if plan.storage.padding <= fewest + _PADDING * plan.storage.kept]
    return least(few)


def lay_out_codes(matrix: Matrix, reuse: int) -> HuffmanLayout | None:
    """The layout for lanes of at most `reuse` steps; None where too many weights are distinct."""
    plan = plan_rows(matrix)
    if plan is None:
        return None
    head, inputs = plan.head, matrix.inputs
    indices, between = plan.symbols()
    lanes, steps = lanes_for(indices.size, reuse)
    weights, runs = code_of(plan.codebook.counts), code_of(plan.runs)
    values = from_patterns(plan.codebook.values, head.width, head.signed, np.dtype(np.int64))
    bits = weights.length_of(max(head.values, 1))[indices]
    after = np.arange(1, indices.size + 1)
    if head.index_bits:
        bits = bits + runs.length_of(plan.runs.size)[between]
        after = np.cumsum(between.astype(np.int64) + 1)
    starts = np.arange(lanes) * steps
    word = max(weights.longest + runs.longest, 1)
    owners = (after - 1) // inputs
    if not indices.size:  # a product with nothing
        owners = np.zeros(1, np.int64)
    ends = span_ends(owners, max(indices.size, 1), steps)
    return HuffmanLayout(
        weights=weights,
        runs=runs,
        values=values[weights.symbols] if indices.size else np.zeros(1, np.int64),
        width=matrix.width,
        index_bits=head.index_bits,
        inputs=inputs,
        lanes=lanes,
        steps=steps,
        word=word,
        bits=np.add.reduceat(bits, starts) if indices.size else np.zeros(1, np.int64),
        first=np.append(0, after)[starts] % inputs,
        ends=tuple(ends.tolist()),
        outputs=tuple(owners[ends].tolist()),
        indices=indices,
        between=between,
    )
