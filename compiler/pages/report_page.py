"""The page of a report: what its template needs to know, worked out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, Any

from fxloom.measured_report import HEADER, NAMES, cells
from fxloom.pages import render
from fxloom.pages.graph_layout import lay_out
from fxloom.pages.histogram_plot import plot
from fxloom.pages.sources import Sources
from fxloom.report import (
    FEW_WIRES,
    LEVELS,
    RESOURCES,
    STAGE_HEADER,
    Figure,
    number,
    percent,
    stage_texts,
)
from fxloom.verdict import is_complete

if TYPE_CHECKING:
    from fxloom.measured_report import Comparison, Run
    from fxloom.report import Accuracy, LayerReport, PassReport, Report, StageLayer

MOST_DRAWN = 200
"""Nodes of a graph; of larger ones the page has the list alone."""

WIDE = 700
"""Pixels from which on a graph has no list beside it."""

SEEN = 1.2
"""Percent of a bar from which on an interval can be seen."""

SIGNS = {"fits": "good", "may not fit": "warn", "does not fit": "bad", "not known": "open"}
"""Classes of the style sheet."""

COUNTS = {
    "parameters": "parameters",
    "nonzero": "not zero",
    "stored_bits": "stored bits",
    "macs": "multiply-adds",
    **RESOURCES,
}
"""What is counted before and after a pass."""


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


@dataclass(frozen=True, slots=True)
class Row:
    """A layer with its cells."""

    layer: LayerReport
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Resources of all layers at a level, and time beside the first of them."""

    level: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    total: tuple[Cell, ...]
    shares: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A pass: its counts before and after with how many percent remain, and its layers."""

    report: PassReport
    counts: tuple[tuple[str, int, int, float], ...]
    remarks: tuple[str, ...]
    layers: tuple[StageLayer, ...]


def report_page(report: Report, measured: Comparison | None = None) -> str:
    """The whole page; measured: estimates beside what tools said."""
    sources = Sources()
    total = report.total
    latency = [_cell(f, sources) for f in (total.latency, total.latency_ns) if f is not None]
    interval = _cell(total.interval, sources)
    use = {level: list(_use(report, level, sources)) for level in LEVELS}
    errors = [_error(layer) for layer in report.layers]
    largest = _longest([error for error in errors if error is not None])
    shown = [_cell(f, sources, largest) if f is not None else None for f in errors]
    tables = [_table(report, level, sources) for level in LEVELS]
    graph = report.graph
    wires = {layer.name for layer in report.layers if layer.is_wires}
    layout = lay_out(graph) if graph and len(graph.nodes) <= MOST_DRAWN else None
    return render(
        "report.html",
        report=report,
        title=report.title,
        made=report.made_from,
        sign=SIGNS[report.verdict.state],
        advice=report.overflows(),
        levels=LEVELS,
        use=use,
        latency=latency,
        interval=interval,
        points=_points(report.accuracy),
        lost=report.accuracy is not None and _is_lost(report.accuracy),
        rate=_rate(report.total.interval_ns),
        tables=tables,
        errors=shown,
        wires=wires if len(wires) > FEW_WIRES else set(),
        steps=[_step(step) for step in report.passes],
        stages=_stages,
        stage_header=STAGE_HEADER,
        layout=layout,
        wide=layout is None or layout.width > WIDE,
        edges=list(graph.rows()) if graph else [],
        histograms=[(each, plot(each)) for each in report.histograms],
        saturated=sorted(
            (each for each in report.histograms if each.saturated), key=lambda h: -h.saturated
        ),
        sources=sources,
        number=number,
        runs=[_run(run) for run in measured.runs] if measured is not None else [],
        measured_header=HEADER,
        kernels=[layer for layer in report.layers if layer.kernel],
        saved=sum(layer.rounding_saved for layer in report.layers),
    )


def _run(run: Run) -> dict[str, Any]:
    """A tool's run: its rows, each with a bar of the estimate on which the measurement is."""
    rows = []
    for each in run.figures:
        least, most = each.measured
        bar, mark = None, 0.0
        if each.estimate is not None and most:
            longest = max(_longest([each.estimate]), most)
            bar, mark = _bar(each.estimate, longest), 100 * (least + most) / 2 / longest
        rows.append({"layer": each.layer, "cells": cells(each), "bar": bar, "mark": mark,
                     "within": each.within})  # fmt: skip
    title = f"{NAMES[run.level]}: {run.title}"
    return {"title": title, "rows": rows, "remarks": list(run.remarks())}


def _cell(figure: Figure, sources: Sources, longest: float | None = None) -> Cell:
    """longest: the value of a bar of full length; without one there is no bar."""
    ranged = figure.low is not None and figure.high is not None and figure.low != figure.high
    span = f"{_short(figure.low or 0)}\u2013{_short(figure.high or 0)}" if ranged else ""
    text = "?" if figure.value is None else number(figure.value)
    if figure.value is not None and not is_complete(figure):
        text = f"\N{GREATER-THAN OR EQUAL TO} {text}"
    bar = None if longest is None else _bar(figure, longest)
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


def _bar(figure: Figure, longest: float) -> Bar | None:
    if figure.value is None:
        return Bar(0, None, None, "none")
    if not figure.value and not figure.high:
        return None
    bar = Bar(100 * figure.value / longest, None, None, figure.provenance)
    if figure.low is None or figure.high is None:
        return bar
    low, high = 100 * figure.low / longest, 100 * figure.high / longest
    return replace(bar, low=low, high=high) if high - low >= SEEN else bar


def _longest(figures: Sequence[Figure]) -> float:
    return max((max(f.value or 0, f.high or 0) for f in figures), default=0) or 1


def _full_length(figures: Sequence[Figure]) -> float | None:
    """None where all are the same, and bars would say nothing."""
    same = len({(f.value, f.low, f.high) for f in figures}) == 1 and figures[0].value is not None
    return None if same and len(figures) > 1 else _longest(figures)


def _time(level: str) -> tuple[str, ...]:
    """Figures beside the resources of a level, by the names of their fields."""
    return ("latency", "interval") if level == "csynth" else ("rounding",)


def _figures(row: Any, level: str) -> list[Figure | None]:
    resources: list[Figure | None] = [figure for _, figure in getattr(row, level).items()]
    return [*resources, *(getattr(row, name) for name in _time(level))]


def _table(report: Report, level: str, sources: Sources) -> Table:
    columns = list(zip(*(_figures(layer, level) for layer in report.layers), strict=True))
    longest = [_full_length([f for f in column if f is not None]) for column in columns]
    last = ("cycles", "interval") if level == "csynth" else ("rounding LUTs",)
    rows = []
    for layer in report.layers:
        figures = zip(_figures(layer, level), longest, strict=True)
        cells = tuple(_optional(figure, sources, most) for figure, most in figures)
        rows.append(Row(layer, cells))
    shares = [percent(f) for _, f in getattr(report.total, f"{level}_percent").items()]
    return Table(
        level=level,
        title=LEVELS[level],
        heads=(*RESOURCES.values(), *last),
        rows=tuple(rows),
        total=tuple(_optional(f, sources, None) for f in _figures(report.total, level)),
        shares=(*shares, *([""] * len(last))),
    )


def _optional(figure: Figure | None, sources: Sources, longest: float | None) -> Cell:
    return Cell("", "", (), "") if figure is None else _cell(figure, sources, longest)


def _use(report: Report, level: str, sources: Sources) -> Iterator[dict[str, Any]]:
    """How much of the part is taken: a row for every resource, all at the same scale."""
    shares = getattr(report.total, f"{level}_percent")
    scale = max(100.0, _longest([share for _, share in shares.items()]))
    for key, share in shares.items():
        taken = getattr(getattr(report.total, level), key)
        bar = _bar(share, scale) or Bar(0, None, None, share.provenance)
        if share.value is not None and share.value > 100:
            bar = replace(bar, kind="over")
        yield {
            "unit": RESOURCES[key],
            "share": _cell(replace(share, source=taken.source), sources),
            "taken": _cell(taken, sources),
            "of": share.source,
            "bar": bar,
            "limit": 100 * 100 / scale if scale > 100 else None,
            "beyond": (share.value or 0) > 100,
        }


def _points(accuracy: Accuracy | None) -> str:
    """What fixed point gains or loses."""
    if accuracy is None or accuracy.fixed_accuracy is None or accuracy.float_accuracy is None:
        return ""
    text = f"{100 * (accuracy.fixed_accuracy - accuracy.float_accuracy):+.2f} points"
    return "as float" if "0.00" in text else text.replace("-", "\N{MINUS SIGN}")


def _is_lost(accuracy: Accuracy) -> bool:
    """Whether fixed point is worse by more than two standard errors of the difference."""
    shares = (accuracy.float_accuracy, accuracy.fixed_accuracy)
    if shares[0] is None or shares[1] is None:
        return False
    deviation = sqrt(sum(share * (1 - share) for share in shares if share is not None))
    return shares[0] - shares[1] > 2 * deviation / sqrt(accuracy.samples)


def _rate(interval: Figure | None) -> str:
    """Samples in a second, with three digits."""
    if interval is None or not interval.value:
        return ""
    rate = 1e9 / interval.value
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if rate >= size:
            return f"{rate / size:.3g} {name}"
    return number(float(f"{rate:.3g}"))


def _error(layer: LayerReport) -> Figure | None:
    error = layer.float_error
    if error is None or error.value is None:
        return error
    return replace(error, value=float(f"{100 * error.value:.2g}"), unit="%")


def _step(step: PassReport) -> Step:
    keys = [key for key in step.before if key in step.after]
    counts = tuple(
        (COUNTS.get(key, key), step.before[key], step.after[key],
         100 * step.after[key] / step.before[key] if step.before[key] else 100.0)
        for key in keys
    )  # fmt: skip
    remarks = tuple(str(text) for text in step.summary.get("remarks", ()))
    changed = tuple(layer for layer in step.layers if layer.before != layer.after)
    return Step(step, counts, remarks, changed)


def _stages(layer: StageLayer) -> list[tuple[str, str]]:
    """Cells of a layer's row, before and after a pass."""
    return list(zip(stage_texts(layer.before), stage_texts(layer.after), strict=True))
