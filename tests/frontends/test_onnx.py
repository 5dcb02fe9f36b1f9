"""ONNX models of every operator, against onnxruntime."""

from typing import Any

import numpy as np
import pytest
import torch

import fxloom

pytest.importorskip("onnx", reason="needs onnx and onnxruntime: make test-keras")
pytest.importorskip("onnxruntime", reason="needs onnx and onnxruntime: make test-keras")

from fxloom.onnx.registry import BUILDERS
from tests.frontends.onnx_cases import CASES, normal
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
    x = normal(samples, *shape)
    graph = fxloom.capture(model, torch.from_numpy(normal(2, *shape)))
    results = graph(torch.from_numpy(x))
    results = results if isinstance(results, tuple) else (results,)
    for result, expected in zip(results, computed(reference, {"x": x}), strict=True):
        np.testing.assert_allclose(result.detach().numpy(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_computes_what_onnxruntime_computes(name: str) -> None:
    model, shape = model_of(name)
    check(model, model, shape, samples=3)


@pytest.mark.parametrize("name", FIXED)
def test_a_model_for_one_sample_takes_any_number(name: str) -> None:
    check(model_of(name, 1)[0], model_of(name)[0], model_of(name)[1], samples=3)


def test_every_operator_occurs() -> None:
    found = {
        ("qonnx" if node.domain else "", node.op_type)
        for name in CASES
        for node in model_of(name)[0].graph.node
    }
    assert {kind for kind in BUILDERS if not kind[0]} <= found | {
        ("", "QuantizeLinear"),
        ("", "DequantizeLinear"),
    }
