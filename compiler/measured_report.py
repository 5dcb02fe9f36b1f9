"""Estimate beside measurement, figure by figure, and whether the one foresaw the other.

Only figures of the same level are compared. A measurement of another part or another clock is
refused: it says nothing about the estimate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fxloom.measured import Cycles, Measured, Usage, require_same
from fxloom.measured_layers import layer_usage
from fxloom.report import (
    LEVELS,
    RESOURCES,
    Figure,
    LayerReport,
    Report,
    Totals,
    number,
)
from fxloom.text_tables import aligned

FORMAT = "fxloom-measured"
VERSION = 1

NAMES = {
    **LEVELS,
    "simulation": "in RTL simulation",
    "implementation": "after placement and routing; nothing is estimated at this level",
}
_CYCLES = {"latency": "cycles", "interval": "interval"}
HEADER = ["layer", "figure", "estimate", "measured", "estimate is", "in the interval"]


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of a layer, or of the whole design where layer is None.

    measured: fewest and most, which differ for cycles only; at_least: parts of the layer are not in
    it. deviation_percent: how much more was estimated than measured. within: whether the estimate's
    interval holds the measured value; None where there is no estimate, or one of a part, or only a
    part was measured.
    """

    layer: str | None
    figure: str
    estimate: Figure | None
    measured: Cycles
    at_least: bool
    deviation_percent: float | None
    within: bool | None


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one tool: figures in the order of the layers, the whole design last."""

    level: str
    tool: str
    version: str | None
    part: str | None
    clock_ns: float | None
    achieved_ns: float | None
    source: str
    title: str
    figures: tuple[Compared, ...]
    notes: tuple[str, ...]

    def remarks(self) -> Iterator[str]:
        """What the figures say together, and what is missing."""
        judged = [each.within for each in self.figures if each.within is not None]
        if judged:
            yield f"{sum(judged)} of {len(judged)} measured figures lie in the estimate's interval"
        yield from self.notes


@dataclass(frozen=True, slots=True)
class Comparison:
    """All runs of one design."""

    part: str
    clock_ns: float
    program: str
    runs: tuple[Run, ...]

    def to_json(self) -> str:
        """All of it, stable."""
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_text(self) -> str:
        """A table a run, for people."""
        head = (
            f"fxloom report: estimated against measured, {self.part} at {self.clock_ns:g} ns, "
            f"program {self.program[:12]}"
        )
        return "\n".join([head, "", *(line for run in self.runs for line in _run_lines(run))])


def compare_measured(
    report: Report,
    measured: Sequence[Measured],
    layers: Sequence[Mapping[str, Any]],
    design: str,
) -> Comparison:
    """Every measured figure beside its estimate.

    layers: the records of the project's layers.json, which say what modules stand for; design: the
    project's top function. Raises FxloomError where something else was measured than estimated.
    """
    return Comparison(
        report.part,
        report.clock_ns,
        report.program,
        tuple(_run(report, each, layers, design) for each in measured),
    )


def _run(
    report: Report, measured: Measured, layers: Sequence[Mapping[str, Any]], design: str
) -> Run:
    require_same(measured, report.part, report.clock_ns, design)
    found = layer_usage(measured, layers)
    figures = [
        figure
        for layer in report.layers
        if layer.name in found
        for figure in _compared(
            layer, found[layer.name].usage, measured.level, bool(found[layer.name].missing)
        )
    ]
    figures += _compared(report.total, measured.top, measured.level, at_least=False)
    notes = [
        f"{name}: {', '.join(each.missing)} without a module in the report: measured in part"
        for name, each in found.items()
        if each.missing
    ]
    absent = [layer.name for layer in report.layers if layer.name not in found]
    if found and absent:
        notes.append(f"no module in the report: {', '.join(absent)}")
    if measured.modules and not found:
        notes.append("no module of the report belongs to a layer of this project")
    if measured.part is None:
        notes.append(f"{measured.source} does not say for which part: it was not compared")
    return Run(
        measured.level,
        measured.tool,
        measured.version,
        measured.part,
        measured.clock_ns,
        measured.top.achieved_ns,
        measured.source,
        measured.title,
        tuple(figures),
        tuple(notes),
    )


def _compared(
    row: LayerReport | Totals, usage: Usage, level: str, at_least: bool
) -> Iterator[Compared]:
    name = row.name if isinstance(row, LayerReport) else None
    estimates: dict[str, Figure] = {}
    if level in LEVELS:
        estimates = dict(getattr(row, level).items())
    if level in ("csynth", "simulation"):
        estimates |= {key: getattr(row, key) for key in _CYCLES}
    counts = {key: value for key, value in usage.resources().items() if value is not None}
    pairs = {key: (value, value) for key, value in counts.items()}
    for key in _CYCLES:
        found = getattr(usage, f"{key}_cycles")
        if found is not None:
            pairs[key] = found
    for key, value in pairs.items():
        estimate = estimates.get(key)
        unit = RESOURCES.get(key) or _CYCLES[key]
        yield _figure(name, unit, estimate, value, at_least)
    if usage.alm is not None:
        yield _figure(name, "ALM", None, (usage.alm, usage.alm), at_least)


def _figure(
    layer: str | None, unit: str, estimate: Figure | None, measured: Cycles, at_least: bool
) -> Compared:
    if estimate is None or estimate.value is None or at_least or _is_bound(estimate):
        return Compared(layer, unit, estimate, measured, at_least, None, None)
    least, most = measured
    low, high = estimate.bounds
    within = low <= most and least <= high
    deviation = None if not most else 100 * (estimate.value - most) / most
    return Compared(layer, unit, estimate, measured, False, deviation, within)


def _is_bound(estimate: Figure) -> bool:
    """Whether parts have no rule, so that it can be more: then it says so in its source."""
    return "at least" in estimate.source


def _run_lines(run: Run) -> Iterator[str]:
    yield f"measured {NAMES[run.level]}: {run.title}"
    yield ""
    rows = [HEADER]
    before: str | None = ""
    for each in run.figures:
        name = "total" if each.layer is None else each.layer
        rows.append([name if each.layer != before else "", *cells(each)])
        before = each.layer
    yield from aligned(rows)
    yield ""
    remarks = list(run.remarks())
    yield from remarks
    if remarks:
        yield ""


def cells(each: Compared) -> list[str]:
    """Its row under HEADER, all but the layer."""
    least, most = each.measured
    measured = number(least) if least == most else f"{number(least)} to {number(most)}"
    deviation = each.deviation_percent
    estimate = "" if each.estimate is None else str(each.estimate)
    if each.estimate is not None and _is_bound(each.estimate):
        estimate += " or more"
    return [
        each.figure,
        estimate,
        f"{measured} or more" if each.at_least else measured,
        "" if deviation is None else f"{deviation:+.1f}%",
        "" if each.within is None else "yes" if each.within else "no",
    ]
