"""The distribution: every package is in it, and under one name only."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "compiler": "fxloom",
    "passes": "fxloom.passes",
    "backends": "fxloom.backends",
    "hw_templates": "fxloom.hw_templates",
}


def packages() -> dict[str, Path]:
    """Every folder of modules in the repository, by the name it must have."""
    found = {}
    for folder, name in FOLDERS.items():
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            inner = init.parent.relative_to(ROOT / folder).parts
            found[".".join((name, *inner))] = init.parent
    return found


def settings() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("folder", "name"), FOLDERS.items())
def test_import_under_the_folders_name_is_refused(folder: str, name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"ImportError: import {name}"


def test_every_package_is_listed() -> None:
    assert sorted(settings()["packages"]) == sorted(packages())  # type: ignore[call-overload]


def test_top_level_folders_are_mapped() -> None:
    assert settings()["package-dir"] == {name: folder for folder, name in FOLDERS.items()}


def test_modules_lie_only_in_packages() -> None:
    for folder in FOLDERS:
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from a copy, so that no build/ of the repository leaks in."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs setuptools 77 or newer to build a wheel")
    folder = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run = subprocess.run(
        [*command, "--no-index", "--wheel-dir", str(folder), str(folder / "source")],
        capture_output=True,
        text=True,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return set(archive.namelist())


def test_wheel_has_every_module_and_data_file(wheel: set[str]) -> None:
    wanted = {"fxloom/py.typed", "fxloom/parts.toml"}
    data: dict[str, list[str]] = settings()["package-data"]  # type: ignore[assignment]
    for name, folder in packages().items():
        for path in folder.iterdir():
            patterns = ["*.py", *data.get(name, [])]
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns):
                wanted.add(f"{name.replace('.', '/')}/{path.name}")
        for pattern in data.get(name, []):
            found = (path.relative_to(folder).as_posix() for path in folder.glob(pattern))
            wanted |= {f"{name.replace('.', '/')}/{each}" for each in found}
    assert wanted <= wheel


def test_every_file_of_a_package_is_of_a_packaged_kind(wheel: set[str]) -> None:
    for name, folder in packages().items():
        for path in folder.iterdir():
            if path.is_file() and path.suffix not in (".pyc", ".md"):
                assert f"{name.replace('.', '/')}/{path.name}" in wheel


def test_wheel_installs_nothing_outside_fxloom(wheel: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fxloom"}


def test_constraints_pin_every_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = project["dependencies"] + [each for extra in extras for each in extra]
    names = {re.split(r"[\[<>=!~ ]", each)[0].lower() for each in wanted} - {"fxloom"}
    assert names <= pinned
    assert {"torch==2.13.0", "hls4ml==1.3.0"} <= set(pins)
