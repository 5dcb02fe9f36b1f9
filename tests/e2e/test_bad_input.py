"""Bad input gives one clear message and exit code 2, and nothing on disk changes."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

from fxloom import cli, compilation
from fxloom.commands import console
from tests.e2e.conftest import snapshot

MODELS = """
import sys
import torch
from torch import nn
from net import Net, make


class Unsupported(Net):
    def __init__(self):
        super().__init__()
        self.act = nn.MaxPool3d(1)
        self.last = lambda x: x * x.prod(1, True)

    def forward(self, x):
        return self.last(self.head(self.pool(self.act(self.conv(x))).flatten(1)))


class Branching(Net):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class MixesBatch(Net):
    def forward(self, x):
        return super().forward(x - x.mean(0))


def unsupported(): return Unsupported()
def branching(): return Branching()
def mixes_batch(): return MixesBatch()
def raises(): raise ValueError("no weights here")
def stops(): sys.exit(3)
def nothing(): make()
def number(): return 7
def net_class(): return Net
def wants(size): return make()


def broken(value):
    model = make()
    with torch.no_grad():
        model.head.weight[1, 2] = value
    return model


def nan_weight(): return broken(float("nan"))
def infinite_weight(): return broken(float("inf"))
"""

KERAS = """
{"class_name": "Sequential", "keras_version": "2.15.0", "config": {"name": "net", "layers": [
  {"class_name": "Dense", "config": {"name": "fc", "units": 3, "batch_input_shape": [null, 2]}}
]}}
"""


class Case(NamedTuple):
    """Arguments that differ from a good command line, and what the message says."""

    expected: str
    model: str = "net.py:make"
    data: str | None = "net.py:data"
    recipe: str | None = None
    target: str | None = None
    more: tuple[str, ...] = ()


QUANTIZE = '[[pass]]\nname = "quantize"\n'
CASES = {
    "missing model file": Case("nowhere.py: no such file", model="nowhere.py:make"),
    "missing function": Case("has no function mak. Did you mean make?", model="net.py:mak"),
    "missing archive": Case("net.pt2: no such file", model="net.pt2"),
    "empty Keras file": Case("net.keras: neither a `.keras` archive", model="net.keras"),
    "missing Keras file": Case("nowhere.h5: no such file", model="nowhere.h5"),
    "Keras JSON alone": Case("no weights are beside it", model="net.json"),
    "no function named": Case("required FILE.py:FUNCTION", model="net.py"),
    "syntax error": Case("SyntaxError", model="syntax.py:make"),
    "factory raises": Case("ValueError: no weights here", model="bad.py:raises"),
    "factory exits": Case("SystemExit: 3", model="bad.py:stops"),
    "factory returns nothing": Case("returned nothing (None)", model="bad.py:nothing"),
    "factory wants arguments": Case("without arguments", model="bad.py:wants"),
    "not a model": Case("required a torch.nn.Module", model="bad.py:number"),
    "class instead of model": Case("required a torch.nn.Module", model="bad.py:net_class"),
    "NaN weight": Case("head.weight", model="bad.py:nan_weight"),
    "infinite weight": Case("head.weight", model="bad.py:infinite_weight"),
    "unsupported layers": Case("2 unsupported layers", model="bad.py:unsupported"),
    "data-dependent": Case("data-dependent control flow", model="bad.py:branching"),
    "mixes the batch": Case("unsupported layer", model="bad.py:mixes_batch"),
    "missing data": Case("nowhere.npz: no such file", data="nowhere.npz"),
    "no data": Case("example inputs", data=None),
    "shape without data": Case("required data", data=None, more=("--shape", "1,6,6")),
    "bad shape": Case("--shape 1,x: required", data=None, more=("--shape", "1,x")),
    "huge shape": Case("too large", data=None, more=("--shape", str(10**15))),
    "shape and data": Case("one of the two", more=("--shape", "1,6,6")),
    "wrong shape": Case("the model fails on the example inputs", data="wrong_shape.npz"),
    "NaN in data": Case("NaN", data="nan.npz"),
    "infinity in data": Case("infin", data="infinite.npz"),
    "NaN in test data": Case("x_test", data="nan_test.npz"),
    "empty data": Case("empty", data="empty.npz"),
    "wrong test shape": Case("x_test", data="wrong_test_shape.npz"),
    "not an archive": Case("text.npz", data="text.npz"),
    "wrong keys": Case("x_train is missing", data="keys.npz"),
    "missing recipe": Case("nowhere.toml: no such file", recipe="nowhere.toml"),
    "malformed recipe": Case("not valid TOML", recipe="[[pass\n"),
    "unknown pass": Case("Did you mean quantize?", recipe='[[pass]]\nname = "quantise"\n'),
    "unknown key": Case("Did you mean weights?", recipe=QUANTIZE + "weight = 8\n"),
    "bad value": Case("required an integer", recipe=QUANTIZE + 'weights = "8"\n'),
    "value out of range": Case("required 1 to 32 bits", recipe=QUANTIZE + "weights = 99\n"),
    "unmatched layer": Case(
        "matches no layer", recipe=QUANTIZE + "layers = { fc = { weights = 4 } }\n"
    ),
    "empty recipe": Case("no passes", recipe="\n"),
    "not quantized": Case("has no fixed-point format", recipe='[[pass]]\nname = "legalize"\n'),
    "unknown part": Case("unknown part", target="xc7z999"),
    "missing target": Case("nowhere.toml: no such file", target="nowhere.toml"),
    "malformed target": Case("not valid TOML", target="part = \n"),
    "unknown target key": Case("Did you mean clock_ns?", target="clock_n = 5\n"),
    "layer that no model has": Case(
        "target.toml: layers: no layer is named fc9", target="layers.fc9.reuse = 2\n"
    ),
    "bad clock": Case("clock_ns: required", target="clock_ns = 0\n"),
    "part of another vendor": Case("parts of Intel", target='backend = "Quartus"\n'),
}


@pytest.fixture(scope="module")
def files(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.py and everything that is wrong."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "net.py").write_text((net / "net.py").read_text())
    (folder / "bad.py").write_text(MODELS)
    (folder / "syntax.py").write_text("def make(:\n")
    (folder / "net.keras").write_text("")
    (folder / "net.json").write_text(KERAS)
    (folder / "text.npz").write_text("x_train: 1, 2, 3")
    x = np.zeros((4, 1, 6, 6), np.float32)
    nan, infinite = x.copy(), x.copy()
    nan[2, 0, 1, 3], infinite[3, 0, 0, 0] = np.nan, -np.inf
    np.savez(folder / "wrong_shape.npz", x_train=np.zeros((4, 1, 5, 5), np.float32))
    np.savez(folder / "nan.npz", x_train=nan)
    np.savez(folder / "infinite.npz", x_train=infinite)
    np.savez(folder / "nan_test.npz", x_train=x, x_test=nan)
    np.savez(folder / "empty.npz", x_train=x[:0])
    np.savez(folder / "wrong_test_shape.npz", x_train=x, x_test=x[..., :4])
    np.savez(folder / "keys.npz", x=x)
    return folder


def command(case: Case, files: Path, folder: Path, out: Path) -> list[str]:
    """The command line of a case; TOML text is written into a file first."""
    line = ["compile", f"{files}/{case.model}", *case.more, "-o", str(out)]
    if case.data is not None:
        line += ["--data", f"{files}/{case.data}"]
    for option, value in (("--recipe", case.recipe), ("--target", case.target)):
        if value is not None and "\n" in value:
            file = folder / f"{option[2:]}.toml"
            file.write_text(value)
            value = str(file)
        if value is not None:
            line += [option, value]
    return line


def refused(line: list[str], expected: str) -> str:
    """Run a command line that must be refused; its message."""
    result = CliRunner().invoke(cli.app, line)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr
    message = result.stderr.partition("error: ")[2]
    assert expected in message
    return message


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_and_leaves_no_trace(name: str, files: Path, tmp_path: Path) -> None:
    case = CASES[name]
    line = command(case, files, tmp_path, tmp_path / "not" / "there")
    before = snapshot(tmp_path)
    refused(line, case.expected)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["missing model file", "unsupported layers", "not quantized", "part of another vendor"]
)
def test_bad_input_leaves_an_earlier_build_as_it_is(
    name: str, files: Path, tmp_path: Path, build: Path
) -> None:
    case = CASES[name]
    line = command(case, files, tmp_path, build)
    before = snapshot(tmp_path)
    refused(line, case.expected)
    assert snapshot(tmp_path) == before


def test_all_unsupported_layers_are_listed_at_once(files: Path, tmp_path: Path) -> None:
    line = command(CASES["unsupported layers"], files, tmp_path, tmp_path / "build")
    message = refused(line, "unsupported")
    assert "act (aten.max_pool3d)" in message
    assert "prod (aten.prod" in message
    assert "fxloom list ops" in message


def test_a_directory_that_is_not_a_build_is_not_replaced(files: Path, tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.tex").write_text("x")
    line = command(Case(""), files, tmp_path, precious)
    before = snapshot(tmp_path)
    refused(line, "was not made by fxloom")
    assert snapshot(tmp_path) == before


def test_without_a_compiler_compile_works_and_check_says_what_is_missing(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    line = command(Case(""), files, tmp_path, tmp_path / "build")
    result = CliRunner().invoke(cli.app, line)
    assert result.exit_code == 0, result.output
    refused(["check", str(tmp_path / "build")], "g++ is not installed")


@pytest.mark.parametrize("verb", ["check", "report"])
def test_a_damaged_build_is_refused(verb: str, build: Path) -> None:
    weights = next((build / "hls" / "firmware" / "weights").iterdir())
    weights.write_text(weights.read_text().replace("1", "2"))
    refused([verb, str(build)], f"{weights.name}: required SHA-256")


@pytest.mark.parametrize("verb", ["check", "report"])
def test_what_is_not_a_build_is_refused(verb: str, tmp_path: Path) -> None:
    refused([verb, str(tmp_path / "nowhere")], "no such directory")
    refused([verb, str(tmp_path)], "is not a build directory")


def test_a_full_disk_is_named_and_leaves_the_earlier_build(
    files: Path, tmp_path: Path, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **keys: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(compilation, "save_program", full)
    before = snapshot(tmp_path)
    refused(command(Case(""), files, tmp_path, build), "the disk is full")
    assert snapshot(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if made.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_really_is_full_is_named(files: Path, small_disk: Path) -> None:
    refused(command(Case(""), files, small_disk.parent, small_disk / "build"), "the disk is full")
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("verb", ["report", "check"])
def test_output_to_a_full_disk_is_no_fault_of_fxloom(pristine: Path, verb: str) -> None:
    command = [sys.executable, "-m", "fxloom.cli", verb, str(pristine)]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2, result.stderr
    assert "the disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


def test_a_full_temporary_directory_is_named(
    pristine: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    refused(["check", str(pristine), "--samples", "3000"], "set TMPDIR to another directory")


def test_more_samples_than_memory_holds_are_refused(pristine: Path) -> None:
    refused(["check", str(pristine), "--samples", str(10**14)], "out of memory")


def stages() -> list[str]:
    """What `compile` tells of its progress, in order."""
    return ["load", "capture", "pass", "lower", "compare", "write", "put"]


@pytest.mark.parametrize("stage", stages())
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_stage_leaves_the_earlier_build(
    stage: str,
    number: signal.Signals,
    files: Path,
    tmp_path: Path,
    build: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def progress() -> Iterator[Callable[[str], None]]:
        yield lambda text: signal.raise_signal(number) if text.startswith(stage) else None

    monkeypatch.setattr(console, "progress", progress)
    before = snapshot(tmp_path)
    with cli.terminate_as_interrupt():
        result = CliRunner().invoke(cli.app, command(Case(""), files, tmp_path, build))
    assert result.exit_code == 128 + number
    assert result.stderr == f"error: stopped by {number.name}; nothing half-written is left\n"
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("stage", ["capture", "put it in place"])
def test_ctrl_c_in_a_real_process_leaves_all_or_nothing(
    stage: str, files: Path, tmp_path: Path
) -> None:
    line = command(Case(""), files, tmp_path, tmp_path / "build")
    process = subprocess.Popen(
        [sys.executable, "-m", "fxloom.cli", *line], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = []
    for text in process.stderr:
        said.append(text)
        if text.startswith(stage):
            process.send_signal(signal.SIGINT)
    assert not any("Traceback" in text for text in said)
    if process.wait() == 0:  # too late to stop it
        compilation.open_build(tmp_path / "build")
        assert [path.name for path in tmp_path.iterdir()] == ["build"]
        return
    assert process.returncode == 128 + signal.SIGINT
    assert said[-1] == "error: stopped by SIGINT; nothing half-written is left\n"
    if (tmp_path / "build").exists():  # stopped after the swap
        compilation.open_build(tmp_path / "build")
    assert [path.name for path in tmp_path.iterdir() if path.name != "build"] == []
