"""The JSON of Keras 2 and Keras 3 as a description."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fxloom.errors import CaptureError
from fxloom.keras.description import Array, Call, Layer, Model, TensorRef

Weights = Callable[[tuple[str, ...]], Sequence[Array]]
"""The arrays of a layer by the names on the way to it, in the order of Keras' layer.weights."""

MODELS = ("Functional", "Model", "Sequential")


def model_of(
    config: Mapping[str, Any], generation: int, weights: Weights, path: tuple[str, ...] = ()
) -> Model:
    """The model of {"class_name": ..., "config": ...}."""
    if config["class_name"] == "Sequential":
        return _sequential(config["config"], generation, weights, path)
    return _functional(config["config"], generation, weights, path)


def _functional(
    config: Mapping[str, Any], generation: int, weights: Weights, path: tuple[str, ...]
) -> Model:
    layers = tuple(
        _layer(each, generation, weights, path, _calls(each["inbound_nodes"]))
        for each in config["layers"]
    )
    return Model(
        config["name"], layers, _ports(config["input_layers"]), _ports(config["output_layers"])
    )


def _sequential(
    config: Mapping[str, Any], generation: int, weights: Weights, path: tuple[str, ...]
) -> Model:
    described = list(config["layers"])
    if described[0]["class_name"] != "InputLayer":
        first = described[0]["config"]
        shape = first.get("batch_input_shape") or config.get("build_input_shape")
        if shape is None:
            raise CaptureError(f"model {config['name']}: its input shape is not known: build it")
        inputs = {"name": "input", "batch_shape": shape, "dtype": "float32"}
        described.insert(0, {"class_name": "InputLayer", "config": inputs})
    layers: list[Layer] = []
    for each in described:
        calls = (Call((TensorRef(layers[-1].name),)),) if layers else (Call(()),)
        layers.append(_layer(each, generation, weights, path, calls))
    return Model(
        config["name"], tuple(layers), (TensorRef(layers[0].name),), (TensorRef(layers[-1].name),)
    )


def _layer(
    described: Mapping[str, Any],
    generation: int,
    weights: Weights,
    path: tuple[str, ...],
    calls: tuple[Call, ...],
) -> Layer:
    kind, config = described["class_name"], described["config"]
    name = config["name"]
    here = (*path, name)
    package = "qkeras" if kind.startswith("Q") else "keras"
    if kind in MODELS:
        model = model_of(described, generation, weights, here)
        return Layer(kind, name, config, (), calls, package, generation, model)
    arrays = () if kind == "InputLayer" else tuple(weights(here))
    return Layer(kind, name, config, arrays, calls, package, generation)


def _ports(described: Sequence[Any]) -> tuple[TensorRef, ...]:
    flat = [described] if isinstance(described[0], str) else described
    return tuple(TensorRef(*each) for each in flat)


def _calls(nodes: Sequence[Any]) -> tuple[Call, ...]:
    calls = []
    for node in nodes:
        if isinstance(node, Mapping):
            calls.append(Call(tuple(map(_argument, node["args"])), _argument(node["kwargs"])))
        else:
            refs = [TensorRef(*each[:3]) for each in node]
            calls.append(Call((refs[0] if len(refs) == 1 else refs,)))
    return tuple(calls) or (Call(()),)


def _argument(described: Any) -> Any:
    if isinstance(described, Mapping):
        if described.get("class_name") == "__keras_tensor__":
            return TensorRef(*described["config"]["keras_history"])
        return {key: _argument(each) for key, each in described.items()}
    if isinstance(described, list | tuple):
        return [_argument(each) for each in described]
    return described
