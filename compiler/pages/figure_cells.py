"""A figure as a page shows it: number, interval, sources and a bar with whiskers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fxloom.pages.sources import Sources
from fxloom.report import Figure, number
from fxloom.verdict import is_complete

SEEN = 1.2
"""Percent of a bar from which on an interval can be seen."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure as a bar, in percent of the longest one; low, high: its interval's ends."""

    value: float
    low: float | None
    high: float | None
    kind: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure in a table: text, interval, numbers of its sources, and its bar."""

    text: str
    span: str
    refs: tuple[int, ...]
    title: str
    bar: Bar | None = None


def cell_of(figure: Figure, sources: Sources, longest: float | None = None) -> Cell:
    """What a table says of a figure. longest: the value of a full bar; None for no bar."""
    ranged = figure.low is not None and figure.high is not None and figure.low != figure.high
    span = f"{_short(figure.low or 0)}\u2013{_short(figure.high or 0)}" if ranged else ""
    text = "?" if figure.value is None else number(figure.value)
    if figure.value is not None and not is_complete(figure):
        text = f"\N{GREATER-THAN OR EQUAL TO} {text}"
    bar = None if longest is None else bar_of(figure, longest)
    return Cell(text, span, sources.of(figure), _title(figure), bar)


def _short(value: float) -> str:
    """A number without digits that an interval's end does not deserve: 1.36M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= 10 * size or (letter == "M" and value >= size):
            return f"{float(f'{value:.3g}') / size:g}{letter}"
    return number(value)


def _title(figure: Figure) -> str:
    text = "not known" if figure.value is None else f"{figure} {figure.unit}"
    return f"{text} [{figure.provenance}]"


def bar_of(figure: Figure, longest: float) -> Bar | None:
    """The bar of a figure where one of full length is `longest`; None of a zero."""
    if figure.value is None:
        return Bar(0, None, None, "none")
    if not figure.value and not figure.high:
        return None
    bar = Bar(100 * figure.value / longest, None, None, figure.provenance)
    if figure.low is None or figure.high is None:
        return bar
    low, high = 100 * figure.low / longest, 100 * figure.high / longest
    return replace(bar, low=low, high=high) if high - low >= SEEN else bar


def longest_of(figures: Sequence[Figure]) -> float:
    """The largest value or end of an interval; 1 where all are 0 or unknown."""
    return max((max(f.value or 0, f.high or 0) for f in figures), default=0) or 1
