"""The torch module of a Keras model: its layers, called as Keras calls them.

Images stay channels-first between the layers that want them so; they are permuted only where a
layer needs Keras' own axes, so that each tensor is translated at most once.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import Parameter, signature
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor, nn

from fxloom.errors import UnsupportedLayer
from fxloom.keras.description import (
    Call,
    Layer,
    Model,
    TensorRef,
    references,
    without_arrays,
)
from fxloom.keras.effort import counted, spend
from fxloom.keras.example_inputs import declared_shape, example_inputs
from fxloom.keras.masks import unmet
from fxloom.keras.registry import Located, Refused, built

_BROKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What builders raise where a config or an array is none of the class that it names."""


class Network(nn.Module):
    """Computes what a Keras model computes at inference; inputs and outputs have Keras' axes."""

    def __init__(self, model: Model) -> None:
        """Raises UnsupportedLayer listing every layer that has no module."""
        super().__init__()
        problems: list[str] = []
        model, constants = without_arrays(model)
        self._model = model
        self._names: dict[str, str] = {}
        self._constants = tuple(constants)
        for ref, array in constants.items():
            self.register_buffer(ref.layer, torch.from_numpy(array.copy()))
        self._order: list[tuple[Layer, int]] = []
        self.input_names: tuple[str, ...] = ()
        taken = set(dir(self))
        for layer in model.layers:
            if layer.class_name == "InputLayer":
                continue
            try:
                _refuse_training(layer)
                module = module_of(layer)
                _refuse_unknown(layer, module)
            except Refused as refused:
                problems.append(f"{layer.label}: {refused}")
            except UnsupportedLayer as nested:
                problems += [f"{layer.name}.{problem}" for problem in nested.problems]
            else:
                self._names[layer.name] = _identifier(layer.name, taken)
                taken.add(self._names[layer.name])
                self.add_module(self._names[layer.name], module)
        problems += unmet(model)
        if problems:
            raise UnsupportedLayer(problems)
        self._order = _order(model, self._constants)
        for ref in model.inputs:
            self.input_names += (_identifier(ref.layer, ["self", *self.input_names]),)

    def example_inputs(self, samples: int = 2) -> tuple[Tensor, ...]:
        """Random inputs of the declared shapes; see example_inputs.py."""
        return example_inputs(self._model, samples)

    def forward(self, *inputs: Any) -> Any:
        """Tensors, one an output, in Keras' order; a single one as it is.

        inputs: tensors in the order of the model's inputs, or one list of them, or a dictionary by
        the names of inputs. A network in another gets Located tensors and returns such.
        """
        given = _flat(inputs, [ref.layer for ref in self._model.inputs])
        nested = any(isinstance(each, Located) for each in given)
        if len(given) != len(self._model.inputs) or not nested:
            self._refuse_unlike(given)
        values = _Values(
            (ref, each if isinstance(each, Located) else Located(each))
            for ref, each in zip(self._model.inputs, given, strict=True)
        )
        for ref in self._constants:
            values[ref] = Located(getattr(self, ref.layer))
        with counted():
            for layer, position in self._order:
                results = self._call(layer, position, values)
                for output, result in enumerate(results):
                    values[TensorRef(layer.name, position, output)] = result
        outputs = [values[ref] for ref in self._model.outputs]
        if nested:
            return tuple(outputs)
        plain = tuple(output.moved(channels_first=False) for output in outputs)
        return plain[0] if len(plain) == 1 else plain

    def _refuse_unlike(self, given: Sequence[Any]) -> None:
        """Raise ValueError for inputs that are not of the number and shapes of the model's."""
        names = [ref.layer for ref in self._model.inputs]
        if len(given) != len(names):
            raise ValueError(f"{len(names)} inputs, {', '.join(names)}: {len(given)} arrived")
        for name, each in zip(names, given, strict=True):
            wanted = declared_shape(self._model[name])
            got = list(each.shape[1:])
            fits = len(got) == len(wanted) and all(
                size is None or size == one for size, one in zip(wanted, got, strict=True)
            )
            if wanted and not fits:
                shape = [size or "any" for size in wanted]
                raise ValueError(f"input {name} has shape {shape} a sample, {got} arrived")

    def _call(
        self, layer: Layer, position: int, values: Mapping[TensorRef, Located]
    ) -> tuple[Located, ...]:
        call, module = layer.calls[position], getattr(self, self._names[layer.name])
        if isinstance(module, Network):
            nested: tuple[Located, ...] = module(*_resolved(call.args, values.__getitem__))
            return nested
        spend(1)
        given = [values[ref] for ref in references((call.args, call.kwargs))]
        order = getattr(module, "order", "keras")
        if callable(order):
            order = order([x.tensor.dim() for x in given])
        # Constants have Keras' axes, and perhaps fewer of them than what they meet.
        free = order != "keras" and not any(ref in self._constants for ref in references(call.args))
        first = order == "first" or (free and any(x.channels_first for x in given))
        args = _resolved(call.args, lambda ref: values[ref].moved(first))
        kwargs = _resolved(_kwargs(call), lambda ref: values[ref].moved(first))
        told = {"channels_first": first} if order == "any" else {}
        try:
            results = module(*args, **kwargs, **told)
        except Exception as fault:
            fault.add_note(f"in layer {layer.label}")
            raise
        if isinstance(results, Tensor):
            results = (results,)
        return tuple(Located(result, first) for result in results)


class _Values(dict[TensorRef, Located]):
    def __missing__(self, ref: TensorRef) -> Located:
        raise ValueError(f"layer {ref.layer} has no output {ref.output}, which is read")


def _identifier(name: str, taken: Collection[str]) -> str:
    """A name of Keras as a name of Python that is free."""
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in name) or "layer"
    if name[0].isdigit():
        name = f"_{name}"
    while name in taken or iskeyword(name):
        name += "_"
    return name


def module_of(layer: Layer) -> nn.Module:
    """The module of a layer or of a model that stands for one. Raises Refused, UnsupportedLayer."""
    if layer.refusal:
        raise Refused(layer.refusal)
    if layer.model is not None:
        return Network(layer.model)
    try:
        return built(layer)
    except _BROKEN as fault:
        what = f"{type(fault).__name__}: {fault}"
        raise Refused(f"its config and arrays are not those of its class ({what})") from fault


def _refuse_training(layer: Layer) -> None:
    if any(call.kwargs.get("training") for call in layer.calls):
        raise Refused("it is called with training=True. Call it without, as at inference")


def _refuse_unknown(layer: Layer, module: nn.Module) -> None:
    """Raise Refused for what a layer is called with that its module does not take."""
    taken = signature(module.forward).parameters.values()
    if any(one.kind is Parameter.VAR_KEYWORD for one in taken):
        return
    known = {one.name for one in taken if one.kind is not Parameter.VAR_POSITIONAL}
    said = {key for call in layer.calls for key in _kwargs(call) if key not in known}
    if said:
        raise Refused(f"it is called with {', '.join(sorted(said))}=, which is not known here")


def _kwargs(call: Call) -> dict[str, Any]:
    """What a call says beside its arguments; None says nothing."""
    return {k: v for k, v in call.kwargs.items() if v is not None and k != "training"}


def _resolved(argument: Any, value: Callable[[TensorRef], Any]) -> Any:
    """An argument with its references replaced."""
    if isinstance(argument, TensorRef):
        return value(argument)
    if isinstance(argument, Mapping):
        return {key: _resolved(each, value) for key, each in argument.items()}
    if isinstance(argument, list | tuple):
        return [_resolved(each, value) for each in argument]
    return argument


def _flat(inputs: Sequence[Any], names: Sequence[str]) -> list[Any]:
    if len(inputs) != 1 or isinstance(inputs[0], Tensor | Located):
        return list(inputs)
    (given,) = inputs
    return [given[name] for name in names] if isinstance(given, Mapping) else list(given)


def _order(model: Model, constants: Sequence[TensorRef]) -> list[tuple[Layer, int]]:
    """All calls that lead to the outputs, each behind those that it reads."""
    layers = {layer.name: layer for layer in model.layers}
    found: dict[tuple[str, int], None] = {}
    inputs = {(ref.layer, ref.call) for ref in (*model.inputs, *constants)}
    pending = [(ref.layer, ref.call) for ref in reversed(model.outputs)]
    while pending:
        key = pending[-1]
        call = layers[key[0]].calls[key[1]] if key not in inputs else None
        waiting = [
            (ref.layer, ref.call)
            for ref in (references((call.args, call.kwargs)) if call else ())
            if (ref.layer, ref.call) not in found
        ]
        if waiting and key not in found:
            pending += waiting
        else:
            pending.pop()
            found.setdefault(key)
    return [(layers[name], position) for name, position in found if (name, position) not in inputs]
