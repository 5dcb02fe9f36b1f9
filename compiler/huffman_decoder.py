"""The step decoder of a Huffman-coded ROM: its tables, and a model of it.

`hw_templates/fxloom_huffman.h` is the same in C++.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fxloom.huffman import Code
from fxloom.huffman_layout import HuffmanLayout


@dataclass(frozen=True, slots=True)
class CodeTables:
    """What decodes a canonical code, of every length 1, 2, ... `longest`.

    limits: the first number of `longest` bits, first bit most significant, that no code of this
    length or a shorter one begins; bases: what makes the code of this length the code's number.
    """

    longest: int
    limits: tuple[int, ...]
    bases: tuple[int, ...]


def tables_of(code: Code) -> CodeTables:
    """The tables of a code; none of a code that takes no bits."""
    longest, first, counts = code.longest, code.first_codes.tolist(), code.per_length.tolist()
    lengths = range(1, longest + 1)
    limits = tuple((first[n] + counts[n]) << longest - n for n in lengths)
    bases = tuple(sum(counts[:n]) - first[n] for n in lengths)
    return CodeTables(longest, limits, bases)


def number_of(tables: CodeTables, window: int) -> tuple[int, int]:
    """The number of the code that the lowest bits begin with, and how many bits it takes."""
    bits = sum((window >> k & 1) << tables.longest - 1 - k for k in range(tables.longest))
    for length, (limit, base) in enumerate(zip(tables.limits, tables.bases, strict=True), 1):
        if bits < limit:
            return base + (bits >> tables.longest - length), length
    return 0, 0


def decoded(layout: HuffmanLayout, lane: int, words: Sequence[int]) -> Iterator[tuple[int, int]]:
    """What a lane multiplies in every step: a weight, and the input by its number.

    words: of the lane's ROM. In steps behind the end of the codes it is anything.
    """
    weights, runs = tables_of(layout.weights), tables_of(layout.runs)
    lengths = layout.runs.symbols.tolist() or [0]
    bits = have = address = 0
    place = int(layout.first[lane])
    for _ in range(layout.steps):
        if have < layout.word:
            bits |= (words[address] if address < len(words) else 0) << have
            have += layout.word
            address += 1
        number, of_run = number_of(runs, bits)
        run = lengths[number]
        number, of_weight = number_of(weights, bits >> of_run)
        bits >>= of_run + of_weight
        have -= of_run + of_weight
        place += run
        place -= layout.inputs if place >= layout.inputs else 0
        yield int(layout.values[number]), place
        place = (place + 1) % layout.inputs
