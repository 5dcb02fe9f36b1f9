"""LSTM, GRU, SimpleRNN, and RNN with cells of these kinds.

Sources: layers/rnn of Keras 3 and of Keras 2 (tf_keras).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fxloom.keras.description import Layer
from fxloom.keras.effort import STEP_CALLS, spend
from fxloom.keras.recurrences import Recurrence, States, recurrence_of
from fxloom.keras.registry import Refused, builds

Results = Tensor | tuple[Tensor, ...]


class Recurrent(nn.Module):
    """A layer of one cell or several, one behind the other, over [batch, time, inputs].

    Returns the last output or all of them, in the order in which they were computed, and behind
    it the last states where they are asked for.
    """

    def __init__(self, layer: Layer, cells: Sequence[Recurrence]) -> None:
        super().__init__()
        refuse_unlike(layer)
        self.cells = nn.ModuleList(cells)
        config = layer.config
        self.all_outputs = bool(config.get("return_sequences", False))
        self.with_states = bool(config.get("return_state", False))
        self.backwards = bool(config.get("go_backwards", False))

    def forward(self, x: Any, initial_state: Any = None) -> Results:
        """initial_state: one or a list; Keras 2 gives x and the states in one list."""
        sequence, states = split(x, initial_state)
        if self.backwards:
            sequence = sequence.flip(1)
        last: States = []
        for cell in self._cells():
            spend(STEP_CALLS * sequence.shape[1])
            given = states[: cell.state_count] if states else cell.zeros(sequence)
            states = states[cell.state_count :]
            # The nodes of a single cell are named after the layer.
            run = cell.forward if len(self.cells) == 1 else cell
            sequence, found = run(sequence, given)
            last += found
        output = sequence if self.all_outputs else sequence[:, -1]
        return (output, *last) if self.with_states else output

    def _cells(self) -> list[Recurrence]:
        return [cell for cell in self.cells if isinstance(cell, Recurrence)]


def split(x: Any, initial_state: Any) -> tuple[Tensor, States]:
    """The sequence and the states that came with it, none if none did."""
    if isinstance(x, Tensor):
        first, rest = x, initial_state
    else:
        first, *rest = x
        rest = rest or initial_state
    if rest is None:
        return first, []
    return first, [rest] if isinstance(rest, Tensor) else list(_flat(rest))


def _flat(states: Any) -> States:
    return [each for one in states for each in ([one] if isinstance(one, Tensor) else _flat(one))]


def refuse_unlike(layer: Layer) -> None:
    """Raise Refused for what makes a recurrent layer more than a function of one sequence."""
    if layer.config.get("stateful"):
        raise Refused("stateful=True keeps its state from batch to batch. Give it initial_state")
    if layer.config.get("time_major"):
        raise Refused("time_major=True, required the batch as the first axis")
    if layer.config.get("num_constants"):
        raise Refused("constants are for cells of one's own, which are code")
    # They say how to compute, or act in training alone.
    for key in ("unroll", "zero_output_for_mask", "dropout", "recurrent_dropout", "seed"):
        layer.config.get(key)
    for key in ("unit_forget_bias", "use_cudnn", "implementation"):
        layer.config.get(key)


@builds("LSTM", "GRU", "SimpleRNN")
def _recurrent(layer: Layer) -> nn.Module:
    return Recurrent(layer, [recurrence_of(layer)])


@builds("RNN")
def _rnn(layer: Layer) -> nn.Module:
    """The weights are those of the cells, one behind the other."""
    cell = layer.config["cell"]
    described = cell["config"]["cells"] if cell["class_name"] == "StackedRNNCells" else [cell]
    if len(described) > 1 and layer.config.get("return_state"):
        raise Refused("return_state=True with several cells. Use a layer for each cell")
    cells, used = [], 0
    for each in described:
        count = 3 if each["config"].get("use_bias", True) else 2
        weights = layer.weights[used : used + count]
        used += count
        inner = replace(
            layer, class_name=each["class_name"], config=each["config"], weights=weights
        )
        cells.append(recurrence_of(inner))
    if used != len(layer.weights):
        raise Refused(f"required {used} weights, {len(layer.weights)} arrived")
    return Recurrent(layer, cells)
