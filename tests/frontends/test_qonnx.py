"""QONNX models against qonnx's own execution, integer by integer."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxloom

pytest.importorskip("qonnx", reason="needs onnx and qonnx: make test-keras")

from onnx import helper
from qonnx.core import onnx_exec
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.infer_shapes import InferShapes

from fxloom.onnx.registry import BUILDERS
from tests.frontends.onnx_models import onnx_model

DOMAIN = "qonnx.custom_op.general"
chance = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return chance.normal(size=shape).astype(np.float32)


def scale(*values: float) -> Any:
    return np.array(values, np.float32).reshape(-1, 1) if len(values) > 1 else np.float32(values[0])


def qonnx(nodes: str, shape: list[int], constants: Mapping[str, Any], version: int = 1) -> Any:
    """A model whose quantizers are those of QONNX."""
    nodes = re.sub(r"= (Quant|IntQuant|BipolarQuant|Trunc)\b", rf"= {DOMAIN}.\1", nodes)
    named = {f"n{bits}": np.float32(bits) for bits in range(1, 17)} | {"zero": np.float32(0)}
    used = {
        name: value for name, value in (named | QUANT | dict(constants)).items() if name in nodes
    }
    return onnx_model(nodes, {"x": shape}, used, opset=13, domains={DOMAIN: version})


def executed(model: Any, x: Any) -> Any:
    """What qonnx computes, sample by sample."""
    wrapper = ModelWrapper(model)
    wrapper.set_tensor_shape("x", [1, *x.shape[1:]])
    wrapper = wrapper.transform(InferShapes())
    return np.concatenate([onnx_exec.execute_onnx(wrapper, {"x": each[None]})["y"] for each in x])


@pytest.fixture(autouse=True)
def _of_a_version_that_onnxruntime_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(graph: Any, **options: Any) -> Any:
        return helper.make_model(graph, ir_version=10, **options)

    monkeypatch.setattr(onnx_exec, "qonnx_make_model", made)


QUANT = {
    "eighth": scale(0.125),
    "quarter": scale(0.25),
    "one": scale(1.0),
    "third": scale(0.2983),
    "tenth": scale(0.1049),
    "fine": scale(2**-5),
}
CASES: dict[str, tuple[Any, ...]] = {
    # name: nodes, shape of a sample, constants, version of the domain
    "mlp": (
        """q = Quant<signed=1, narrow=0>(x, eighth, zero, n6)
        wq = Quant<signed=1, narrow=1>(w, quarter, zero, n4)
        a = MatMul(q, wq)
        bq = Quant<signed=1, narrow=0>(b, eighth, zero, n8)
        c = Add(a, bq)
        d = Relu(c)
        e = Quant<signed=0, narrow=0>(d, quarter, zero, n5)
        vq = Quant<signed=1, narrow=0>(v, each, zero, n5)
        y = Gemm<transB=1>(e, vq, bq)""",
        [6],
        {
            "w": normal(6, 5),
            "b": normal(5),
            "v": normal(5, 5),
            "each": scale(0.5, 0.25, 1, 2, 0.0625),
        },
    ),
    "transposed weights": (
        """q = Quant<signed=1, narrow=0>(x, eighth, zero, n6)
        wq = Quant<signed=1, narrow=1>(w, each, zero, n4)
        t = Transpose(wq)
        y = MatMul(q, t)""",
        [6],
        {"w": normal(3, 6), "each": scale(0.5, 0.25, 0.125)},
    ),
    "convolutions": (
        """q = Quant<signed=1, narrow=0>(x, eighth, zero, n6)
        wq = Quant<signed=1, narrow=1>(w, each, zero, n4)
        a = Conv<pads=[1,1,1,1], strides=[2,2]>(q, wq)
        b = Relu(a)
        c = Quant<signed=0, narrow=0>(b, quarter, zero, n4)
        p = MaxPool<kernel_shape=[2,2]>(c)
        vq = BipolarQuant(v, quarter)
        d = Conv(p, vq)
        f = Flatten(d)
        y = Quant<signed=1, narrow=0>(f, quarter, zero, n7)""",
        [2, 9, 8],
        {
            "w": normal(3, 2, 3, 3),
            "v": normal(2, 3, 2, 1),
            "each": scale(0.5, 0.25, 0.125).reshape(3, 1, 1, 1),
        },
    ),
    "bipolar": (
        """q = BipolarQuant(x, one)
        wq = BipolarQuant(w, one)
        a = MatMul(q, wq)
        b = BipolarQuant(a, quarter)
        vq = Quant<signed=1, narrow=1>(v, eighth, zero, n1)
        y = MatMul(b, vq)""",
        [6],
        {"w": normal(6, 5), "v": normal(5, 4)},
    ),
    "integers": (
        "y = IntQuant<signed=1, narrow=1>(x, quarter, zero, n5)",
        [6],
        {},
    ),
    "one signed bit": (
        """q = Quant<signed=1, narrow=0>(x, quarter, zero, n1)
        y = Add(q, q)""",
        [6],
        {},
    ),
    "zero point": (
        """i = Quant<signed=1, narrow=0>(x, fine, zero, n12)
        q = Quant<signed=0, narrow=0>(i, eighth, five, n6)
        wq = Quant<signed=0, narrow=1>(w, quarter, seven, n4)
        y = MatMul(q, wq)""",
        [6],
        {"w": normal(6, 5), "five": np.float32(5), "seven": np.float32(7)},
    ),
    "channels": (
        """i = Quant<signed=1, narrow=0>(x, fine, zero, n12)
        y = Quant<signed=1, narrow=1>(i, each, zero, n5)""",
        [3, 4],
        {"each": scale(0.5, 0.25, 0.125)},
    ),
    "trunc": (
        """q = Quant<signed=1, narrow=0>(x, eighth, zero, n6)
        wq = Quant<signed=1, narrow=1>(w, quarter, zero, n4)
        a = MatMul(q, wq)
        s = Mul(eighth, quarter)
        y = Trunc<rounding_mode="FLOOR">(a, s, zero, n10, n6)""",
        [6],
        {"w": normal(6, 5)},
    ),
    "trunc 2": (
        """q = Quant<signed=1, narrow=0>(x, eighth, zero, n6)
        a = Add(q, q)
        y = Trunc<signed=1, narrow=1, rounding_mode="FLOOR">(a, eighth, zero, n8, one, n4)""",
        [6],
        {},
        2,
    ),
    "average by trunc": (
        """q = Quant<signed=0, narrow=0>(x, eighth, zero, n5)
        a = AveragePool<kernel_shape=[2,2], strides=[2,2]>(q)
        four = Mul(a, number)
        y = Trunc<rounding_mode="FLOOR">(four, eighth, zero, n8, n5)""",
        [2, 4, 6],
        {"number": np.float32(4)},
    ),
    "given constants": (
        """q = Quant<signed=1, narrow=0>(x, eighth, zero, n6)
        wq = Quant<signed=1, narrow=1>(w, quarter, zero, n4)
        a = Mul(q, wq)
        y = Sub(wq, a)""",
        [6],
        {"w": normal(6)},
    ),
}
CASES |= {
    f"rounds {mode}": (
        f"""q = Quant<signed=1, narrow=0, rounding_mode="{mode}">(x, eighth, zero, n5)
        wq = Quant<signed=1, narrow=0, rounding_mode="{mode}">(w, quarter, zero, n5)
        y = MatMul(q, wq)""",
        [4],
        {"w": chance.integers(-40, 40, (4, 3)).astype(np.float32) / 8},
    )
    for mode in ("ROUND", "HALF_EVEN", "FLOOR", "DOWN", "HALF_UP", "HALF_DOWN")
}
# No round numbers: sums of their multiples would be ties, which float32 decides by chance.
OTHER_SCALES: dict[str, tuple[Any, ...]] = {
    "dense": (
        """i = Quant<signed=1, narrow=0>(x, fine, zero, n12)
        q = Quant<signed=1, narrow=0>(i, third, zero, n6)
        wq = Quant<signed=1, narrow=1>(w, each, zero, n4)
        bq = Quant<signed=1, narrow=0>(b, tenth, zero, n6)
        a = Gemm<transB=1>(q, wq, bq)
        y = Quant<signed=1, narrow=0>(a, third, zero, n6)""",
        [6],
        {"w": normal(5, 6), "b": normal(5), "each": scale(0.2137, 0.1291, 0.4013, 0.0917, 0.1733)},
    ),
    "convolution": (
        """i = Quant<signed=1, narrow=0>(x, fine, zero, n12)
        q = Quant<signed=1, narrow=0>(i, third, zero, n6)
        wq = Quant<signed=1, narrow=1>(w, each, zero, n4)
        a = ConvTranspose<strides=[2,2], group=2>(q, wq)
        y = Quant<signed=0, narrow=0>(a, third, four, n6)""",
        [4, 3, 3],
        {
            "w": normal(4, 3, 2, 2),
            "each": np.array([0.2137, 0.1039, 0.3319], np.float32).reshape(1, 3, 1, 1),
            "four": np.float32(4),
        },
    ),
}


def shifted(*shape: int) -> Any:
    """Values in steps of 1/32, so that ties occur."""
    return np.round(normal(*shape) * 64) / np.float32(32)


@pytest.mark.parametrize("name", CASES)
def test_the_program_computes_what_qonnx_does(name: str) -> None:
    nodes, shape, constants, *rest = CASES[name]
    model, x = qonnx(nodes, ["n", *shape], constants, *rest), shifted(40, *shape)
    program = fxloom.lower(fxloom.capture(model, torch.from_numpy(x[:2])))
    np.testing.assert_array_equal(fxloom.simulate(program, x), executed(model, x))


def completed(model: Any, x: Any) -> Any:
    """The program with formats where the model brings none."""
    graph = fxloom.capture(model, torch.from_numpy(x[:2]))
    recipe = fxloom.Recipe.parse('[[pass]]\nname = "quantize"\nweights = 12\nactivations = 14')
    result = recipe.run(graph, data=fxloom.Data.of(torch.from_numpy(x)))
    return fxloom.lower(result.graph)


@pytest.mark.parametrize("name", OTHER_SCALES)
def test_other_scales_give_the_same_integers(name: str) -> None:
    nodes, shape, constants = OTHER_SCALES[name]
    model, x = qonnx(nodes, ["n", *shape], constants), shifted(200, *shape)
    results, expected = fxloom.simulate(completed(model, x), x), executed(model, x)
    step = QUANT["third"]
    np.testing.assert_array_equal(np.round(results / step), np.round(expected / step))
    np.testing.assert_allclose(results, expected, rtol=2**-20)


def test_quantize_gives_formats_to_what_has_none() -> None:
    nodes = """q = Quant<signed=1, narrow=0>(x, eighth, zero, n6)
    wq = Quant<signed=1, narrow=1>(w, quarter, zero, n4)
    a = Gemm(q, wq, b)
    s = BatchNormalization(a, scale, b, mean, variance)
    r = Relu(s)
    e = Quant<signed=0, narrow=0>(r, quarter, zero, n4)
    vq = Quant<signed=1, narrow=1>(v, eighth, zero, n4)
    z = MatMul(e, vq)
    y = Softmax(z)"""
    constants = {"w": normal(6, 5), "v": normal(5, 3), "b": normal(5), "mean": normal(5)}
    constants |= {"scale": np.abs(normal(5)) + 1, "variance": np.abs(normal(5)) + 1}
    model, x = qonnx(nodes, ["n", 6], constants), shifted(64, 6)
    y = fxloom.simulate(completed(model, x), x)
    differences = np.abs(y - executed(model, x)).max(axis=1)
    # Next to a step of a quantizer a rounding before it moves a value over: few samples have one.
    assert np.quantile(differences, 0.9) < 0.01


def test_a_model_for_one_sample_takes_any_number() -> None:
    nodes, shape, constants = CASES["convolutions"]
    model, x = qonnx(nodes, [1, *shape], constants), shifted(9, *shape)
    program = fxloom.lower(fxloom.capture(model, torch.from_numpy(x[:2])))
    np.testing.assert_array_equal(fxloom.simulate(program, x), executed(model, x))


def test_every_operator_occurs() -> None:
    text = " ".join(nodes for nodes, *_ in CASES.values())
    assert all(f"= {kind}" in text for domain, kind in BUILDERS if domain == "qonnx")


def test_the_c_simulation_agrees(tmp_path: Path) -> None:
    nodes, shape, constants = CASES["convolutions"]
    model, x = qonnx(nodes, [1, *shape], constants), shifted(20, *shape)
    program = fxloom.lower(fxloom.capture(model, torch.from_numpy(x[:2])))
    build = fxloom.backends.get("hls4ml").emit(program, fxloom.Target(), tmp_path / "build")
    np.testing.assert_array_equal(build.run(x), executed(model, x))
