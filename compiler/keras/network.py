"""The torch module of a Keras model: its layers, called as Keras calls them.

Images stay channels-first between the layers that want them so; they are permuted only where a
layer needs Keras' own axes, so that each tensor is translated at most once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxloom.errors import UnsupportedLayer
from fxloom.keras.description import Layer, Model, TensorRef, references
from fxloom.keras.registry import BUILDERS, Located, Refused

_TYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


class Network(nn.Module):
    """Computes what a Keras model computes at inference; inputs and outputs have Keras' axes."""

    def __init__(self, model: Model) -> None:
        """Raises UnsupportedLayer listing every layer that has no module."""
        super().__init__()
        problems: list[str] = []
        self._model = model
        self._names: dict[str, str] = {}
        for layer in model.layers:
            if layer.class_name == "InputLayer":
                continue
            try:
                module = _module(layer)
            except Refused as refused:
                problems.append(f"{layer.label}: {refused}")
            except UnsupportedLayer as nested:
                problems += [f"{layer.name}.{problem}" for problem in nested.problems]
            else:
                self._names[layer.name] = self._free(layer.name)
                self.add_module(self._names[layer.name], module)
        if problems:
            raise UnsupportedLayer(problems)
        self._order = _order(model)

    def _free(self, name: str) -> str:
        name = "".join(c if c.isalnum() or c == "_" else "_" for c in name) or "layer"
        while hasattr(self, name) or name[0].isdigit():
            name = f"{name}_" if hasattr(self, name) else f"_{name}"
        return name

    def example_inputs(self, samples: int = 2) -> tuple[Tensor, ...]:
        """Random inputs of the declared shapes. Raises Refused where one is not fixed."""
        generator = torch.Generator().manual_seed(0)
        return tuple(
            _example(self._model[ref.layer], samples, generator) for ref in self._model.inputs
        )

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        if len(inputs) != len(self._model.inputs):
            raise ValueError(f"{len(self._model.inputs)} inputs, {len(inputs)} arrived")
        values = {
            ref: Located(tensor) for ref, tensor in zip(self._model.inputs, inputs, strict=True)
        }
        for layer, position in self._order:
            results = self._call(layer, position, values)
            for output, result in enumerate(results):
                values[TensorRef(layer.name, position, output)] = result
        outputs = tuple(values[ref].moved(channels_first=False) for ref in self._model.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _call(
        self, layer: Layer, position: int, values: Mapping[TensorRef, Located]
    ) -> tuple[Located, ...]:
        call, module = layer.calls[position], getattr(self, self._names[layer.name])
        given = [values[ref] for ref in references((call.args, call.kwargs))]
        order = getattr(module, "order", "keras")
        first = order == "first" or (order != "keras" and any(x.channels_first for x in given))

        def resolved(argument: Any) -> Any:
            if isinstance(argument, TensorRef):
                return values[argument].moved(first)
            if isinstance(argument, Mapping):
                return {key: resolved(each) for key, each in argument.items()}
            if isinstance(argument, list | tuple):
                return [resolved(each) for each in argument]
            return argument

        told = {"channels_first": first} if order == "any" else {}
        # What says nothing: Keras writes down mask=None for every layer that takes a mask.
        named = {k: v for k, v in call.kwargs.items() if v is not None and k != "training"}
        results = module(*map(resolved, call.args), **resolved(named), **told)
        if isinstance(results, Tensor):
            results = (results,)
        return tuple(Located(result, first) for result in results)


def _module(layer: Layer) -> nn.Module:
    if layer.model is not None:
        return Network(layer.model)
    builder = BUILDERS.get((layer.package, layer.class_name))
    if builder is None:
        raise Refused("no such layer is known here. `fxloom list layers` shows those that are")
    return builder(layer)


def _order(model: Model) -> list[tuple[Layer, int]]:
    """All calls that lead to the outputs, each behind those that it reads."""
    layers = {layer.name: layer for layer in model.layers}
    found: dict[tuple[str, int], None] = {}
    inputs = {(ref.layer, ref.call) for ref in model.inputs}
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


def _example(layer: Layer, samples: int, generator: torch.Generator) -> Tensor:
    shape = layer.config.get("batch_shape", layer.config.get("batch_input_shape"))
    if shape is None or None in shape[1:]:
        raise Refused(f"input {layer.name} has shape {shape}: give an example of it")
    dtype = _TYPES.get(str(layer.config.get("dtype", "float32")), torch.float32)
    values = torch.rand((samples, *shape[1:]), generator=generator)
    return values.to(dtype) if dtype.is_floating_point else torch.zeros_like(values, dtype=dtype)
