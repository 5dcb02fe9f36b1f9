"""What the quantizers of a Brevitas model do, found by running a copy of it once.

Scales may come from parameters, statistics or other layers (a bias has that of the accumulator),
and Brevitas computes all of them on the way: QuantTensors carry them from layer to layer.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxloom.given_constants import QuantizerRefused

QUANTIZERS = (
    "input_quant",
    "weight_quant",
    "bias_quant",
    "act_quant",
    "output_quant",
    "trunc_quant",
)
"""The names under which layers of Brevitas have their quantizers."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """An IntQuantTensor: what it holds, (q - zero_point) * scale, and the bits of q."""

    value: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: Tensor
    signed: bool


Operand = Tensor | Quantized
Call = tuple[tuple[Any, ...], Any]
"""Arguments and result."""


@dataclass(slots=True)
class Calls:
    """All calls of one layer, and those of its quantizers, by their names."""

    layer: list[Call] = field(default_factory=list)
    quantizers: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))

    def results(self, quantizer: str) -> list[Any]:
        return [result for _, result in self.quantizers[quantizer]]


def record(
    model: nn.Module, layers: Sequence[nn.Module], examples: Sequence[Tensor]
) -> tuple[list[Calls], Any]:
    """The calls of each layer while the model runs on examples, and what the model returns.

    model: in eval mode, and no one else's: quantizers may change weights in place.
    """
    found, inside = [Calls() for _ in layers], list[Calls]()
    with torch.no_grad(), _hooks() as hooks:
        for layer, calls in zip(layers, found, strict=True):
            _watch(layer, calls, inside, hooks)
        return found, plain(model(*(example.clone() for example in examples)))


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    hooks = list[Any]()
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()


def _watch(layer: nn.Module, calls: Calls, inside: list[Calls], hooks: list[Any]) -> None:
    def enter(module: nn.Module, args: Any) -> None:
        inside.append(calls)

    def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        inside.pop()
        given = (*(_copied(arg) for arg in args), *(_copied(arg) for arg in kwargs.values()))
        calls.layer.append((given, _copied(result)))

    hooks.append(layer.register_forward_pre_hook(enter))
    hooks.append(layer.register_forward_hook(leave, with_kwargs=True))
    for name in QUANTIZERS:
        if not isinstance(quantizer := getattr(layer, name, None), nn.Module):
            continue

        def used(module: nn.Module, args: Any, result: Any, name: str = name) -> None:
            # A quantizer that layers share is watched once for each: only the one that is running
            # has called it.
            if inside and inside[-1] is calls:
                given = tuple(_copied(arg) for arg in args)
                calls.quantizers[name].append((given, _copied(result)))

        hooks.append(quantizer.register_forward_hook(used))


def _copied(value: Any) -> Any:
    """With tensors of its own, and Quantized for a QuantTensor."""
    if type(value).__name__ == "IntQuantTensor":
        parts = (value.value, value.scale, value.zero_point, value.bit_width)
        values, scale, zero_point, bits = (part.detach().clone() for part in parts)
        return Quantized(values, scale, zero_point, bits, bool(value.signed))
    if hasattr(value, "value") and hasattr(value, "scale"):
        return value  # of another kind of quantizer, which is refused where it matters
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [_copied(each) for each in value] if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """Tensors in the place of what carries them."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "scale") and isinstance(getattr(value, "value", None), Tensor):
        return value.value
    return tuple(plain(each) for each in value) if isinstance(value, list | tuple) else value


def only(results: Sequence[Any], what: str) -> Operand:
    """What a quantizer of constants gave, which must be the same at every call."""
    first = results[0]
    for result in results[1:]:
        if not _same(first, result):
            raise QuantizerRefused(
                f"its {what} is quantized differently at its {len(results)} calls. Give each call "
                "a layer of its own"
            )
    if isinstance(first, Tensor | Quantized):
        return first
    raise QuantizerRefused(
        f"its {what} is quantized to {type(first).__name__}, which is not uniform. Supported are "
        "integers with a scale (IntQuantTensor)"
    )


def _same(first: Any, other: Any) -> bool:
    if isinstance(first, Quantized) and isinstance(other, Quantized):
        pairs = [(first.value, other.value), (first.scale, other.scale)]
        return all(torch.equal(a, b) for a, b in pairs)
    return isinstance(first, Tensor) and isinstance(other, Tensor) and torch.equal(first, other)
