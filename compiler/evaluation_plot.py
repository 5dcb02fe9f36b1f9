"""The plot of evaluations: accuracy over compression rate."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fxloom.evaluation_report import Evaluation, Evaluations
from fxloom.evaluation_tables import metric, pareto_front, value_of
from fxloom.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, require_matplotlib
from fxloom.text_tables import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = "osD^vP"

LOGARITHMIC = 6.0
"""Rates that differ by more are drawn on a logarithmic axis."""

ROUND_RATES = (0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)

MOST_NAMES = 10
"""So many recipes are named at their points, more beside the plot."""
MOST_LINES = 24
"""Of a column there."""
LONGEST_NAME = 30

_OFFSETS = tuple(
    (x * far, y * far)
    for far in (1.0, 1.8, 2.8, 4.0)
    for x, y in ((8, 6), (8, -6), (-8, 6), (-8, -6), (0, 10), (0, -10), (10, 0), (-10, 0))
)
"""Points from what is named to its name, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class _Point:
    """One or more stages with the same figures. last: whether the recipe ends here."""

    names: tuple[str, ...]
    rate: float
    value: float
    last: bool


def evaluations_png(found: Evaluations) -> bytes:
    """The plot. Raises ToolError where matplotlib is missing."""
    require_matplotlib()
    from matplotlib import rc_context

    buffer = BytesIO()
    with rc_context({"font.size": 9, "text.parse_math": False}):  # names may have dollars
        evaluations_figure(found).savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def evaluations_figure(found: Evaluations) -> Figure:
    """Each recipe's way from the original, pass by pass. Named are the passes of a single recipe,
    the ends of several."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and wants a display

    name, more = metric(found)
    ways = [_points(each, name) for each in found.evaluations]
    alone, beside = len(ways) == 1, -(-len(ways) // MOST_LINES) if len(ways) > MOST_NAMES else 0
    figure = Figure(figsize=(7.6 + 2.8 * beside, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labels: list[tuple[_Point, str, str]] = []
    handles: list[Any] = []
    for number, (each, points) in enumerate(zip(found.evaluations, ways, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
        _draw(axes, points, colour, marker, alone)
        recipe = shortened(each.recipe, LONGEST_NAME)
        for point in points[1:]:
            if alone:
                labels.append((point, ", ".join(point.names), colour))
            elif point.last and len(ways) <= MOST_NAMES:
                labels.append((point, recipe, colour))
        if len(ways) > MOST_NAMES:
            handles.append(_handle(recipe, color=colour, marker=marker, linestyle=""))
    starts = [points[0] for points in ways if points]
    if starts:
        axes.plot(starts[0].rate, starts[0].value, marker="*", markersize=12, color="black",
                  linestyle="", zorder=5)  # fmt: skip
        labels.insert(0, (starts[0], "original", "black"))
    if not alone:
        _front(axes, found, name)
        ring = _handle("Pareto front: none is better in both", color=GREY, linewidth=4, marker="o",
                       markersize=9, markerfacecolor="none", markeredgecolor="#666666")  # fmt: skip
        figure.legend(
            handles=[*handles, ring],
            loc="outside right upper" if handles else "outside lower center",
            frameon=False,
            ncols=max(beside, 1),
            fontsize=8,
        )
    _axes(axes, [point for points in ways for point in points], name, more)
    first = found.evaluations[0]
    title = f"{first.model}: {first.recipe}" if alone else first.model
    axes.set_title(f"{title} ({first.samples:,} {first.split} samples)", fontsize=11)
    _name(figure, axes, labels, ways)
    return figure


def _points(found: Evaluation, name: str) -> list[_Point]:
    """Stages in order, neighbours with the same figures as one."""
    points: list[_Point] = []
    for place, stage in enumerate(found.stages):
        rate, value = found.rate(stage), value_of(stage.quality, name)
        if rate is None or value is None:
            continue
        names: tuple[str, ...] = (stage.name.partition(" ")[2] or stage.name,)
        if points and (points[-1].rate, points[-1].value) == (rate, value) and place > 1:
            names = (*points.pop().names, *names)
        points.append(_Point(names, rate, value, stage is found.stages[-1]))
    return points


def _draw(axes: Axes, points: list[_Point], colour: str, marker: str, alone: bool) -> None:
    rates, values = [point.rate for point in points], [point.value for point in points]
    axes.plot(rates, values, color=colour, linewidth=1.2 if alone else 0.9,
              alpha=1.0 if alone else 0.45, zorder=2)  # fmt: skip
    for point in points[1:]:
        large = alone or point.last
        axes.plot(point.rate, point.value, color=colour, marker=marker, linestyle="",
                  markersize=7 if large else 3.5, alpha=1.0 if large else 0.6,
                  zorder=4)  # fmt: skip


def _front(axes: Axes, found: Evaluations, name: str) -> None:
    front = pareto_front(found)
    rates = [each.rate(each.result) or 0.0 for each in front]
    values = [value_of(each.result.quality, name) or 0.0 for each in front]
    axes.plot(rates, values, color=GREY, linewidth=6, alpha=0.5, solid_capstyle="round", zorder=1)
    axes.plot(rates, values, marker="o", markersize=14, markerfacecolor="none",
              markeredgecolor="#666666", linestyle="", zorder=3)  # fmt: skip


def _handle(label: str, **style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)


def _axes(axes: Axes, points: list[_Point], name: str, more: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    rates, values = [point.rate for point in points], [point.value for point in points]
    low, high = (min(rates), max(rates)) if rates else (1.0, 1.0)
    if high > LOGARITHMIC * low:
        axes.set_xscale("log")
        shown = [rate for rate in ROUND_RATES if low / 1.2 <= rate <= high * 1.2]
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.1, y=0.14)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}x"))
    if name != "error against the labels":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda part, _: f"{100 * part:.4g}%"))
    if values and max(values) - min(values) < 1e-3:
        middle = (max(values) + min(values)) / 2
        axes.set_ylim(middle - 0.01, middle + 0.01)
    axes.set_xlabel("compression rate: 32-bit floats of the original / all bits that are stored")
    axes.set_ylabel(name if more else f"{name} (less is better)")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _name(
    figure: Figure,
    axes: Axes,
    labels: list[tuple[_Point, str, str]],
    ways: list[list[_Point]],
) -> None:
    """Names beside their points, where they cover neither each other nor points and lines, if there
    is such a place near by."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    taken, halo = [], withStroke(linewidth=2.5, foreground="white")
    for way in ways:
        ends = [axes.transData.transform((point.rate, point.value)) for point in way]
        taken += [Bbox.from_extents(x - 9, y - 9, x + 9, y + 9) for x, y in ends]
        for (x, y), (to_x, to_y) in pairwise(ends):
            steps = int(max(abs(to_x - x), abs(to_y - y)) // 6) + 1
            for step in range(1, steps):
                at_x, at_y = x + (to_x - x) * step / steps, y + (to_y - y) * step / steps
                taken.append(Bbox.from_extents(at_x - 2, at_y - 2, at_x + 2, at_y + 2))
    for point, text, colour in labels:
        note = axes.annotate(text, (point.rate, point.value), xytext=(0, 0), color=colour,
                             textcoords="offset points", fontsize=8.5, zorder=6,
                             path_effects=[halo])  # fmt: skip
        note.set_in_layout(False)  # the axes stay where they were when places were looked for
        best: tuple[float, tuple[float, float]] | None = None
        for offset in _OFFSETS:
            _put(note, offset)
            box = note.get_window_extent(renderer)
            covered = sum(_overlap(box, other) for other in taken)
            outside = box.width * box.height - _overlap(box, frame)
            if best is None or covered + outside < best[0]:
                best = (covered + outside, offset)
            if best[0] <= 0:
                break
        assert best is not None
        _put(note, best[1])
        taken.append(note.get_window_extent(renderer))


def _put(note: Any, offset: tuple[float, float]) -> None:
    x, y = offset
    note.set_position(offset)
    note.set_ha("left" if x > 0 else "right" if x < 0 else "center")
    note.set_va("bottom" if y > 0 else "top" if y < 0 else "center")


def _overlap(one: Any, other: Any) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(width, 0.0) * max(height, 0.0))
