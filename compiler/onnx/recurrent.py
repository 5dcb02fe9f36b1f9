"""LSTM, GRU and RNN, whose gates torch has in another order."""

from typing import Any

import torch
from torch import Tensor, nn

from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import builds

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""For each gate of torch (LSTM i f g o, GRU r z n) its place in ONNX (i o f c; z r h)."""
_ACTIVATIONS = {
    "LSTM": [["sigmoid", "tanh", "tanh"]],
    "GRU": [["sigmoid", "tanh"]],
    "RNN": [["tanh"], ["relu"]],
}


class Recurrent(nn.Module):
    """x: [steps, batch, inputs], or the batch first. Returns Y, Y_h and, for LSTM, Y_c.

    Y: [steps, directions, batch, hidden] or [batch, steps, directions, hidden].
    """

    def __init__(self, cells: nn.RNNBase, reverse: bool) -> None:
        super().__init__()
        self.cells, self._reverse = cells, reverse

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        first = self.cells.batch_first
        steps = 1 if first else 0
        x = x.flip(steps) if self._reverse else x
        if first:
            states = tuple(state.transpose(0, 1) for state in states)
        y, state = self._run(x, states)
        y = y.flip(steps) if self._reverse else y
        y = y.unflatten(2, (-1, self.cells.hidden_size))
        y = y if first else y.permute(0, 2, 1, 3)
        finals = state if isinstance(state, tuple) else (state,)
        return (y, *(final.transpose(0, 1) if first else final for final in finals))

    def _run(self, x: Tensor, states: tuple[Tensor, ...]) -> Any:
        if not states:
            return self.cells(x)
        return self.cells(x, states if isinstance(self.cells, nn.LSTM) else states[0])


@builds("LSTM", "GRU", "RNN")
def _recurrent(node: Node) -> nn.Module:
    kind, direction = node.kind, node.text("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    if direction not in ("forward", "reverse", "bidirectional"):
        raise Refused(f"direction {direction!r} is not known")
    names = [str(each).lower() for each in node.attribute("activations", [])]
    allowed = _ACTIVATIONS[kind]
    if names and [names[: len(allowed[0])]] * directions not in (
        [each] * directions for each in allowed
    ) and names not in [each * directions for each in allowed]:  # fmt: skip
        raise Refused(f"activations {names} are not those of torch, {allowed[0]}")
    if names and names != names[: len(allowed[0])] * directions:
        raise Refused(f"activations {names} differ between directions")
    for name in ("activation_alpha", "activation_beta", "clip"):
        node.only(name, None, None)
    if kind == "LSTM":
        node.only("input_forget", 0, 0)
    if kind == "GRU" and not node.flag("linear_before_reset"):
        raise Refused("linear_before_reset=0 is not how torch computes a GRU. Export it with 1")
    weight, recurrent = node.constant(1, "weights"), node.constant(2, "recurrent weights")
    bias, hidden = node.optional(3, "bias"), recurrent.shape[2]
    if node.integer("hidden_size", hidden) != hidden or weight.shape[0] != directions:
        raise Refused(f"its weights are not for {directions} directions of {hidden} values")
    if node.has(7):
        raise Refused("peepholes have no lowering")
    first = node.flag("layout")
    _check_lengths(node, node.shape()[1 if first else 0])
    has_states = _states(node, 2 if kind == "LSTM" else 1)
    options: dict[str, Any] = {"nonlinearity": names[0]} if kind == "RNN" and names else {}
    cells: nn.RNNBase = getattr(nn, kind)(
        weight.shape[2], hidden, bias=bias is not None, batch_first=first,
        bidirectional=directions == 2, **options,
    )  # fmt: skip
    _load(cells, kind, [weight, recurrent], bias)
    assert has_states is not None
    return Recurrent(cells, direction == "reverse")


def _check_lengths(node: Node, steps: int) -> None:
    if not node.has(4):
        return
    lengths = node.value(4)
    node.consumed.add(4)
    if not lengths.known or bool((lengths.first != steps).any()):
        raise Refused("sequence_lens other than the whole length has no lowering")


def _states(node: Node, count: int) -> bool:
    """Whether initial states are computed; zeros are what torch begins with."""
    places = [place for place in range(5, 5 + count) if node.has(place)]
    computed = [place for place in places if not node.value(place).known]
    for place in places:
        value = node.value(place)
        if value.known:
            node.consumed.add(place)
            if bool(value.first.any()):
                raise Refused("constant initial states other than zero have no lowering")
    if computed and len(computed) != count:
        raise Refused("only one of its initial states is computed")
    return bool(computed)


def _load(cells: nn.RNNBase, kind: str, weights: list[Tensor], bias: Tensor | None) -> None:
    for direction, ending in enumerate(("", "_reverse")[: 2 if cells.bidirectional else 1]):
        found = [each[direction] for each in weights]
        if bias is not None:
            found += list(bias[direction].chunk(2))
        for name, tensor in zip(
            ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), found, strict=False
        ):
            gates = tensor.chunk(len(_GATES[kind]))
            values = torch.cat([gates[gate] for gate in _GATES[kind]])
            parameter = getattr(cells, f"{name}_l0{ending}")
            if parameter.shape != values.shape:
                raise Refused(
                    f"{name} of {list(tensor.shape)} is not for {cells.hidden_size} values"
                )
            with torch.no_grad():
                parameter.copy_(values)
