"""ONNX files: read as data, damage said by name."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fxloom
from fxloom import CaptureError, FxloomError, UnsupportedLayer, cli, load_model
from tests.hardness import mutate

pytest.importorskip("onnx", reason="needs onnx: make test-keras")

import onnx
from onnx import TensorProto, helper, numpy_helper

from fxloom.onnx.loading import MAX_CONSTANTS
from tests.frontends.onnx_models import onnx_model

chance = np.random.default_rng(0)


def small() -> Any:
    """Something of everything: raw and typed tensors, attributes, constants from shapes."""
    nodes = """c = Conv<pads=[1,1,1,1], auto_pad="NOTSET">(x, w)
    r = LeakyRelu<alpha=0.5>(c)
    s = Shape(r)
    b = Gather(s, zero)
    u = Unsqueeze(b, zeros)
    t = Concat<axis=0>(u, rest)
    f = Reshape(r, t)
    k = Constant<value_floats=[0.5,1.5,1.0]>()
    g = Gemm(f, v)
    y = Mul(g, k)"""
    constants = {"w": chance.normal(size=(2, 1, 3, 3)).astype(np.float32)}
    constants |= {"v": chance.normal(size=(32, 3)).astype(np.float32)}
    integers = {"zero": np.int64(0), "zeros": np.array([0]), "rest": np.array([-1])}
    model = onnx_model(nodes, {"x": ["n", 1, 4, 4]}, constants | integers)
    typed = helper.make_tensor("v", TensorProto.FLOAT, [32, 3], constants["v"].reshape(-1))
    model.graph.initializer[1].CopyFrom(typed)
    return model


X = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def saved(model: Any, folder: Path) -> str:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


def test_files_and_models_in_memory_are_one(tmp_path: Path) -> None:
    model = small()
    path = saved(model, tmp_path)
    expected = fxloom.capture(model, X)(X)
    for given in (path, Path(path), load_model(path)):
        torch.testing.assert_close(fxloom.capture(given, X)(X), expected, atol=0, rtol=0)


def test_inputs_have_the_names_and_shapes_of_the_file() -> None:
    model = onnx_model("y = Add(a, b)", {"a": ["n", 5], "b": ["n", 5]})
    model.graph.node[0].input[1] = model.graph.input[1].name = "1/in.put"
    graph = fxloom.capture(model)
    assert [node.name for node in graph.graph.find_nodes(op="placeholder")] == [
        "a",
        "input_1_in_put",
    ]
    with pytest.raises(CaptureError, match=r"input a: required shape \['batch', 5\], \[2, 6\]"):
        fxloom.capture(model, (torch.zeros(2, 6), torch.zeros(2, 6)))


def test_the_command_line_compiles_one(tmp_path: Path) -> None:
    path = saved(small(), tmp_path)
    np.savez(tmp_path / "data.npz", x_train=X.repeat(8, 1, 1, 1).numpy())
    (tmp_path / "r.toml").write_text('[[pass]]\nname = "quantize"\nweights = 6\nactivations = 8\n')
    recipe, data, out = (str(tmp_path / name) for name in ("r.toml", "data.npz", "build"))
    line = ["compile", path, "--data", data, "--recipe", recipe, "-o", out]
    result = CliRunner().invoke(cli.app, line)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "build").is_dir()


def _opset(model: Any) -> None:
    model.opset_import[0].version = 6


def _function(model: Any) -> None:
    body, opsets = [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], body, opsets))


def _external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "../../secret")
    tensor.ClearField("raw_data")


def _external_constant(model: Any) -> None:
    tensor = numpy_helper.from_array(np.ones(3, np.float32))
    onnx.external_data_helper.set_external_data(tensor, "/etc/passwd")
    tensor.ClearField("raw_data")
    model.graph.node[7].CopyFrom(helper.make_node("Constant", [], ["k"], value=tensor))


def _giant(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [2**40, 2**20, 3, 3]


def _negative(model: Any) -> None:
    model.graph.initializer[1].dims[:] = [-32, -3]


def _half(model: Any) -> None:
    values = numpy_helper.from_array(np.zeros((2, 1, 3, 3), np.float16), "w")
    model.graph.initializer[0].CopyFrom(values)


def _sparse(model: Any) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))


def _condition(model: Any) -> None:
    outputs = [helper.make_tensor_value_info("o", 1, ["n", 1, 4, 4])]
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "body", [], outputs)
    condition = numpy_helper.from_array(np.array(True), "condition")
    model.graph.initializer.append(condition)
    node = helper.make_node("If", ["condition"], ["z"], then_branch=body, else_branch=body)
    model.graph.node.append(node)


def _domain(model: Any) -> None:
    model.graph.node[1].domain = "com.acme"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))


def _channels_last(model: Any) -> None:
    model.graph.node[1].domain = "qonnx.custom_op.channels_last"
    model.opset_import.append(helper.make_opsetid("qonnx.custom_op.channels_last", 1))


def _attribute(model: Any) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("beta", 1.0))


def _bytes(model: Any) -> None:
    content = model.SerializeToString().replace(b"LeakyRelu", b"Leaky\xff\xfelu")
    model.ParseFromString(content)


def _cycle(model: Any) -> None:
    model.graph.node[0].input[0] = "y"


def _no_inputs(model: Any) -> None:
    del model.graph.input[:]


def _no_shape(model: Any) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def _giant_input(model: Any) -> None:
    for dim in (1, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[dim].dim_value = 2**50


def _giant_range(model: Any) -> None:
    model.graph.node[7].CopyFrom(helper.make_node("Range", ["zero", "many", "one"], ["k"]))
    for name, value in (("many", 2**60), ("one", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))


def _giant_shape(model: Any) -> None:
    model.graph.node[7].CopyFrom(helper.make_node("ConstantOfShape", ["many"], ["k"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**31, 2**31]), "many"))


FAULTS: dict[Callable[[Any], None], str] = {
    _opset: "one operator set of ai.onnx from 7 to",
    _function: "F: a function of the model",
    _external: "'w': its values lie in another file",
    _external_constant: "its values lie in another file",
    _giant: "'w': damaged|not a valid ONNX model",
    _negative: "'v': damaged|not a valid ONNX model",
    _half: "'w': required float32, float64, .* float16 arrived",
    _sparse: "sparse: a sparse initializer",
    _condition: r"\(If\): it has graphs inside",
    _domain: r"LeakyRelu \(LeakyRelu\): its domain 'com.acme' is not known",
    _channels_last: "channels-last wrappers are not supported",
    _attribute: "Unrecognized attribute: beta",
    _bytes: "is not text|not an ONNX file",
    _cycle: "not a valid ONNX model: .*topologically sorted",
    _no_inputs: "not a valid ONNX model",
    _no_shape: "not a valid ONNX model: .*shape|required a tensor of known shape",
    _giant_input: "is no shape|do not fit",
    _giant_range: f"more than {MAX_CONSTANTS} values are computed|do not fit",
    _giant_shape: f"more than {MAX_CONSTANTS} values are computed|do not fit",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_is_wrong_is_said(fault: Callable[[Any], None], tmp_path: Path) -> None:
    model = small()
    fault(model)
    with pytest.raises((CaptureError, UnsupportedLayer), match=FAULTS[fault]):
        load_model(saved(model, tmp_path))


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = small().SerializeToString()
    path = tmp_path / "x.onnx"
    for content in (b"", b"no model", whole[: len(whole) // 2], b"\x00" * 100):
        path.write_bytes(content)
        with pytest.raises(CaptureError, match=r"x\.onnx: (not|damaged)"):
            load_model(str(path))
    with pytest.raises(CaptureError, match=r"none\.onnx: no such file"):
        load_model(str(tmp_path / "none.onnx"))
    with pytest.raises(CaptureError, match="cannot be read"):
        (tmp_path / "folder.onnx").mkdir()
        load_model(str(tmp_path / "folder.onnx"))


def test_damaged_files_give_errors_of_fxloom(tmp_path: Path) -> None:
    original, dice = small().SerializeToString(), random.Random(0)
    path = tmp_path / "x.onnx"
    outcomes = set()
    for turn in range(300):
        damaged = bytearray(original)
        damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(mutate(original, dice) if turn % 3 == 0 else bytes(damaged))
        try:
            load_model(str(path))
            outcomes.add("read")
        except FxloomError as fault:
            outcomes.add(type(fault).__name__)
    assert outcomes == {"read", "CaptureError", "UnsupportedLayer"}
