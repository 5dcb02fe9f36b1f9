"""What the README and the page of models show works."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fxloom import Recipe
from fxloom.cli import app

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "models.md")
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = blocks("python")
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "fxloom report: xc7z020 at 5 ns" in printed
    assert "matmul(" in printed


def test_recipes_are_valid() -> None:
    assert blocks("toml")
    for text in blocks("toml"):
        Recipe.parse(text)


def test_commands_and_options_exist() -> None:
    commands = re.findall(r"^    fxloom (.*)$", TEXT, re.MULTILINE)
    assert len(commands) == 13
    for command in commands:
        verb, *rest = command.partition("#")[0].split()
        help_text = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).stdout
        for option in (word for word in rest if word.startswith("-")):
            assert option in help_text, command
