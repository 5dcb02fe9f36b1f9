"""What every stored tensor takes when it is coded, in tables like Deep Compression's (Han, Mao,
Dally, 2016, arXiv 1510.00149, tables 2 to 5): kept weights, bits of a weight and of a run length,
the rate against 32-bit floats; without and with Huffman codes, all that is stored counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fxloom.fixed_point import IntArray
    from fxloom.program import Program
    from fxloom.storage import Storage

FLOAT_BITS = 32
BLOCK_BITS = 8
"""Of the size of circulant blocks."""

What = Literal["weights", "biases", "tables"]

HEADER = (
    "tensor",
    "weights",
    "kept",
    "values",
    "weight bits",
    "index bits",
    "codebook and tables",
    "bits",
    "of float32",
)
"""Of the table; where two figures stand in a cell, the second is with Huffman codes."""

TITLE = "stored weights (where there are two figures: without Huffman codes, with them)"

ARROW = " \N{RIGHTWARDS ARROW} "


@dataclass(frozen=True, slots=True)
class StorageRow:
    """A tensor, or several together.

    what: tables are not in the float model and have no rate. weights, kept: how many, and how many
    are not zero. values: of codebooks, 0 where weights are written as they are. weight_bits,
    index_bits: of one that is stored, without Huffman codes; None in sums of several.
    weight_codes, index_codes: bits of all of them with Huffman codes. codebook: bits of values and
    counts; tables: of Huffman codes. bits, huffman_bits: all of it, without and with.
    """

    name: str
    what: What
    weights: int
    kept: int
    values: int
    stored: int
    weight_bits: int | None
    index_bits: int | None
    weight_codes: int
    index_codes: int
    codebook: int
    tables: int
    bits: int
    huffman_bits: int

    @property
    def float_bits(self) -> int:
        """Of as many 32-bit floats."""
        return 0 if self.what == "tables" else FLOAT_BITS * self.weights

    def cells(self) -> list[str]:
        """Texts for HEADER."""
        kept = f"{100 * self.kept / self.weights:.1f}%" if self.weights else ""
        side = _pair(self.codebook, self.codebook + self.tables)
        return [
            self.name,
            f"{self.weights:,}",
            kept if self.what == "weights" else "",
            f"{self.values:,}" if self.values else "",
            _mean(self.weight_bits, self.weight_codes, self.stored),
            _mean(self.index_bits, self.index_codes, self.stored) if self.index_bits else "",
            side if self.codebook + self.tables else "",
            _pair(self.bits, self.huffman_bits),
            _rates(self.bits, self.huffman_bits, self.float_bits),
        ]


def row_of(name: str, what: What, storage: Storage) -> StorageRow:
    """What is counted of one tensor."""
    total = storage.huffman_bits
    assert total is not None
    return StorageRow(
        name=name,
        what=what,
        weights=storage.weights,
        kept=storage.kept,
        values=storage.values,
        stored=storage.stored,
        weight_bits=storage.weight_bits,
        index_bits=storage.index_bits,
        weight_codes=storage.weight_codes or 0,
        index_codes=storage.index_codes or 0,
        codebook=storage.codebook + storage.counts,
        tables=storage.tables,
        bits=storage.bits,
        huffman_bits=total,
    )


def summed(name: str, what: What, rows: Sequence[StorageRow]) -> StorageRow:
    """Several rows as one."""
    return StorageRow(
        name=name,
        what=what,
        weights=sum(row.weights for row in rows),
        kept=sum(row.kept for row in rows),
        values=sum(row.values for row in rows),
        stored=sum(row.stored for row in rows),
        weight_bits=None,
        index_bits=None,
        weight_codes=sum(row.weight_codes for row in rows),
        index_codes=sum(row.index_codes for row in rows),
        codebook=sum(row.codebook for row in rows),
        tables=sum(row.tables for row in rows),
        bits=sum(row.bits for row in rows),
        huffman_bits=sum(row.huffman_bits for row in rows),
    )


def storage_rows(program: Program) -> tuple[StorageRow, ...]:
    """What the constants of a program take: a row for each matrix of weights, one for all biases
    and other numbers, one for all tables. Nothing that is stored is left out."""
    found = list(_counted(program))
    rows = [row for row in found if row.what == "weights"]
    for what, name in (("biases", "biases and other numbers"), ("tables", "tables of functions")):
        alike = [row for row in found if row.what == what]
        if alike:
            rows.append(summed(name, what, alike))  # type: ignore[arg-type]
    return tuple(rows)


def total(rows: Sequence[StorageRow]) -> StorageRow:
    """The sum, whose rate counts tables as stored and not as floats."""
    return summed("total", "weights", rows)


def times(before: int, now: int) -> tuple[str, str]:
    """How many times, and "fewer" or "more"."""
    share = max(before, 1) / max(now, 1)
    return (f"{share:.2f}", "fewer") if share >= 1 else (f"{1 / share:.2f}", "more")


def table(rows: Sequence[StorageRow], float_bits: int | None = None) -> list[list[str]]:
    """HEADER, all rows and their sum. float_bits: of the float model, which rates of the sum are
    of; by default of as many weights and biases."""
    last = total(rows).cells()
    given = sum(row.float_bits for row in rows) if float_bits is None else float_bits
    last[-1] = _rates(total(rows).bits, total(rows).huffman_bits, given)
    last[2] = last[3] = ""
    return [list(HEADER), *(row.cells() for row in rows), last]


def _counted(program: Program) -> Iterator[StorageRow]:
    from fxloom.coding import account

    kinds = dict(_kinds(program))
    for name, constant in program.constants.items():
        what = kinds.get(name, "biases")
        row = row_of(name, what, account(constant.data))
        yield _in_blocks(row, constant.data) if what == "weights" else row


def _in_blocks(row: StorageRow, weights: IntArray) -> StorageRow:
    """The row of weights whose matrices [inputs, outputs] are block-circulant, with one value a
    diagonal and the size of a block; the row itself if they are not, or that takes more."""
    from fxloom.circulant_layout import diagonals, find_block
    from fxloom.coding import account

    if weights.ndim < 2:
        return row
    taps, matrix = prod(weights.shape[:-2]), weights.reshape(-1, weights.shape[-1])
    if (block := find_block(matrix, taps)) == 1:
        return row
    found = row_of(
        f"{row.name}, circulant {block}",
        row.what,
        account(diagonals(matrix, taps, block).reshape(-1)),
    )
    if found.huffman_bits + BLOCK_BITS >= row.huffman_bits:
        return row
    return replace(
        found,
        weights=row.weights,
        kept=row.kept,
        codebook=found.codebook + BLOCK_BITS,
        bits=found.bits + BLOCK_BITS,
        huffman_bits=found.huffman_bits + BLOCK_BITS,
    )


def _kinds(program: Program) -> Iterable[tuple[str, What]]:
    """What constants are, by the first instruction that says it."""
    from fxloom.ops import (  # NumPy, which a help text can do without
        Conv,
        Embedding,
        Lookup,
        MatMul,
    )

    for instr in reversed(program.instrs):
        if isinstance(instr.op, MatMul | Conv | Embedding):
            yield from ((arg, "weights") for arg in instr.args if arg in program.constants)
        if isinstance(instr.op, Lookup):
            yield from ((arg, "tables") for arg in instr.args[1:] if arg in program.constants)


def _mean(width: int | None, codes: int, stored: int) -> str:
    if width is None or not stored:
        return ""
    return f"{width}{ARROW}{codes / stored:.2f}"


def _pair(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,}{ARROW}{after:,}"


def _rates(before: int, after: int, of: int) -> str:
    if not of:
        return ""
    return ARROW.join(dict.fromkeys(f"{100 * bits / of:.2f}%" for bits in (before, after)))
