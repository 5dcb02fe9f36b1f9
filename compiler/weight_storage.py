"""What the tensors of a file of weights take, as rows of a storage table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod

import numpy as np

from fxloom.coded_tensors import Coded, Pattern, accounted
from fxloom.storage_table import TITLE, StorageRow, row_of, summed, table, times
from fxloom.text_tables import ruled
from fxloom.weight_entries import INDICES, NUMBERS, VALUES, Entry, Written
from fxloom.weight_file import read_coded


def row_of_entry(written: Written) -> StorageRow:
    """All that is stored of a tensor."""
    entry, patterns = written.entry, written.patterns
    rows = {kind: _row(kind, each, patterns[kind]) for kind, each in written.coded.items()}
    main = rows[VALUES] if VALUES in rows else rows[NUMBERS]
    numbers = prod(entry.shape)
    if VALUES not in rows:
        # The numbers of the classes are what a codebook is for the indices.
        main = replace(rows.get(INDICES, main), values=main.weights)
    others = [row for row in rows.values() if row.name != main.name]
    return replace(
        main,
        name=entry.name,
        what="weights" if len(entry.shape) > 1 else "biases",
        weights=numbers,
        kept=_kept(entry, patterns),
        codebook=main.codebook + sum(row.bits for row in others),
        tables=main.tables + sum(row.huffman_bits - row.bits for row in others),
        bits=main.bits + sum(row.bits for row in others),
        huffman_bits=main.huffman_bits + sum(row.huffman_bits for row in others),
    )


def rows_of_entries(found: Iterable[StorageRow]) -> tuple[StorageRow, ...]:
    """A row for each matrix of weights and one for all biases and other vectors."""
    rows = list(found)
    biases = [row for row in rows if row.what == "biases"]
    ends = [summed("biases and other vectors", "biases", biases)] if biases else []
    return (*(row for row in rows if row.what == "weights"), *ends)


@dataclass(frozen=True, slots=True)
class FileStorage:
    """A file of weights: its rows, and how many of its bytes are tensors."""

    path: str
    rows: tuple[StorageRow, ...]
    nbytes: int
    coded_bytes: int

    def to_text(self, width: int | None = None) -> str:
        """The table for people. width: columns of a terminal."""
        header = self.nbytes - self.coded_bytes
        times_, more = times(sum(row.float_bits for row in self.rows), 8 * self.nbytes)
        text = (
            f"{self.path}: {self.nbytes:,} bytes: {self.coded_bytes:,} of tensors, {header:,} of "
            f"header; {times_} times {more} than as 32-bit floats"
        )
        return "\n".join([text, "", TITLE, "", *ruled(table(self.rows), 1, width), ""])

    def to_json(self) -> str:
        """All figures."""
        document = {
            "file": self.path,
            "bytes": self.nbytes,
            "tensor_bytes": self.coded_bytes,
            "rows": [asdict(row) for row in self.rows],
        }
        return json.dumps(document, indent=1) + "\n"


def storage_of_file(path: str | os.PathLike[str]) -> FileStorage:
    """What a file of weights holds, every tensor decoded and compared with its checksum.

    Raises WeightsError as `load_weights` does.
    """
    written = read_coded(path)
    rows = rows_of_entries(map(row_of_entry, written))
    return FileStorage(str(path), rows, os.stat(path).st_size, sum(w.nbytes for w in written))


def _row(kind: str, coded: Coded, pattern: Pattern) -> StorageRow:
    if coded.stored.coding == "coded":
        return row_of(kind, "weights", accounted(coded, pattern))
    width, count = 8 * pattern.bits.dtype.itemsize, pattern.bits.size
    return StorageRow(
        name=kind,
        what="weights",
        weights=count,
        kept=int(np.count_nonzero(pattern.bits)),
        values=0,
        stored=count,
        weight_bits=width,
        index_bits=0,
        weight_codes=width * count,
        index_codes=0,
        codebook=0,
        tables=0,
        bits=width * count,
        huffman_bits=width * count,
    )


def _kept(entry: Entry, patterns: Mapping[str, Pattern]) -> int:
    """Weights that are not zero, as far as what is stored says."""
    if VALUES in patterns:
        return int(np.count_nonzero(patterns[VALUES].bits))
    for kind in ("kept", INDICES):
        if entry.zeros and kind in patterns:
            return int(np.count_nonzero(patterns[kind].bits))
    return prod(entry.shape)
