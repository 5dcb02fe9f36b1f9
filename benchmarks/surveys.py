"""The table of the surveys: what each family of compression reaches, beside what was published.

    python -m benchmarks.surveys [--quick] [--case NAME] [--json FILE] [--docs]

On the networks of the publications, with seeded weights: ratios of sizes follow from architecture,
ranks, filters and bits, not from training, and no accuracy is shown. Every figure comes from
fxloom's graphs: captured, compressed by a pass, counted. One thread; each case runs in a process of
its own. --quick: without the cases that take longest. --docs: also write docs/surveys.md, of all
cases.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import (
    architectures,
    surveys_binary,
    surveys_coded,
    surveys_filters,
    surveys_ranks,
    surveys_sizes,
)
from benchmarks.__main__ import versions
from benchmarks.alone import ROOT, each_alone
from benchmarks.surveys_cases import CASES, SLOW
from benchmarks.surveys_rows import Row

DOCS = ROOT / "docs" / "surveys.md"
ABOUT = {
    surveys_sizes.FAMILY: architectures.__doc__,
    surveys_ranks.FAMILY: surveys_ranks.__doc__,
    surveys_binary.FAMILY: surveys_binary.__doc__,
    surveys_filters.FAMILY: surveys_filters.__doc__,
    surveys_coded.FAMILY: surveys_coded.__doc__,
}
_HEADS = ("network", "setting", "figure", "published", "ours", "off", "note")


def main() -> None:
    """Print, and write where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surveys", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"without {', '.join(SLOW)}")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one")
    parser.add_argument("--json", type=Path, default=Path("benchmarks-surveys.json"))
    parser.add_argument("--docs", action="store_true", help=f"write {DOCS.relative_to(ROOT)}")
    options = parser.parse_args()
    names = options.case or [name for name in CASES if not (options.quick and name in SLOW)]
    if options.docs and list(names) != list(CASES):
        parser.error("--docs: required all cases: without --quick and --case")
    console = Console(width=160)
    records = []
    for record in each_alone("surveys_cases", names):
        records.append(record)
        title = f"{record['case']}: {record['seconds']:.0f} s, {record['peak_gb']:.1f} GB"
        console.print(table(title, rows_of([record])))
    every = rows_of(records)
    outside = [row for row in every if verdict(row) == "!"]
    console.print(f"{len(every)} figures, {len(outside)} further from the published ones than said")
    found = {"versions": versions(), "cases": records}
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    console.print(f"written: {options.json}")
    if options.docs:
        DOCS.write_text("\n".join(document(records)) + "\n")
        console.print(f"written: {DOCS.relative_to(ROOT)}")


def rows_of(records: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows of all cases."""
    return [Row(**each) for record in records for each in record["rows"]]


def verdict(row: Row) -> str:
    """ "!" where ours is further from the published figure than it may be; "-" where the two cannot
    be held against each other."""
    if row.within is None:
        return "-"
    return "" if abs(row.off) <= row.within else "!"


def table(title: str, rows: Sequence[Row]) -> Table:
    """For a terminal."""
    shown = Table(title=title)
    for head in _HEADS:
        shown.add_column(head, justify="right" if head in ("published", "ours", "off") else "left")
    for row in rows:
        shown.add_row(*_cells(row))
    return shown


def _cells(row: Row) -> tuple[str, ...]:
    off = f"{round(row.off, 3) + 0.0:+.1%} {verdict(row)}".rstrip()
    numbers = (_number(row.published, row.unit), _number(row.ours, row.unit))
    return row.network, row.setting, row.figure, *numbers, off, row.note


def _number(value: float, unit: str) -> str:
    for size, suffix in ((1e9, " G"), (1e6, " M")):
        if not unit and value >= size:
            return f"{value / size:,.3f}{suffix}"
    return f"{value:,.2f}{unit}" if unit else f"{value:,.0f}"


def document(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of docs/surveys.md."""
    rows = rows_of(records)
    seconds = sum(record["seconds"] for record in records)
    peak = max(record["peak_gb"] for record in records)
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield from (
        "# What each family reaches on the networks of the surveys",
        "",
        "Written by `python -m benchmarks.surveys --docs`: do not edit. Weights are seeded, never "
        "trained: ratios follow from architectures, ranks, filters and bits, and every one comes "
        "from a captured graph, compressed by a pass and counted. Speed-ups are of multiply-adds. "
        "`!`: further from the published figure than it should be; `-`: not to be held against "
        "it, as the note says. Sources are named with every table; figures of papers are "
        "quoted from memory where no repository is named, and ranks, shares and bits that give the "
        "published ratios confirm them. "
        f"Made with {made_with}; all cases: {seconds:.0f} s of CPU time on one thread, "
        f"{peak:.1f} GB at most.",
    )
    for family in dict.fromkeys(row.family for row in rows):
        mine = [row for row in rows if row.family == family]
        yield from ("", f"## {family[0].upper()}{family[1:]}", "")
        if about := ABOUT.get(family):
            yield from (about.strip(), "")
        yield f"| {' | '.join(_HEADS)} |"
        yield "|---|---|---|---:|---:|---:|---|"
        for row in mine:
            yield f"| {' | '.join(_cells(row))} |"
        yield ""
        yield from ("Published in:", "")
        for source in dict.fromkeys(row.source for row in mine):
            yield f"- {source}"


if __name__ == "__main__":
    main()
