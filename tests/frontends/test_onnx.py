"""ONNX models of every operator, against onnxruntime."""

import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxloom
from fxloom import UnsupportedLayer

pytest.importorskip("onnx", reason="needs onnx and onnxruntime: make test-keras")
pytest.importorskip("onnxruntime", reason="needs onnx and onnxruntime: make test-keras")


import onnx

from fxloom.onnx.registry import BUILDERS
from tests.frontends.onnx_cases import CASES, normal, whole
from tests.frontends.onnx_models import computed, onnx_model

FIXED = (
    "conv",
    "flatten",
    "reshape of shape",
    "class token",
    "lstm both ways",
    "resize of shape",
    "softmax 11",
)


def model_of(name: str, samples: int | str = "n") -> tuple[Any, list[int]]:
    nodes, shape, constants, *rest = CASES[name]
    opset, outputs = [*rest, *(21, ("y",))[len(rest) :]]
    return onnx_model(
        nodes,
        {"x": [samples if shape[0] == "n" else shape[0], *shape[1:]]},
        constants,
        outputs,
        opset,
    ), shape[1:]


def check(model: Any, reference: Any, shape: list[int], samples: int) -> None:
    """The same numbers in whatever order the tests run; to 1e-5 of the largest result."""
    x = np.random.default_rng(1).normal(size=(samples, *shape)).astype(np.float32)
    graph = fxloom.capture(model, torch.from_numpy(x[:1].repeat(2, axis=0)))
    results = graph(torch.from_numpy(x))
    results = results if isinstance(results, tuple) else (results,)
    for result, expected in zip(results, computed(reference, {"x": x}), strict=True):
        atol = 1e-5 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(result.detach().numpy(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_computes_what_onnxruntime_computes(name: str) -> None:
    model, shape = model_of(name)
    check(model, model, shape, samples=3)


@pytest.mark.parametrize("name", FIXED)
def test_a_model_for_one_sample_takes_any_number(name: str) -> None:
    check(model_of(name, 1)[0], model_of(name)[0], model_of(name)[1], samples=3)


def test_every_operator_occurs() -> None:
    found = {node.op_type for name in CASES for node in model_of(name)[0].graph.node}
    assert {kind for domain, kind in BUILDERS if not domain} == found


class Blocks(nn.Module):
    """A network with layers in blocks, functions in forward and a flatten by the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn(self.conv1(x)))
        y = self.blocks(y + x.mean(1, keepdim=True))
        return torch.softmax(self.fc(y.reshape(y.size(0), -1)), 1)


class Attention(nn.Module):
    """Its heads are merged with the batch on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.fc(y[:, 0])


def exported(net: nn.Module, x: torch.Tensor, exporter: str) -> Any:
    """The model of either exporter, for any batch size where x has several samples."""
    file, options = io.BytesIO(), dict[str, Any]()
    if len(x) > 1 and exporter == "dynamo":
        options["dynamic_shapes"] = ({0: torch.export.Dim("n")},)
    elif len(x) > 1:
        options["dynamic_axes"] = {"x": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (x,), file, input_names=["x"], dynamo=exporter == "dynamo", **options
        )
    return onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_what_torch_exports(exporter: str, samples: int) -> None:
    torch.manual_seed(0)
    net, x = Blocks().eval(), torch.randn(5, 3, 8, 8)
    graph = fxloom.capture(exported(net, x[:samples], exporter), x[:2])
    torch.testing.assert_close(graph(x), net(x), atol=1e-5, rtol=1e-5)
    names = {node.meta["origin"] for node in graph.graph.nodes if "origin" in node.meta}
    assert {"blocks.0", "blocks.1", "blocks.2", "fc", "Relu", "Softmax"} <= names
    assert {"fc.weight", "blocks.0.bias"} <= dict(graph.named_parameters()).keys()


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_attention(exporter: str) -> None:
    torch.manual_seed(0)
    net, x = Attention().eval(), torch.randn(5, 3, 4)
    graph = fxloom.capture(exported(net, x[:2], exporter), x[:2])
    torch.testing.assert_close(graph(x), net(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(UnsupportedLayer, match="with a dynamic batch dimension"):
        fxloom.capture(exported(net, x[:1], exporter), x[:2])


def test_layers_have_the_names_of_nodes() -> None:
    nodes = """wq = Identity(w)
    c = Conv(x, wq)
    a = Relu(c)
    b = Relu(a)
    y = Relu(b)"""
    model = onnx_model(nodes, {"x": ["n", 2, 3, 3]}, {"w": normal(2, 2, 1, 1)})
    names = [
        "/a/Identity",
        "/a/Conv",
        "/f.1/act fn/Relu",
        "/f.1/act fn/Relu_1",
        "/f.1/act fn/Relu_1",
    ]
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    graph = fxloom.capture(model, torch.zeros(2, 2, 3, 3))
    found = [node.meta["origin"] for node in graph.graph.nodes if "origin" in node.meta]
    assert found == ["a", "f.1.act_fn.Relu", "f.1.act_fn.Relu_1", "f.1.act_fn.Relu_1_1"]


REFUSED: dict[str, tuple[Any, ...]] = {
    "unknown": ("y = Hardmax(x)", ["n", 4], {}, r"Hardmax \(Hardmax\): no such operator"),
    "all of them": ("a = Hardmax(x)\ny = Det(x)", ["n", 4, 4], {}, "2 unsupported layers"),
    "volumes": ("y = Conv(x, w)", ["n", 1, 4, 4, 4], {"w": normal(1, 1, 2, 2, 2)}, "spatial dim"),
    "computed weights": ("y = Conv(x, x)", [2, 3, 2, 2], {}, "weights must be constant"),
    "shapes": ("y = MatMul(x, w)", ["n", 4], {"w": normal(3, 2)}, "do not fit"),
    "gru": (
        "a = GRU<hidden_size=1>(x, w, r)\ny = Relu(a)",
        ["n", 4, 5],
        {"w": normal(1, 3, 5), "r": normal(1, 3, 1)},
        "linear_before_reset=0",
    ),
    "linear asymmetric": (
        'y = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(x, , s)',
        ["n", 1, 4, 4],
        {"s": np.array([1, 1, 2, 2], np.float32)},
        "not that of torch",
    ),
    "batch": ("y = Tile(x, r)", ["n", 4], {"r": whole(2, 1)}, "repeats dimension 0"),
    "batch of two": ("y = Reshape(x, s)", ["n", 4], {"s": whole(2, 4)}, "it makes"),
    "part of the batch": ("y = Slice(x, s, e)", ["n", 4], {"s": whole(1), "e": whole(3)}, "batch"),
    "dynamic": ("y = Relu(x)", ["n", "m"], {}, "input x: required every size but the batch"),
    "pool": (
        'y = MaxPool<auto_pad="VALID", kernel_shape=[2], strides=[2], ceil_mode=1>(x)',
        ["n", 2, 7],
        {},
        "auto_pad='VALID' already says",
    ),
    "pool with gaps": (
        'y = AveragePool<auto_pad="SAME_UPPER", kernel_shape=[1], strides=[2]>(x)',
        ["n", 2, 7],
        {},
        "means different things",
    ),
    "backwards": (
        "y = Slice(x, s, e, a, t)",
        ["n", 4],
        {"s": whole(-1), "e": whole(2**63 - 1), "a": whole(1), "t": whole(-1)},
        "goes backwards to",
    ),
    "constant": ("y = Relu(w)", ["n", 4], {"w": normal(3)}, "output y: it is a constant"),
    "constant integers": (
        "a = QuantizeLinear(w, s)\nb = Cast<to=1>(a)\ny = Add(x, b)",
        ["n", 4],
        {"s": np.float32(1), "w": normal(4)},
        "Only a DequantizeLinear",
    ),
    "integers": ("y = QuantizeLinear(x, s)", ["n", 4], {"s": np.float32(1)}, "Dequantize"),
    "huge": (
        "a = Expand(w, s)\ny = Add(x, a)",
        ["n", 1],
        {"w": normal(1), "s": whole(2**40)},
        "constants of more",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_by_name(name: str) -> None:
    nodes, shape, constants, words = REFUSED[name]
    model = onnx_model(nodes, {"x": shape}, constants)
    x = torch.zeros([2, *(5 if each == "m" else each for each in shape[1:])])
    with pytest.raises(UnsupportedLayer, match=words):
        fxloom.capture(model, x)
