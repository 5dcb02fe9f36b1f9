"""The page of a report: what its template needs to know, worked out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import sqrt
from typing import TYPE_CHECKING, Any

from fxloom.measured_report import HEADER, NAMES, cells
from fxloom.pages import render
from fxloom.pages.figure_cells import Bar, Cell, bar_of, cell_of, longest_of
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
from fxloom.storage_table import ARROW, times

if TYPE_CHECKING:
    from fxloom.measured_report import Comparison, Run
    from fxloom.report import Accuracy, LayerReport, PassReport, Report, StageLayer

MOST_DRAWN = 200
"""Nodes of a graph; of larger ones the page has the list alone."""

MOST_VALUES = 24
"""Histograms at first sight; of more those with the largest shares outside their ranges."""

WIDE = 700
"""Pixels from which on a graph has no list beside it."""

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
    latency = [cell_of(f, sources) for f in (total.latency, total.latency_ns) if f is not None]
    interval = cell_of(total.interval, sources)
    use = {level: list(_use(report, level, sources)) for level in LEVELS}
    errors = [_error(layer) for layer in report.layers]
    largest = longest_of([error for error in errors if error is not None])
    shown = [cell_of(f, sources, largest) if f is not None else None for f in errors]
    tables = [_table(report, level, sources) for level in LEVELS]
    graph = report.graph
    wires = {layer.name for layer in report.layers if layer.is_wires}
    saturated = sorted(report.histograms, key=lambda seen: -seen.saturated)
    histograms = saturated if len(saturated) > MOST_VALUES else report.histograms
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
        storage=_storage(report),
        storage_times=times(report.float_bits or 1, report.coded_bits),
        layout=layout,
        wide=layout is None or layout.width > WIDE,
        edges=list(graph.rows()) if graph else [],
        histograms=[(each, plot(each)) for each in histograms],
        most_values=MOST_VALUES,
        saturated=[each for each in saturated if each.saturated],
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
            longest = max(longest_of([each.estimate]), most)
            bar, mark = bar_of(each.estimate, longest), 100 * (least + most) / 2 / longest
        rows.append({"layer": each.layer, "cells": cells(each), "bar": bar, "mark": mark,
                     "within": each.within})  # fmt: skip
    title = f"{NAMES[run.level]}: {run.title}"
    return {"title": title, "rows": rows, "remarks": list(run.remarks())}


def _full_length(figures: Sequence[Figure]) -> float | None:
    """None where all are the same, and bars would say nothing."""
    same = len({(f.value, f.low, f.high) for f in figures}) == 1 and figures[0].value is not None
    return None if same and len(figures) > 1 else longest_of(figures)


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
    return Cell("", "", (), "") if figure is None else cell_of(figure, sources, longest)


def _use(report: Report, level: str, sources: Sources) -> Iterator[dict[str, Any]]:
    """How much of the part is taken: a row for every resource, all at the same scale."""
    shares = getattr(report.total, f"{level}_percent")
    scale = max(100.0, longest_of([share for _, share in shares.items()]))
    for key, share in shares.items():
        taken = getattr(getattr(report.total, level), key)
        bar = bar_of(share, scale) or Bar(0, None, None, share.provenance)
        if share.value is not None and share.value > 100:
            bar = replace(bar, kind="over")
        yield {
            "unit": RESOURCES[key],
            "share": cell_of(replace(share, source=taken.source), sources),
            "taken": cell_of(taken, sources),
            "of": share.source,
            "bar": bar,
            "limit": 100 * 100 / scale if scale > 100 else None,
            "beyond": (share.value or 0) > 100,
        }


def _points(accuracy: Accuracy | None) -> str:
    """What fixed point gains or loses."""
    if accuracy is None or accuracy.fixed_accuracy is None or accuracy.float_accuracy is None:
        return ""
    points = round(100 * (accuracy.fixed_accuracy - accuracy.float_accuracy), 2)
    text = f"{points:+.2f} points".replace("-", "\N{MINUS SIGN}")
    return text if points else "as float"


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


def _storage(report: Report) -> list[Any]:
    """The heads of the table, then its rows: pairs of texts, the second where there are two
    figures, and a bar of the bits."""
    if not report.storage:
        return []
    heads, *rows = report.storage_cells()
    longest = max(row.huffman_bits for row in report.storage) or 1
    shares = [100 * row.huffman_bits / longest for row in report.storage]
    found: list[Any] = [heads]
    for (name, *texts), share in zip_longest(rows, shares):
        parted = (text.partition(ARROW) for text in texts)
        bar = None if share is None else Bar(share, None, None, "counted")
        pairs = [(before, after) for before, _, after in parted]
        found.append({"name": name, "cells": pairs, "bar": bar})
    return found


def _stages(layer: StageLayer) -> list[tuple[str, str]]:
    """Cells of a layer's row, before and after a pass."""
    return list(zip(stage_texts(layer.before), stage_texts(layer.after), strict=True))
