"""Tables and sentences for terminals: aligned, and no wider than asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

Rows = Sequence[Sequence[str]]

GAP = "  "
SHORTEST_NAME = 24
"""First columns are not shortened below it; then a table is continued below itself."""

BLOCKS = " \N{LOWER ONE EIGHTH BLOCK}\N{LOWER ONE QUARTER BLOCK}\N{LOWER THREE EIGHTHS BLOCK}\
\N{LOWER HALF BLOCK}\N{LOWER FIVE EIGHTHS BLOCK}\N{LOWER THREE QUARTERS BLOCK}\
\N{LOWER SEVEN EIGHTHS BLOCK}\N{FULL BLOCK}"
"""From nothing to full height."""


def aligned(rows: Rows) -> list[str]:
    """Rows as lines: the first column to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        GAP.join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def ruled(rows: Rows, ends: int, width: int | None = None) -> Iterator[str]:
    """Aligned lines with one above the sums, which are the last `ends` rows.

    width: columns of the terminal. What is wider has its names shortened in the middle, and is then
    continued below itself, each part with the names.
    """
    parts = [rows] if width is None else list(_parts(rows, width))
    for number, part in enumerate(parts):
        if number:
            yield ""
        lines = aligned(part)
        if ends:
            lines.insert(len(lines) - ends, "-" * max(len(line) for line in lines))
        yield from lines


def wrapped(text: str, width: int | None) -> list[str]:
    """A sentence as lines, those after the first indented."""
    if width is None:
        return [text]
    room = max(width, len(GAP) + 1)
    return wrap(text, room, subsequent_indent=GAP, break_on_hyphens=False) or [""]


def shortened(name: str, length: int) -> str:
    """A name with its middle left out: layers differ at their ends."""
    if len(name) <= length:
        return name
    head = (length - 1) // 3
    return f"{name[:head]}\N{HORIZONTAL ELLIPSIS}{name[head + 1 - length :]}"


def sparkline(counts: Sequence[float]) -> str:
    """Heights as blocks, the largest full; what is not zero shows."""
    largest = max(counts, default=0) or 1
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[-(-int(n * steps * 1000 / largest) // 1000)] for n in counts)


def _parts(rows: Rows, width: int) -> Iterator[list[list[str]]]:
    """Tables with the first column and as many of the others as fit, at least one."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    others = sum(len(GAP) + each for each in widths[1:])
    name = min(widths[0], max(width - others, SHORTEST_NAME))
    begin = 1
    while begin < len(widths):
        end, taken = begin, name
        while end < len(widths) and (taken := taken + len(GAP) + widths[end]) <= width:
            end += 1
        end = max(end, begin + 1)
        yield [[shortened(row[0], name), *row[begin:end]] for row in rows]
        begin = end
