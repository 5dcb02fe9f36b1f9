"""What a report is about and how it was made: model, passes, target, versions. No time, no path."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """All that determines a build.

    model: what its author calls it; parameters: how many it has. recipe, found, target: TOML, as in
    the files of the build; found is the recipe with what its passes found, where one searched.
    versions: of the tools.
    """

    model: str
    parameters: int
    recipe: str
    target: str
    versions: Mapping[str, str]
    found: str | None = None

    def passes(self) -> list[tuple[str, dict[str, str]]]:
        """Every pass with its keys, as text; what was found in place of what searched for it."""
        tables = tomllib.loads(self.found or self.recipe)["pass"]
        return [(table["name"], _texts(table, "name")) for table in tables]

    def settings(self) -> dict[str, str]:
        """The target's keys, as text."""
        return _texts(tomllib.loads(self.target))

    def lines(self) -> Iterator[str]:
        """All of it in sentences."""
        yield f"model: {self.model}, {self.parameters:,} parameters"
        for number, (name, keys) in enumerate(self.passes(), 1):
            found = " (found)" if self.found is not None else ""
            yield f"pass {number} {name}{found}: {_listed(keys)}"
        yield f"target: {_listed(self.settings())}"
        yield f"tools: {', '.join(f'{tool} {v}' for tool, v in self.versions.items())}"


def _texts(table: Mapping[str, object], *without: str) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for key, value in table.items()
        if key not in without
    }


def _listed(keys: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in keys.items()) or "nothing to set"
