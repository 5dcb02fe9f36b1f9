"""Short versions of `make fuzz-files` and `make hardness`."""

import pytest

from tests.hardness import fuzz_files, kill_compiles

NAMES = ["recipe.toml", "target.toml", "x.fxloom", "coded.fxloom", "x.safetensors", "x.pt2"]


@pytest.mark.parametrize("name", [*NAMES, "x.keras", "x.h5"])
def test_damaged_files_are_named_errors_and_make_no_file(name: str) -> None:
    count = 10 if name == "x.h5" else 30  # which another process reads
    outcomes = set(fuzz_files(count, seed=7, names=(name,)))
    assert f"{name}: refused" in outcomes


def test_killed_compile_leaves_a_whole_build() -> None:
    assert all("whole" in line for line in kill_compiles(2, seed=3))
