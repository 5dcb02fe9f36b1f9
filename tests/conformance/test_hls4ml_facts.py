"""What hls4ml's own layers compute where one would not expect it, and that ours does not.

A residual network once differed between a mirror in Python and the C++, on a few samples and in
the last bit only. The cause was not its average pool but its weights: hls4ml does not quantize
them, it prints them with as many decimal digits as the type has fraction bits, and the compiler
quantizes that text. A weight next to a grid line, 0.0312499 in fixed<8,3>, becomes 0.03125 in
print and one step more in hardware. Measured on ResNet-8, 6 of 78,000 weights were such, and 4 of
24 samples showed it. Our weights are on the grid before hls4ml sees them, and written as such.
"""

import contextlib
import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxloom import ops
from fxloom.backends import get
from fxloom.backends.hls4ml.build import Hls4mlBuild
from fxloom.fixed_point import FixedPoint, Overflow, Rounding, quantize_values
from fxloom.program import ProgramBuilder
from fxloom.target import Target

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

# format, weight, its text in hls4ml, mantissa by definition (TRN), mantissa in hls4ml's C++
WEIGHTS = [
    (FixedPoint(8, 3), 0.0312499, "0.03125", 0, 1),
    (FixedPoint(8, 3), -0.000001, "-0.00000", -1, 0),
    (FixedPoint(16, 6), -1e-12, "-0.0000000000", -1, 0),
    (FixedPoint(10, 4), 0.01562451, "0.015625", 0, 1),
    (FixedPoint(6, 6), 0.75, "1", 0, 1),
    (FixedPoint(8, 3), 0.03125, "0.03125", 1, 1),
]

WINDOW = {
    "data_format": "channels_last",
    "in_height": 2,
    "in_width": 2,
    "n_filt": 1,
    "stride_height": 2,
    "stride_width": 2,
    "out_height": 1,
    "out_width": 1,
    "count_pad": False,
}


def hls4mls_own_graph(directory: Path) -> Any:
    """A Dense of one weight for each of WEIGHTS, an average pool and a padded maximum pool."""
    from hls4ml.model.graph import ModelGraph

    layers: list[dict[str, Any]] = [
        {"class_name": "InputLayer", "name": "one", "input_shape": [1]},
        {"class_name": "InputLayer", "name": "image", "input_shape": [2, 2, 1]},
        {"class_name": "InputLayer", "name": "positive", "input_shape": [2, 2, 1]},
    ]
    precision: dict[str, dict[str, str]] = {
        "one": {"result": "fixed<8,4>"},
        "image": {"result": "fixed<8,8>"},
        "positive": {"result": "ufixed<8,4>"},
    }
    for index, (kind, weight, *_) in enumerate(WEIGHTS):
        layers.append(
            {
                "class_name": "Dense",
                "name": f"d{index}",
                "inputs": ["one"],
                "n_in": 1,
                "n_out": 1,
                "weight_data": np.array([[weight]]),
                "bias_data": np.zeros(1),
            }
        )
        precision[f"d{index}"] = {
            "weight": str(kind),
            "bias": "fixed<2,2>",
            "accum": "fixed<40,16>",
            "result": "fixed<40,16>",
        }
    no_padding = {f"pad_{side}": 0 for side in ("top", "bottom", "left", "right")}
    pool = {"pool_height": 2, "pool_width": 2, **WINDOW, **no_padding}
    layers.append(
        {"class_name": "AveragePooling2D", "name": "mean", "inputs": ["image"]}
        | {"pool_op": "Average", **pool}
    )
    precision["mean"] = {"accum": "fixed<10,10>", "result": "fixed<8,8,RND,SAT>"}
    pool |= {"pool_height": 3, "pool_width": 3, "pad_top": 1, "pad_left": 1}
    layers.append(
        {"class_name": "MaxPooling2D", "name": "top", "inputs": ["positive"]}
        | {"pool_op": "Max", **pool}
    )
    precision["top"] = {"accum": "ufixed<8,4>", "result": "ufixed<8,4>"}
    config = {
        "OutputDir": str(directory),
        "ProjectName": "myproject",
        "Backend": "Vitis",
        "IOType": "io_parallel",
        "HLSConfig": {
            "Model": {"Precision": "fixed<16,6>", "ReuseFactor": 1, "Strategy": "Latency"},
            "LayerName": {name: {"Precision": types} for name, types in precision.items()},
        },
    }
    outputs = [f"d{index}" for index in range(len(WEIGHTS))] + ["mean", "top"]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ModelGraph.from_layer_list(config, layers, ["one", "image", "positive"], outputs)


IMAGE = np.array([-1.0, -1.0, -1.0, 0.0]).reshape(1, 2, 2, 1)
ONES = np.ones((1, 2, 2, 1))


def test_hls4ml_prints_weights_with_as_many_digits_as_fraction_bits(tmp_path: Path) -> None:
    graph = hls4mls_own_graph(tmp_path)
    for index, (kind, weight, text, defined, _) in enumerate(WEIGHTS):
        assert list(graph.graph[f"d{index}"].weights["weight"]) == [text]
        exact = quantize_values(np.array([weight]), kind, Rounding.TRN, Overflow.WRAP)
        assert exact.tolist() == [defined]


@needs_compiler
def test_hls4mls_own_layers_give_these_surprising_numbers(tmp_path: Path) -> None:
    graph = hls4mls_own_graph(tmp_path / "stock")
    graph.write()
    script = tmp_path / "stock" / "build_lib.sh"
    script.write_text(script.read_text().replace("-O3", "-O0 -DNDEBUG -w"))
    with contextlib.redirect_stdout(io.StringIO()):
        graph._compile()
    *products, mean, top = (
        float(np.ravel(y)[0]) for y in graph.predict([np.ones((1, 1)), IMAGE, ONES])
    )
    got = [y / kind.step for y, (kind, *_) in zip(products, WEIGHTS, strict=True)]
    assert got == [cpp for *_, cpp in WEIGHTS]
    # -3 / 4 is truncated toward zero before the result's rounding to nearest sees it.
    assert mean == 0.0
    # Padding of an unsigned type is half of full scale, not the lowest value.
    assert top == 8.0


@needs_compiler
def test_the_same_layers_of_ours_give_what_is_defined(tmp_path: Path) -> None:
    b = ProgramBuilder()
    one = b.input("one", (1,), FixedPoint(8, 4))
    image = b.input("image", (2, 2, 1), FixedPoint(8, 8))
    positive = b.input("positive", (2, 2, 1), FixedPoint(8, 4, False))
    for index, (kind, weight, *_) in enumerate(WEIGHTS):
        data = quantize_values(np.array([[weight]]), kind, Rounding.TRN, Overflow.WRAP)
        w = b.constant("w", data, kind)
        b.output(b.emit(ops.MatMul(), [one, w], "fc"), f"d{index}")
    total = b.emit(ops.Pool("sum", (2, 2), (2, 2)), [image], "mean")
    four = b.constant("n", np.array([4]), FixedPoint(3, 3, False))
    divide = ops.Divide(FixedPoint(8, 8), Rounding.RND, Overflow.SAT)
    b.output(b.emit(divide, [total, four], "mean"), "mean")
    b.output(b.emit(ops.Pool("max", (3, 3), (2, 2), ((1, 0), (1, 0))), [positive], "max"), "top")
    build = get("hls4ml").emit(b.build(), Target(), tmp_path / "p", cache=tmp_path / "cache")
    assert isinstance(build, Hls4mlBuild)
    *products, mean, top = (
        float(np.ravel(y)[0]) for y in build.run([np.ones((1, 1)), IMAGE, ONES])
    )
    got = [y / kind.step for y, (kind, *_) in zip(products, WEIGHTS, strict=True)]
    assert got == [defined for *_, defined, _ in WEIGHTS]
    assert mean == -1.0
    assert top == 1.0
