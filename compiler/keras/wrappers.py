"""Layers around layers: Bidirectional and TimeDistributed.

Sources: layers/rnn of Keras 3 and of Keras 2 (tf_keras).
"""

from typing import Any

import torch
from torch import Tensor, nn

from fxloom.keras.description import Layer
from fxloom.keras.effort import spend
from fxloom.keras.network import module_of
from fxloom.keras.recurrent import Recurrent, Results, split
from fxloom.keras.registry import Located, Refused, builds

_AT_ONCE = ("Activation", "Dense", "Dropout", "ELU", "LeakyReLU", "ReLU", "ThresholdedReLU")
"""Layers that do with a sequence of things what they do with each of them."""


class Bidirectional(nn.Module):
    """keras.layers.Bidirectional: a sequence from both ends, the outputs merged."""

    def __init__(self, forwards: Recurrent, backwards: Recurrent, merge: str | None) -> None:
        super().__init__()
        self.forward_layer, self.backward_layer = forwards, backwards
        self.merge = merge

    def forward(self, x: Any, initial_state: Any = None) -> Results:
        sequence, states = split(x, initial_state)
        half = len(states) // 2
        first = self.forward_layer(sequence, states[:half] or None)
        second = self.backward_layer(sequence, states[half:] or None)
        last: tuple[Tensor, ...] = ()
        if self.forward_layer.with_states:
            (first, *one), (second, *other) = first, second
            last = (*one, *other)
        if self.forward_layer.all_outputs:
            second = second.flip(1)
        merged = self._merged(first, second)
        return (*merged, *last) if len(merged) + len(last) > 1 else merged[0]

    def _merged(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        match self.merge:
            case "concat":
                return (torch.cat([first, second], -1),)
            case "sum":
                return (first + second,)
            case "ave":
                return (0.5 * (first + second),)
            case "mul":
                return (first * second,)
        return (first, second)


@builds("Bidirectional")
def _bidirectional(layer: Layer) -> nn.Module:
    both = [_inner(layer, key) for key in ("layer", "backward_layer")]
    merge = layer.config.get("merge_mode")
    if merge not in ("concat", "sum", "ave", "mul", None):
        raise Refused(f"merge_mode is {merge!r}, required concat, sum, ave, mul or None")
    forwards, backwards = (_recurrent(each) for each in both)
    if forwards.backwards or not backwards.backwards:
        raise Refused("its layer must go forwards and its backward_layer go_backwards")
    return Bidirectional(forwards, backwards, merge)


def _recurrent(layer: Layer) -> Recurrent:
    module = module_of(layer)
    if not isinstance(module, Recurrent):
        raise Refused(f"{layer.label} is no recurrent layer")
    return module


class TimeDistributed(nn.Module):
    """keras.layers.TimeDistributed: a layer on x[:, 0], x[:, 1], ... with the same weights."""

    def __init__(self, layer: nn.Module, at_once: bool) -> None:
        super().__init__()
        self.layer, self.at_once = layer, at_once

    def forward(self, x: Tensor) -> Tensor:
        if self.at_once:
            result: Tensor = self.layer(x)
            return result
        spend(x.shape[1])
        return torch.stack([self._step(x[:, t]) for t in range(x.shape[1])], 1)

    def _step(self, x: Tensor) -> Tensor:
        order = getattr(self.layer, "order", "keras")
        order = order([x.dim()]) if callable(order) else order
        first, told = order == "first", {"channels_first": False} if order == "any" else {}
        result = self.layer(Located(x).moved(first), **told)
        if not isinstance(result, Tensor):
            raise TypeError("a layer in TimeDistributed must have one output")
        return Located(result, first).moved(channels_first=False)


@builds("TimeDistributed")
def _time_distributed(layer: Layer) -> nn.Module:
    inner = _inner(layer, "layer")
    at_once = inner.class_name in _AT_ONCE and inner.config.get("activation") != "glu"
    return TimeDistributed(module_of(inner), at_once)


def _inner(layer: Layer, key: str) -> Layer:
    layer.config.get(key)
    if key not in layer.inner:
        raise Refused(f"it holds no {key}")
    return layer.inner[key]
