"""What a vendor's tool measured of a design: one form for every report of every tool.

C synthesis, logic synthesis and implementation count differently (the LUTs of C synthesis are about
twice those of logic synthesis), so every measurement says at which level it was taken, and nothing
here adds two levels up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from fxloom.errors import FxloomError
from fxloom.report import RESOURCES

Level = Literal["csynth", "simulation", "synthesis", "implementation"]
Cycles = tuple[int, int]
"""Fewest and most."""

_CLOCK_DIGITS = 0.00501
"""Reports round periods to 10 ps."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a design or one of its modules takes; None where the report does not say.

    lut: of Intel's parts ALUTs, two an ALM; bram18: halves of 18 Kb, of Intel's parts RAM blocks;
    alm: of Intel's parts only. latency_cycles: until the last result; interval_cycles: until the
    next input may come; achieved_ns: the clock period that the tool says is possible.
    """

    lut: int | None = None
    ff: int | None = None
    dsp: int | None = None
    bram18: int | None = None
    uram: int | None = None
    alm: int | None = None
    latency_cycles: Cycles | None = None
    interval_cycles: Cycles | None = None
    achieved_ns: float | None = None

    def resources(self) -> dict[str, int | None]:
        """By the keys of RESOURCES."""
        return {key: getattr(self, key) for key in RESOURCES}

    def covers(self, other: Usage) -> bool:
        """Whether this takes at least as much of everything, as a module does that contains it."""
        pairs = [(value, getattr(other, key)) for key, value in self.resources().items()]
        return all((a is None) == (b is None) and (a or 0) >= (b or 0) for a, b in pairs)


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one tool.

    design: the function or entity that `top` is of. clock_ns: the period asked for. modules: by
    the tool's names, each with all that it contains; children: the modules that a module contains,
    as often as it does, where the report says so. source: the file or folder it was read from.
    """

    tool: str
    level: Level
    top: Usage
    source: str
    design: str | None = None
    version: str | None = None
    part: str | None = None
    clock_ns: float | None = None
    modules: Mapping[str, Usage] = field(default_factory=dict)
    children: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Tool, part and clock in a line."""
        made_by = self.tool if self.version is None else f"{self.tool} {self.version}"
        part = "" if self.part is None else f", {self.part}"
        clock = "" if self.clock_ns is None else f" at {self.clock_ns:g} ns"
        period = self.top.achieved_ns
        achieved = "" if period is None else f" (achieved: {period:.4g} ns)"
        return f"{made_by}{part}{clock}{achieved}, {self.source}"


def total_usage(parts: Iterable[Usage]) -> Usage:
    """Resources of several modules together, None where one does not say.

    Cycles and period are those of a single module; the cycles of several may overlap.
    """
    every = list(parts)
    only = every[0] if len(every) == 1 else Usage()
    return Usage(
        lut=_sum(each.lut for each in every),
        ff=_sum(each.ff for each in every),
        dsp=_sum(each.dsp for each in every),
        bram18=_sum(each.bram18 for each in every),
        uram=_sum(each.uram for each in every),
        latency_cycles=only.latency_cycles,
        interval_cycles=only.interval_cycles,
        achieved_ns=only.achieved_ns,
    )


def _sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def period_ns(frequency_mhz: float) -> float | None:
    """The clock period of a frequency; None where that is no frequency."""
    period = 1000.0 / frequency_mhz if frequency_mhz > 0 else 0.0
    return period if isfinite(period) and period > 0 else None


def require_same(measured: Measured, part: str, clock_ns: float, design: str) -> None:
    """Raise FxloomError where it is known that something else was measured than this."""
    source = measured.source
    if measured.design not in (None, design):
        raise FxloomError(
            f"{source}: is of {measured.design!r}, which is not the whole project, {design!r}. "
            "Name the report of that, or the folder"
        )
    if measured.part is not None and not _plain(measured.part).startswith(_plain(part)):
        raise FxloomError(
            f"{source}: is of part {measured.part}, the estimate of {part}. Compile for the part "
            "that was measured"
        )
    clock = measured.clock_ns
    if clock is not None and abs(clock - clock_ns) > _CLOCK_DIGITS:
        raise FxloomError(
            f"{source}: is of a clock of {clock:g} ns, the estimate of {clock_ns:g} ns. Compile "
            "for the clock that was measured"
        )


def _plain(part: str) -> str:
    """A part's name as all tools write it: some leave out the first letters, some dashes."""
    return re.sub("[^a-z0-9]", "", part.lower()).removeprefix("xc")
