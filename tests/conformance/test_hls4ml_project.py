"""The project that the hls4ml backend writes: names, ports, determinism, testbench, errors."""

import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxloom import ops
from fxloom.backends import get, names
from fxloom.backends import hls4ml as hls4ml_backend
from fxloom.backends.hls4ml import csim
from fxloom.backends.hls4ml.build import Hls4mlBuild, load_build
from fxloom.backends.hls4ml.plan import identifier, make_plan
from fxloom.backends.simulator import quantize_inputs, reference, simulate, trace_all
from fxloom.errors import DataError, FxloomError, ToolError
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.program import Program, ProgramBuilder
from fxloom.stream_schedule import StreamSchedule
from fxloom.target import Target
from tests.conformance.packing import corner_inputs

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


IO = pytest.mark.parametrize("target", [Target(), Target(io="stream")], ids=lambda t: t.io)


def emit(program: Program, out: Path, target: Target | None = None, **options: Any) -> Hls4mlBuild:
    build = get("hls4ml").emit(
        program, target or Target(), out / "project", cache=out / "cache", **options
    )
    assert isinstance(build, Hls4mlBuild)
    return build


def assert_equal_to_reference(build: Hls4mlBuild, samples: int = 40) -> None:
    inputs = corner_inputs(build.program, samples, 2)
    for a, b in zip(reference(build.program, inputs), build.run_mantissas(inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def residual_program(origins: tuple[str, ...] = ("conv", "add", "pool", "fc")) -> Program:
    """Convolution, residual sum, average pool, dense: a layer of every family."""
    rng = np.random.default_rng(1)
    conv, add, pool, fc = origins
    b = ProgramBuilder()
    x = b.input("x", (4, 4, 2), FixedPoint(6, 2, False), axes=(1, 2, 0))
    w = b.constant("w", rng.integers(-7, 8, (3, 3, 2, 2)), FixedPoint(4, -2))
    y = b.emit(ops.Conv((1, 1), ((1, 1), (1, 1))), [x, w], conv)
    y = b.emit(ops.Add(), [y, b.constant("b", np.array([3, -9]), FixedPoint(5, 0))], conv)
    y = b.emit(ops.Requantize(FixedPoint(6, 2), Rounding.RND, Overflow.SAT), [y], conv)
    y = b.emit(ops.Add(), [x, y], add)
    y = b.emit(ops.Pool("sum", (4, 4), (4, 4)), [y], pool)
    sixteen = b.constant("n", np.array([16]), FixedPoint(5, 5, False))
    y = b.emit(ops.Divide(FixedPoint(8, 4), Rounding.RND, Overflow.SAT), [y, sixteen], pool)
    y = b.emit(ops.Reshape((2,)), [y], pool)
    w = b.constant("w", rng.integers(-100, 100, (2, 3)), FixedPoint(8, 1))
    b.output(b.emit(ops.MatMul(), [y, w], fc), "y")
    return b.build()


# -- registry ---------------------------------------------------------------


def test_an_unknown_backend_is_named_with_the_known_ones() -> None:
    assert names() == ("hls4ml",)
    with pytest.raises(FxloomError, match="unknown backend 'verilog'; known: hls4ml"):
        get("verilog")


def test_looking_up_the_backend_does_not_import_hls4ml() -> None:
    code = "import sys, fxloom.backends as b; b.get('hls4ml'); sys.exit('hls4ml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- names ---------------------------------------------------------------

AWKWARD = [
    "class",
    "input",
    "int",
    "x-y",
    "x_y",
    "X_Y",
    "x.y",
    "größe.層",
    "namespace",
    "main",
    "1st",
    "",
    "a" * 300,
    "*/ evil \\",
    "two\nlines",
    "trigraph??/",
    "layer2_out",
    "std",
    "ap_int",
    "x-y",
]


def test_identifiers_are_legal_and_unambiguous() -> None:
    made = [identifier(index, name) for index, name in enumerate(AWKWARD)]
    assert all(re.fullmatch(r"n\d+(_[a-z0-9_]*[a-z0-9])?", name) for name in made)
    assert len({name.lower() for name in made}) == len(AWKWARD)
    assert identifier(3, "block1.conv2") == "n3_block1_conv2"
    assert max(map(len, made)) < 50


@needs_compiler
def test_any_layer_name_gives_a_project_that_compiles_and_is_found_again(tmp_path: Path) -> None:
    b = ProgramBuilder()
    value = b.input("input", (2,), FixedPoint(8, 8))
    for name in AWKWARD:
        w = b.constant("class", np.array([[1, 1], [0, 1]]), FixedPoint(2, 2))
        value = b.emit(ops.MatMul(), [value, w], name)
        value = b.emit(ops.Requantize(FixedPoint(8, 8)), [value], name)
    b.output(value, "int")
    build = emit(b.build(), tmp_path)
    origins = [layer["origin"] for layer in build.layers]
    assert origins == ["input", *AWKWARD]
    assert build.origin_of(build.layers[8]["name"]) == "größe.層"
    assert build.origin_of(build.layers[8]["array"]) == "größe.層"
    assert_equal_to_reference(build)


# -- ports ---------------------------------------------------------------


@needs_compiler
@IO
def test_every_way_to_connect_ports(target: Target, tmp_path: Path) -> None:
    b = ProgramBuilder()
    x = b.input("x", (3,), FixedPoint(5, 3))
    b.input("unused", (2, 2), FixedPoint(4, 4, False))
    z = b.input("z", (3,), FixedPoint(7, 2, False))
    double = b.emit(ops.Add(), [x, x], "double")
    square = b.emit(ops.Mul(), [double, double], "square")
    b.output(x, "input handed out")
    b.output(double, "also used inside")
    b.output(square, "once")
    b.output(square, "twice")
    b.emit(ops.Sub(), [x, z], "dead code")
    b.output(z, "another input")
    build = emit(b.build(), tmp_path, target)
    assert_equal_to_reference(build)
    values = [np.array([[1.0, -2.0, 3.75]]), np.zeros((1, 2, 2)), np.array([[0.5, 1.0, 1.5]])]
    got = build.run(values)
    for a, c in zip(got, simulate(build.program, values), strict=True):
        np.testing.assert_array_equal(a, c)
    assert got[2].tolist() == [[4.0, 16.0, 56.25]]


# -- the written project ---------------------------------------------------------------


def tree(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_two_emissions_are_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    first = tree(emit(residual_program(), tmp_path).directory)
    second = tree(emit(residual_program(), tmp_path / "deeper").directory)
    assert first == second
    assert not [name for name, data in first.items() if str(tmp_path).encode() in data]
    expected = {
        "build_prj.tcl",
        "build_opt.tcl",
        "project.tcl",
        "vivado_synth.tcl",
        "layers.json",
        "myproject_test.cpp",
        "fxloom_ports.h",
        "tb_data/inputs.dat",
        "tb_data/expected.dat",
        "firmware/myproject.cpp",
        "firmware/myproject.h",
        "firmware/defines.h",
        "firmware/parameters.h",
        "firmware/weights/w2.h",
        "firmware/ap_types/ap_fixed.h",
        "firmware/nnet_utils/nnet_dense.h",
        "firmware/nnet_utils/fxloom_kernels.h",
        "firmware/nnet_utils/fxloom_streams.h",
        "firmware/nnet_utils/fxloom_types.h",
    }
    assert expected <= set(first)


def test_the_tcl_names_part_and_clock(tmp_path: Path) -> None:
    build = emit(residual_program(), tmp_path)
    tcl = (build.directory / "project.tcl").read_text()
    assert 'set part "xc7z020clg400-1"' in tcl
    assert "set clock_period 5.0" in tcl
    assert 'set backend "vitis"' in tcl
    assert "@" not in tcl


def test_bias_and_requantize_are_taken_into_hls4mls_layers() -> None:
    layers = make_plan(residual_program()).layers
    assert [(layer.kind, layer.ops) for layer in layers] == [
        ("InputLayer", ("input",)),
        ("Conv2D", ("conv", "add", "requantize")),
        ("FxloomKernel", ("add",)),
        ("FxloomKernel", ("pool",)),
        ("FxloomKernel", ("divide",)),
        ("FxloomKernel", ("reshape",)),
        ("Dense", ("matmul",)),
    ]


def test_the_literals_for_synthesis_are_the_weights_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    b = ProgramBuilder()
    x = b.input("x", (8,), FixedPoint(4, 4))
    kinds = [FixedPoint(8, -60), FixedPoint(9, 90), FixedPoint(54, 20), FixedPoint(1, 1, False)]
    kinds += [FixedPoint(2, 2), FixedPoint(3, 200), FixedPoint(16, 0)]
    data = [rng.integers(kind.lo, kind.hi, (8, 3), endpoint=True) for kind in kinds]
    for kind, weights in zip(kinds, data, strict=True):
        b.output(b.emit(ops.MatMul(), [x, b.constant("w", weights, kind)], "fc"), f"y{kind}")
    build = emit(b.build(), tmp_path)
    for index, (kind, weights) in enumerate(zip(kinds, data, strict=True), start=2):
        text = (build.directory / "firmware" / "weights" / f"w{index}.h").read_text()
        literals = re.findall(r"[-+.\de]+", text.split("#else")[1].split("{")[1].split("}")[0])
        exact = [int(m) * Fraction(2) ** -kind.fraction for m in weights.reshape(-1)]
        assert [Fraction(float(word)) for word in literals] == exact


def test_a_hundred_thousand_weights_are_written_within_a_second(tmp_path: Path) -> None:
    emit(residual_program(), tmp_path / "warm")
    rng = np.random.default_rng(0)
    b = ProgramBuilder()
    value = b.input("x", (316,), FixedPoint(8, 2))
    w = b.constant("w", rng.integers(-127, 128, (316, 316)), FixedPoint(8, 1))
    b.output(b.emit(ops.MatMul(), [value, w], "fc"), "y")
    program = b.build()
    start = time.process_time()
    emit(program, tmp_path)
    assert time.process_time() - start < 1.0


# -- testbench ---------------------------------------------------------------


def run_testbench(project: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Compile and run as a vendor's C simulation would: assertions on, weights as literals."""
    command = ["g++", "-std=c++11", "-w", "-DFXLOOM_LITERALS", *flags, "-Ifirmware/ap_types"]
    command += ["myproject_test.cpp", "firmware/myproject.cpp", "-o", "tb"]
    subprocess.run(command, cwd=project, check=True)
    return subprocess.run(["./tb"], cwd=project, check=False, capture_output=True, text=True)


@needs_compiler
@IO
def test_the_testbench_passes_and_notices_one_wrong_value(target: Target, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(0, 4, (7, 2, 4, 4))
    build = emit(residual_program(), tmp_path, target, samples=samples)
    done = run_testbench(build.directory)
    assert (done.returncode, done.stdout) == (0, "PASS: 7 samples, every output equal\n")
    expected = build.directory / "tb_data" / "expected.dat"
    log = build.directory / "tb_data" / "csim_results.log"
    assert log.read_text().split() == expected.read_text().split()
    raw = simulate(build.program, samples, raw=True)
    assert expected.read_text().split() == [str(m) for m in np.ravel(raw)]

    words = expected.read_text().split()
    words[16] = str(int(words[16]) + 1)
    expected.write_text(" ".join(words))
    done = subprocess.run(
        ["./tb"], cwd=build.directory, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL: sample 5, output 1: expected")

    expected.write_text(" ".join(words[:4]))
    done = subprocess.run(
        ["./tb"], cwd=build.directory, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "expected 7 samples in tb_data, found 1" in done.stdout


def test_default_samples_hold_the_extremes(tmp_path: Path) -> None:
    build = emit(residual_program(), tmp_path)
    rows = (build.directory / "tb_data" / "inputs.dat").read_text().splitlines()
    assert len(rows) == 32
    assert set(rows[0].split()) == {"0"}
    assert set(rows[2].split()) == {"63"}


# -- C simulation ---------------------------------------------------------------


@needs_compiler
def test_run_takes_real_values_reports_progress_and_uses_the_cache(tmp_path: Path) -> None:
    build = emit(residual_program(), tmp_path)
    x = np.random.default_rng(0).uniform(-1, 5, (50, 2, 4, 4))
    seen: list[tuple[int, int]] = []
    y = build.run(x, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(y, simulate(build.program, x))
    assert seen[0] == (0, 50)
    assert seen[-1] == (50, 50)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    moved = tmp_path / "moved"
    shutil.move(build.directory, moved)
    again = load_build(moved, build.program, cache=tmp_path / "cache")
    np.testing.assert_array_equal(again.run(x, raw=True), simulate(build.program, x, raw=True))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert again.layers == tuple(json.loads(json.dumps(build.layers)))


@needs_compiler
@IO
def test_a_trace_has_every_array_of_the_hardware(target: Target, tmp_path: Path) -> None:
    build = emit(residual_program(), tmp_path, target)
    x = np.random.default_rng(0).uniform(-1, 5, (5, 2, 4, 4))
    traced = build.trace(x)
    expected = trace_all(build.program, quantize_inputs(build.program, x))
    assert list(traced) == ["x", "conv_2", "add", "pool", "pool_1", "pool_2", "fc"]
    for name, array in traced.items():
        np.testing.assert_array_equal(array, expected[name])


@needs_compiler
def test_a_build_for_a_debugger_has_symbols_and_keeps_its_inputs(tmp_path: Path) -> None:
    build = emit(residual_program(), tmp_path)
    x = np.random.default_rng(0).uniform(-1, 5, (5, 2, 4, 4))
    np.testing.assert_array_equal(build.run(x, debug=True), simulate(build.program, x))
    (driver,) = (tmp_path / "cache").rglob("driver")
    assert b".debug_info" in driver.read_bytes()
    assert {path.name for path in driver.parent.iterdir()} >= {"driver.cpp", "inputs", "outputs"}
    assert (driver.parent / "inputs").stat().st_size == 8 * 5 * 32


@needs_compiler
@pytest.mark.parametrize(
    ("line", "wrong", "message"),
    [
        ("const T pack = in.read();", "const T pack = T();", "contains leftover data"),
        ("const T pack = in.read();", "T pack = in.read(); in.read();", "is read while empty"),
    ],
)
def test_streams_left_with_data_or_read_while_empty_are_errors(
    line: str, wrong: str, message: str, tmp_path: Path
) -> None:
    build = emit(residual_program(), tmp_path, Target(io="stream"))
    text = (build.directory / "firmware" / "parameters.h").read_text()
    assert text.count(line) == 1
    (build.directory / "firmware" / "parameters.h").write_text(text.replace(line, wrong))
    with pytest.raises(ToolError, match=message):
        build.run(np.zeros((1, 2, 4, 4)))


def test_streams_are_as_deep_as_the_schedule_says_and_hold_packs_of_channels(
    tmp_path: Path,
) -> None:
    build = emit(residual_program(), tmp_path, Target(io="stream"))
    depths = StreamSchedule(build.program, build.target).depths
    top = (build.directory / "firmware" / "myproject.cpp").read_text()
    assert "#pragma HLS INTERFACE axis port=n1_x,layer9_out" in top
    assert "#pragma HLS DATAFLOW" in top
    declared = dict(re.findall(r"#pragma HLS STREAM variable=(\w+) depth=(\d+)", top))
    assert declared == {name: str(depth.written) for name, depth in depths.items()}
    assert depths["layer3_out"].written < 36 == depths["layer3_out"].tokens  # padded
    told = [each for record in build.layers for each in record.get("fifos", {}).items()]
    assert dict(told) == {name: depth.written for name, depth in depths.items()}
    defines = (build.directory / "firmware" / "defines.h").read_text()
    assert "typedef nnet::array<ap_ufixed<6,2>, 2*1> input_t;" in defines
    assert [(layer.kind, layer.ops) for layer in make_plan(build.program, build.target).layers] == [
        ("InputLayer", ("input",)),
        ("FxloomKernel", ("fork",)),
        ("FxloomKernel", ("pad",)),
        ("Conv2D", ("conv", "add", "requantize")),
        ("FxloomKernel", ("add",)),
        ("FxloomKernel", ("pool",)),
        ("FxloomKernel", ("divide",)),
        ("FxloomKernel", ("reshape",)),
        ("Dense", ("matmul",)),
    ]


@needs_compiler
def test_two_at_once_may_compile_the_same_project(tmp_path: Path) -> None:
    build = emit(residual_program(), tmp_path)
    x = np.random.default_rng(0).uniform(-1, 5, (3, 2, 4, 4))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(build.run, [x, x]))
    for result in results:
        np.testing.assert_array_equal(result, simulate(build.program, x))
    names = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert names == ["compile.log", "driver"]


@needs_compiler
def test_layers_that_need_much_stack_and_no_samples_at_all(tmp_path: Path) -> None:
    b = ProgramBuilder()
    x = b.input("x", (1100,), FixedPoint(30, 3))
    w = b.constant("w", np.arange(1100_000).reshape(1100, 1000) % 251 - 125, FixedPoint(8, 1))
    b.output(b.emit(ops.MatMul(), [x, w], "fc"), "y")
    samples = np.random.default_rng(0).uniform(-4, 4, (2, 1100))
    build = emit(b.build(), tmp_path, samples=samples)
    np.testing.assert_array_equal(build.run(samples), simulate(build.program, samples))
    nothing = build.run(samples[:0])
    assert isinstance(nothing, np.ndarray)
    assert nothing.shape == (0, 1000)


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = emit(residual_program(), tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"g\+\+ is not installed.*apt-get install g\+\+"):
        build.run(np.zeros((1, 2, 4, 4)))


@needs_compiler
def test_broken_cpp_is_a_tool_error_with_its_log(tmp_path: Path) -> None:
    build = emit(residual_program(), tmp_path)
    (build.directory / "firmware" / "myproject.cpp").write_text("this is no C++\n")
    with pytest.raises(ToolError, match="does not compile") as caught:
        build.run(np.zeros((1, 2, 4, 4)))
    assert caught.value.exit_code == 1
    assert caught.value.log is not None
    assert "no C++" in Path(caught.value.log).read_text()
    assert not list((tmp_path / "cache").rglob("driver"))


@needs_compiler
@pytest.mark.parametrize(
    ("body", "message"), [("abort();", "failed"), ("for (;;);", r"stopped after 0\.5 s")]
)
def test_a_crash_or_a_hang_ends_as_a_tool_error(body: str, message: str, tmp_path: Path) -> None:
    build = emit(residual_program(), tmp_path)
    path = build.directory / "firmware" / "myproject.cpp"
    path.write_text(path.read_text().replace("#pragma HLS DATAFLOW", body))
    with pytest.raises(ToolError, match=message) as caught:
        build.run(np.zeros((1, 2, 4, 4)), timeout_s=0.5)
    assert caught.value.exit_code is not None
    assert caught.value.exit_code < 0


@needs_compiler
def test_an_interrupt_ends_the_child(tmp_path: Path) -> None:
    build = emit(residual_program(), tmp_path)
    path = build.directory / "firmware" / "myproject.cpp"
    path.write_text(
        path.read_text().replace(
            "#pragma HLS DATAFLOW", 'printf("1\\n"); fflush(stdout); for (;;);'
        )
    )

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.run(np.zeros((1, 2, 4, 4)), progress=interrupt, timeout_s=60)
    driver = str(next((tmp_path / "cache").rglob("driver")))
    alive = [p for p in Path("/proc").glob("[0-9]*/cmdline") if driver in _text(p)]
    assert alive == []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# -- errors ---------------------------------------------------------------


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FxloomError, match="must be absent or empty"):
        get("hls4ml").emit(residual_program(), Target(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_bad_samples_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for samples in (np.zeros((3, 4, 4)), np.zeros((0, 2, 4, 4)), np.full((1, 2, 4, 4), np.nan)):
        with pytest.raises(DataError):
            emit(residual_program(), tmp_path, samples=samples)
    assert not list((tmp_path / "project").rglob("*"))


def test_a_project_of_another_program_is_refused(tmp_path: Path) -> None:
    build = emit(residual_program(), tmp_path)
    with pytest.raises(FxloomError, match="made from another program"):
        load_build(build.directory, residual_program(("a", "b", "c", "d")))
    with pytest.raises(FxloomError, match="no emitted hls4ml project"):
        load_build(tmp_path, build.program)


@pytest.mark.parametrize("what", ["type", "accumulator", "layers"])
def test_what_hls4ml_changes_is_noticed(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxloom.backends.hls4ml import graph

    original = graph.ModelGraph.from_layer_list

    def tampered(*args: Any) -> Any:
        made = original(*args)
        dense = made.graph["n7_fc"]
        if what == "type":
            dense.get_output_variable().type.precision.width += 1
        elif what == "accumulator":
            dense.get_attr("accum_t").precision.integer -= 1
        else:
            made.graph.pop("n6_pool")
        return made

    monkeypatch.setattr(graph.ModelGraph, "from_layer_list", tampered)
    with pytest.raises(FxloomError, match=f"hls4ml changed .*{what}"):
        emit(residual_program(), tmp_path)


def test_a_layer_that_hls4ml_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxloom.backends.hls4ml import graph

    def refuse(*args: Any) -> Any:
        raise RuntimeError("no precision for n2_conv found")

    monkeypatch.setattr(graph.ModelGraph, "from_layer_list", refuse)
    with pytest.raises(FxloomError, match=r"no precision for n2_conv found\)\. Layer: conv\."):
        emit(residual_program(), tmp_path)


def test_the_library_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    emit(residual_program(), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_no_rule_is_an_error_that_names_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(hls4ml_backend.kernels.RULES, "pool")
    with pytest.raises(FxloomError, match=r"pool \(pool\): not possible with hls4ml"):
        emit(residual_program(), tmp_path)


def test_the_cache_lies_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert csim.cache_directory() == tmp_path / "fxloom" / "csim"
