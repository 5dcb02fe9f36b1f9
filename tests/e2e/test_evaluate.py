"""`fxloom evaluate`: one recipe, several, and what is wrong with what was given."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import fxloom
from fxloom import cli

RECIPES = {
    "plain": '[[pass]]\nname = "quantize"\n',
    "pruned": '[[pass]]\nname = "prune"\nsparsity = 0.5\n[[pass]]\nname = "quantize"\nweights = 5\n'
    '[[pass]]\nname = "code_weights"\n',
}


@pytest.fixture
def recipes(tmp_path: Path) -> dict[str, str]:
    """Files of recipes, by name."""
    for name, text in RECIPES.items():
        (tmp_path / f"{name}.toml").write_text(text)
    return {name: str(tmp_path / f"{name}.toml") for name in RECIPES}


def evaluate(net: Path, *line: str, code: int = 0) -> str:
    command = ["evaluate", f"{net}/net.py:make", "--data", f"{net}/net.py:data", *line]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_one_recipe_as_table_and_json(net: Path, recipes: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    more = ["--recipe", recipes["pruned"], "--target", "xczu9eg", "--json", str(file)]
    text = evaluate(net, *more)
    assert text.startswith("fxloom evaluate: net.py:make, recipe pruned, 16 test samples, xczu9eg")
    found = fxloom.Evaluation.from_json(file.read_text())
    assert found.to_text() == text
    names = [stage.name for stage in found.stages]
    assert names == ["original", "1 prune", "2 quantize", "3 code_weights"]
    assert evaluate(net, *more[:-1], "-") == file.read_text()


def test_several_recipes_are_compared(
    net: Path, recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxloom.evaluation.LEAST_SECONDS", 1e-4)
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    options = [part for file in recipes.values() for part in ("--recipe", file)]
    png = str(tmp_path / "c.png")
    text = evaluate(net, *options, "--png", png, "--measure", "--samples", "9")
    assert text.startswith("fxloom evaluate: net.py:make, 2 recipes, 9 test samples")
    assert text.index("\nplain ") < text.index("\npruned ") < text.index("recipe plain\n")
    assert "measured ms" in text
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--recipe", "nowhere.toml"], "nowhere.toml: no such file"),
        (["--recipe", "{plain}", "--recipe", "{plain}"], "required each recipe once"),
        (["--recipe", "{plain}", "--samples", "0"], "--samples 0: required 1 or more"),
        (["--recipe", "{plain}", "--output", "output_1"], "output: required one of output, got"),
        (["--recipe", "{plain}", "--target", "xc9"], "xc9"),
        (["--recipe", "{plain}", "--json", "/nowhere/a.json"], "required a folder that exists"),
    ],
)
def test_what_is_wrong_is_named(
    net: Path, recipes: dict[str, str], line: list[str], message: str
) -> None:
    assert message in evaluate(net, *(each.format(**recipes) for each in line), code=2)


def test_recipes_of_one_name_are_told_apart_by_their_folders(
    net: Path, recipes: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "plain.toml"
    other.write_text(RECIPES["plain"])
    text = evaluate(net, "--recipe", recipes["plain"], "--recipe", str(other))
    assert f"recipe {other}\n" in text
