"""Numbers for the sources of figures, in the order in which a page first needs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from fxloom.report import Figure


class Sources:
    """Every provenance and source once, with the units of the figures that have it."""

    def __init__(self) -> None:
        self._units: dict[tuple[str, str], dict[str, None]] = {}
        self._numbers: dict[tuple[str, str], int] = {}

    def of(self, figure: Figure) -> tuple[int, ...]:
        """The numbers of a figure's sources, new ones where they are."""
        from fxloom.report import SEPARATOR

        numbers = []
        for part in figure.source.split(SEPARATOR):
            key = (_provenance(figure, part), part)
            self._units.setdefault(key, {})[figure.unit] = None
            numbers.append(self._numbers.setdefault(key, len(self._numbers) + 1))
        return tuple(numbers)

    def __iter__(self) -> Iterator[tuple[int, str, str, str]]:
        """Number, units, provenance and text of all that were asked for."""
        for key, place in self._numbers.items():
            provenance, text = key
            yield (
                place,
                ", ".join(self._units[key]),
                provenance,
                text.removeprefix(f"{provenance}: "),
            )


def _provenance(figure: Figure, part: str) -> str:
    """A part of a sum may be less certain than the whole says."""
    from fxloom.report import Provenance

    return next(
        (each for each in get_args(Provenance) if part.startswith(f"{each}: ")), figure.provenance
    )
