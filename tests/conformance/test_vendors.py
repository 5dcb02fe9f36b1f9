"""Projects for Quartus, Catapult and oneAPI: the same integers with Algorithmic C's types.

Of the vendors' tools none is here. What hls4ml ships for Quartus and Catapult compiles with g++; a
project for oneAPI does with a stand-in for SYCL, tests/conformance/standin.
"""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

import fxloom
from fxloom import ops
from fxloom.backends import get
from fxloom.backends.hls4ml import csim, make_plan
from fxloom.backends.hls4ml.build import Hls4mlBuild
from fxloom.backends.hls4ml.kernels import UNSUPPORTED
from fxloom.backends.simulator import reference
from fxloom.errors import FxloomError, TargetError, ToolError
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint
from fxloom.ops import OPS
from fxloom.program import Program, ProgramBuilder
from fxloom.target import Target
from tests.conformance.packing import corner_inputs, draw_programs, pack
from tests.conformance.test_hls4ml import evaluates, requantize_program, wide_program
from tests.conformance.test_hls4ml_project import residual_program, tree
from tests.strategies import PROGRAMS, graphs

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

Backend = Literal["Quartus", "Catapult", "oneAPI"]
PARTS: dict[Backend, str] = {"Quartus": "10ax115", "Catapult": "xczu9eg", "oneAPI": "agfb014"}
SIMULATED = pytest.mark.parametrize("backend", ["Quartus", "Catapult"])
ALL = pytest.mark.parametrize("backend", PARTS)

SAMPLES = 64
STANDIN = Path(__file__).parent / "standin" / "sycl.hpp"
SYCL_HEADERS = (
    "sycl.hpp",
    "ext/intel/fpga_extensions.hpp",
    "ext/intel/ac_types/ac_fixed.hpp",
    "ext/intel/ac_types/ac_int.hpp",
    "ext/intel/experimental/task_sequence.hpp",
    "ext/intel/prototype/interfaces.hpp",
)


@pytest.fixture(autouse=True)
def unoptimized(monkeypatch: pytest.MonkeyPatch) -> None:
    """These projects are large, and run only a few samples."""
    monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-O0"))


def emit(program: Program, backend: Backend, out: Path) -> Hls4mlBuild:
    target = Target(part=PARTS[backend], backend=backend)
    build = get("hls4ml").emit(program, target, out / "project", cache=out / "cache")
    assert isinstance(build, Hls4mlBuild)
    return build


def mismatches(program: Program, backend: Backend, out: Path) -> dict[str, int]:
    """Different integers an output, between the reference and the compiled C++."""
    inputs = corner_inputs(program, SAMPLES, 1)
    got = emit(program, backend, out).run_mantissas(inputs)
    return {
        port.name: int((a != b).sum())
        for port, a, b in zip(program.outputs, reference(program, inputs), got, strict=True)
        if (a != b).any()
    }


@cache
def every_operation(each: int = 8) -> Program:
    """Programs of every operation, narrow and wide, and graphs of several, side by side."""
    strategies = [PROGRAMS[name](width) for name in sorted(OPS) for width in (9, 26)]
    drawn = [p for s in [*strategies, graphs(6, 6)] for p in draw_programs(s, each, 11)]
    return pack([p for p in drawn if evaluates(p)])


@cache
def every_mode() -> Program:
    """requantize in all modes, from and to formats of one bit and more; values of 63 bits."""
    sources = [FixedPoint(8, 3), FixedPoint(1, 1), FixedPoint(1, 0, False), FixedPoint(40, 12)]
    return pack([requantize_program(sources, through_matmul=False), wide_program()])


def standin(out: Path) -> list[str]:
    """Compiler options for a project for oneAPI, with the stand-in in place of SYCL."""
    for name in SYCL_HEADERS:
        header = out / "include" / "sycl" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(f'#include "{STANDIN}"\n')
    import hls4ml

    ac_types = Path(hls4ml.__file__).parent / "templates" / "quartus" / "ac_types"
    return ["-std=c++17", f"-I{out / 'include'}", f"-I{ac_types}", "-Isrc", "-Isrc/firmware"]


def run_testbench(build: Hls4mlBuild, out: Path) -> subprocess.CompletedProcess[str]:
    """Compile and run the project's own testbench."""
    source, flags = ".", ["-std=c++11", "-Ifirmware/ac_types"]
    if build.target.backend == "Catapult":
        packages = ("ac_types", "ac_math", "ac_simutils")
        flags = ["-std=c++17", *(f"-Ifirmware/{package}/include" for package in packages)]
    elif build.target.backend == "oneAPI":
        source, flags = "src", standin(out)
    files = [f"{source}/myproject_test.cpp", f"{source}/firmware/myproject.cpp"]
    command = ["g++", "-w", "-O0", *flags, *files, "-o", "tb"]
    subprocess.run(command, cwd=build.directory, check=True)
    return subprocess.run(
        ["./tb"], cwd=build.directory, check=False, capture_output=True, text=True
    )


# -- integers ---------------------------------------------------------------


def test_the_corpus_has_every_operation() -> None:
    assert not UNSUPPORTED
    for each in (2, 8):
        assert {instr.op.name for instr in every_operation(each).instrs} == set(OPS)


@needs_compiler
@SIMULATED
def test_every_operation_gives_the_simulators_integers(backend: Backend, tmp_path: Path) -> None:
    assert mismatches(every_operation(), backend, tmp_path) == {}


@needs_compiler
@SIMULATED
def test_every_mode_and_every_width(backend: Backend, tmp_path: Path) -> None:
    assert mismatches(every_mode(), backend, tmp_path) == {}


@needs_compiler
@ALL
def test_the_testbench_passes_and_notices_one_wrong_value(backend: Backend, tmp_path: Path) -> None:
    # Of oneAPI this is all that can be run. A pipe for every port costs a compiler much.
    program = every_operation(2) if backend == "oneAPI" else residual_program()
    build = emit(program, backend, tmp_path)
    done = run_testbench(build, tmp_path)
    assert (done.returncode, done.stdout) == (0, "PASS: 32 samples, every output equal\n")
    expected = build.directory / "tb_data" / "expected.dat"
    words = expected.read_text().split()
    expected.write_text(" ".join([*words[:-1], str(int(words[-1]) + 1)]))
    (build.directory / "tb_data").rename(tmp_path / "elsewhere")
    command = [str(build.directory / "tb"), str(tmp_path / "elsewhere")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL: sample 31, output")


@needs_compiler
@SIMULATED
def test_every_way_to_connect_ports(backend: Backend, tmp_path: Path) -> None:
    b = ProgramBuilder()
    x = b.input("x", (3,), FixedPoint(5, 3))
    b.input("unused", (2, 2), FixedPoint(1, 4, False))
    z = b.input("z", (), FixedPoint(1, 1))
    double = b.emit(ops.Add(), [x, x], "double")
    b.output(x, "input handed out")
    b.output(double, "also used inside")
    square = b.emit(ops.Mul(), [double, double], "square")
    b.output(square, "once")
    b.output(square, "twice")
    b.output(z, "a single bit")
    assert mismatches(b.build(), backend, tmp_path) == {}


class Tagger(nn.Module):
    """Convolution, residual sum, pool, table and softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        y = torch.sigmoid(self.norm(self.second(y)) + y)
        return torch.softmax(self.head(y.mean((2, 3))), 1)


@needs_compiler
@SIMULATED
def test_a_model_from_end_to_end(backend: Backend, tmp_path: Path) -> None:
    torch.manual_seed(0)
    target = Target(part=PARTS[backend], backend=backend)
    data = torch.randn(40, 1, 6, 6)
    build = fxloom.compile(Tagger().eval(), data=data, target=target, out=tmp_path / "build")
    result = fxloom.check(tmp_path / "build", samples=40)
    assert result.is_exact
    assert sum(comparison.values for comparison in result.comparisons) > 500
    assert build.report.total.csynth.dsp.value is None


# -- text ---------------------------------------------------------------


@ALL
def test_two_emissions_are_the_same_bytes_wherever_they_lie(
    backend: Backend, tmp_path: Path
) -> None:
    first = tree(emit(residual_program(), backend, tmp_path).directory)
    second = tree(emit(residual_program(), backend, tmp_path / "deeper").directory)
    assert first == second
    packages = str(Path(torch.__file__).parent.parent).encode()
    for name, data in first.items():
        assert str(tmp_path).encode() not in data, name
        assert packages not in data, name
    folder = "src/firmware" if backend == "oneAPI" else "firmware"
    assert b"ac_int<W, true>" in first[f"{folder}/nnet_utils/fxloom_types.h"]
    assert not [name for name in first if "bridge" in name or name.endswith((".so", ".yml"))]
    for name in ("myproject.cpp", "parameters.h", "defines.h", "weights/c2_1.h"):
        text = first[f"{folder}/{name}"]
        assert b"hls::" not in text
        assert b"ap_fixed" not in text
        assert b"ap_int" not in text


@ALL
def test_the_scripts_name_part_and_clock(backend: Backend, tmp_path: Path) -> None:
    folder = emit(residual_program(), backend, tmp_path).directory
    part = Target(part=PARTS[backend]).device.full_name
    if backend == "Quartus":
        assert f"DEVICE   := {part}\n" in (folder / "Makefile").read_text()
        top = (folder / "firmware" / "myproject.cpp").read_text()
        assert "hls_scheduler_target_fmax_mhz(200)" in top
        assert "hls_component_ii" not in top  # its convolution is a loop
    elif backend == "Catapult":
        tcl = (folder / "build_prj.tcl").read_text()
        assert tcl.count(f"setup_xilinx_part {{{part}}}\n") == 3
        assert "set hls_clock_period 5.0\n" in tcl
        assert 'INVOKE_ARGS "$sfd/tb_data"' in tcl
        assert "load_weights" not in (folder / "firmware" / "myproject.cpp").read_text()
    else:
        cmake = (folder / "CMakeLists.txt").read_text()
        assert f'set(FPGA_DEVICE "{part}")' in cmake
        assert "-Xsclock=5.0ns" in cmake
        assert "LIBRARY_TARGET" not in cmake


@ALL
def test_all_layers_are_kernels_of_ours(backend: Backend) -> None:
    plan = make_plan(residual_program(), Target(part=PARTS[backend], backend=backend))
    assert {layer.kind for layer in plan.layers} == {"InputLayer", "FxloomKernel"}


def test_a_single_bit_keeps_its_binary_point(tmp_path: Path) -> None:
    b = ProgramBuilder()
    b.output(b.input("x", (2,), FixedPoint(1, -3, False)), "y")
    build = emit(b.build(), "Quartus", tmp_path)
    defines = (build.directory / "firmware" / "defines.h").read_text()
    assert "typedef ac_fixed<2,-2,false> input_t;" in defines


def test_no_rule_of_the_estimate_is_stretched_to_another_backend() -> None:
    report = estimate(residual_program(), Target(backend="Quartus", part="10ax115"))
    assert {layer.csynth.dsp.value for layer in report.layers} == {None}
    assert report.total.latency.value is None
    assert "projects for Vitis and Vivado" in report.layers[0].csynth.dsp.source
    assert report.to_text()


# -- refusals ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            Target(backend="Quartus"),
            r"part: Quartus is for parts of Intel \(10ax115, .*\), xc7z020 is made by AMD",
        ),
        (Target(part="10ax115"), r"part: Vitis is for parts of AMD \(xc7z020, .*by Intel"),
        (
            Target(backend="Catapult", io="stream"),
            "io: required 'parallel' for Catapult, got 'stream'",
        ),
        (Target(backend="Catapult", reuse=2), "required 'latency' and 1 for Catapult"),
        (
            Target(backend="oneAPI", part="agfb014", layers={"fc": {"strategy": "resource"}}),
            "required 'latency' and 1 for oneAPI",
        ),
    ],
)
def test_what_is_not_there_is_refused(target: Target, message: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=message):
        get("hls4ml").emit(residual_program(), target, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_projects_for_oneapi_have_no_c_simulation(tmp_path: Path) -> None:
    build = emit(residual_program(), "oneAPI", tmp_path)
    for run in (build.run, build.trace):
        with pytest.raises(ToolError, match=r"no C simulation of projects for oneAPI.*icpx"):
            run(np.zeros((1, 2, 4, 4)))


def test_two_ports_with_one_pipe_are_refused(tmp_path: Path) -> None:
    b = ProgramBuilder()
    for number in range(1, 13):
        name = {1: "2x", 12: "x"}.get(number, f"i{number}")  # n1_2x and n12_x
        b.output(b.input(name, (1,), FixedPoint(3, 3)), f"y{number}")
    with pytest.raises(FxloomError, match="ports 2x and x would have the same pipe, N12XPipe"):
        emit(b.build(), "oneAPI", tmp_path)


def test_a_changed_file_of_hls4ml_is_noticed() -> None:
    from fxloom.backends.hls4ml.writer import _edited

    assert _edited("f", "a\nb\n", ("^a$", "c\\d")) == "c\\d\nb\n"
    with pytest.raises(FxloomError, match=r"hls4ml's f is not as expected: nothing matches x"):
        _edited("f", "a\nb\n", ("x", "y"))
