"""`fxloom verify-estimate`: estimates beside logic synthesis."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fxloom import cli, synthesis, verification
from fxloom.fixed_point import FixedPoint
from fxloom.ops import MatMul
from fxloom.program import Program, ProgramBuilder
from fxloom.program_file import save_program
from fxloom.synthesis import Difference
from fxloom.target import Target

needs_tools = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("yosys", "iverilog")),
    reason="yosys or iverilog is not installed",
)


def dense(*shapes: tuple[int, int]) -> Program:
    """Layers fc1, fc2, ... one behind the other, of small weights."""
    builder, rng = ProgramBuilder(), np.random.default_rng(0)
    value = builder.input("x", (shapes[0][0],), FixedPoint(4, 4))
    for number, shape in enumerate(shapes, 1):
        weight = builder.constant(f"w{number}", rng.integers(-7, 8, shape), FixedPoint(4, 4))
        value = builder.emit(MatMul(), [value, weight], f"fc{number}")
    builder.output(value, "y")
    return builder.build()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.fxloom"
    save_program(dense((3, 2), (2, 3)), path)
    return path


def run(*line: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, ["verify-estimate", *map(str, line)])
    assert result.exit_code == code, result.output
    return result.stdout if code in (0, 1) else result.stderr


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run: simulations are exact, and yosys finds 40 LUTs in everything."""
    monkeypatch.setattr(synthesis, "require_tools", lambda: None)
    monkeypatch.setattr(synthesis, "simulate", lambda *arguments: None)
    monkeypatch.setattr(synthesis, "synthesise", lambda *arguments: 40)


@needs_tools
def test_a_product_is_simulated_and_synthesised_and_agrees(program: Path) -> None:
    before = sorted(program.parent.iterdir())
    found = json.loads(run(program, "--layer", "fc1", "--json", "--target", "xczu9eg"))
    assert (found["format"], found["part"], found["passed"]) == (
        "fxloom-estimate-check", "xczu9eg", True
    )  # fmt: skip
    (product,) = found["products"]
    assert (product["layer"], product["verdict"], product["difference"]) == ("fc1", "agrees", None)
    assert product["luts"] == product["estimate"]["value"] > 0
    assert product["samples"] == 64 + 4 + 4
    assert sorted(program.parent.iterdir()) == before


@pytest.mark.usefixtures("no_tools")
def test_a_count_outside_its_interval_fails(program: Path) -> None:
    lines = run(program, "--layer", "fc2", code=1).splitlines()
    assert lines[0].split()[:2] == ["layer", "product"]
    assert lines[1].split()[:4] == ["fc2", "2", "x", "3"]
    assert lines[1].split()[-1] == "outside"
    assert lines[-1] == "1 products synthesised: 40 LUT, 0.1% of xc7z020"


@pytest.mark.usefixtures("no_tools")
def test_an_integer_that_differs_fails_and_is_named(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis, "simulate", lambda *arguments: Difference(3, 1, 1234, -5))
    text = run(program, "--layer", "fc1", code=1)
    assert "first difference in fc1: sample 3, output 1: Verilog 1,234, Program -5" in text


@pytest.mark.usefixtures("no_tools")
def test_what_is_too_large_is_skipped_by_name_or_refused_where_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "program.fxloom"
    save_program(dense((2, 2), (2, 30)), path)
    monkeypatch.setattr(synthesis, "synthesise", lambda *arguments: 1)
    text = run(path, "--most-adders", "12", code=1)
    assert "fc2: skipped: at least " in text
    assert "adders, more than 12 (--most-adders allows more)" in text
    text = run(path, "--most-adders", "12", "--layer", "fc2", code=2)
    assert "nothing left to check: fc2: at least" in text


@pytest.mark.usefixtures("no_tools")
def test_layers_that_the_project_does_not_unroll_are_named(program: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.toml"
    target.write_text('part = "xc7z020"\nlayers = { fc1 = { strategy = "resource", reuse = 3 } }\n')
    text = run(program, "--target", target, code=1)
    assert "fc1: the target has strategy resource and reuse 3 here" in text
    assert "fc2: the target" not in text


@pytest.mark.usefixtures("no_tools")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--layer", "fc3"], "--layer fc3: no layer with a constant matrix is named so. Did"),
        (["--most-adders", "0"], "--most-adders 0: required 1 or more"),
        (["--samples", "0"], "--samples 0: required 1 or more"),
        (["--timeout", "nan"], "--timeout nan: required more than 0"),
        (["--timeout", "inf"], "--timeout inf: required more than 0"),
        (["--target", "xc99"], "xc99"),
    ],
)
def test_faults_of_the_command_are_refused(line: list[str], message: str, program: Path) -> None:
    assert message in run(program, *line, code=2)


def test_a_file_that_is_no_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis, "require_tools", lambda: None)
    assert "no such program file" in run(tmp_path / "nothing.fxloom", code=2)
    assert "is not a build directory" in run(tmp_path, code=2)


def test_missing_tools_are_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis.shutil, "which", lambda name: None)
    text = run(tmp_path / "nothing.fxloom", code=2)
    assert "not on PATH: iverilog, vvp, yosys" in text
    assert "apt-get install iverilog yosys" in text


@pytest.mark.usefixtures("no_tools")
def test_a_program_without_constant_matrices_is_refused() -> None:
    builder = ProgramBuilder()
    builder.output(builder.input("x", (2,), FixedPoint(4, 4)), "y")
    with pytest.raises(verification.FxloomError, match="the program has none"):
        verification.verify_estimate(builder.build())


@pytest.mark.usefixtures("no_tools")
def test_steps_of_a_layer_are_one_product_and_its_constants_are_told_apart(tmp_path: Path) -> None:
    builder = ProgramBuilder()
    value = builder.input("x", (2,), FixedPoint(4, 4))
    recurrent = builder.constant("w_hh", np.array([[1, -3], [2, 5]]), FixedPoint(4, 4))
    start = builder.constant("w_ih", np.array([[3, 1], [1, 3]]), FixedPoint(4, 4))
    first = builder.emit(MatMul(), [value, start], "lstm")
    for name, step in (("a", first), ("b", value), ("c", value)):
        builder.output(builder.emit(MatMul(), [step, recurrent], "lstm"), name)
    save_program(builder.build(), tmp_path / "program.fxloom")
    lines = run(tmp_path / "program.fxloom", code=1).splitlines()
    rows = [line.split() for line in lines[1:4]]
    # The step that reads another interval is hardware of its own.
    assert [(row[:2], row[5]) for row in rows] == [
        (["lstm", "(w_ih)"], "1"), (["lstm", "(w_hh)"], "1"), (["lstm", "(w_hh)"], "2")
    ]  # fmt: skip


def test_a_product_of_another_kernel_is_not_unrolled_and_it_says_so(no_tools: None) -> None:
    target = Target(layers={"fc1": {"kernel": "codebook"}})
    checked = verification.verify_estimate(dense((3, 2), (2, 3)), target).products
    notes = {each.layer: each.note for each in checked}
    assert notes["fc1"].startswith("the target has the codebook kernel here")
    assert notes["fc2"] == ""
