"""Whether a design fits its part, in a word and a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from fxloom.report import Figure, Report

State = Literal["fits", "may not fit", "does not fit", "not known"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """state: what the intervals allow to say; text: that of which part, and why."""

    state: State
    text: str


class _Share(NamedTuple):
    """Percent of the part's units; complete: whether nothing is missing in it."""

    unit: str
    figure: Figure
    complete: bool


def verdict(report: Report) -> Verdict:
    """Judged after logic synthesis where that is all known, since a part holds what is built and
    not what a tool expected; by C synthesis else."""
    shares = _deciding(report)
    if text := _beyond(shares, lambda share: share.low):
        return Verdict("does not fit", f"does not fit {report.part}: {text}")
    if text := _beyond(shares, lambda share: share.high):
        return Verdict("may not fit", f"may not fit {report.part}: {text}")
    if unknown := [share.unit for share in shares if not share.complete]:
        text = f"not known whether it fits {report.part}: {', '.join(unknown)} not estimated"
        return Verdict("not known", text)
    return Verdict("fits", f"fits {report.part}")


def is_complete(figure: Figure) -> bool:
    """Whether a figure is known, and none of its summands is missing."""
    return figure.value is not None and "at least" not in figure.source


def _beyond(shares: list[_Share], end: Callable[[Figure], float | None]) -> str:
    """The shares that end above 100%, by one end of their intervals."""
    from fxloom.report import percent

    found = []
    for share in shares:
        value = end(share.figure)
        value = share.figure.value if value is None else value
        if value is not None and value > 100:
            found.append(f"{share.unit} {percent(share.figure)}")
    return ", ".join(found)


def _deciding(report: Report) -> list[_Share]:
    from fxloom.report import LEVELS, RESOURCES

    total, found = report.total, []
    for key, unit in RESOURCES.items():
        complete = [lv for lv in LEVELS if is_complete(getattr(getattr(total, lv), key))]
        level = "synthesis" if "synthesis" in complete or not complete else "csynth"
        share = getattr(getattr(total, f"{level}_percent"), key)
        found.append(_Share(unit, share, bool(complete)))
    return found
