"""The JSON of Keras: what it says of a model, and that whatever is wrong is told by place."""

import json
import random
from typing import Any

import numpy as np
import pytest

from fxloom import CaptureError, UnsupportedLayer
from fxloom.keras.config import model_of
from fxloom.keras.description import Call, TensorRef
from fxloom.keras.json_access import MAX_DEPTH, MAX_JSON, parsed
from fxloom.keras.model import Network
from fxloom.keras.weights import attached
from tests.keras_files import Json, dense, functional, inputs, layer, newer, small

REF = TensorRef


def nested(depth: int) -> Json:
    model = small()
    for level in range(depth):
        name = f"net{level}"
        inner = {**model, "name": name, "inbound_nodes": [[["x", 0, 0, {}]]]}
        inner["config"] = {**inner["config"], "name": name}
        model = functional([inputs("x", 3), inner], [["x", 0, 0]], [[name, 1, 0]])
    return model


@pytest.mark.parametrize("make", [lambda x: x, newer], ids=["keras 2", "keras 3"])
def test_a_functional_model_is_its_layers_and_calls(make: Any) -> None:
    model = model_of(make(small()), 2 if make is not newer else 3)
    assert [each.label for each in model.layers] == ["x (InputLayer)", "fc1 (Dense)", "fc2 (Dense)"]
    assert model["fc2"].calls == (Call((REF("fc1"),)),)
    assert (model.inputs, model.outputs) == ((REF("x"),), (REF("fc2"),))


def test_keras_2_counts_the_call_that_made_a_nested_model() -> None:
    inner = {**small(), "name": "inner", "inbound_nodes": [[["x", 0, 0]], [["pre", 0, 0]]]}
    inner["config"] = {**inner["config"], "name": "inner"}
    layers = [inputs("x", 3), dense("pre", [[["inner", 1, 0]]], 3), inner]
    model = model_of(functional(layers, [["x", 0, 0]], [["inner", 2, 0]]), 2)
    assert model["pre"].calls == (Call((REF("inner", 0),)),)
    assert model.outputs == (REF("inner", 1),)


def test_keras_3_counts_it_in_outputs_alone() -> None:
    inner = {**small(), "name": "inner", "inbound_nodes": [[["x", 0, 0]], [["pre", 0, 0]]]}
    inner["config"] = {**inner["config"], "name": "inner"}
    layers = [inputs("x", 3), dense("pre", [[["inner", 0, 0]]], 3), inner]
    described = newer(functional(layers, [["x", 0, 0]], [["inner", 2, 0]]))
    model = model_of(described, 3)
    assert model["pre"].calls == (Call((REF("inner", 0),)),)
    assert model.outputs == (REF("inner", 1),)


def test_several_tensors_keywords_and_constants() -> None:
    keywords = {"initial_state": [["h", 0, 0], ["h", 0, 0]], "mask": None, "training": False}
    layers = [
        inputs("x", 5, 3),
        inputs("h", 4),
        layer("LSTM", "lstm", [[["x", 0, 0, keywords]]], units=4),
        layer("Add", "add", [[["lstm", 0, 0, {}], ["_CONSTANT_VALUE", -1, [[1.0, 2.0]], {}]]]),
    ]
    model = model_of(functional(layers, [["x", 0, 0], ["h", 0, 0]], ["add", 0, 0]), 2)
    assert model["lstm"].calls == (Call((REF("x"),), {"initial_state": [REF("h"), REF("h")]}),)
    first, second = model["add"].calls[0].args[0]
    assert first == REF("lstm")
    assert np.array_equal(second, [[1, 2]])


def test_ports_in_a_dictionary_are_ordered_by_their_names() -> None:
    layers = [inputs("b", 3), inputs("a", 3), dense("fc", [[["a", 0, 0]]], 2)]
    ins = {"q": ["b", 0, 0], "p": ["a", 0, 0]}
    model = model_of(functional(layers, ins, {"y": ["fc", 0, 0], "x": ["b", 0, 0]}), 2)
    assert model.inputs == (REF("a"), REF("b"))
    assert model.outputs == (REF("b"), REF("fc"))


def test_a_sequential_model_is_a_chain_with_an_input() -> None:
    layers = [dense("fc", (), 3, batch_input_shape=[None, 2]), layer("ReLU", "act")]
    config = {"name": "net", "layers": layers}
    model = model_of({"class_name": "Sequential", "config": config}, 2)
    assert [each.name for each in model.layers] == ["input", "fc", "act"]
    assert model["input"].config["batch_shape"] == [None, 2]
    assert model["act"].calls == (Call((REF("fc"),)),)


def test_a_bidirectional_has_both_layers() -> None:
    inner = {"class_name": "GRU", "config": {"name": "gru", "units": 2, "go_backwards": False}}
    layers = [inputs("x", 5, 3), layer("Bidirectional", "two", [[["x", 0, 0]]], layer=inner)]
    two = model_of(functional(layers, ["x", 0, 0], ["two", 0, 0]), 2)["two"]
    assert {key: one.config["go_backwards"] for key, one in two.inner.items()} == {
        "layer": False,
        "backward_layer": True,
    }


LAMBDA = {"class_name": "__lambda__", "config": {"code": "4wEAAAA=", "defaults": None}}
HALF = {"class_name": "Policy", "config": {"name": "mixed_float16"}}
REFUSED = {
    "Lambda": (layer("Lambda", "f", [[["x", 0, 0]]], function=LAMBDA), "Python code"),
    "custom class": (
        layer("Dense", "f", [[["x", 0, 0]]], units=2)
        | {"module": "net", "registered_name": "Dense"},
        "a custom class, 'Dense' of module 'net'",
    ),
    "registered class": (layer("my>Dense", "f", [[["x", 0, 0]]]), "a custom class, 'my>Dense'"),
    "pickled activation": (
        dense("f", [[["x", 0, 0]]], 2, activation={"value": ["4wEAAAA=", None, None]}),
        "its activation is Python code",
    ),
    "function": (
        dense(
            "f",
            [[["x", 0, 0]]],
            2,
            activation={"module": "builtins", "class_name": "function", "config": "swoosh"},
        ),
        "the function 'swoosh'",
    ),
    "half precision": (
        dense("f", [[["x", 0, 0]]], 2, dtype=HALF),
        "got 'mixed_float16'",
    ),
    "TensorFlow": (layer("TFOpLambda", "f", [["x", 0, 0, {"y": 2.0}]]), "of TensorFlow"),
    "training": (
        layer("Dropout", "f", [[["x", 0, 0, {"training": True}]]], rate=0.5),
        "training=True",
    ),
    "giant window": (layer("MaxPooling1D", "f", [[["x", 0, 0]]], pool_size=[10**9]), "65,536"),
    "operation": (layer("Add", "f", [[["x", 0, 0, {}]]]), "an operation outside a layer"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_run_code_is_refused_by_name(name: str) -> None:
    described, reason = REFUSED[name]
    model = model_of(functional([inputs("x", 3), described], ["x", 0, 0], ["f", 0, 0]), 2)
    with pytest.raises(UnsupportedLayer) as fault:
        Network(model)
    assert reason in str(fault.value)
    assert f"f ({described['class_name']})" in str(fault.value)


def test_all_that_is_refused_is_told_at_once() -> None:
    layers = [inputs("x", 3), *({**each, "name": n, "config": {**each["config"], "name": n}}
              for n, (each, _) in REFUSED.items())]  # fmt: skip
    outs = [[name, 0, 0] for name in REFUSED]
    with pytest.raises(UnsupportedLayer) as fault:
        Network(model_of(functional(layers, ["x", 0, 0], outs), 2))
    assert len(fault.value.problems) == len(REFUSED)


def test_what_serves_training_alone_may_be_custom() -> None:
    custom = {"module": "net", "class_name": "Mine", "config": {}, "registered_name": "Mine"}
    described = dense("fc", [[["x", 0, 0]]], 2, kernel_initializer=custom, bias_constraint=custom)
    model = model_of(functional([inputs("x", 3), described], ["x", 0, 0], ["fc", 0, 0]), 2)
    assert model["fc"].refusal == ""


def test_an_activation_given_as_a_function_of_keras_is_its_name() -> None:
    relu = {"module": "keras.activations", "class_name": "function", "config": "relu"}
    described = dense("fc", [[["x", 0, 0]]], 2, activation=relu)
    model = model_of(functional([inputs("x", 3), described], ["x", 0, 0], ["fc", 0, 0]), 2)
    assert model["fc"].config["activation"] == "relu"


def broken(edit: Any) -> Json:
    model = small()
    edit(model["config"])
    return model


MALFORMED = {
    "no layers": (lambda c: c.update(layers=[]), "it has no layers"),
    "layers are a number": (lambda c: c.update(layers=3), "layers: required a list, got 3"),
    "a layer is a text": (lambda c: c["layers"].append("fc"), "required a dictionary, got 'fc'"),
    "two of one name": (lambda c: c["layers"].append(c["layers"][1]), "two layers are called fc1"),
    "no such layer": (lambda c: c["output_layers"].append(["no", 0, 0]), "reads layer no, which"),
    "no such call": (lambda c: c["output_layers"].append(["fc1", 1, 0]), "call 1 of fc1, which is"),
    "negative call": (lambda c: c["output_layers"].append(["fc1", -1, 0]), "required an index"),
    "no such output": (lambda c: c["output_layers"].append(["x", 0, 1]), "output 1 of x"),
    "no outputs": (lambda c: c.update(output_layers=[]), "it has no outputs"),
    "no inputs": (lambda c: c.update(input_layers=[]), "it has no inputs"),
    "an input that is none": (lambda c: c.update(input_layers=[["fc1", 0, 0]]), "no InputLayer"),
    "an input left out": (lambda c: c["layers"].insert(0, inputs("y", 3))
                          or c.update(input_layers=[["y", 0, 0]]), "x is read and is no input"),
    "a circle": (lambda c: c["layers"][1].update(inbound_nodes=[[["fc2", 0, 0]]]),
                 "reads what is computed from it"),
    "itself": (lambda c: c["layers"][1].update(inbound_nodes=[[["fc1", 0, 0]]]),
               "layer fc1 reads what is computed"),
    "path": (lambda c: c["layers"][1].update(name="../../etc/passwd",
             config={"name": "../../etc/passwd"}), "is no name of a layer"),
    "two names": (lambda c: c["layers"][1].update(name="other"), "it has two names"),
    "long name": (lambda c: c["layers"][1].update(name="x" * 2000), "required a name"),
    "broken node": (lambda c: c["layers"][1].update(inbound_nodes=[[["x"]]]), "required layer,"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_configs_name_the_place(name: str) -> None:
    edit, reason = MALFORMED[name]
    with pytest.raises(CaptureError, match=reason):
        model_of(broken(edit), 2)


def test_a_class_of_its_own_says_what_to_do() -> None:
    described = {"class_name": "MyModel", "module": "net", "config": {"width": 3}}
    with pytest.raises(CaptureError, match=r"the class MyModel.*keras.Model\(inputs, outputs\)"):
        model_of(described, 3)


def test_models_in_models_have_a_limit() -> None:
    assert model_of(nested(15), 2).outputs == (REF("net14"),)
    with pytest.raises(CaptureError, match="nested more than 16 deep"):
        model_of(nested(17), 2)


def test_deep_and_long_json_is_refused() -> None:
    for text in ("[" * 10**6, "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2)):
        with pytest.raises(CaptureError, match="deep"):
            parsed(text, "net.json")
    with pytest.raises(CaptureError, match=r"net.json: .* at most"):
        parsed(" " * (MAX_JSON + 1), "net.json")
    for text in ('{"a": ', "\ud800", "9" * 10_000, b"\xff"):
        with pytest.raises(CaptureError, match="damaged"):
            parsed(text, "net.json")


VALUES: list[Any] = [None, True, -1, 0, 10**30, 1e300, "", "x", "fc1", [], {}, [[]], {"a": 1}]
VALUES += [["x", 0, 0], ["fc1", 0, 0, {}], [["fc2", 0, 0]], {"class_name": "Dense", "config": {}}]


def mutated(value: Any, chance: random.Random) -> Any:
    """The JSON with one to three places changed."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.randint(1, 3)):
        holder: Any = None
        at = value
        while isinstance(at, dict | list) and at and chance.random() < 0.85:
            keys = list(at) if isinstance(at, dict) else range(len(at))
            holder, key = at, chance.choice(list(keys))
            at = at[key]
        if holder is None:
            continue
        if chance.random() < 0.2:
            del holder[key]
        else:
            holder[key] = chance.choice(VALUES)
    return value


class NoArrays:
    """A source that has nothing, or a few numbers."""

    def of_layer(self, *_: object) -> "NoArrays":
        return self

    of_part = of_layer

    def arrays(self, layer: object, variables: Any) -> list[Any]:
        sizes = [[size or 2 for size in each.shape or (2,)] for each in variables or ()]
        return [np.zeros([min(size, 9) for size in each], np.float32) for each in sizes]


def test_no_json_is_anything_but_a_model_or_a_named_error() -> None:
    inner = {"class_name": "GRU", "config": {"name": "gru", "units": 2}}
    layers = [
        *small()["config"]["layers"],
        layer("Conv2D", "conv", [[["x", 0, 0]]], filters=2, kernel_size=[3, 3], strides=[1, 1]),
        layer("Bidirectional", "two", [[["conv", 0, 0, {"mask": ["fc1", 0, 0]}]]], layer=inner),
        layer("Add", "add", [[["two", 0, 0, {}], ["_CONSTANT_VALUE", -1, 1.0, {}]]]),
        {**nested(1), "name": "net", "inbound_nodes": [[["add", 0, 0]]]},
    ]
    whole = functional(layers, [["x", 0, 0]], {"a": ["fc2", 0, 0], "b": ["net", 1, 0]})
    ends: dict[str, int] = {}
    for seed in range(600):
        chance = random.Random(seed)
        described = mutated(newer(small()) if seed % 3 == 0 else whole, chance)
        try:
            Network(attached(model_of(described, 2 + seed % 2), NoArrays()))
            end = "reads"
        except (CaptureError, UnsupportedLayer) as fault:
            end = type(fault).__name__ if str(fault).strip() else "without a message"
        ends[end] = ends.get(end, 0) + 1
    assert set(ends) == {"reads", "CaptureError", "UnsupportedLayer"}
