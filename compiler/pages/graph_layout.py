"""Where the nodes of a layered graph go: ranks from top to bottom, few crossings, straight chains.

Sugiyama, Tagawa, Toda, "Methods for visual understanding of hierarchical system structures" (1981):
ranks by longest paths, points on every rank that an edge crosses, orders by barycentres, places by
least squares. All lengths are CSS pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxloom.pages.graph_places import (
    Point,
    place_points,
    ranks_of,
    routes_of,
    sort_rows,
    straighten,
)
from fxloom.report_graph import Graph
from fxloom.text_tables import shortened

NAME_LENGTH = 34
CHARACTER = 7.0
"""Width of a character of names and formats, whatever the font: a bit more than it is."""

BOX_HEIGHT = 42
LINE = 15
"""Height of a line of an edge's label."""

GAP_Y = 30
MARGIN = 12
LABELS = 3
"""Most formats that are written below a node; its edges have all of them as titles."""


@dataclass(frozen=True, slots=True)
class Box:
    """A node: top left corner and size, what is written in it and below it, and all of its name."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    name: str
    ops: str
    title: str
    labels: tuple[str, ...]

    @property
    def middle(self) -> float:
        """The horizontal middle."""
        return self.x + self.width / 2


@dataclass(frozen=True, slots=True)
class Line:
    """An edge as an SVG path; back: to an earlier node."""

    path: str
    title: str
    back: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """All there is to draw, within width and height."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]


def lay_out(graph: Graph) -> Layout:
    """Places of all nodes and edges."""
    labels = _labels(graph)
    widths = [_box_width(node.name, " ".join(node.ops)) for node in graph.nodes]
    ranks = ranks_of(graph)
    points = [
        Point(rank, width / 2, max(width / 2, _label_width(labels[place])))
        for place, (rank, width) in enumerate(zip(ranks, widths, strict=True))
    ]
    routes = routes_of(graph, points)
    rows: list[list[int]] = [[] for _ in range(max(ranks, default=-1) + 1)]
    for place, point in enumerate(points):
        rows[point.rank].append(place)
    sort_rows(rows, points)
    place_points(rows, points, len(graph.nodes))
    straighten(rows, points, routes)
    shift = MARGIN - min((point.x - point.left for point in points), default=0.0)
    for point in points:
        point.x += shift
    above = LINE if any(edge.target < edge.source for edge in graph.edges) else 0
    tops, ends, y = list[float](), list[float](), float(MARGIN + above)
    for row in rows:
        tops.append(y)
        lines = max((len(labels[p]) for p in row if p < len(graph.nodes)), default=0)
        ends.append(y + BOX_HEIGHT + lines * LINE)
        y = ends[-1] + GAP_Y
    boxes = tuple(
        Box(
            x=round(points[place].x - widths[place] / 2, 1),
            y=tops[points[place].rank],
            width=widths[place],
            height=BOX_HEIGHT,
            kind=node.kind,
            name=shortened(node.name, NAME_LENGTH),
            ops=shortened(" ".join(node.ops) or node.kind, NAME_LENGTH),
            title=f"{node.name}: {', '.join(node.ops) or node.kind}",
            labels=labels[place],
        )
        for place, node in enumerate(graph.nodes)
    )
    right = max((point.x + point.right for point in points), default=0.0)
    found, lanes = [], 0
    for (source, target), title in _titles(graph).items():
        end = ends[points[source].rank]
        if target < source:
            lanes += 1
            path = _back(boxes[source], end, boxes[target], right + 12 * lanes)
            found.append(Line(path, title, back=True))
            continue
        bends = [
            (points[p].x, tops[points[p].rank], ends[points[p].rank])
            for p in routes[source, target]
        ]
        found.append(Line(_down(boxes[source], end, bends, boxes[target]), title))
    width = right + 12 * lanes + MARGIN
    return Layout(round(width), round(y - GAP_Y + MARGIN), boxes, tuple(found))


def _titles(graph: Graph) -> dict[tuple[int, int], str]:
    """What every line stands for: two nodes are joined by one, whatever goes between them."""
    found: dict[tuple[int, int], list[str]] = {}
    for edge in graph.edges:
        found.setdefault((edge.source, edge.target), []).append(edge.label)
    names = [node.name for node in graph.nodes]
    return {ends: f"{names[ends[0]]} to {names[ends[1]]}: {', '.join(labels)}"
            for ends, labels in found.items()}  # fmt: skip


def _labels(graph: Graph) -> list[tuple[str, ...]]:
    """What goes out of every node, each format and shape once."""
    found: list[dict[str, None]] = [{} for _ in graph.nodes]
    for edge in graph.edges:
        found[edge.source][edge.label] = None
    return [
        (*list(each)[:LABELS], *([f"and {len(each) - LABELS} more"] if len(each) > LABELS else []))
        for each in found
    ]


def _box_width(name: str, ops: str) -> float:
    length = max(
        min(len(name), NAME_LENGTH) * CHARACTER, min(len(ops), NAME_LENGTH) * 0.85 * CHARACTER
    )
    return round(max(length + 24, 96))


def _label_width(labels: Sequence[str]) -> float:
    return max((len(text) for text in labels), default=0) * CHARACTER + 10


def _down(source: Box, end: float, bends: Sequence[tuple[float, float, float]], target: Box) -> str:
    """Straight past every rank, from its top to its end, and in curves between them."""
    x, y = source.middle, source.y + source.height
    parts = [f"M{x:.1f} {y:.1f}V{end:.1f}"]
    y = end
    for to_x, top, end in (*bends, (target.middle, target.y, target.y)):
        half = (y + top) / 2
        parts.append(f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {top:.1f}")
        if end > top:  # where it is not, an arrow would not know its direction
            parts.append(f"V{end:.1f}")
        x, y = to_x, end
    return "".join(parts)


def _back(source: Box, end: float, target: Box, lane: float) -> str:
    """Between the ranks to a lane on the right of everything, and up there."""
    out, back, corner = end + 7, target.y - 12, 6
    x, to_x = source.middle, target.middle + 12
    return (
        f"M{x:.1f} {source.y + source.height:.1f}V{out - corner:.1f}"
        f"q0 {corner} {corner} {corner}H{lane - corner:.1f}q{corner} 0 {corner} {-corner}"
        f"V{back + corner:.1f}q0 {-corner} {-corner} {-corner}"
        f"H{to_x + corner:.1f}q{-corner} 0 {-corner} {corner}V{target.y:.1f}"
    )
