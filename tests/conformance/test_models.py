"""Whole models through compiled C++: what PyTorch captured is what the hardware computes.

Together with tests/e2e/test_models.py (graph = program = definition = fast path) this closes the
chain from the quantized graph to C++ for every first op, alone and together.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxloom.backends import get
from fxloom.backends.hls4ml import csim
from fxloom.backends.simulator import quantize_inputs, reference, simulate
from fxloom.data import Data
from fxloom.encodings import Encoding
from fxloom.fixed_point import Overflow, Rounding
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.compact import Compact
from fxloom.passes.mixed_precision import MixedPrecision
from fxloom.passes.quantize import Quantize
from fxloom.program import Program
from fxloom.recipe import Recipe
from fxloom.target import Target
from tests.conformance.packing import pack
from tests.models import CASES, make

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

Group = dict[str, tuple[Program, list[np.ndarray]]]

GROUPS = 6
SAMPLES = 24
# Operation by operation, test_targets.py has every combination; whole models have these.
TARGETS = [
    Target(),
    Target(io="stream", strategy="resource", reuse=4),
]


@pytest.fixture(autouse=True)
def unoptimized(monkeypatch: pytest.MonkeyPatch) -> None:
    """These projects are large, and run only a few samples."""
    monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-O0"))


def program_of(name: str) -> tuple[Program, list[np.ndarray]]:
    """A case as a program with a rounding mode of its own, and inputs of which many saturate."""
    model, x = make(name, seed=3)
    rounding = list(Rounding)[len(name) % 7]
    overflow = list(Overflow)[len(name) % 4]
    step = Quantize(
        weights=6,
        activations=7,
        outputs=9,
        table_bits=8,
        rounding=rounding,
        overflow=overflow,
        per_channel=len(name) % 2 == 1,
    )
    graph = capture(model, tuple(t[:2] for t in x))
    program = lower(step(graph, Data(x_train=x if len(x) > 1 else x[0])).graph)
    scale = torch.linspace(0.5, 4, SAMPLES)
    beyond = [t[:SAMPLES] * scale.reshape(-1, *(1,) * (t.dim() - 1)) for t in x]
    return program, quantize_inputs(program, [t.numpy() for t in beyond])


@pytest.fixture(scope="module", params=range(GROUPS))
def group(request: pytest.FixtureRequest) -> tuple[int, Group]:
    """Some of the cases, quantized once for all targets."""
    return request.param, {name: program_of(name) for name in list(CASES)[request.param :: GROUPS]}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.io)
def test_every_model_gives_the_simulators_integers(
    target: Target, group: tuple[int, Group], tmp_path: Path
) -> None:
    number, cases = group
    if target.io == "stream" and number % 2:
        target = replace(target, backend="Vivado", reuse=10**9)
    packed = pack([program for program, _ in cases.values()])
    mantissas = [array for _, arrays in cases.values() for array in arrays]
    build = get("hls4ml").emit(packed, target, tmp_path / "project", cache=tmp_path / "cache")
    got = iter(build.run_mantissas(mantissas))
    saturated = 0
    for name, (program, arrays) in cases.items():
        for wanted in reference(program, arrays):
            np.testing.assert_array_equal(next(got), wanted, err_msg=name)
        saturated += sum(
            int(((a == p.value.type.lo) | (a == p.value.type.hi)).sum())
            for a, p in zip(arrays, program.inputs, strict=True)
        )
    assert saturated > 100


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.io)
def test_weights_without_multipliers_give_the_simulators_integers(
    target: Target, tmp_path: Path
) -> None:
    programs, inputs = [], []
    for encoding in ("binary", "ternary", "power_of_two"):
        for name in ("signals", "separable"):
            model, x = make(name)
            step = Quantize(weights=4, weight_format=Encoding(encoding), per_channel=True)
            program = lower(step(capture(model, x[0][:2]), Data(x_train=x[0])).graph)
            programs.append(program)
            inputs += quantize_inputs(program, [3 * x[0][:SAMPLES].numpy()])
    packed = pack(programs)
    goal = replace(target, strategy="resource", reuse=4)
    build = get("hls4ml").emit(packed, goal, tmp_path / "project", cache=tmp_path / "cache")
    text = (tmp_path / "project" / "firmware" / "parameters.h").read_text()
    assert "fxloom::power_product<" in text
    assert "nnet::product::mult<" not in text
    for got, wanted in zip(build.run_mantissas(inputs), reference(packed, inputs), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.io)
def test_channels_of_their_own_widths_give_the_simulators_integers(
    target: Target, tmp_path: Path
) -> None:
    programs, inputs = [], []
    for name in ("signals", "separable", "mlp"):
        model, x = make(name)
        step = MixedPrecision(weight_bits=2.5, quantize={"activations": 5})
        program = lower(step(capture(model, x[0][:2]), Data(x_train=x[0])).graph)
        programs.append(program)
        inputs += quantize_inputs(program, [3 * x[0][:SAMPLES].numpy()])
    packed = pack(programs)
    build = get("hls4ml").emit(packed, target, tmp_path / "project", cache=tmp_path / "cache")
    for got, wanted in zip(build.run_mantissas(inputs), reference(packed, inputs), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_compact_filters_give_the_simulators_integers(tmp_path: Path) -> None:
    """Blocks with a window that is cropped and one that is padded, opposite filters put back in
    order and in columns of the next layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)),
    ).eval()
    x = torch.randn(64, 4, 7, 6)
    data = Data(x)
    kinds: list[dict[str, Any]] = [
        {"kind": "separable", "between": ("batchnorm", "relu"), "steps": 5},
        {"kind": "fire", "steps": 5},
        {"kind": "crelu", "threshold": -0.1},
    ]
    programs, inputs = [], []
    for io, keys in enumerate(kinds):
        step = Recipe(
            [Compact(**keys), Quantize(weights=6, activations=7, per_channel=io % 2 == 1)]
        )
        program = lower(step.run(capture(model, x[:2]), data).graph)
        programs.append(program)
        inputs += quantize_inputs(program, [3 * x[:SAMPLES].numpy()])
    packed = pack(programs)
    target = Target(io="stream", strategy="resource", reuse=4)
    build = get("hls4ml").emit(packed, target, tmp_path / "project", cache=tmp_path / "cache")
    for got, wanted in zip(build.run_mantissas(inputs), reference(packed, inputs), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["two images", "permute to image", "two outputs", "flatten some"])
def test_layouts_of_the_users_tensors_survive(name: str, tmp_path: Path) -> None:
    """Ports: real values in, real values out, in the shapes of the user's model."""
    model, x = make(name)
    graph = capture(model, tuple(t[:2] for t in x))
    program = lower(Quantize()(graph, Data(x_train=x if len(x) > 1 else x[0])).graph)
    arrays = [t.numpy() for t in x]
    build = get("hls4ml").emit(program, Target(), tmp_path / "project", cache=tmp_path / "cache")
    got, wanted = build.run(arrays), simulate(program, arrays)
    outputs = model(*x)
    for a, b, user in zip(*map(_several, (got, wanted, outputs)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == tuple(user.shape)


def _several(result: object) -> list:
    return list(result) if isinstance(result, tuple) else [result]
