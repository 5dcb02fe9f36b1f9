"""The compiled network as its report shows it: layers, and the values that go between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # a report is read without NumPy
    import networkx as nx

    from fxloom.program import Program

Kind = Literal["input", "layer", "output"]


@dataclass(frozen=True, slots=True)
class Node:
    """An input or output of the program, or a layer with its operations, each named once."""

    name: str
    kind: Kind
    ops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Edge:
    """Values that one node computes and another reads, by their places among the nodes.

    type: their fixed-point format; shape: channels last, without batch; count: how many values of
    this format and shape, which is more than one where a layer is computed in steps.
    """

    source: int
    target: int
    type: str
    shape: tuple[int, ...]
    count: int = 1

    @property
    def label(self) -> str:
        """Format and shape, such as ufixed<8,1> [8x8x1], and how many."""
        size = "x".join(map(str, self.shape)) or "1"
        times = f" \N{MULTIPLICATION SIGN}{self.count}" if self.count > 1 else ""
        return f"{self.type} [{size}]{times}"


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in the order in which they are done, and edges between different ones.

    An edge to an earlier node is one to the next step: steps of a recurrent layer share its name.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Every edge: from, to, and what goes there."""
        names = [
            n.name if n.name.startswith(n.kind) or n.kind == "layer" else f"{n.kind} {n.name}"
            for n in self.nodes
        ]
        for edge in self.edges:
            yield names[edge.source], names[edge.target], edge.label


def graph_of(program: Program) -> Graph:
    """The graph of a program, a node for every layer."""
    ops: dict[str, dict[str, None]] = {}
    for instr in program.instrs:
        ops.setdefault(instr.origin, {})[instr.op.name] = None
    first = len(program.inputs)
    layers = {name: first + place for place, name in enumerate(ops)}
    nodes = [
        *(Node(port.value.name, "input") for port in program.inputs),
        *(Node(name, "layer", tuple(names)) for name, names in ops.items()),
        *(Node(output.name, "output") for output in program.outputs),
    ]
    made = {port.value.name: place for place, port in enumerate(program.inputs)}
    made |= {instr.result.name: layers[instr.origin] for instr in program.instrs}
    read = [(arg, layers[instr.origin]) for instr in program.instrs for arg in instr.args]
    last = first + len(layers)
    read += [(output.value, last + place) for place, output in enumerate(program.outputs)]
    counts: dict[tuple[int, int, str, tuple[int, ...]], int] = {}
    for name, target in dict.fromkeys(read):
        source = made.get(name)
        if source is None or source == target:  # a constant, or within a layer
            continue
        value = program.value(name)
        key = (source, target, str(value.type), value.shape)
        counts[key] = counts.get(key, 0) + 1
    edges = [Edge(*key, count) for key, count in counts.items()]
    order = _order(len(nodes), edges)
    places = {node: place for place, node in enumerate(order)}
    return Graph(
        tuple(nodes[node] for node in order),
        tuple(replace(e, source=places[e.source], target=places[e.target]) for e in edges),
    )


def _order(count: int, edges: Sequence[Edge]) -> list[int]:
    """Nodes in an order in which few values go back, those before others that were so already."""
    import networkx as nx

    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    for edge in edges:
        before = graph.get_edge_data(edge.source, edge.target, {"weight": 0})["weight"]
        graph.add_edge(edge.source, edge.target, weight=before + edge.count)
    parts = nx.condensation(graph)
    groups = {part: sorted(nodes) for part, nodes in parts.nodes(data="members")}
    in_order = nx.lexicographical_topological_sort(parts, key=lambda part: groups[part][0])
    return [node for part in in_order for node in _with_few_back(graph, groups[part])]


def _with_few_back(graph: nx.DiGraph, nodes: list[int]) -> list[int]:
    """Nodes of a cycle, each moved to where fewest values go back to it or from it, in turns."""
    improved = len(nodes) > 1
    while improved:
        improved = False
        for node in list(nodes):
            here = nodes.index(node)
            others = nodes[:here] + nodes[here + 1 :]
            back = sum(_weight(graph, node, other) for other in others)  # node behind all of them
            found = [back]
            for other in reversed(others):
                back += _weight(graph, other, node) - _weight(graph, node, other)
                found.append(back)
            costs = found[::-1]
            best = min(range(len(costs)), key=lambda place: (costs[place], abs(place - here)))
            if costs[best] < costs[here]:
                nodes = [*others[:best], node, *others[best:]]
                improved = True
    return nodes


def _weight(graph: nx.DiGraph, source: int, target: int) -> int:
    weight: int = graph.get_edge_data(source, target, {"weight": 0})["weight"]
    return weight
