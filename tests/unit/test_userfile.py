"""The user's own Python file: run once, faults quoted from it."""

import sys
from pathlib import Path

import pytest

from fxloom.errors import CaptureError, DataError
from fxloom.userfile import load_factory


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_function_is_called_and_its_result_returned(tmp_path: Path) -> None:
    write(tmp_path, "VALUE = 7", "neighbour_of_mine.py")
    path = write(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "import neighbour_of_mine\n@dataclass\nclass A:\n    x: int\n"
        "def make(size=1):\n    return A(neighbour_of_mine.VALUE)\n",
    )
    before = list(sys.path)
    result = load_factory(f"{path}:make", DataError)
    assert result.x == 7  # type: ignore[attr-defined]
    assert sys.path == before
    assert not (tmp_path / "__pycache__" / "mine.cpython-311.pyc").exists()


def test_current_directory_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "import os\nos.chdir('/')\ndef make():\n    os.chdir('..')\n    return 7\n")
    assert load_factory("mine.py:make", DataError) == 7
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("spec", ["mine.py", "mine:make", "mine.py:", "mine.py:a-b", ":f", ""])
def test_malformed_name_is_explained(spec: str) -> None:
    with pytest.raises(DataError, match=r"required FILE\.py:NAME"):
        load_factory(spec, DataError)


def test_error_class_is_the_callers() -> None:
    with pytest.raises(CaptureError, match=r"nowhere\.py: no such file"):
        load_factory("nowhere.py:make", CaptureError)


def test_directory_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "d.py").mkdir()
    with pytest.raises(DataError, match="is a directory"):
        load_factory(f"{tmp_path}/d.py:make", DataError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def make(:\n    pass", r"SyntaxError: .*\n  .*mine\.py:1: def make\(:"),
        ("x = 1\nimport no_such_thing_at_all", r"mine\.py:2 in <module>: import no_such"),
        ("def make():\n    raise ValueError('bad')", r"mine\.py:make raised ValueError: bad\n"),
        ("def make():\n    int('x')\n", r"mine\.py:2 in make: int\('x'\)"),
        ("import sys\nsys.exit(3)", r"cannot be run: SystemExit: 3"),
        ("def make():\n    raise SystemExit", r"raised SystemExit"),
        ("def make():\n    pass", r"returned nothing \(None\); does make\(\) end with a return"),
        ("def make(n):\n    return n", r"callable without arguments: missing .* argument: 'n'"),
        ("def mkae():\n    return 1", r"no function make\. Did you mean mkae\? It has: mkae"),
        ("x = 1", r"no function make\. It has: none"),
        ("make = 3", r"required a function, got an object of type int"),
        ("class A:\n    def __call__(self): return 1\nmake = A()", r"got an object of type A"),
        ("\0", r"null bytes"),
    ],
)
def test_fault_is_quoted(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        load_factory(f"{write(tmp_path, text)}:make", DataError)


def test_innermost_line_of_the_users_file_is_quoted(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "import json\ndef inner():\n    return json.loads('{')\ndef make():\n    inner()\n",
    )
    with pytest.raises(DataError, match=r"mine\.py:3 in inner: return json\.loads"):
        load_factory(f"{path}:make", DataError)


def test_keyboard_interrupt_passes_through(tmp_path: Path) -> None:
    path = write(tmp_path, "def make():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_factory(f"{path}:make", DataError)


def test_other_encodings_are_read_as_python_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "latin.py"
    path.write_bytes(b"# coding: latin-1\ndef make():\n    return '\xe9'\n")
    assert load_factory(f"{path}:make", DataError) == "é"
    path.write_bytes(b"def make():\n    return '\xe9'\n")
    with pytest.raises(DataError, match="SyntaxError"):
        load_factory(f"{path}:make", DataError)
