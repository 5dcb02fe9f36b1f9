"""The arrays of a model put into its description, checked against what its config says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from fxloom.errors import CaptureError
from fxloom.keras.description import Array, Layer, Model
from fxloom.keras.identity import OPERATIONS
from fxloom.keras.variables import Shape, Variable, variables_of


class Layers(Protocol):
    """Where the arrays of a model come from."""

    def of_layer(self, model: Model, layer: Layer) -> Source:
        """The arrays of one of the model's layers."""


class Source(Layers, Protocol):
    """Where the arrays of a layer come from, which may be a model."""

    def of_part(self, layer: Layer, key: str) -> Source:
        """The arrays of the layer that a layer's config holds under a key."""

    def arrays(self, layer: Layer, variables: Sequence[Variable] | None) -> Sequence[Array]:
        """Those of a layer without layers in it, in the order of its variables, where known."""


class Indivisible(Exception):
    """Why the arrays of a nested model cannot be told apart."""


def attached(model: Model, source: Layers) -> Model:
    """The model with its arrays. Raises CaptureError listing all that are not what the config
    says."""
    problems: list[str] = []
    found = _model(model, source, "", problems)
    if problems:
        raise CaptureError(
            "its weights are not those of its config:\n" + "\n".join(f"  {x}" for x in problems)
        )
    return found


def _model(model: Model, source: Layers, prefix: str, problems: list[str]) -> Model:
    layers = []
    for layer in model.layers:
        if layer.refusal or layer.class_name == "InputLayer" or layer.package == OPERATIONS:
            layers.append(layer)
            continue
        try:
            own = source.of_layer(model, layer)
            layers.append(_layer(layer, own, f"{prefix}{layer.label}", problems))
        except Indivisible as reason:
            layers.append(replace(layer, refusal=str(reason)))
    return replace(model, layers=tuple(layers))


def _layer(layer: Layer, source: Source, where: str, problems: list[str]) -> Layer:
    if layer.model is not None:
        return replace(layer, model=_model(layer.model, source, f"{where}.", problems))
    if layer.inner:
        inner = {
            key: _layer(one, source.of_part(layer, key), f"{where}.{key}", problems)
            for key, one in layer.inner.items()
        }
        arrays = tuple(array for one in inner.values() for array in one.weights)
        return replace(layer, inner=inner, weights=arrays)
    variables = variables_of(layer)
    arrays = tuple(source.arrays(layer, variables))
    known = variables if variables is not None else [Variable(f"[{i}]") for i in range(len(arrays))]
    if len(known) != len(arrays):
        names = ", ".join(each.name for each in known) or "none"
        problems.append(f"{where}: required {len(known)} arrays ({names}), got {len(arrays)}")
        return layer
    checked = []
    for variable, array in zip(known, arrays, strict=True):
        try:
            checked.append(_checked(variable, array))
        except CaptureError as fault:
            problems.append(f"{where}, {variable.name}: {fault}")
    return replace(layer, weights=tuple(checked))


def _checked(variable: Variable, array: Array) -> Array:
    """An array of the shape, as float32 or an integer. Raises CaptureError."""
    if variable.shape is not None and not _fits(array.shape, variable.shape):
        wanted = " x ".join("any" if size is None else str(size) for size in variable.shape)
        got = " x ".join(map(str, array.shape))
        raise CaptureError(f"required shape {wanted or 'of a number'}, got {got or 'a number'}")
    kind = array.dtype
    if kind.kind in "iub" or kind == np.float32:
        return array.astype(kind.newbyteorder("="), copy=False)
    narrow = array.astype(np.float32) if kind == np.float64 else None
    if narrow is not None and np.array_equal(narrow.astype(np.float64), array, equal_nan=True):
        return narrow
    raise CaptureError(f"required float32, got {kind}. Save the model in float32")


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        size is None or size == got for got, size in zip(shape, wanted, strict=True)
    )


def divided(layer: Layer, arrays: Sequence[Array]) -> Mapping[int, list[Array]]:
    """A layer's arrays among the layers in it without layers in them, by their id.

    arrays: as `.h5` files have them: those that are trained, in the order of the layers, then those
    that are not; where a layer is frozen, all of its are among the latter. Raises Indivisible where
    a class in it is not known, CaptureError where they are too few or too many.
    """
    within = list(leaves(layer))
    if within == [layer] and len(variables_of(layer) or ()) != len(arrays):
        return {id(layer): list(arrays)}
    unknown = [one for one in within if one.refusal or variables_of(one) is None]
    if unknown and arrays:
        reasons = (
            f"{one.label}: {one.refusal or 'no such layer is known here'}" for one in unknown
        )
        raise Indivisible("its weights cannot be divided among its layers: " + "; ".join(reasons))
    trained, rest = _ordered(layer)
    slots = [*trained, *rest]
    if len(slots) != len(arrays):
        raise CaptureError(f"{layer.label}: required {len(slots)} arrays, got {len(arrays)}")
    found: dict[tuple[int, int], Array] = dict(zip(slots, arrays, strict=True))
    return {
        id(one): [found[id(one), position] for position in range(len(variables_of(one) or ()))]
        for one in within
    }


def leaves(layer: Layer) -> Iterator[Layer]:
    """The layers within a layer that have no others in them, in the order of Keras' weights."""
    within = layer.model.layers if layer.model is not None else tuple(layer.inner.values())
    if not within:
        yield layer
    for one in within:
        yield from leaves(one)


def _ordered(layer: Layer) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Leaves and positions of the arrays that are trained, and of the others."""
    trained: list[tuple[int, int]] = []
    rest: list[tuple[int, int]] = []
    within = layer.model.layers if layer.model is not None else tuple(layer.inner.values())
    if within:
        for one in within:
            some, others = _ordered(one)
            trained, rest = trained + some, rest + others
        frozen = trained + rest
    else:
        variables = variables_of(layer) or ()
        for position, variable in enumerate(variables):
            (trained if variable.trained else rest).append((id(layer), position))
        # Its own before those of the layers within it, which QKeras' folded layers have.
        frozen = sorted(trained + rest, key=lambda slot: variables[slot[1]].part != ())
    return ([], frozen) if layer.config.get("trainable", True) is False else (trained, rest)
