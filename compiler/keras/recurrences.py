"""What LSTM, GRU and SimpleRNN compute over a sequence.

Where torch has the same equations its own layer is called, which capture unrolls into steps that
share their weights and formats. Other activations and reset_after=False are written out, step by
step. Gates are i, f, c, o in both; a GRU's are z, r, h in Keras and r, z, n in torch, and here.
Sources: layers/rnn of Keras 3 and of Keras 2 (tf_keras); torch.nn.LSTM, GRU and RNN.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.activations import named
from fxloom.keras.description import Layer
from fxloom.keras.registry import Refused, parameters

States = list[Tensor]
"""Of one cell, [batch, units] each: hidden, and what an LSTM carries."""
Curve = Callable[[Tensor], Tensor]


class Recurrence(nn.Module):
    """A cell with the weights that torch gives it: [gates * units, inputs], [gates * units, units].

    units: of its state. state_count: of its kind.
    """

    state_count = 1

    def __init__(
        self,
        inputs: nn.Parameter,
        hidden: nn.Parameter,
        input_bias: nn.Parameter | None = None,
        hidden_bias: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.weight_ih, self.weight_hh = inputs, hidden
        self.bias_ih, self.bias_hh = input_bias, hidden_bias
        self.units = hidden.shape[1]

    def forward(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """All outputs, [batch, time, units], and the last states. x: [batch, time, inputs]."""
        raise NotImplementedError

    def zeros(self, x: Tensor) -> States:
        """The states at the start, where none are given."""
        return [x.new_zeros(x.shape[0], self.units) for _ in range(self.state_count)]


# torch's own layers ------------------------------------------------------------------------------


class Fused(Recurrence):
    """By one layer of torch."""

    function: Any

    def forward(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        weights: list[Tensor] = [self.weight_ih, self.weight_hh]
        if self.bias_ih is not None:
            hidden = self.bias_hh
            weights += [self.bias_ih, torch.zeros_like(self.bias_ih) if hidden is None else hidden]
        first = [state[None] for state in states]
        given = first if self.state_count > 1 else first[0]
        has_biases = self.bias_ih is not None
        y, *last = self.function(x, given, weights, has_biases, 1, 0.0, False, False, True)
        return y, [state[0] for state in last]


class FusedLSTM(Fused):
    """torch.nn.LSTM."""

    function = staticmethod(torch.lstm)
    state_count = 2


class FusedGRU(Fused):
    """torch.nn.GRU."""

    function = staticmethod(torch.gru)


class FusedTanh(Fused):
    """torch.nn.RNN."""

    function = staticmethod(torch.rnn_tanh)


class FusedRelu(Fused):
    """torch.nn.RNN with nonlinearity="relu"."""

    function = staticmethod(torch.rnn_relu)


# Written out -------------------------------------------------------------------------------------


class Stepped(Recurrence):
    """One step after another. curve, gate: `activation` and `recurrent_activation`."""

    def with_curves(self, curve: Curve, gate: Curve) -> "Stepped":
        self.curve, self.gate = curve, gate
        return self

    def forward(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        step, outputs = self.step(), []
        for t in range(x.shape[1]):
            states = step(x[:, t], states)
            outputs.append(states[0])
        return torch.stack(outputs, 1), states

    def step(self) -> Callable[[Tensor, States], States]:
        """What makes states of an input and the states before."""
        raise NotImplementedError

    def joined(self) -> Callable[[Tensor, Tensor], Tensor]:
        """All products with an input and a state as one layer on both."""
        weight = torch.cat([self.weight_ih, self.weight_hh], 1)
        return lambda x, h: functional.linear(torch.cat([x, h], 1), weight, self.bias_ih)


class SteppedLSTM(Stepped):
    """LSTM with any activations."""

    state_count = 2

    def step(self) -> Callable[[Tensor, States], States]:
        products = self.joined()

        def step(x: Tensor, states: States) -> States:
            h, c = states
            enter, keep, candidate, leave = products(x, h).chunk(4, 1)
            c = self.gate(keep) * c + self.gate(enter) * self.curve(candidate)
            return [self.gate(leave) * self.curve(c), c]

        return step


class SteppedRNN(Stepped):
    """SimpleRNN with any activation."""

    def step(self) -> Callable[[Tensor, States], States]:
        products = self.joined()
        return lambda x, states: [self.curve(products(x, states[0]))]


class SteppedGRU(Stepped):
    """GRU with any activations. The reset gate multiplies the state's product (reset_after)."""

    def step(self) -> Callable[[Tensor, States], States]:
        def step(x: Tensor, states: States) -> States:
            (h,) = states
            entered = functional.linear(x, self.weight_ih, self.bias_ih)
            remembered = functional.linear(h, self.weight_hh, self.bias_hh)
            both = entered + remembered
            reset, update = self.gate(both[:, : 2 * self.units]).chunk(2, 1)
            inner = reset * remembered[:, 2 * self.units :]
            n = self.curve(entered[:, 2 * self.units :] + inner)
            return [n + update * (h - n)]

        return step


class SteppedGRUBefore(Stepped):
    """GRU(reset_after=False): the reset gate multiplies the state, of which then the product is."""

    def step(self) -> Callable[[Tensor, States], States]:
        rows = 2 * self.units
        gates, candidate = self.weight_hh[:rows], self.weight_hh[rows:]

        def step(x: Tensor, states: States) -> States:
            (h,) = states
            entered = functional.linear(x, self.weight_ih, self.bias_ih)
            both = entered[:, :rows] + functional.linear(h, gates)
            reset, update = self.gate(both).chunk(2, 1)
            n = self.curve(entered[:, rows:] + functional.linear(reset * h, candidate))
            return [n + update * (h - n)]

        return step


# From Keras --------------------------------------------------------------------------------------


def recurrence_of(layer: Layer) -> Recurrence:
    """What a layer or cell of Keras computes. Raises Refused for a kind that is not known."""
    kind = layer.class_name.removesuffix("Cell")
    if kind not in _KINDS:
        raise Refused(f"a cell of class {layer.class_name} is code. Known are {', '.join(_KINDS)}")
    return _KINDS[kind](layer)


def _lstm(layer: Layer) -> Recurrence:
    weights = _transposed(layer, 4)
    if _names(layer) == ("tanh", "sigmoid"):
        return FusedLSTM(*weights)
    return SteppedLSTM(*weights).with_curves(*_curves(layer))


def _gru(layer: Layer) -> Recurrence:
    after = bool(layer.config.get("reset_after", True))
    weights = _transposed(layer, 3, swapped=True, two_biases=after)
    if after and _names(layer) == ("tanh", "sigmoid"):
        return FusedGRU(*weights)
    kind = SteppedGRU if after else SteppedGRUBefore
    return kind(*weights).with_curves(*_curves(layer))


def _simple(layer: Layer) -> Recurrence:
    weights = _transposed(layer, 1)
    name = layer.config.get("activation", "tanh")
    if name in ("tanh", "relu"):
        return FusedTanh(*weights) if name == "tanh" else FusedRelu(*weights)
    curve = _curve(name, layer)
    return SteppedRNN(*weights).with_curves(curve, curve)


_KINDS: dict[str, Callable[[Layer], Recurrence]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "SimpleRNN": _simple,
}


def _names(layer: Layer) -> tuple[Any, Any]:
    return layer.config.get("activation"), layer.config.get("recurrent_activation")


def _curves(layer: Layer) -> tuple[Curve, Curve]:
    curve, gate = _names(layer)
    return _curve(curve, layer), _curve(gate, layer)


def _curve(name: Any, layer: Layer) -> Curve:
    return named(name, layer) or (lambda x: x)


def _transposed(
    layer: Layer, gates: int, swapped: bool = False, two_biases: bool = False
) -> list[nn.Parameter]:
    """Kernel, recurrent kernel and biases as torch has them.

    swapped: the first two gates change places. two_biases: of inputs and of states, in one array.
    """
    has_bias = bool(layer.config.get("use_bias", True))
    kernel, hidden, *bias = parameters(layer, 3 if has_bias else 2)
    units = hidden.shape[0]
    if hidden.shape != (units, gates * units) or kernel.shape[1:] != (gates * units,):
        shapes = f"{list(kernel.shape)} and {list(hidden.shape)}"
        raise Refused(f"its kernels have shapes {shapes}, required {gates} gates")
    biases = list(bias[0]) if bias and two_biases else bias
    order = np.arange(gates * units)
    if swapped:
        order = np.concatenate([order[units : 2 * units], order[:units], order[2 * units :]])
    if any(one.shape != (gates * units,) for one in biases):
        raise Refused(f"its bias has shape {list(bias[0].shape)}")
    rows = [kernel.detach().T, hidden.detach().T, *biases]
    return [nn.Parameter(one.detach()[order].contiguous()) for one in rows]
