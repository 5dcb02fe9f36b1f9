"""Random inputs of the shapes that a model of Keras declares."""

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from fxloom.errors import CaptureError
from fxloom.keras.description import Layer, Model, TensorRef, references

_TYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}
MAX_INPUT = 2**23
"""Numbers of one input for one sample: of 2**27, in a file of 2 kB, capture took 9 GB."""


def example_inputs(model: Model, samples: int) -> tuple[Tensor, ...]:
    """Numbers from 0 to 1, and indices for inputs that embeddings read, whatever their dtype.

    Keras' inputs are float32 unless something else is said, and an embedding makes integers of
    them. Raises CaptureError where a shape is not fixed.
    """
    generator = torch.Generator().manual_seed(0)
    return tuple(_example(model, ref, samples, generator) for ref in model.inputs)


def _example(model: Model, ref: TensorRef, samples: int, generator: torch.Generator) -> Tensor:
    shape = _batch_shape(model[ref.layer])
    declared = shape[1:] if isinstance(shape, list | tuple) else [None]
    if not all(isinstance(size, int) and size > 0 for size in declared):
        raise CaptureError(f"input {ref.layer} has shape {shape}: give an example of it")
    if prod(declared) > MAX_INPUT:
        raise CaptureError(
            f"input {ref.layer} has shape {shape}, more than {MAX_INPUT:,} numbers a sample: give "
            "an example of it"
        )
    said = model[ref.layer].config.get("dtype")
    dtype = _TYPES.get("float32" if said is None else str(said))
    if dtype is None:
        raise CaptureError(f"input {ref.layer}: numbers of type {said} are not known here")
    sizes = (samples, *declared)
    rows = min(_rows(model, ref), default=None)
    if rows is not None:
        wanted = torch.int64 if dtype.is_floating_point else dtype
        return torch.randint(rows, sizes, generator=generator).to(wanted)
    values = torch.rand(sizes, generator=generator)
    return values.to(dtype) if dtype.is_floating_point else torch.zeros(sizes, dtype=dtype)


def _batch_shape(layer: Layer) -> Any:
    return layer.config.get("batch_shape", layer.config.get("batch_input_shape"))


def declared_shape(layer: Layer) -> list[int | None]:
    """Sizes of one sample of an InputLayer, None where any will do; [] where it says nothing."""
    shape = _batch_shape(layer)
    sizes = shape[1:] if isinstance(shape, list | tuple) else []
    return [size if isinstance(size, int) else None for size in sizes]


def _rows(model: Model, ref: TensorRef) -> Iterator[int]:
    """The lengths of the tables that an input is an index into, those in nested models too."""
    for layer in model.layers:
        for call in layer.calls:
            given = list(references((call.args, call.kwargs)))
            for place, each in enumerate(given):
                if each == ref:
                    yield from _rows_of(layer, place)


def _rows_of(layer: Layer, place: int) -> Iterator[int]:
    if layer.class_name == "Embedding" and layer.weights:
        yield len(layer.weights[0])
    elif layer.model is not None and place < len(layer.model.inputs):
        yield from _rows(layer.model, layer.model.inputs[place])
    elif "layer" in layer.inner:
        yield from _rows_of(layer.inner["layer"], place)
