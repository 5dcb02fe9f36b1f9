"""Files as Keras 2 and Keras 3 write them, made with h5py and zipfile alone."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Json = dict[str, Any]
Arrays = Mapping[str, Sequence[Any]]


def ramp(*shape: int) -> Any:
    """Numbers that differ, in float32."""
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def layer(class_name: str, name: str, inbound: Sequence[Any] = (), **config: Any) -> Json:
    """A layer of Keras 2, called by nodes [[[name, call, output, keywords], ...], ...]."""
    return {
        "class_name": class_name,
        "config": {"name": name, **config},
        "name": name,
        "inbound_nodes": list(inbound),
    }


def dense(name: str, inbound: Sequence[Any], units: int, **config: Any) -> Json:
    """A dense layer with a bias."""
    given = {"units": units, "activation": "linear", "use_bias": True} | config
    return layer("Dense", name, inbound, **given)


def inputs(name: str, *shape: int) -> Json:
    """An input; None samples."""
    return layer("InputLayer", name, batch_input_shape=[None, *shape], dtype="float32")


def functional(layers: Sequence[Json], ins: Any, outs: Any, name: str = "net") -> Json:
    """A model of Keras 2."""
    config = {"name": name, "layers": list(layers), "input_layers": ins, "output_layers": outs}
    return {"class_name": "Functional", "config": config}


def small() -> Json:
    """Two dense layers, 3 -> 4 -> 2."""
    layers = [
        inputs("x", 3),
        dense("fc1", [[["x", 0, 0, {}]]], 4, activation="relu"),
        dense("fc2", [[["fc1", 0, 0, {}]]], 2),
    ]
    return functional(layers, [["x", 0, 0]], [["fc2", 0, 0]])


def small_arrays() -> dict[str, list[Any]]:
    """Those of small()."""
    return {"fc1": [ramp(3, 4), ramp(4)], "fc2": [ramp(4, 2), ramp(2)]}


def newer(model: Json) -> Json:
    """The same model as Keras 3 writes it, which tells the modules of classes."""
    made = json.loads(json.dumps(model))
    made["module"] = "keras.src.models.functional"
    for each in made["config"]["layers"]:
        each["module"], each["registered_name"] = "keras.layers", None
        each["inbound_nodes"] = [
            {"args": [_tensor(*ref[:3]) for ref in node], "kwargs": {"mask": None}}
            for node in each["inbound_nodes"]
        ]
    return dict(made)


def _tensor(*history: Any) -> Json:
    config = {"shape": [None, 1], "dtype": "float32", "keras_history": list(history)}
    return {"class_name": "__keras_tensor__", "config": config}


def write_weights(group: h5py.Group, arrays: Arrays) -> None:
    """As Keras 2: a group for each layer, and names in attributes."""
    group.attrs["layer_names"] = [name.encode() for name in arrays]
    for name, kept in arrays.items():
        below = group.create_group(name)
        names = [f"{name}/array_{position}:0" for position in range(len(kept))]
        below.attrs["weight_names"] = [each.encode() for each in names]
        for each, array in zip(names, kept, strict=True):
            below[each] = array


def write_h5(path: Path, model: Json | str, arrays: Arrays, version: str = "2.15.0") -> Path:
    """A full `.h5` file."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version
        file.attrs["model_config"] = model if isinstance(model, str) else json.dumps(model)
        write_weights(file.create_group("model_weights"), arrays)
    return path


def tree(arrays: Arrays) -> bytes:
    """As Keras 3: layers/dense/vars/0 by paths of groups."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_group("vars")
        for path, kept in arrays.items():
            below = file.create_group(f"layers/{path}/vars")
            for position, array in enumerate(kept):
                below[str(position)] = array
    return buffer.getvalue()


def small_tree() -> bytes:
    """The weights of small() as Keras 3 keeps them."""
    fc1, fc2 = small_arrays().values()
    return tree({"input_layer": [], "dense": fc1, "dense_1": fc2})


def write_keras(path: Path, members: Mapping[str, bytes | str] | None = None) -> Path:
    """A `.keras` archive of small(), with some members replaced; without those that are empty."""
    content: dict[str, bytes | str] = {
        "metadata.json": json.dumps({"keras_version": "3.9.0"}),
        "config.json": json.dumps(newer(small())),
        "model.weights.h5": small_tree(),
    } | dict(members or {})
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            if data:
                archive.writestr(name, data)
    return path
