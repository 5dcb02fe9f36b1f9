"""Places of points on ranks: which rank, which order in it, and where beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import networkx as nx

from fxloom.report_graph import Graph

GAP_X = 26
"""Least distance of neighbours in a rank, in pixels."""

SWEEPS = 6

PASSING = 0.05
"""How much an edge that passes holds its place against a node, which has others below it."""


@dataclass(slots=True)
class Point:
    """A node, or where an edge passes a rank. left, right: what it needs beside its x."""

    rank: int
    left: float
    right: float
    x: float = 0.0
    above: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)


def ranks_of(graph: Graph) -> list[int]:
    """Longest paths; what has nothing above it goes down to just above what reads it."""
    down: nx.DiGraph = nx.DiGraph()
    down.add_nodes_from(range(len(graph.nodes)))
    down.add_edges_from((e.source, e.target) for e in graph.edges if e.source < e.target)
    ranks = [0] * len(graph.nodes)
    for rank, generation in enumerate(nx.topological_generations(down)):
        for place in generation:
            ranks[place] = rank
    for place in reversed(range(len(ranks))):
        if not down.in_degree(place) and (read := [ranks[t] for t in down.successors(place)]):
            ranks[place] = min(read) - 1
    return ranks


def routes_of(graph: Graph, points: list[Point]) -> dict[tuple[int, int], list[int]]:
    """The points between the ends of every edge; edges from one node share them."""
    routes: dict[tuple[int, int], list[int]] = {}
    passing: dict[tuple[int, int], int] = {}
    for edge in graph.edges:
        if edge.target < edge.source or (edge.source, edge.target) in routes:
            continue
        route, previous = [], edge.source
        for rank in range(points[edge.source].rank + 1, points[edge.target].rank):
            if (edge.source, rank) not in passing:
                passing[edge.source, rank] = len(points)
                points.append(Point(rank, 5, 5))
                _join(points, previous, len(points) - 1)
            previous = passing[edge.source, rank]
            route.append(previous)
        _join(points, previous, edge.target)
        routes[edge.source, edge.target] = route
    return routes


def _join(points: Sequence[Point], above: int, below: int) -> None:
    points[above].below.append(below)
    points[below].above.append(above)


def sort_rows(rows: Sequence[list[int]], points: Sequence[Point]) -> None:
    """Sort the rows, in turns down and up, by the mean place of what points are joined to."""
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            places = {p: place for each in rows for place, p in enumerate(each)}
            means = {p: _mean(places, points[p].above if down else points[p].below, p) for p in row}
            row.sort(key=means.__getitem__)


def _mean(values: Mapping[int, float], places: Iterable[int], otherwise: int) -> float:
    found = [values[place] for place in places]
    return sum(found) / len(found) if found else values[otherwise]


def place_points(rows: Sequence[Sequence[int]], points: Sequence[Point], nodes: int) -> None:
    """Give every point an x: near what it is joined to in the last row, beside its neighbours.

    nodes: how many of the points, the first ones, are nodes.
    """
    for sweep in range(2 * SWEEPS + 1):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            offsets = [0.0]
            for a, b in pairwise(row):
                offsets.append(offsets[-1] + points[a].right + GAP_X + points[b].left)
            wanted = []
            for p in row:
                joined = [points[q].x for q in (points[p].above if down else points[p].below)]
                wanted.append(sum(joined) / len(joined) if joined else points[p].x)
            weights = [1.0 if p < nodes else PASSING for p in row]
            for p, x in zip(row, _apart(wanted, offsets, weights), strict=True):
                points[p].x = x


def straighten(
    rows: Sequence[Sequence[int]],
    points: Sequence[Point],
    routes: Mapping[tuple[int, int], Sequence[int]],
) -> None:
    """Put what passes a rank at its far right as far out as the rest of its edge is."""
    for route in routes.values():
        ends = [p for p in route if rows[points[p].rank][-1] == p]
        for p in ends:
            points[p].x = max(points[q].x for q in ends)


def _apart(
    wanted: Sequence[float], offsets: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """The places nearest to those wanted, by weighted squares, as far apart as offsets at least.

    Isotonic regression of the places without their offsets, by pooling adjacent violators.
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight and number of what stays together
    for want, offset, weight in zip(wanted, offsets, weights, strict=True):
        mean, count = want - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, heavy, more = blocks.pop()
            mean = (other * heavy + mean * weight) / (heavy + weight)
            weight, count = weight + heavy, count + more
        blocks.append((mean, weight, count))
    bases = [mean for mean, _, count in blocks for _ in range(count)]
    return [base + offset for base, offset in zip(bases, offsets, strict=True)]
