"""Precompiled headers of the C simulation: they are what the source says, or are not used."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fxloom.backends.hls4ml import csim
from fxloom.backends.hls4ml.build import Hls4mlBuild
from fxloom.backends.hls4ml.headers import PREFIX, binary, precompiled
from fxloom.target import Target
from tests.conformance.test_hls4ml_project import assert_equal_to_reference, emit, residual_program

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Headers by the names of the types', quick to read."""
    place = tmp_path / "types"
    place.mkdir()
    (place / "ap_fixed.h").write_text("#define BITS 8\ninline int fixed() { return BITS; }\n")
    (place / "ap_int.h").write_text("#ifdef WIDE\n#define SIGN 2\n#endif\n")
    return place


def command(folder: Path, *flags: str) -> list[str]:
    return ["g++", "-w", *flags, f"-I{folder}"]


def made(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.gch"))


def test_the_second_project_precompiles_and_others_use_it(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert precompiled(command(folder), cache) is None
    assert made(cache) == []
    header = precompiled(command(folder), cache)
    assert header is not None
    assert made(cache) == [binary(header)]
    written = binary(header).stat().st_mtime_ns
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(folder)
    assert precompiled(command(elsewhere), cache) == header
    assert binary(header).stat().st_mtime_ns == written
    # Without the text: g++ has nothing else to take it from.
    header.write_text("#error not precompiled\n")
    source = tmp_path / "main.cpp"
    source.write_text("int main() { return fixed() + BITS - 16; }\n")
    program = str(tmp_path / "main")
    use = ["-include", str(header), str(source), "-o", program]
    subprocess.run([*command(elsewhere), *use], check=True)
    assert subprocess.run([program]).returncode == 0


@pytest.mark.parametrize(
    "change",
    ["text", "macro", "flags", "environment", "compiler"],
)
def test_nothing_is_shared_where_anything_differs(
    change: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    assert precompiled(command(folder), cache) is None
    line = command(folder)
    if change == "text":
        (folder / "ap_fixed.h").write_text("inline int fixed() { return 9; }\n#define BITS 8\n")
    elif change == "macro":
        (folder / "ap_int.h").write_text("#define NEVER_USED 1\n")
    elif change == "flags":
        line = command(folder, "-O1")
    elif change == "environment":
        (tmp_path / "vector").write_text("#include_next <vector>\nstruct mine {};\n")
        monkeypatch.setenv("CPLUS_INCLUDE_PATH", str(tmp_path))
    else:
        other = tmp_path / "g++"
        other.write_text('#!/bin/sh\n[ "$1" = --version ] && echo other\nexec g++ "$@"\n')
        other.chmod(0o755)
        line[0] = str(other)
    assert precompiled(line, cache) is None
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("fault", ["clang", "no compiler", "broken header", "no cache"])
def test_without_them_nothing_is_said(fault: str, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    line = command(folder)
    if fault == "clang":
        line[0] = str(tmp_path / "g++")
        Path(line[0]).write_text("#!/bin/sh\necho Apple clang version 16.0.0\n")
        Path(line[0]).chmod(0o755)
    elif fault == "no compiler":
        line[0] = str(tmp_path / "g++")
    elif fault == "broken header":
        (folder / "ap_int.h").write_text("this is no C++\n")
    else:
        cache.write_text("a file\n")
    for _ in range(3):
        assert precompiled(line, cache) is None
    assert not list(tmp_path.rglob("*.gch"))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("target", [Target(), Target(io="stream")], ids=lambda t: t.io)
def test_a_driver_begins_with_what_is_precompiled(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = emit(residual_program(), tmp_path, target)
    compiled: list[list[str]] = []

    def keep(line: list[str], log: Path) -> int:
        place = line.index("-o") - 1
        source = shutil.copyfile(line[place], tmp_path / "driver.cpp")
        compiled.append([*line[:place], str(source)])
        log.write_text("error: not tried")
        return 1

    monkeypatch.setattr(csim, "_compile", keep)
    with pytest.raises(csim.ToolError, match="does not compile"):
        build.run(np.zeros((1, 2, 4, 4)))
    (tmp_path / "prefix.h").write_text(PREFIX)
    preprocess = [*compiled[-1], "-E", "-P"]
    plain, included = (
        subprocess.run([*preprocess, *more], capture_output=True, text=True, check=True).stdout
        for more in ([], ["-include", str(tmp_path / "prefix.h")])
    )
    assert plain.split() == included.split()
    assert "fxloom_run_sample" in plain


def test_a_header_that_fails_is_left_out_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "prefix.h"
    header.write_text("#error cannot be\n")
    binary(header).write_bytes(b"no binary")
    monkeypatch.setattr(csim, "precompiled", lambda settings, cache: header)
    build: Hls4mlBuild = emit(residual_program(), tmp_path)
    assert_equal_to_reference(build)
    assert not binary(header).exists()
