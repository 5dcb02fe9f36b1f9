"""The command line where nothing is wrong, or where `check` finds a difference."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import fxloom
from fxloom import cli, compilation
from fxloom.backends.hls4ml import Hls4mlBuild
from fxloom.checking import first_divergent_layer
from fxloom.fixed_point import Int64Array
from tests.e2e.conftest import snapshot
from tests.keras_files import small, small_arrays, write_h5, write_keras


def run(*line: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, list(line))
    assert result.exit_code == code, result.output
    return result.stdout


def test_check_compares_saved_and_random_inputs_and_changes_nothing(pristine: Path) -> None:
    before = snapshot(pristine)
    text = run("check", str(pristine), "--samples", "20")
    rows = {line[:13].strip(): line[13:].split() for line in text.splitlines()[1:5]}
    assert {name: (row[0], row[-1]) for name, row in rows.items()} == {
        "saved": ("16", "0"),
        "corners": ("5", "0"),
        "random": ("20", "0"),
        "beyond range": ("20", "0"),
    }
    assert "agree on every integer" in text
    assert snapshot(pristine) == before


def test_the_command_to_type_next_is_quoted_for_the_shell(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "it's a build"
    text = run("compile", f"{net}/net.py:make", "--data", f"{net}/net.py:data", "-o", str(out))
    line = text.splitlines()[-1].removeprefix("next:").strip()
    assert shlex.split(line) == ["fxloom", "check", str(out)]


def test_check_for_a_debugger_prints_a_command_that_runs(pristine: Path) -> None:
    text = run("check", str(pristine), "--samples", "3", "--gdb")
    command = shlex.split(text.splitlines()[-2])
    assert command[:2] == ["gdb", "--args"]
    outputs = Path(command[4])
    before = outputs.read_bytes()
    outputs.unlink()
    subprocess.run(command[2:], check=True)
    assert outputs.read_bytes() == before


def test_check_names_the_first_difference(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: compilation.Compilation, x: object, *, raw: bool = False) -> object:
        result = fxloom.simulate(self.program, x, raw=raw)
        result[3, 2] += 5
        result[3, 3] += 1
        return result

    monkeypatch.setattr(compilation.Compilation, "simulate", wrong)
    text = run("check", str(pristine), "--samples", "5", code=1)
    found = re.search(
        r"first difference: saved sample 3, output output\[2\]: simulator (-?\d+), "
        r"C simulation (-?\d+); the first layer that differs is head\n",
        text,
    )
    assert found is not None
    assert int(found[1]) - int(found[2]) == 5


def test_check_names_the_first_layer_that_differs(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = fxloom.open_build(pristine)
    honest = type(build.project).trace

    def wrong(self: Hls4mlBuild, x: object) -> dict[str, Int64Array]:
        return {
            name: array + (build.program.value(name).shape == (3, 3, 3))
            for name, array in honest(self, x).items()
        }

    assert first_divergent_layer(build, build.samples[0][:1]) is None
    monkeypatch.setattr(type(build.project), "trace", wrong)
    assert first_divergent_layer(build, build.samples[0][:1]) == "pool"


def test_check_names_the_layer_whose_weights_were_edited(pristine: Path, tmp_path: Path) -> None:
    shutil.copytree(pristine, tmp_path / "build")
    build = fxloom.open_build(tmp_path / "build")
    layer = next(layer for layer in build.project.layers if layer["origin"] == "conv")
    index = layer["name"].partition("_")[0].removeprefix("n")
    path = tmp_path / "build" / "hls" / "firmware" / "weights" / f"b{index}.h"
    text = path.read_text()
    edited = re.sub(r"(_mantissas\[\d+\] = \{\s*)-?\d+", r"\g<1>99", text)
    assert edited != text
    path.write_text(edited)
    result = fxloom.check(build, samples=5)
    assert result.first is not None
    assert result.first.layer == "conv"
    assert f"edited: firmware/weights/b{index}.h (layer conv)" in str(result.first)


def test_report_in_its_three_forms(pristine: Path, tmp_path: Path) -> None:
    report = fxloom.Report.load(pristine / "report.json")
    assert run("report", str(pristine)) == report.to_text()
    assert json.loads(run("report", str(pristine), "--json"))["format"] == "fxloom-report"
    assert run("report", str(pristine), "--html", str(tmp_path / "page.html")) == ""
    assert (tmp_path / "page.html").read_text() == report.to_html()
    assert (pristine / "report.html").read_text() == report.to_html()


def test_report_says_what_was_compiled_and_shows_its_values(pristine: Path) -> None:
    report = fxloom.Report.load(pristine / "report.json")
    assert report.made_from is not None
    assert report.made_from.model == "net.py:make"
    assert report.made_from.recipe == (pristine / "recipe.toml").read_text()
    assert report.made_from.target == (pristine / "target.toml").read_text()
    assert report.graph is not None
    layers = {node.name for node in report.graph.nodes if node.kind == "layer"}
    assert layers == {layer.name for layer in report.layers}
    formats = {layer.name: layer.result for layer in report.layers}
    formats |= {report.graph.nodes[e.source].name: e.type for e in report.graph.edges[:1]}
    assert [seen.name for seen in report.histograms] == ["x", "relu", "pool", "head"]
    for seen in report.histograms:
        assert formats[seen.name] == seen.format
        assert seen.samples == 32
        assert seen.saturated < 0.05


def test_a_report_can_be_printed_where_the_terminal_has_few_characters(pristine: Path) -> None:
    command = [sys.executable, "-m", "fxloom.cli", "report", str(pristine)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "values in the float model" in result.stdout


def test_compile_prints_the_report_and_where_the_project_lies(net: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "build")
    text = run("compile", f"{net}/net.py:make", "--data", f"{net}/net.py:data", "-o", out)
    assert text.startswith("fxloom report: xc7z020 at 5 ns")
    assert f"project: {out}/hls" in text


def test_compile_takes_files_of_keras_without_tensorflow(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (48, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x_train=x)
    write_h5(tmp_path / "net.h5", small(), small_arrays())
    (tmp_path / "net.json").write_text(json.dumps(small()))
    write_keras(tmp_path / "net.keras")
    digests = set()
    for name in ("net.h5", "net.json", "net.keras"):
        out = tmp_path / "build"
        run("compile", f"{tmp_path}/{name}", "--data", f"{tmp_path}/data.npz", "-o", str(out))
        build = fxloom.open_build(out)
        assert build.report.made_from is not None
        assert build.report.made_from.model == name
        assert {layer.name for layer in build.report.layers} >= {"fc1", "fc2"}
        digests.add(build.program.digest())
    assert len(digests) == 1
    assert "tensorflow" not in sys.modules


def test_lists_name_what_there_is() -> None:
    ops = run("list", "ops")
    assert "aten.convolution" in ops
    assert "requantize" in ops
    layers = run("list", "layers")
    assert "SeparableConv2D" in layers
    assert "LSTM" in layers
    passes = run("list", "passes")
    assert "Post-training fixed point." in passes
    assert "TRN | TRN_ZERO | RND" in passes
    assert "hls4ml" in run("list", "backends")
    assert "xczu9eg-ffvb1156-2-e" in run("list", "targets")


def test_weights_of_a_build_are_shown_and_decoded(net: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        '[[pass]]\nname = "prune"\nsparsity = 0.5\n[[pass]]\nname = "quantize"\n'
        '[[pass]]\nname = "code_weights"\n'
    )
    out, plain = str(tmp_path / "build"), str(tmp_path / "plain.safetensors")
    more = ["--recipe", str(tmp_path / "recipe.toml"), "-o", out]
    text = run("compile", f"{net}/net.py:make", "--data", f"{net}/net.py:data", *more)
    file = Path(out) / "weights.safetensors"
    assert f"weights: {file}, {file.stat().st_size:,} bytes" in text
    shown = run("weights", out, "--out", plain)
    assert shown.startswith(f"{file}: {file.stat().st_size:,} bytes: ")
    assert shown == run("weights", str(file)) + f"decoded: {plain}\n"
    assert "head.weight" in shown
    assert json.loads(run("weights", out, "--json"))["bytes"] == file.stat().st_size
    wanted = fxloom.load_weights(file)
    decoded = load_file(plain)
    assert set(decoded) == set(wanted)
    assert all(torch.equal(decoded[name], tensor) for name, tensor in wanted.items())


def test_a_model_learns_from_the_teacher_of_the_command_line(net: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        '[[pass]]\nname = "distill"\nfinetune = { epochs = 2 }\n[[pass]]\nname = "quantize"\n'
    )
    (tmp_path / "large.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(36, 50), nn.ReLU(), nn.Linear(50, 4))\n"
    )
    out = str(tmp_path / "build")
    line = ["compile", f"{net}/net.py:make", "--data", f"{net}/net.py:data", "-o", out]
    teacher = ["--teacher", f"{tmp_path}/large.py:make"]
    for more, what in ([], "add --recipe"), (["--recipe", f"{tmp_path}/8.toml"], "that learns"):
        (tmp_path / "8.toml").write_text('[[pass]]\nname = "quantize"\n')
        result = CliRunner().invoke(cli.app, [*line, *teacher, *more])
        assert result.exit_code == 2
        assert what in result.stderr
    run(*line, *teacher, "--recipe", str(tmp_path / "recipe.toml"))
    steps = json.loads((Path(out) / "report.json").read_text())["passes"]
    assert steps[0]["summary"]["teacher"] == "Sequential, 2,054 parameters"


def test_a_build_without_coded_weights_says_how_to_get_them(pristine: Path) -> None:
    result = CliRunner().invoke(cli.app, ["weights", str(pristine)])
    assert result.exit_code == 2
    assert "put a pass code_weights at the end of its recipe" in result.stderr


VERBS = [
    "compile",
    "trace",
    "check",
    "report",
    "list",
    "demo",
    "verify-estimate",
    "weights",
    "evaluate",
]


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_by_example(verb: str) -> None:
    assert "Example" in run(verb, "--help")


def test_version_and_overview() -> None:
    assert run("--version") == f"fxloom {fxloom.__version__}\n"
    assert "fxloom compile net.py:make" in run("--help")


def test_a_fault_of_our_own_shows_where_it_is(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **keywords: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("fxloom.report.Report.load", broken)
    result = CliRunner().invoke(cli.app, ["report", str(pristine)])
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert "please report it" in result.stderr


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys, fxloom, fxloom.cli; heavy = {'torch', 'hls4ml', 'numpy'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_reader_that_leaves_early_is_no_fault(pristine: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "fxloom.cli", "list", "targets"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert process.stderr == ""


def test_demo_compiles_both_networks_exactly(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    text = run("demo", "--quick", "--out", str(tmp_path / "demo"))
    assert text.count("0 mismatches, 540 images") == 2
    for name in ("mlp", "cnn"):
        report = fxloom.open_build(tmp_path / "demo" / name).report
        assert report.accuracy is not None
        assert report.accuracy.samples == 540


def test_demo_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    monkeypatch.setenv("PATH", str(tmp_path))
    text = run("demo", "--quick", "--out", str(tmp_path / "demo"))
    assert "not run" in text
    assert "mlp: no C simulation: g++ is not installed" in text
