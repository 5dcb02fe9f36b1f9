"""The graph of a report, and where its nodes are drawn."""

from itertools import combinations
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.ops import Add, MatMul, Requantize
from fxloom.pages.graph_layout import lay_out
from fxloom.program import ProgramBuilder
from fxloom.report_graph import Edge, Graph, Node, graph_of


def test_edges_are_the_values_between_layers_with_their_types() -> None:
    builder = ProgramBuilder()
    x = builder.input("x", (2,), FixedPoint(8, 1, False))
    w = builder.constant("w", np.array([[1, 0], [0, 2]]), FixedPoint(4, 4))
    y = builder.emit(MatMul(), [x, w], "fc")
    z = builder.emit(Add(), [y, x], "add")
    builder.output(z, "out")
    found = graph_of(builder.build())
    kinds = [(node.name, node.kind, node.ops) for node in found.nodes]
    assert kinds == [
        ("x", "input", ()),
        ("fc", "layer", ("matmul",)),
        ("add", "layer", ("add",)),
        ("out", "output", ()),
    ]
    assert list(found.rows()) == [
        ("input x", "fc", "ufixed<8,1> [2]"),
        ("fc", "add", f"{y.type} [2]"),
        ("input x", "add", "ufixed<8,1> [2]"),
        ("add", "output out", f"{z.type} [2]"),
    ]


def test_only_the_states_of_a_recurrent_layer_go_back() -> None:
    builder = ProgramBuilder()
    kind = FixedPoint(8, 1, False)
    half = Requantize(kind, Rounding.RND, Overflow.SAT)
    x = builder.input("x", (2,), kind)
    cell = hidden = None
    for _ in range(4):
        gates = builder.emit(Add(), [x, x if hidden is None else hidden], "gates")
        entered = builder.emit(half, [gates], "entered")
        if cell is not None:
            kept = builder.emit(Add(), [cell, gates], "kept")
            entered = builder.emit(Add(), [entered, kept], "cell")
        cell = builder.emit(half, [entered], "cell")
        hidden = builder.emit(half, [cell], "hidden")
    assert hidden is not None
    builder.output(builder.emit(half, [hidden], "head"), "y")
    found = graph_of(builder.build())
    names = [node.name for node in found.nodes]
    back = {(names[e.source], names[e.target]) for e in found.edges if e.target < e.source}
    # A cell's last value and what is kept of it are as many: one of the two goes back.
    assert back == {("hidden", "gates"), ("kept", "cell")}
    assert (names[0], names[-2:]) == ("x", ["head", "y"])


@given(st.integers(1, 25), st.integers(0, 2**20))
def test_boxes_do_not_touch_and_edges_go_down(count: int, seed: int) -> None:
    random = Random(seed)
    nodes = [Node("n" * random.randrange(40), "layer", ("op",)) for _ in range(count)]
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    chosen = random.sample(pairs, min(len(pairs), random.randrange(2 * count)))
    edges = [Edge(a, b, f"fixed<8,{a}>", (b + 1,)) for a, b in chosen]
    layout = lay_out(Graph(tuple(nodes), tuple(edges)))
    for a, b in combinations(layout.boxes, 2):
        beside = a.x + a.width < b.x or b.x + b.width < a.x
        assert beside or a.y + a.height < b.y or b.y + b.height < a.y
    for box in layout.boxes:
        assert box.x >= 0
        assert box.x + box.width <= layout.width
        assert box.y >= 0
        assert box.y + box.height <= layout.height
    assert len(layout.lines) == len(set(chosen))
    for a, b in chosen:
        if a < b:
            assert layout.boxes[a].y + layout.boxes[a].height < layout.boxes[b].y
    assert sum(line.back for line in layout.lines) == sum(a > b for a, b in chosen)


def test_a_chain_is_a_straight_line() -> None:
    nodes = [Node(f"layer{n}" * (1 + n % 3), "layer") for n in range(30)]
    edges = [Edge(n, n + 1, "fixed<8,1>", (n + 1,)) for n in range(29)]
    layout = lay_out(Graph(tuple(nodes), tuple(edges)))
    assert len({round(box.middle) for box in layout.boxes}) == 1
