"""What the hardware is to be: a part, a clock, and how layers are laid out on it."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from fxloom.errors import TargetError
from fxloom.settings import (
    build,
    did_you_mean,
    overrides,
    parse_toml,
    read_text,
    toml_line,
    typed_keys,
    unmatched,
)

# What follows a device in the vendor's part string: package, speed and temperature grade.
_ORDERING = {
    "AMD": re.compile(r"-?[a-z]{3,4}\d{3,4}-\d[a-z]*(-[a-z])?", re.IGNORECASE),
    "Intel": re.compile(r"[a-z]{1,2}\d{1,2}[a-z]\d{1,2}[a-z]\d[a-z]{1,3}", re.IGNORECASE),
}

Strategy = Literal["latency", "resource"]
KernelChoice = Literal["auto", "dense", "sparse", "indexed", "codebook", "huffman", "circulant"]
Reuse = Annotated[int, Field(ge=1)]


class LayerTable(TypedDict, total=False):
    """The keys of one entry of `layers`."""

    strategy: Strategy
    reuse: Reuse
    kernel: KernelChoice


@dataclass(frozen=True, slots=True)
class Part:
    """A device. full_name: the part string for the vendor's tools; bram18: in halves of 18 Kb.

    Of Intel's devices lut counts two look-up tables an ALM, dsp DSP blocks, bram18 M20K blocks.
    """

    name: str
    vendor: Literal["AMD", "Intel"]
    full_name: str
    lut: int
    ff: int
    dsp: int
    bram18: int
    uram: int


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What holds for one layer once `layers` is applied."""

    strategy: Strategy
    reuse: int
    kernel: KernelChoice = "auto"


@typed_keys(TargetError)
@dataclass(frozen=True)
class Target:
    """A part and how a program is put on it.

    part: a device (xczu9eg) or a full part string (xczu9eg-ffvb1156-2-e); clock_ns: period;
    reuse: multiplications each multiplier does per inference; kernel: whether products with
    constant weights store and multiply all of them (dense), the non-zeros only (sparse), store
    numbers of a codebook's entries (indexed) or Huffman codes (huffman), multiply once for many
    equal weights (codebook), store one value for a diagonal of block-circulant weights (circulant),
    or what is estimated to be cheapest (auto); layers: fnmatch pattern of a layer's name to what
    differs for it, later patterns over earlier ones. What a backend cannot do is refused by that
    backend. Raises TargetError listing all that is wrong.
    """

    part: str = "xc7z020"
    clock_ns: float = 5.0
    io: Literal["parallel", "stream"] = "parallel"
    strategy: Strategy = "latency"
    reuse: Reuse = 1
    backend: Literal["Vitis", "Vivado", "Quartus", "Catapult", "oneAPI"] = "Vitis"
    kernel: KernelChoice = "auto"
    layers: Mapping[str, LayerTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = []
        if _find(self.part) is None:
            problems.append(f"part: {_unknown_part(self.part)}")
        if not (math.isfinite(self.clock_ns) and 1 <= self.clock_ns <= 1000):
            problems.append(
                "clock_ns: required a period from 1 to 1000 (1 GHz to 1 MHz), got "
                f"{self.clock_ns:g}"
            )
        if problems:
            raise TargetError("\n".join(problems))

    @property
    def device(self) -> Part:
        """The part with its resources."""
        found = _find(self.part)
        assert found is not None  # __post_init__ refuses unknown parts
        return found

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The known devices."""
        return tuple(_parts())

    @classmethod
    def load(cls, path_or_part: str | Path) -> Target:
        """The target of a TOML file, or the defaults on a part given by its name."""
        text = str(path_or_part)
        if _find(text) is not None:
            return cls(part=text)
        if text.endswith(".toml") or "/" in text or os.path.exists(text):
            return cls.parse(read_text(text, TargetError), text)
        raise TargetError(f"{_unknown_part(text)}. No file has that name either")

    @classmethod
    def parse(cls, text: str, source: str = "target") -> Target:
        """The target of a TOML text; `source` begins each message."""
        target, problems = build(cls, parse_toml(text, source, TargetError))
        if target is None:
            raise TargetError("\n".join(f"{source}: {problem}" for problem in problems))
        return target

    def to_toml(self) -> str:
        """Every key; `parse` reads it back as an equal target."""
        return "".join(toml_line(name, value) for name, value in asdict(self).items())

    def resolve(self, layer: str) -> LayerSettings:
        """The settings of one layer, by its name in the user's model."""
        default = {"strategy": self.strategy, "reuse": self.reuse, "kernel": self.kernel}
        return LayerSettings(**(default | overrides(self.layers, layer)))

    def require_layers(self, layers: Iterable[str], more: Iterable[str] = ()) -> None:
        """Raise TargetError for the patterns of `layers` that name none of the given layers.

        more: names that are good as well and that no message needs to list.
        """
        names = list(layers)
        missing = unmatched(self.layers, [*names, *more])
        if missing:
            near = did_you_mean(missing[0], names)
            raise TargetError(
                f"layers: no layer is named {', '.join(missing)}.{near} Layers: {', '.join(names)}"
            )


@cache
def _parts() -> dict[str, Part]:
    text = files("fxloom").joinpath("parts.toml").read_text(encoding="utf-8")
    return {name: Part(name=name, **row) for name, row in tomllib.loads(text).items()}


def _find(name: str) -> Part | None:
    folded = name.casefold()
    for part in _parts().values():
        if folded == part.name:
            return part
        rest = folded.removeprefix(part.name)
        if rest != folded and _ORDERING[part.vendor].fullmatch(rest):
            return Part(**(asdict(part) | {"full_name": name}))
    return None


def _unknown_part(name: str) -> str:
    known = ", ".join(_parts())
    return f"{name}: unknown part.{did_you_mean(name, _parts())} Known: {known}"
