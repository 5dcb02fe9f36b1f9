"""Canonical form of LSTM, GRU and RNN layers: their steps, one after another.

The recurrence is written out in linear layers, tables and products, so that every pass and reader
knows it. What a step does carries its role as meta["tied"] ("l0.cell"): all steps of a layer have
one origin, one format and one set of weights for a role. Products whose sum is rounded next carry
meta["exact"]. Weights of input and state are joined: the accumulator of a gate is exact.

Sources: the formulas of torch.nn.LSTM, GRU and RNN. h' = (1 - z) * n + z * h is written as
n + z * (h - n), one multiplication less.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx
from torch.fx.node import Node

from fxloom.graph import aten, insert_like
from fxloom.rewriting import input_of, is_constant, rewrites

State = tuple[Node | None, ...]
"""Hidden (and cell) state of one step; None is zero."""


@dataclass(frozen=True, slots=True)
class _Writer:
    """Inserts the nodes of one layer and direction. name: "l0", "l0_reverse"."""

    graph: fx.Graph
    like: Node
    name: str

    def add(self, role: str, target: Any, *args: Any, exact: bool = False) -> Node:
        """A node with a role that all steps share. exact: leave its rounding to what follows."""
        node = insert_like(self.graph, self.like, target, args)
        node.meta |= {"tied": f"{self.name}.{role}", "exact": exact}
        return node

    def constant(self, kind: str, target: Any, *args: Any) -> Node:
        """A node that depends on weights only: it will be folded into a parameter of its own."""
        node = insert_like(self.graph, self.like, target, args)
        node.meta["folded_name"] = f"{kind}_{self.name}"
        return node


@dataclass(frozen=True, slots=True)
class _Weights:
    """Of one layer and direction: [rows, inputs], [rows, hidden], biases [rows] or None."""

    inputs: Node
    hidden: Node
    input_bias: Node | None
    hidden_bias: Node | None
    projection: Node | None

    def rows(self, writer: _Writer, kind: str, start: int, end: int) -> "_Weights":
        """Some gates of all. kind: their name."""

        def cut(node: Node, part: str) -> Node:
            args = (node, 0, start, end, 1)
            return writer.constant(f"{kind}_{part}", aten.slice.Tensor, *args)

        return _Weights(
            cut(self.inputs, "weight_ih"),
            cut(self.hidden, "weight_hh"),
            None if self.input_bias is None else cut(self.input_bias, "bias_ih"),
            None if self.hidden_bias is None else cut(self.hidden_bias, "bias_hh"),
            self.projection,
        )


class _Joined:
    """W_i x + b_i + W_h h + b_h as one linear layer on x and h together."""

    def __init__(self, writer: _Writer, role: str, weights: _Weights, size: int) -> None:
        self.writer, self.role, self.weights, self.size = writer, role, weights, size
        parts = [weights.inputs, weights.hidden]
        self.matrix = writer.constant(f"{role}_weight", aten.cat.default, parts, 1)
        self.bias: Node | None = None
        if weights.input_bias is not None:
            biases = (weights.input_bias, weights.hidden_bias)
            self.bias = writer.constant(f"{role}_bias", aten.add.Tensor, *biases)

    def __call__(self, x: Node, h: Node | None) -> Node:
        add = self.writer.add
        if h is None:  # zeros behind x: the layer stays the same one
            joined = add(self.role, aten.constant_pad_nd.default, x, [0, self.size], 0.0)
        elif h.meta.get("constant") or is_constant(x):
            # Its part is a constant; a constant cannot be concatenated to a batch.
            parts = [(x, self.weights.inputs), (h, self.weights.hidden)]
            computed, fixed = parts if h.meta.get("constant") else reversed(parts)
            first = add(self.role, aten.linear.default, *computed, self.bias)
            rest = (*fixed, None)
            shift = self.writer.constant(f"{self.role}_initial", aten.linear.default, *rest)
            return add(self.role, aten.add.Tensor, first, shift)
        else:
            joined = add(self.role, aten.cat.default, [x, h], 1)
        return add(self.role, aten.linear.default, joined, self.matrix, self.bias)


Step = Callable[[Node, State], State]


def _gate(writer: _Writer, role: str, gates: Node, number: int, size: int, curve: Any) -> Node:
    part = writer.add("gates", aten.slice.Tensor, gates, 1, number * size, (number + 1) * size, 1)
    return writer.add(role, curve, part)


def _lstm_step(writer: _Writer, weights: _Weights, size: int, hidden: int) -> Step:
    gates_of = _Joined(writer, "gates", weights, hidden)
    sigmoid, tanh = aten.sigmoid.default, aten.tanh.default

    def step(x: Node, state: State) -> State:
        h, c = state
        gates = gates_of(x, h)
        enter = _gate(writer, "input", gates, 0, size, sigmoid)
        keep = _gate(writer, "forget", gates, 1, size, sigmoid)
        candidate = _gate(writer, "candidate", gates, 2, size, tanh)
        leave = _gate(writer, "output", gates, 3, size, sigmoid)
        if c is None:
            new = writer.add("cell", aten.mul.Tensor, enter, candidate)
        else:
            entered = writer.add("entered", aten.mul.Tensor, enter, candidate, exact=True)
            kept = writer.add("kept", aten.mul.Tensor, keep, c, exact=True)
            new = writer.add("cell", aten.add.Tensor, kept, entered)
        squashed = writer.add("squashed", tanh, new)
        h = writer.add("hidden", aten.mul.Tensor, leave, squashed)
        if weights.projection is not None:
            h = writer.add("projection", aten.linear.default, h, weights.projection, None)
        return h, new

    return step


def _gru_step(writer: _Writer, weights: _Weights, size: int, hidden: int) -> Step:
    gates_of = _Joined(writer, "gates", weights.rows(writer, "gates", 0, 2 * size), hidden)
    last = weights.rows(writer, "candidate", 2 * size, 3 * size)

    def step(x: Node, state: State) -> State:
        (h,) = state
        gates = gates_of(x, h)
        reset = _gate(writer, "reset", gates, 0, size, aten.sigmoid.default)
        update = _gate(writer, "update", gates, 1, size, aten.sigmoid.default)
        entered = writer.add(
            "candidate_input", aten.linear.default, x, last.inputs, last.input_bias
        )
        remembered = last.hidden_bias
        if h is not None:
            args = (h, last.hidden, last.hidden_bias)
            remembered = writer.add("candidate_hidden", aten.linear.default, *args)
        if remembered is not None:
            gated = writer.add("gated", aten.mul.Tensor, reset, remembered, exact=True)
            entered = writer.add("preactivation", aten.add.Tensor, entered, gated)
        n = writer.add("candidate", aten.tanh.default, entered)
        if h is None:
            part = writer.add("updated", aten.mul.Tensor, update, n, exact=True)
            return (writer.add("hidden", aten.sub.Tensor, n, part),)
        change = writer.add("change", aten.sub.Tensor, h, n, exact=True)
        part = writer.add("updated", aten.mul.Tensor, update, change, exact=True)
        return (writer.add("hidden", aten.add.Tensor, n, part),)

    return step


def _rnn_step(curve: Any) -> Callable[[_Writer, _Weights, int, int], Step]:
    def make(writer: _Writer, weights: _Weights, size: int, hidden: int) -> Step:
        gates_of = _Joined(writer, "gates", weights, hidden)

        def step(x: Node, state: State) -> State:
            (h,) = state
            return (writer.add("hidden", curve, gates_of(x, h)),)

        return step

    return make


_KINDS: dict[Any, tuple[Callable[[_Writer, _Weights, int, int], Step], int]] = {
    aten.lstm.input: (_lstm_step, 4),
    aten.gru.input: (_gru_step, 3),
    aten.rnn_tanh.input: (_rnn_step(aten.tanh.default), 1),
    aten.rnn_relu.input: (_rnn_step(aten.relu.default), 1),
}
"""What makes a step, and the gates that its weights hold."""
RECURRENT = tuple(_KINDS)
CELLS: dict[Any, Any] = {
    aten.lstm_cell.default: aten.lstm.input,
    aten.gru_cell.default: aten.gru.input,
    aten.rnn_tanh_cell.default: aten.rnn_tanh.input,
    aten.rnn_relu_cell.default: aten.rnn_relu.input,
}
"""The layers of which these are one step."""


def result(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node:
    """Result number `index` of a recurrent layer: the sequence, then the last states."""
    results = producer.meta.get("results")
    if results is None:
        results = producer.meta["results"] = _unroll(graph, producer)
    return results[index]()


def _unroll(graph: fx.Graph, node: Node) -> list[Callable[[], Node]]:
    """What makes each result of the layer; a result that nobody asks for is not made."""
    x, initial, parameters, has_biases, layers, _, _, bidirectional, batch_first = node.args
    assert isinstance(x, Node)
    assert isinstance(layers, int)
    assert isinstance(parameters, list | tuple)
    states: Any = initial if isinstance(initial, list | tuple) else [initial]
    time = 1 if batch_first else 0
    directions = 2 if bidirectional else 1
    each = len(parameters) // (layers * directions)
    make_step, gates = _KINDS[node.target]
    length = int(x.meta["val"].shape[time])
    sequence = [insert_like(graph, node, aten.select.int, (x, time, t)) for t in range(length)]
    for step_input in sequence:
        step_input.meta |= {"tied": "steps", "exact": False}
    last: list[State] = []
    cells = outputs = 0
    for layer in range(layers):
        found: list[list[Node]] = []
        for direction in range(directions):
            number = layer * directions + direction
            writer = _Writer(graph, node, f"l{layer}{'_reverse' if direction else ''}")
            held = _weights(parameters[number * each : (number + 1) * each], bool(has_biases))
            rows, outputs = held.hidden.meta["val"].shape
            cells = rows // gates
            step = make_step(writer, held, cells, outputs)
            state: State = tuple(_initial(writer, one, number) for one in states)
            steps: dict[int, Node] = {}
            for t in range(length - 1, -1, -1) if direction else range(length):
                state = step(sequence[t], state)
                assert state[0] is not None
                steps[t] = state[0]
            found.append([steps[t] for t in range(length)])
            last.append(state)
        sequence = [
            parts[0] if directions == 1 else insert_like(graph, node, aten.cat.default, (parts, 1))
            for parts in map(list, zip(*found, strict=True))
        ]
    makers: list[Callable[[], Node]] = [
        partial(_stack, graph, node, sequence, time, directions * outputs)
    ]
    for number, size in zip(range(len(states)), (outputs, cells), strict=False):
        makers.append(partial(_stack, graph, node, [state[number] for state in last], 0, size))
    return makers


def cell_result(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    """State number `index` after one step of a cell."""
    if "results" not in producer.meta:
        producer.meta["results"] = _step(graph, producer)
    state: State = producer.meta["results"]
    return state[index]


@rewrites(aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default)
def _cell(graph: fx.Graph, node: Node) -> Node | None:
    return cell_result(graph, node, node, 0)


def _step(graph: fx.Graph, node: Node) -> State:
    arguments: Any = node.args
    x, initial, *weights = arguments
    states = initial if isinstance(initial, list | tuple) else [initial]
    held = _weights(weights, has_biases=True)
    size = held.hidden.meta["val"].shape[1]
    make_step, _ = _KINDS[CELLS[node.target]]
    # Cells of one module share their weights; those of functions need not.
    writer = _Writer(graph, node, f"cell_{held.hidden.name}")
    step = make_step(writer, held, size, size)
    return step(x, tuple(_state(one) for one in states))


def _weights(nodes: Sequence[Any], has_biases: bool) -> _Weights:
    inputs, hidden, *rest = nodes
    biases = rest[:2] if has_biases else (None, None)
    projection = rest[2 if has_biases else 0 :]
    return _Weights(inputs, hidden, biases[0], biases[1], projection[0] if projection else None)


def _initial(writer: _Writer, states: Node, number: int) -> Node | None:
    """The initial state of one layer and direction; None where it is zero."""
    if _state(states) is None:
        return None
    node = insert_like(writer.graph, writer.like, aten.select.int, (states, 0, number))
    node.meta["constant"] = states.meta["constant"]
    return node


def _state(states: Node) -> Node | None:
    """Marks whether a state is a constant; None where it is zero."""
    source = states
    while source.target is aten.expand.default:
        source = input_of(source)
    if source.target is aten.full.default and source.args[1] == 0:
        return None
    states.meta["constant"] = is_constant(states)
    return states


def _stack(graph: fx.Graph, node: Node, parts: Sequence[Node | None], dim: int, size: int) -> Node:
    """[batch, size] each, along a new dimension. Who selects one of them gets it as it is."""
    sizes = [1, -1, size] if dim == 0 else [-1, 1, size]
    reshaped = [insert_like(graph, node, aten.reshape.default, (part, sizes)) for part in parts]
    for part in reshaped:
        part.meta |= {"tied": "stacked", "exact": False}
    stacked = insert_like(graph, node, aten.cat.default, (reshaped, dim))
    stacked.meta["steps"] = (dim, parts)
    return stacked
