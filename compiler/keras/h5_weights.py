"""The two ways in which Keras lays weights into HDF5, as sources of a model's arrays.

Keras 2 and whatever writes full `.h5` files: a group for each layer, whose attribute weight_names
lists its arrays. Keras 3, and tf_keras in `.keras` files: the tree of objects,
layers/dense_1/vars/0, by class and not by name (keras, src/saving/saving_lib.py).
"""

import re
from collections.abc import Mapping, Sequence

import h5py

from fxloom.errors import CaptureError
from fxloom.keras.description import Array, Layer, Model
from fxloom.keras.h5_file import H5
from fxloom.keras.identity import OPERATIONS
from fxloom.keras.variables import Variable
from fxloom.keras.weights import Layers, Source, divided

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
"""What holds a model's layers, in later files and in those of TensorFlow 2.13."""


def source_of(file: H5, root: h5py.Group, model: Model) -> Layers:
    """The arrays below a group. Raises CaptureError where they are of layers that the model has
    not."""
    names = file.texts(root, "layer_names")
    if names or file.has(root, "layer_names"):
        own = {layer.name for layer in model.layers}
        with_weights = [name for name in names if name not in own and _listed(file, root, name)]
        if with_weights:
            raise _strangers(with_weights)
        return _ByName(file, root)
    if any(file.group(root, container) is not None for container in CONTAINERS):
        return _Tree(file, root)
    raise CaptureError("no weights of Keras: neither layer_names nor layers are in the file")


def _strangers(names: Sequence[str]) -> CaptureError:
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return CaptureError(f"it has weights of layers that are not in the config: {listed}")


def _listed(file: H5, root: h5py.Group, layer: str) -> list[str]:
    group = file.group(root, layer)
    return [] if group is None else file.texts(group, "weight_names")


class _ByName:
    """Groups of Keras 2."""

    def __init__(self, file: H5, root: h5py.Group) -> None:
        self._file, self._root = file, root

    def of_layer(self, model: Model, layer: Layer) -> Source:
        names = _listed(self._file, self._root, layer.name)
        if len(set(names)) < len(names):
            raise CaptureError(f"layer {layer.name}: two of its arrays have the same name")
        group = self._file.group(self._root, layer.name)
        arrays = [self._file.array(group, name) for name in names] if group is not None else []
        return _Divided(divided(layer, arrays))


class _Divided:
    """What one group had, among the layers within a layer."""

    def __init__(self, arrays: Mapping[int, Sequence[Array]]) -> None:
        self._arrays = arrays

    def of_layer(self, model: Model, layer: Layer) -> Source:
        return self

    def of_part(self, layer: Layer, key: str) -> Source:
        return self

    def arrays(self, layer: Layer, variables: Sequence[Variable] | None) -> Sequence[Array]:
        return self._arrays.get(id(layer), ())


class _Tree:
    """The tree of objects of Keras 3 below a group; None where the file has nothing of it."""

    def __init__(self, file: H5, group: h5py.Group | None) -> None:
        self._file, self._group = file, group

    def of_layer(self, model: Model, layer: Layer) -> Source:
        for container in CONTAINERS:
            group = self._below(container)
            if group is not None:
                keys = _keys(model)
                strangers = set(self._file.names(group)) - set(keys.values())
                if strangers:
                    raise _strangers(sorted(strangers))
                return _Tree(self._file, self._file.group(group, keys[layer.name]))
        return _Tree(self._file, None)

    def of_part(self, layer: Layer, key: str) -> Source:
        two = layer.class_name in ("Bidirectional", "QBidirectional")
        return _Tree(self._file, self._below("forward_layer" if two and key == "layer" else key))

    def arrays(self, layer: Layer, variables: Sequence[Variable] | None) -> Sequence[Array]:
        if variables is None:
            return self._variables(self._group)
        held: dict[tuple[str, ...], list[Array]] = {}
        for part in dict.fromkeys([(), *(variable.part for variable in variables)]):
            group = self._group
            for name in part:  # tf_keras keeps some of them under private names
                group = self._below(name, group) or self._below(f"_{name}", group)
            held[part] = self._variables(group)
        if any(len(found) != _count(variables, part) for part, found in held.items()):
            return [array for found in held.values() for array in found]
        return [held[variable.part].pop(0) for variable in variables]

    def _below(self, name: str, group: h5py.Group | None = None) -> h5py.Group | None:
        group = self._group if group is None else group
        return None if group is None else self._file.group(group, name)

    def _variables(self, group: h5py.Group | None) -> list[Array]:
        kept = None if group is None else self._file.group(group, "vars")
        if kept is None:
            return []
        names = self._file.names(kept)
        if set(names) != {str(position) for position in range(len(names))}:
            raise CaptureError(f"{kept.name}: required arrays 0 to {len(names) - 1}")
        return [self._file.array(kept, str(position)) for position in range(len(names))]


def _count(variables: Sequence[Variable], part: tuple[str, ...]) -> int:
    return sum(variable.part == part for variable in variables)


def _keys(model: Model) -> dict[str, str]:
    """What the tree calls a model's layers: by class, and by number where there are several."""
    seen: dict[str, int] = {}
    found = {}
    for layer in model.layers:
        if layer.package == OPERATIONS:
            continue
        name = _snake_case("Functional" if layer.class_name == "Model" else layer.class_name)
        number = seen.get(name, 0)
        seen[name] = number + 1
        found[layer.name] = f"{name}_{number}" if number else name
    return found


def _snake_case(name: str) -> str:
    """max_pooling2d of MaxPooling2D: words begin with a capital before or behind small letters."""
    return re.sub(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", name).lower()
