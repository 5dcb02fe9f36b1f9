"""How layers are called: the inbound nodes of Keras 2 and Keras 3, and the ends of a model.

Keras 2 writes [layer, call, output, keywords] for every tensor of the first argument (tf_keras,
engine/node.py), Keras 3 {"args": [...], "kwargs": {...}} with tensors as dictionaries
(keras, src/models/functional.py). Both may be in one file: Keras 3 writes `.h5` files as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fxloom.errors import CaptureError
from fxloom.keras.description import Call, TensorRef
from fxloom.keras.json_access import index, mapping, sequence, shown, text

Resolve = Callable[[TensorRef], TensorRef]
"""From the numbers that Keras counts calls with to ours."""

_CONSTANT = "_CONSTANT_VALUE"
_SIGNALS = ("__numpy__", "__tensor__")


def call_of(node: Any, resolve: Resolve, place: str) -> Call:
    """One inbound node. Raises CaptureError for what is none."""
    if isinstance(node, Mapping) and "args" in node and "kwargs" in node:
        arguments = sequence(node["args"], f"{place}.args")
        found = [_argument(each, resolve, f"{place}.args") for each in arguments]
        named = mapping(node["kwargs"], f"{place}.kwargs")
        kwargs = {key: _argument(x, resolve, f"{place}.kwargs.{key}") for key, x in named.items()}
        return Call(tuple(found), _given(kwargs))
    kwargs = {}
    first = _structure(node, resolve, place, kwargs)
    if isinstance(first, list) and len(first) == 1:
        first = first[0]
    return Call((first,), _given(kwargs))


def is_generation_3(node: Any) -> bool:
    """Whether a node is written as Keras 3 does."""
    return isinstance(node, Mapping) and "args" in node


def ports(structure: Any, resolve: Resolve, place: str) -> tuple[TensorRef, ...]:
    """Inputs or outputs of a model in the order in which Keras takes and returns them: those of a
    dictionary by their names."""
    return tuple(_leaves(structure, resolve, place))


def _leaves(structure: Any, resolve: Resolve, place: str) -> Iterator[TensorRef]:
    if _is_reference(structure):
        yield resolve(_reference(structure, place))
    elif isinstance(structure, Mapping):
        for key in sorted(mapping(structure, place)):
            yield from _leaves(structure[key], resolve, f"{place}.{key}")
    else:
        for position, each in enumerate(sequence(structure, place)):
            yield from _leaves(each, resolve, f"{place}[{position}]")


def _is_reference(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) >= 3 and isinstance(value[0], str)


def _reference(value: Sequence[Any], place: str) -> TensorRef:
    if len(value) != 3:
        raise CaptureError(f"{place}: required layer, call and output, got {shown(value)}")
    return TensorRef(text(value[0], place), index(value[1], place), index(value[2], place))


def _structure(node: Any, resolve: Resolve, place: str, kwargs: dict[str, Any]) -> Any:
    """The first argument of a layer of Keras 2; the others are in the last tensor's keywords."""
    if isinstance(node, Mapping):
        return {
            key: _structure(each, resolve, f"{place}.{key}", kwargs)
            for key, each in mapping(node, place).items()
        }
    node = sequence(node, place)
    if not (node and isinstance(node[0], str)):
        return [
            _structure(each, resolve, f"{place}[{position}]", kwargs)
            for position, each in enumerate(node)
        ]
    if len(node) not in (3, 4):
        raise CaptureError(f"{place}: required layer, call and output, got {shown(node)}")
    if len(node) == 4:
        kwargs.clear()
        for key, each in mapping(node[3], place).items():
            kwargs[key] = _keyword(each, resolve, f"{place}.{key}")
    if node[0] == _CONSTANT:
        return _constant(node[2], "float32", place)
    return resolve(_reference(node[:3], place))


def _keyword(value: Any, resolve: Resolve, place: str) -> Any:
    """A keyword of Keras 2: tensors are lists of a text and two integers."""
    if _is_reference(value) and len(value) == 3 and all(type(x) is int for x in value[1:]):
        return resolve(_reference(value, place))
    if isinstance(value, Mapping):
        return {key: _keyword(each, resolve, f"{place}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_keyword(each, resolve, place) for each in value]
    return value


def _argument(value: Any, resolve: Resolve, place: str) -> Any:
    """An argument of Keras 3."""
    if isinstance(value, list | tuple):
        return [_argument(each, resolve, place) for each in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get("class_name")
    if kind is None:
        return {key: _argument(each, resolve, f"{place}.{key}") for key, each in value.items()}
    config = mapping(value.get("config"), f"{place}.config")
    if kind == "__keras_tensor__":
        history = sequence(config.get("keras_history"), f"{place}.keras_history")
        return resolve(_reference(history, place))
    if kind in _SIGNALS:
        return _constant(config.get("value"), config.get("dtype"), place)
    if kind == "__slice__":
        return slice(*(config.get(end) for end in ("start", "stop", "step")))
    if kind == "__ellipsis__":
        return Ellipsis
    raise CaptureError(f"{place}: an argument of class {shown(kind)} is not known here")


def _constant(value: Any, dtype: Any, place: str) -> Any:
    """Numbers as an array; one number as it is."""
    if dtype not in ("float32", "float64", "int32", "int64", "bool"):
        raise CaptureError(f"{place}: a constant of type {shown(dtype)} is not known here")
    try:
        array = np.asarray(value, dtype)
    except (ValueError, TypeError, OverflowError) as fault:
        raise CaptureError(f"{place}: required a tensor of numbers: {fault}") from None
    return array if array.ndim else array.item()


def _given(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that say nothing: Keras 2 writes all of them."""
    return {
        key: value
        for key, value in kwargs.items()
        if value is not None and not (key == "training" and value is False)
    }
