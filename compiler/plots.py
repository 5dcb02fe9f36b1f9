"""Plots, by matplotlib, which is an optional extra."""

from __future__ import annotations

from io import BytesIO
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxloom.errors import FxloomError, ToolError
from fxloom.trace_report import CAUSES, Trace, ValueTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, SKY, ORANGE, VERMILLION, GREEN, PURPLE = (
    "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7",
)  # fmt: skip
GREY = "#BBBBBB"
COLOURS = dict(zip(CAUSES, (BLUE, GREY, ORANGE, VERMILLION, PURPLE), strict=True))

MOST_ROWS = 120
"""More rows than this no picture shows legibly: those with the lowest ratios are drawn."""

BEYOND = 2.0
"""How far beyond the range given bars are drawn, in units of its larger end."""


def require_matplotlib() -> None:
    """Raise ToolError where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ToolError(
            "plots need matplotlib, which is not installed: pip install 'fxloom[plots]'"
        ) from None


def write_image(path: str | Path, image: bytes) -> None:
    """Write a picture. Raises FxloomError where that cannot be."""
    try:
        Path(path).write_bytes(image)
    except OSError as fault:
        raise FxloomError(f"{path}: cannot be written: {fault.strerror}") from None


def trace_png(trace: Trace) -> bytes:
    """The plot of a trace. Raises ToolError where matplotlib is missing."""
    return _saved(trace, "png")


def trace_svg(trace: Trace) -> str:
    """The same as an <svg> element."""
    text = _saved(trace, "svg").decode()
    return text[text.index("<svg") :]


def _saved(trace: Trace, form: str) -> bytes:
    require_matplotlib()
    from matplotlib import rc_context

    buffer = BytesIO()
    metadata = {"Date": None} if form == "svg" else None
    with rc_context({"svg.hashsalt": "fxloom", "font.size": 9}):
        trace_figure(trace).savefig(buffer, format=form, dpi=150, metadata=metadata)
    return buffer.getvalue()


def trace_figure(trace: Trace) -> Figure:
    """One row a value: ranges, ratios, causes and, where it is known, accuracy."""
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and wants a display

    values = list(trace.values)
    title = trace.title
    if len(values) > MOST_ROWS:
        kept = set(sorted(range(len(values)), key=lambda i: values[i].sqnr_db)[:MOST_ROWS])
        values = [value for place, value in enumerate(values) if place in kept]
        title += f" ({MOST_ROWS} with the lowest SQNR are shown)"
    with_accuracy = trace.float_accuracy is not None
    ratios = [3.2, 1.6, 2.2, 1.6][: 3 + with_accuracy]
    figure = Figure(figsize=(4 + 1.4 * sum(ratios), 1.9 + 0.3 * len(values)), layout="constrained")
    axes = figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False)[0]
    _ranges(axes[0], values)
    _ratios(axes[1], values)
    _causes(axes[2], values)
    if with_accuracy:
        _accuracy(axes[3], values, trace)
    axes[0].set_yticks(range(len(values)), [_label(value) for value in values])
    axes[0].set_ylim(len(values) - 0.4, -0.6)  # the first layer on top
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(axis="y", length=0)
    figure.suptitle(title, fontsize=11)
    return figure


def _label(value: ValueTrace) -> str:
    name = value.name if len(value.name) <= 32 else "\N{HORIZONTAL ELLIPSIS}" + value.name[-31:]
    return f"{name}  {value.format}"


def _ranges(axes: Axes, values: list[ValueTrace]) -> None:
    """Used against given, where the larger end of what is given is 1."""
    for row, value in enumerate(values):
        given = value.given or value.used
        unit = max(abs(given[0]), abs(given[1])) or 1.0
        low, high = (bound / unit for bound in given)
        axes.barh(row, high - low, left=low, height=0.8, color="#DDDDDD")
        used = [min(max(bound / unit, -BEYOND), BEYOND) for bound in value.used]
        inside = [min(max(bound, low), high) for bound in used]
        axes.barh(row, inside[1] - inside[0], left=inside[0], height=0.4, color=BLUE)
        for end, bound, at in ((used[0], low, "right"), (used[1], high, "left")):
            if (end < bound) if at == "right" else (end > bound):
                axes.barh(row, end - bound, left=bound, height=0.4, color=VERMILLION, hatch="////",
                          edgecolor="white", linewidth=0)  # fmt: skip
        if beyond := _beyond(value):
            text = f"{100 * beyond:.2g}%" if beyond >= 1e-4 else "<0.01%"
            axes.text(max(used[1], high) + 0.06, row, text, va="center", color=VERMILLION,
                      fontsize=8)  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.6)
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    axes.set_xlim(low, max(high, 1.1) + (0.35 if any(map(_beyond, values)) else 0.0))
    axes.set_xlabel("1 is the larger end of the range given")
    axes.set_title("range given and used", fontsize=9, pad=22)
    handles = [_patch("#DDDDDD", "given"), _patch(BLUE, "used"),
               _patch(VERMILLION, "saturated (share)", hatch="////")]  # fmt: skip
    _legend(axes, handles)


def _beyond(value: ValueTrace) -> float:
    return value.saturated_low + value.saturated_high


def _ratios(axes: Axes, values: list[ValueTrace]) -> None:
    finite = [value.sqnr_db for value in values if isfinite(value.sqnr_db)]
    axes.barh(
        range(len(values)),
        [value.sqnr_db if isfinite(value.sqnr_db) else 0.0 for value in values],
        height=0.6,
        color=SKY,
    )
    for row, value in enumerate(values):
        ratio = value.sqnr_db
        text = f"{ratio:.0f}" if isfinite(ratio) else "exact" if ratio == inf else "no signal"
        at = max(ratio, 0.0) if isfinite(ratio) else 0.0
        axes.annotate(text, (at, row), xytext=(3, 0), textcoords="offset points", va="center",
                      fontsize=8)  # fmt: skip
    axes.set_xlim(min(0.0, *finite, 0.0), 1.25 * max(10.0, *finite, 10.0))
    axes.set_xlabel("SQNR, dB")
    axes.set_title("signal to error", fontsize=9, pad=22)


def _causes(axes: Axes, values: list[ValueTrace]) -> None:
    """Shares of the sum of the causes' squares: what is large shows, what is small vanishes."""
    present = [cause for cause in CAUSES if any(value.causes[cause] for value in values)]
    left = [0.0] * len(values)
    for cause in present:
        widths = []
        for value in values:
            total = sum(size**2 for size in value.causes.values())
            widths.append(100 * value.causes[cause] ** 2 / total if total else 0.0)
        axes.barh(range(len(values)), widths, left=left, height=0.6, color=COLOURS[cause])
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of squared errors, %")
    axes.set_title("where the error is from", fontsize=9, pad=22)
    _legend(axes, [_patch(COLOURS[cause], cause) for cause in present])


def _accuracy(axes: Axes, values: list[ValueTrace], trace: Trace) -> None:
    points = [100 * (value.accuracy or 0.0) for value in values]
    assert trace.float_accuracy is not None
    reference = 100 * trace.float_accuracy
    axes.axvline(reference, color="black", linewidth=0.8, linestyle="--")
    axes.plot(points, range(len(values)), color=GREEN, marker="o", markersize=3.5, linewidth=1)
    handles = [_line("black", "float", linestyle="--"), _line(GREEN, "fixed up to here")]
    first = trace.first_drop
    if first in values:
        row = values.index(first)
        axes.plot([points[row]], [row], color=VERMILLION, marker="D", markersize=6)
        handles.append(_line(VERMILLION, "first drop", linestyle="", marker="D"))
    lowest, highest = min([*points, reference]), max([*points, reference])
    margin = max(0.1 * (highest - lowest), 0.5)
    axes.set_xlim(lowest - margin, highest + margin)
    axes.set_xlabel("accuracy, %")
    axes.set_title("accuracy", fontsize=9, pad=22)
    _legend(axes, handles)


def _legend(axes: Axes, handles: list[Any]) -> None:
    """Above the axes, in one line."""
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False,
                ncols=len(handles), fontsize=7.5, handlelength=1.2, columnspacing=1.0,
                handletextpad=0.4, borderaxespad=0.2)  # fmt: skip


def _patch(colour: str, label: str, hatch: str | None = None) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor="white", linewidth=0, label=label, hatch=hatch)


def _line(colour: str, label: str, **style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, linewidth=1, markersize=4, **style)
