"""The layers of Brevitas in a model, replaced by ours."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Importing a family registers its layers.
from fxloom.brevitas import values as values
from fxloom.brevitas import weighted as weighted
from fxloom.brevitas.builders import BUILDERS
from fxloom.brevitas.recorded import Calls, Quantized, plain, record
from fxloom.errors import CaptureError, UnsupportedLayer
from fxloom.given_constants import QuantizerRefused

MOST_FLIPPED = 0.02
"""Share of a layer's values that float32 may round to the other side than exact arithmetic."""


def has_brevitas_layers(model: nn.Module) -> bool:
    return any(_class_of_brevitas(module) for module in model.modules())


def without_brevitas(model: nn.Module, examples: Sequence[Tensor]) -> nn.Module:
    """A copy of the model, in eval mode, whose layers of Brevitas are ours, with the same names.

    examples: what it is called with. Each of our layers was compared with the one that it
    replaces. Raises UnsupportedLayer listing every layer that has no exact form, and
    CaptureError where the model fails with or without them.
    """
    try:
        model = copy.deepcopy(model).eval()
    except Exception as error:
        raise CaptureError(f"the model cannot be copied: {error}") from error
    places = list(_places(model, ""))
    layers = list(dict.fromkeys(layer for _, layer, _, _ in places))
    try:
        recorded, expected = record(model, layers, examples)
    except Exception as error:
        raise CaptureError(f"the model with its layers of Brevitas fails: {error}") from error
    calls = dict(zip(layers, recorded, strict=True))
    problems, ours = list[str](), dict[nn.Module, nn.Module]()
    for name, layer, parent, child in places:
        try:
            if layer not in ours:
                ours[layer] = _made(layer, calls[layer])
        except QuantizerRefused as refused:
            problems.append(f"{name or 'model'} ({type(layer).__name__}): {refused}")
            continue
        if parent is None:
            model = ours[layer]
        else:
            parent._modules[child] = ours[layer]
    if problems:
        raise UnsupportedLayer(problems)
    _run(model, examples, expected)
    return model.eval()


def _places(
    module: nn.Module, name: str, parent: nn.Module | None = None, child: str = ""
) -> Iterator[tuple[str, nn.Module, nn.Module | None, str]]:
    """Name, layer, parent and its name there, for all outermost layers of Brevitas."""
    if _class_of_brevitas(module):
        yield name, module, parent, child
        return
    for key, inner in module.named_children():
        yield from _places(inner, f"{name}.{key}" if name else key, module, key)


def _class_of_brevitas(module: nn.Module) -> str | None:
    """The name of the class of Brevitas that a module is of, or derived from.

    A graph of layers, as its tools for quantizing trained models return it, is none of them.
    """
    for kind in type(module).__mro__:
        package, *rest = kind.__module__.split(".")
        if package == "brevitas" and "fx" not in rest:
            return kind.__name__
    return None


def _made(layer: nn.Module, calls: Calls) -> nn.Module:
    name = _class_of_brevitas(layer)
    if type(layer).forward.__module__.split(".")[0] not in ("brevitas", "torch"):
        raise QuantizerRefused(f"it has a forward method of its own, beside that of {name}")
    builder = BUILDERS.get(name or "")
    if builder is None:
        raise QuantizerRefused(
            f"this layer of Brevitas has no exact form here. Supported are {', '.join(BUILDERS)}"
        )
    if not calls.layer:
        return layer  # forward never gets there with these examples
    made = builder(layer, calls).eval()
    for args, result in calls.layer:
        _compare(made, args, result)
    return made


def _compare(made: nn.Module, args: Sequence[Any], result: Any) -> None:
    """Refuse a layer that is not what it replaces: a guard against what the reading missed, and
    against calls of one layer that differ in more than their values."""
    with torch.no_grad():
        mine = made(*(plain(arg) for arg in args))
    value = plain(result)
    step = 1e-5 * value.abs().max()
    if isinstance(result, Quantized) and result.scale.dim() <= value.dim():
        step = torch.maximum(result.scale, step)
    difference = (mine - value).abs()
    flipped = (difference > 1e-5 * value.abs().max()).sum()
    if (difference > 1.001 * step).any() or flipped > max(2, MOST_FLIPPED * value.numel()):
        raise QuantizerRefused(
            f"it computes something else than its quantizers say: {int(flipped)} of "
            f"{value.numel()} values differ, by up to {float(difference.max()):.3g}"
        )


def _run(model: nn.Module, examples: Sequence[Tensor], expected: Any) -> None:
    """The model must need no more of our layers than tensors."""
    try:
        with torch.no_grad():
            found = model(*(example.clone() for example in examples))
    except Exception as error:
        raise CaptureError(
            f"the model needs more of its layers than tensors: {error}. Its own code must not "
            "read scales, zero points or bit widths of a QuantTensor, and not its .value"
        ) from error
    if type(plain(found)) is not type(expected):
        raise CaptureError(
            f"forward returns a {type(expected).__name__} with layers of Brevitas and a "
            f"{type(found).__name__} with plain tensors"
        )
