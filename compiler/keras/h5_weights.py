"""The two ways in which Keras lays weights into HDF5, as sources of a model's arrays.

Keras 2 and whatever writes full `.h5` files: a group for each layer, whose attribute weight_names
lists its arrays. Keras 3, and tf_keras in `.keras` files: the tree of objects,
layers/dense_1/vars/0, by class and not by name (keras, src/saving/saving_lib.py).
"""

import re
from collections.abc import Mapping, Sequence

from fxloom.errors import CaptureError
from fxloom.keras.description import Array, Layer, Model
from fxloom.keras.h5_file import H5
from fxloom.keras.identity import OPERATIONS
from fxloom.keras.variables import Variable
from fxloom.keras.weights import Layers, Source, divided

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
"""What holds a model's layers, in later files and in those of TensorFlow 2.13."""


def source_of(file: H5, root: str, model: Model) -> Layers:
    """The arrays below a group. Raises CaptureError where they are of layers that the model has
    not."""
    names = file.texts(root, "layer_names")
    if names or file.has(root, "layer_names"):
        own = {layer.name for layer in model.layers}
        strangers = [name for name in names if name not in own]
        with_weights = [x for x in strangers if file.texts(_below(root, x), "weight_names")]
        if with_weights:
            raise _strangers(with_weights)
        return _ByName(file, root)
    if any(file.is_group(_below(root, container)) for container in CONTAINERS):
        return _Tree(file, root)
    raise CaptureError("no weights of Keras: neither layer_names nor layers are in the file")


def _strangers(names: Sequence[str]) -> CaptureError:
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return CaptureError(f"it has weights of layers that are not in the config: {listed}")


def _below(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


class _ByName:
    """Groups of Keras 2."""

    def __init__(self, file: H5, root: str) -> None:
        self._file, self._root = file, root

    def of_layer(self, model: Model, layer: Layer) -> Source:
        group = _below(self._root, layer.name)
        names = self._file.texts(group, "weight_names")
        if len(set(names)) < len(names):
            raise CaptureError(f"layer {layer.name}: two of its arrays have the same name")
        arrays = [self._file.array(_below(group, name)) for name in names]
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
    """The tree of objects of Keras 3 below a group, which need not be there."""

    def __init__(self, file: H5, group: str) -> None:
        self._file, self._group = file, group

    def of_layer(self, model: Model, layer: Layer) -> Source:
        keys = _keys(model)
        groups = [_below(self._group, container) for container in CONTAINERS]
        group = next((each for each in groups if self._file.is_group(each)), groups[0])
        strangers = set(self._file.names(group)) - set(keys.values())
        if strangers:
            raise _strangers(sorted(strangers))
        return _Tree(self._file, _below(group, keys[layer.name]))

    def of_part(self, layer: Layer, key: str) -> Source:
        two = layer.class_name in ("Bidirectional", "QBidirectional")
        part = "forward_layer" if two and key == "layer" else key
        return _Tree(self._file, _below(self._group, part))

    def arrays(self, layer: Layer, variables: Sequence[Variable] | None) -> Sequence[Array]:
        if variables is None:
            return self._variables(self._group)
        held: dict[tuple[str, ...], list[Array]] = {}
        for part in dict.fromkeys([(), *(variable.part for variable in variables)]):
            group = self._group
            for name in part:  # tf_keras keeps some of them under private names
                public = _below(group, name)
                group = public if self._file.is_group(public) else _below(group, f"_{name}")
            held[part] = self._variables(group)
        if any(len(found) != _count(variables, part) for part, found in held.items()):
            return [array for found in held.values() for array in found]
        return [held[variable.part].pop(0) for variable in variables]

    def _variables(self, group: str) -> list[Array]:
        kept = _below(group, "vars")
        names = self._file.names(kept)
        if set(names) != {str(position) for position in range(len(names))}:
            raise CaptureError(f"{kept}: required arrays 0 to {len(names) - 1}")
        return [self._file.array(_below(kept, str(position))) for position in range(len(names))]


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
