"""The JSON of Keras 2 and Keras 3 as a description without arrays, checked all over."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fxloom.errors import CaptureError
from fxloom.keras.calls import Resolve, call_of, is_generation_3, ports
from fxloom.keras.description import Call, Layer, Model, TensorRef, references
from fxloom.keras.identity import KERAS, package_of, plain, refusals
from fxloom.keras.json_access import check_depth, index, mapping, sequence, shown, text

MODELS = ("Functional", "Model", "Sequential")
INNER = ("layer", "backward_layer", "cell")
"""Keys of a config that hold a layer."""

_MERGE_NAMES = "Add Subtract Multiply Average Maximum Minimum Concatenate Dot"
_MERGES = frozenset(_MERGE_NAMES.split())

MAX_NESTED = 16
"""Models in models, and wrappers in wrappers."""


def model_of(described: Any, generation: int) -> Model:
    """The model of {"class_name": ..., "config": ...}, without arrays.

    generation: of the Keras that wrote it. Raises CaptureError for what is no model of Keras, and
    names the place; layers that cannot be had are described and say so (Layer.refusal).
    """
    check_depth(described, "model")
    described = mapping(described, "model")
    class_name = text(described.get("class_name"), "model.class_name")
    whose = package_of(class_name, described.get("module"), described.get("registered_name"))
    config = mapping(described.get("config"), "model.config")
    if whose != KERAS or class_name not in MODELS or "layers" not in config:
        raise CaptureError(
            f"required a Functional or Sequential model of Keras, got the class {class_name}: what "
            "a class of its own computes is code and not in its config. Build the model as "
            "keras.Model(inputs, outputs) of layers of Keras, with the same weights, and give that"
        )
    return _model(class_name, config, generation, "model", 0)


def _model(
    class_name: str, config: Mapping[str, Any], generation: int, place: str, depth: int
) -> Model:
    name = text(config.get("name", "model"), f"{place}.name")
    place = f"model {name}" if depth == 0 else place
    listed = sequence(config.get("layers"), f"{place}.layers")
    places = [f"{place}.layers[{position}]" for position in range(len(listed))]
    described = [mapping(each, where) for each, where in zip(listed, places, strict=True)]
    if not described:
        raise CaptureError(f"{place}: it has no layers")
    layers = [
        _layer(each, generation, where, depth)
        for each, where in zip(described, places, strict=True)
    ]
    if class_name == "Sequential":
        return _chain(name, layers, config)
    _check_names(layers, place)
    found, late = _resolvers(layers, described, generation)
    called = []
    for layer, each, where in zip(layers, described, places, strict=True):
        where = f"{where} ({layer.name}).inbound_nodes"
        nodes = sequence(each.get("inbound_nodes", ()), where)
        calls = tuple(call_of(node, found, f"{where}[{i}]") for i, node in enumerate(nodes))
        called.append(_called(layer, calls))
    model = Model(
        name,
        tuple(called),
        ports(config.get("input_layers"), late, f"{place}.input_layers"),
        ports(config.get("output_layers"), late, f"{place}.output_layers"),
    )
    _check_graph(model, place)
    return model


def _layer(described: Mapping[str, Any], generation: int, place: str, depth: int) -> Layer:
    """A layer that nothing calls yet."""
    class_name = text(described.get("class_name"), f"{place}.class_name")
    config = mapping(described.get("config"), f"{place}.config")
    name = text(described.get("name", config.get("name")), f"{place}.name")
    if config.get("name", name) != name:
        raise CaptureError(f"{place}: it has two names, {name} and {shown(config['name'])}")
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise CaptureError(f"{place}: {name!r} is no name of a layer")
    package = package_of(class_name, described.get("module"), described.get("registered_name"))
    reasons = list(refusals(class_name, package, {**described, "config": config}))
    config = dict(plain(config))
    build = described.get("build_config")
    shape = build.get("input_shape") if isinstance(build, Mapping) else None
    layer = Layer(class_name, name, config, (), (), package, generation, input_shape=shape)
    if package == KERAS and class_name in MODELS and not reasons:
        where = f"{place} ({name})"
        _check_nesting(depth, where)
        model = _model(class_name, config, generation, where, depth + 1)
        return replace(layer, model=model)
    inner = {} if reasons else _inner(layer, place, depth)
    reasons += [f"{one.label}: {one.refusal}" for one in inner.values() if one.refusal]
    return replace(layer, inner=inner, refusal="; ".join(reasons))


def _inner(layer: Layer, place: str, depth: int) -> dict[str, Layer]:
    """The layers that a config holds; a Bidirectional always has both."""
    found = {key: layer.config[key] for key in INNER if isinstance(layer.config.get(key), Mapping)}
    if layer.class_name in ("Bidirectional", "QBidirectional") and "layer" in found:
        found.setdefault("backward_layer", _backward(found["layer"], place))
    if found:
        _check_nesting(depth, place)
    return {
        key: _layer({"name": key, **_named(each)}, layer.generation, f"{place}.{key}", depth + 1)
        for key, each in found.items()
    }


def _named(described: Mapping[str, Any]) -> dict[str, Any]:
    """A layer within a config is called as its own config says."""
    config = described.get("config")
    named = isinstance(config, Mapping) and "name" in config
    return {**described, "name": config["name"]} if named and config else dict(described)


def _backward(forward: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The other layer of a Bidirectional, which is made from the first (layers/rnn)."""
    config = dict(mapping(forward.get("config"), f"{place}.layer.config"))
    config["go_backwards"] = not config.get("go_backwards", False)
    return {**forward, "config": config}


def _check_nesting(depth: int, place: str) -> None:
    if depth >= MAX_NESTED:
        raise CaptureError(f"{place}: models and wrappers are nested more than {MAX_NESTED} deep")


def _called(layer: Layer, calls: tuple[Call, ...]) -> Layer:
    if layer.class_name == "InputLayer":
        return replace(layer, calls=(Call(()),))
    reasons = [layer.refusal] if layer.refusal else []
    if any(call.kwargs.get("training") for call in calls):
        reasons.append("it is called with training=True. Call it without")
    lists = all(call.args and isinstance(call.args[0], list) for call in calls)
    if layer.package == KERAS and layer.class_name in _MERGES and not lists:
        reasons.append("an operation outside a layer. Use the layer of its name, on a list")
    calls = tuple(
        Call(call.args, {key: x for key, x in call.kwargs.items() if key != "training"})
        for call in calls
    )
    return replace(layer, calls=calls, refusal="; ".join(reasons))


def _chain(name: str, layers: list[Layer], config: Mapping[str, Any]) -> Model:
    """A Sequential model; its input is declared by an InputLayer, the first layer or the model."""
    if layers[0].class_name != "InputLayer":
        first = layers[0].config
        shape = first.get("batch_input_shape", first.get("batch_shape"))
        known = shape if shape is not None else config.get("build_input_shape")
        names = {layer.name for layer in layers}
        free = next(
            x for x in ("input", *(f"input_{i}" for i in range(len(names)))) if x not in names
        )
        inputs = {"name": free, "batch_shape": known, "dtype": "float32"}
        layers = [Layer("InputLayer", free, inputs, generation=layers[0].generation), *layers]
    _check_names(layers, f"model {name}")
    before = [Call(()), *(Call((TensorRef(layer.name),)) for layer in layers)]
    chain = tuple(replace(x, calls=(call,)) for x, call in zip(layers, before, strict=False))
    return Model(name, chain, (TensorRef(chain[0].name),), (TensorRef(chain[-1].name),))


def _check_names(layers: Iterable[Layer], place: str) -> None:
    seen: set[str] = set()
    for layer in layers:
        if layer.name in seen:
            raise CaptureError(f"{place}: two layers are called {layer.name}")
        seen.add(layer.name)


def _resolvers(
    layers: Sequence[Layer], described: Sequence[Mapping[str, Any]], generation: int
) -> tuple[Resolve, Resolve]:
    """How calls are counted in arguments and in the ends of a model.

    A nested model has a call of its own, from when it was made, that is not written: Keras 2 counts
    it everywhere, Keras 3 for Functional models, where inputs and outputs of the outer one are
    named, and not in arguments.
    """
    newer = generation == 3 or any(
        is_generation_3(node)
        for each in described
        for node in (each.get("inbound_nodes") or ())
        if isinstance(each.get("inbound_nodes"), list | tuple)
    )
    own = {
        layer.name
        for layer, each in zip(layers, described, strict=True)
        if layer.model is not None and (layer.class_name != "Sequential" or _counts(each, newer))
    }

    def found(ref: TensorRef) -> TensorRef:
        return ref if newer else late(ref)

    def late(ref: TensorRef) -> TensorRef:
        return replace(ref, call=ref.call - 1) if ref.layer in own else ref

    return found, late


def _counts(sequential: Mapping[str, Any], newer: bool) -> bool:
    first = sequential["config"]["layers"][0]
    return not newer and (
        first["class_name"] == "InputLayer" or "batch_input_shape" in first["config"]
    )


def _check_graph(model: Model, place: str) -> None:
    """Raise CaptureError for tensors that are not there, in a circle, or inputs that are none."""
    layers = {layer.name: layer for layer in model.layers}
    for layer in model.layers:
        for ref in references([(call.args, call.kwargs) for call in layer.calls]):
            _check_reference(ref, layers, f"{place}, layer {layer.name}")
    for ref in (*model.inputs, *model.outputs):
        _check_reference(ref, layers, place)
    if not model.inputs or not model.outputs:
        raise CaptureError(f"{place}: it has no {'outputs' if model.inputs else 'inputs'}")
    for ref in model.inputs:
        if layers[ref.layer].class_name != "InputLayer":
            raise CaptureError(f"{place}: its input {ref.layer} is no InputLayer")
    if len(set(model.inputs)) < len(model.inputs):
        raise CaptureError(f"{place}: two of its inputs are the same")
    _check_order(model, layers, place)


def _check_reference(ref: TensorRef, layers: Mapping[str, Layer], place: str) -> None:
    if ref.layer not in layers:
        raise CaptureError(f"{place}: it reads layer {ref.layer}, which is not there")
    layer = layers[ref.layer]
    index(ref.call, f"{place}: a call of {ref.layer}")
    if ref.call >= len(layer.calls):
        raise CaptureError(
            f"{place}: it reads call {ref.call} of {ref.layer}, which is called "
            f"{len(layer.calls)} times"
        )
    outputs = len(layer.model.outputs) if layer.model is not None else None
    if layer.class_name == "InputLayer":
        outputs = 1
    if outputs is not None and ref.output >= outputs:
        raise CaptureError(
            f"{place}: it reads output {ref.output} of {ref.layer}, which has {outputs}"
        )


def _check_order(model: Model, layers: Mapping[str, Layer], place: str) -> None:
    given = {(ref.layer, ref.call) for ref in model.inputs}
    done: set[tuple[str, int]] = set(given)
    entered: set[tuple[str, int]] = set()  # and not done: they lead to where we are
    pending = [(ref.layer, ref.call) for ref in model.outputs]
    while pending:
        key = pending[-1]
        layer = layers[key[0]]
        if key in done:
            pending.pop()
            continue
        if layer.class_name == "InputLayer":
            raise CaptureError(f"{place}: {layer.name} is read and is no input of the model")
        call = layer.calls[key[1]]
        read = [(ref.layer, ref.call) for ref in references((call.args, call.kwargs))]
        waiting = [each for each in read if each not in done]
        if not waiting:
            done.add(pending.pop())
            entered.discard(key)
            continue
        entered.add(key)
        circle = next((each for each in waiting if each in entered), None)
        if circle is not None:
            raise CaptureError(f"{place}: layer {circle[0]} reads what is computed from it")
        pending += waiting
