"""Messages for hand-written tables: every fault once, at its place, with what to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from typing_extensions import TypedDict

from fxloom.errors import RecipeError
from fxloom.settings import build, overrides, parse_toml, read_text, unmatched


class LayerTable(TypedDict, total=False):
    weights: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Example:
    weights: Annotated[int, Field(ge=1, le=32)]
    ratio: float = 0.5
    method: Literal["mse", "minmax"] = "mse"
    include: tuple[str, ...] = ()
    seed: int | None = None
    mixed: int | str = 1
    enabled: bool = False
    layers: Mapping[str, LayerTable] = field(default_factory=dict)


def problems(**table: Any) -> list[str]:
    return build(Example, {"weights": 8} | table)[1]


def test_valid_table_becomes_the_dataclass() -> None:
    table = {"weights": 8, "ratio": 1, "include": ["a*"], "layers": {"h.*": {"weights": 2}}}
    made, wrong = build(Example, table)
    assert wrong == []
    assert made == Example(8, 1.0, include=("a*",), layers={"h.*": {"weights": 2}})
    assert isinstance(made.ratio, float)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"weights": "8"}, 'weights: required an integer, got "8" (text)'),
        ({"weights": True}, "weights: required an integer, got true (a truth value)"),
        ({"weights": 8.0}, "weights: required an integer, got 8.0 (a number)"),
        (
            {"weights": 0},
            "weights: required greater than or equal to 1, got 0 (an integer)",
        ),
        ({"ratio": True}, "ratio: required a number, got true (a truth value)"),
        ({"method": "ms"}, "method: required 'mse' or 'minmax', got \"ms\" (text)"),
        ({"include": "conv*"}, 'include: required an array, got "conv*" (text)'),
        ({"include": ["a", 1]}, "include.1: required text, got 1 (an integer)"),
        ({"seed": "x"}, 'seed: required an integer, got "x" (text)'),
        ({"mixed": 1.5}, "mixed: required an integer or text, got 1.5 (a number)"),
        ({"enabled": 1}, "enabled: required true or false, got 1 (an integer)"),
        ({"layers": 3}, "layers: required a table, got 3 (an integer)"),
        (
            {"layers": {"head.*": {"weights": "8"}}},
            'layers."head.*".weights: required an integer, got "8" (text)',
        ),
        (
            {"layers": {"head.*": {"wieghts": 8}}},
            'layers."head.*": wieghts: unknown key. Did you mean weights? Allowed: weights',
        ),
        (
            {"Weights": 8},
            "Weights: unknown key. Did you mean weights? Allowed: weights, ratio, method, "
            "include, seed, mixed, enabled, layers",
        ),
    ],
)
def test_fault_is_named_with_place_demand_and_value(table: dict[str, Any], expected: str) -> None:
    assert problems(**table) == [expected]


def test_missing_key_is_named() -> None:
    assert build(Example, {})[1] == ["weights: required, but missing"]


def test_all_faults_are_gathered() -> None:
    assert len(problems(weights="8", ratio="x", nonsense=1, layers={"a": {"weights": 0}})) == 4


def test_dataclass_may_refuse_by_itself() -> None:
    @dataclass(frozen=True)
    class Picky:
        low: int = 0

        def __post_init__(self) -> None:
            raise ValueError("low: required less than high")

    assert build(Picky, {"low": 1}) == (None, ["low: required less than high"])


def test_value_that_json_cannot_hold_is_a_fault_not_a_crash() -> None:
    assert problems(ratio=parse_toml("d = 2020-01-01", "t", RecipeError)["d"])[0].startswith(
        "ratio: required a number, got"
    )


def test_later_patterns_override_earlier_ones() -> None:
    layers = {"*": {"a": 1, "b": 1}, "head.*": {"a": 2}}
    assert overrides(layers, "head.0") == {"a": 2, "b": 1}
    assert overrides(layers, "body") == {"a": 1, "b": 1}
    assert unmatched(["head.*", "tail"], ["head.0"]) == ["tail"]


def test_unreadable_files_are_named(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match="nowhere: no such file"):
        read_text(tmp_path / "nowhere", RecipeError)
    with pytest.raises(RecipeError, match="is a directory"):
        read_text(tmp_path, RecipeError)
    (tmp_path / "latin").write_bytes(b"x = '\xe9'")
    with pytest.raises(RecipeError, match=r"latin: is not UTF-8 text \(byte 5\)"):
        read_text(tmp_path / "latin", RecipeError)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_text("a\0b", RecipeError)


@pytest.mark.parametrize(
    "text", ["a = \n", "a = 1\na = 2", "[x", "a = " + "[" * 5000, "a = " + "9" * 5000]
)
def test_bad_toml_is_reported_with_its_source(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^here.toml: not valid TOML"):
        parse_toml(text, "here.toml", RecipeError)


def test_toml_fault_names_its_line() -> None:
    with pytest.raises(RecipeError, match="line 2"):
        parse_toml("a = 1\nb = = 2", "here.toml", RecipeError)
