"""The same integers whatever the target: backend, strategy, reuse factor. test_sparse.py has the
sparse kernel.

One project holds many programs, and every program in it has a strategy and a reuse factor of its
own, so that a project covers all of them for one backend.
"""

import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fxloom import ops
from fxloom.backends import get
from fxloom.backends.hls4ml import csim
from fxloom.backends.hls4ml.build import Hls4mlBuild, load_build
from fxloom.backends.hls4ml.plan import make_plan
from fxloom.backends.simulator import reference
from fxloom.errors import VerifyError
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint
from fxloom.ops import OPS
from fxloom.program import Program, ProgramBuilder
from fxloom.target import LayerTable, Target
from tests.conformance.packing import corner_inputs, draw_programs, pack
from tests.strategies import PROGRAMS, graphs

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

Backend = Literal["Vitis", "Vivado"]
Io = Literal["parallel", "stream"]

SETTINGS: list[LayerTable] = [
    {"strategy": "resource", "reuse": 1},
    {"strategy": "resource", "reuse": 4},
    {"strategy": "resource", "reuse": 10**9},  # the largest there is
    {"strategy": "latency", "reuse": 1},
    {"strategy": "latency", "reuse": 4},
]
PER_KIND = 15
SAMPLES = 40
MATRICES = ("matmul", "conv")
OTHERS = sorted(set(OPS) - set(MATRICES))


@pytest.fixture(autouse=True)
def unoptimized(monkeypatch: pytest.MonkeyPatch) -> None:
    """These projects are large, and run only a few samples."""
    monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-O0"))


def matrix_programs(name: str, io: Io) -> tuple[list[Program], dict[str, LayerTable]]:
    """Programs with every kind of layer for an operation, and settings for them when packed: each
    kind has each setting at least twice."""
    programs: list[Program] = []
    layers: dict[str, LayerTable] = {}
    seen: Counter[str] = Counter()
    for program in drawn(name, 240, 5):
        kind = next(
            layer.kind for layer in make_plan(program, Target(io=io)).layers if layer.allotment
        )
        if seen[kind] < PER_KIND:
            layers[f"p{len(programs)}.*"] = SETTINGS[seen[kind] % len(SETTINGS)]
            programs.append(program)
            seen[kind] += 1
    return programs, layers


def mismatches(program: Program, target: Target, out: Path) -> dict[str, int]:
    """Different integers an output, between the reference and the compiled C++."""
    build = get("hls4ml").emit(program, target, out / "project", cache=out / "cache")
    assert isinstance(build, Hls4mlBuild)
    inputs = corner_inputs(program, SAMPLES, 1)
    got = build.run_mantissas(inputs)
    return {
        port.name: int((a != b).sum())
        for port, a, b in zip(program.outputs, reference(program, inputs), got, strict=True)
        if (a != b).any()
    }


@cache
def drawn(name: str, count: int, seed: int) -> list[Program]:
    """Programs of one operation that int64 can evaluate; a quarter of them with wide formats."""
    programs = draw_programs(PROGRAMS[name](9), count - count // 4, seed)
    return [*programs, *filter(_evaluates, draw_programs(PROGRAMS[name](26), count // 4, seed))]


def _evaluates(program: Program) -> bool:
    try:
        reference(program, corner_inputs(program, 4, 0))
    except VerifyError:
        return False
    return True


@needs_compiler
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("io", ["parallel", "stream"])
@pytest.mark.parametrize("backend", ["Vitis", "Vivado"])
def test_every_strategy_and_reuse_factor(
    name: str, io: Io, backend: Backend, tmp_path: Path
) -> None:
    programs, layers = matrix_programs(name, io)
    target = Target(backend=backend, io=io, kernel="dense", layers=layers)
    assert mismatches(pack(programs), target, tmp_path) == {}


@needs_compiler
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize(
    ("io", "backend", "count"),
    [("parallel", "Vivado", 8), ("stream", "Vitis", 12), ("stream", "Vivado", 8)],
)
def test_every_other_operation(
    io: Io, backend: Backend, count: int, part: int, tmp_path: Path
) -> None:
    """test_hls4ml.py has the fourth combination."""
    programs = [program for name in OTHERS[part::2] for program in drawn(name, count, 6)]
    assert mismatches(pack(programs), Target(backend=backend, io=io), tmp_path) == {}


@needs_compiler
@pytest.mark.parametrize("backend", ["Vitis", "Vivado"])
def test_values_that_are_used_again_in_streams(backend: Backend, tmp_path: Path) -> None:
    programs = [p for p in draw_programs(graphs(6, 6), 16, 7) if _evaluates(p)]
    readers = Counter(arg for program in programs for i in program.instrs for arg in i.args)
    assert max(readers.values()) > 2
    target = Target(backend=backend, io="stream", strategy="resource", reuse=2)
    assert mismatches(pack(programs), target, tmp_path) == {}


@pytest.mark.parametrize("io", ["parallel", "stream"])
def test_the_corpus_has_every_strategy_in_every_kind_of_layer(io: Io) -> None:
    seen: Counter[tuple[Any, ...]] = Counter()
    for name in MATRICES:
        programs, layers = matrix_programs(name, io)
        plan = make_plan(pack(programs), Target(io=io, kernel="dense", layers=layers))
        for layer in plan.layers:
            if layer.allotment is not None:
                reuse = "more" if layer.allotment.reuse > 1 else "one"
                seen[layer.kind, layer.allotment.strategy, reuse] += 1
    expected = {
        ("Dense", "resource"),
        ("Dense", "latency"),
        ("Conv2D", "resource"),
        ("Conv2D", "latency"),
        ("DepthwiseConv2D", "latency"),
        ("FxloomKernel", "latency"),
    }
    assert {key[:2] for key in seen} == expected
    assert set(seen) == {(*key, reuse) for key in expected for reuse in ("one", "more")}


# -- what a layer gets of what was asked ----------------------------------------------------------


def three_layers() -> Program:
    """A convolution, a depthwise one and a dense layer."""
    rng = np.random.default_rng(0)
    b = ProgramBuilder()
    value = b.input("x", (4, 4, 3), FixedPoint(6, 2))
    for name, groups, shape in (("conv", 1, (2, 2, 3, 4)), ("depthwise", 4, (3, 3, 1, 4))):
        w = b.constant("w", rng.integers(-7, 8, shape), FixedPoint(4, 1))
        value = b.emit(ops.Conv((1, 1), ((0, 0), (0, 0)), groups=groups), [value, w], name)
        value = b.emit(ops.Requantize(FixedPoint(6, 3)), [value], name)
    value = b.emit(ops.Reshape((4,)), [value], "flatten")
    w = b.constant("w", rng.integers(-7, 8, (4, 6)), FixedPoint(4, 1))
    b.output(b.emit(ops.MatMul(), [value, w], "fc"), "y")
    return b.build()


def test_a_build_says_which_layer_got_which_reuse_factor(tmp_path: Path) -> None:
    program = three_layers()
    target = Target(strategy="resource", reuse=5, layers={"fc": {"reuse": 10**9}})
    build = get("hls4ml").emit(program, target, tmp_path / "p")
    given = {
        layer["origin"]: (layer["strategy"], layer["reuse"], layer["note"])
        for layer in load_build(tmp_path / "p", program).layers
        if "strategy" in layer
    }
    assert given == {
        "conv": ("resource", 4, "reuse 5 asked for, 4 is nearest"),
        "depthwise": (
            "latency",
            5,
            "resource asked for, latency given: there is no Resource DepthwiseConv2D",
        ),
        "fc": ("resource", 24, "reuse 1000000000 asked for, 24 is nearest"),
    }
    assert load_build(tmp_path / "p", program).target == target
    text = (build.directory / "firmware" / "parameters.h").read_text()
    assert "static const unsigned reuse_factor = 24;" in text
    # The estimate counts with the same figures.
    dsp = {layer.name: layer.csynth.dsp.value for layer in estimate(program, target).layers}
    assert dsp["fc"] == 0 == dsp["conv"]  # Resource, 4 bits: rule 2


@needs_compiler
@pytest.mark.parametrize("backend", ["Vitis", "Vivado"])
def test_strided_1x1_convolutions_of_streams(backend: Backend, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    programs = []
    for stride in ((1, 1), (2, 2), (3, 1), (1, 2)):
        for _ in SETTINGS:
            b = ProgramBuilder()
            pads = ((int(rng.integers(2)), 0), (0, int(rng.integers(2))))
            x = b.input("x", (*(int(n) for n in rng.integers(2, 6, 2)), 3), FixedPoint(6, 2))
            w = b.constant("w", rng.integers(-7, 8, (1, 1, 3, 4)), FixedPoint(4, 1))
            b.output(b.emit(ops.Conv(stride, pads), [x, w], "conv"), "y")
            programs.append(b.build())
    layers = {f"p{n}.*": SETTINGS[n % len(SETTINGS)] for n in range(len(programs))}
    target = Target(backend=backend, io="stream", layers=layers)
    program = pack(programs)
    assert sum(layer.pointwise for layer in make_plan(program, target).layers) == len(programs)
    assert mismatches(program, target, tmp_path) == {}


def test_a_resource_convolution_reuses_no_further_than_its_window() -> None:
    for io, largest in (("parallel", 12), ("stream", 48)):
        plan = make_plan(three_layers(), Target(io=io, strategy="resource", reuse=10**9))  # type: ignore[arg-type]
        found = {layer.origin: layer.allotment for layer in plan.layers if layer.allotment}
        assert found["conv"].reuse == largest


@needs_compiler
@pytest.mark.parametrize("io", ["parallel", "stream"])
def test_latency_layers_reuse_no_further_than_their_weights(io: Io, tmp_path: Path) -> None:
    target = Target(io=io, reuse=2**40)
    plan = make_plan(three_layers(), target)
    found = {layer.origin: layer.allotment for layer in plan.layers if layer.allotment}
    assert found["conv"].reuse == 48
    assert found["conv"].note == f"reuse {2**40} asked for, 48 is the largest"
    assert mismatches(three_layers(), target, tmp_path) == {}


def test_reuse_makes_the_top_function_a_dataflow() -> None:
    b = ProgramBuilder()
    x = b.input("x", (4,), FixedPoint(6, 2))
    w = b.constant("w", np.ones((4, 2), np.int64), FixedPoint(2, 2))
    b.output(b.emit(ops.MatMul(), [x, w], "fc"), "y")
    program = b.build()
    assert not make_plan(program).dataflow
    assert make_plan(program, Target(reuse=2)).dataflow
    assert make_plan(program, Target(strategy="resource")).dataflow


def test_the_tcl_of_vivado_is_hls4mls(tmp_path: Path) -> None:
    build = get("hls4ml").emit(three_layers(), Target(backend="Vivado"), tmp_path / "p")
    files = {path.name for path in build.directory.iterdir()}
    assert {"build_prj.tcl", "project.tcl", "vivado_synth.tcl"} <= files
    assert "build_opt.tcl" not in files
    tcl = (build.directory / "project.tcl").read_text()
    assert 'set backend "vivado"' in tcl
    assert "set clock_uncertainty 12.5%" in tcl
    assert "open_project" in (build.directory / "build_prj.tcl").read_text()
