"""What compression brought and cost, as the surveys of the field define it: compression rate a/a*,
space saving (a - a*)/a and speed-up s/s*, pass by pass and in total, beside the accuracy.

Cheng et al. 2017 (arXiv 1710.09282, section VIII), Choudhary et al. 2020: a are the stored bits of
the original as 32-bit floats, a* all bits that are stored in its place, s what is computed or how
long it takes. Factors of the rows multiply up to those of the total; nothing here is rounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, with_config

from fxloom.errors import FxloomError
from fxloom.report import Figure

FORMAT, VERSION = "fxloom-evaluation", 1
MANY = "fxloom-evaluations"

ORIGINAL, TOTAL = "original", "total"

Numbers = Literal["float32", "integers"]

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Quality:
    """What the outputs are worth.

    accuracy: share of labels met, None without labels of classes. label_error: root mean square
    distance to labels that are numbers. places: how many labels there are; lost, gained: those that
    the original meets and this does not, and vice versa. errors: of each output, root mean square
    distance to the original's, relative to the root mean square of that; None where that has no
    meaning.
    """

    accuracy: float | None
    label_error: float | None
    places: int
    lost: int
    gained: int
    errors: tuple[float | None, ...]

    @property
    def error(self) -> float | None:
        """The largest error of all outputs; None where one is not known."""
        known = [each for each in self.errors if each is not None]
        return max(known) if known and len(known) == len(self.errors) else None


@dataclass(frozen=True, slots=True)
class Stage:
    """The model before the first pass, or after one.

    numbers: what it computes with. parameters, nonzero: numbers that train, tied ones once, and
    those not zero; of integers, after rounding. plain_bits: all numbers written as they are, zeros
    too: 32 bits a float, integers in their width and 16 bits a format; buffers such as running
    statistics and tables count. coded_bits: the same numbers as `code_weights` stores them, every
    codebook, run length, table and format counted; table_bits: the part that is tables of
    functions, which the original computes. macs: multiply-adds of one sample; nonzero_macs: those
    whose weight is not zero. latency, interval: cycles on the target, of a float model after plain
    quantization. seconds: measured CPU time of a batch.
    """

    name: str
    numbers: Numbers
    modified: bool
    parameters: int
    nonzero: int
    plain_bits: int
    coded_bits: int
    table_bits: int
    macs: int
    nonzero_macs: int
    latency: Figure
    interval: Figure
    quality: Quality
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """How many times less a stage takes than the one before it, or the last than the original.

    plain_rate, coded_rate: a/a* of both ways to store. space_saving: (a - a*)/a, coded.
    mac_speedup, nonzero_mac_speedup, cycle_speedup (of the latency), interval_speedup and
    measured_speedup: s/s*; None where one of both is not known or nothing. points: percentage
    points of accuracy gained, negative where some are lost.
    """

    name: str
    plain_rate: float | None
    coded_rate: float | None
    space_saving: float | None
    mac_speedup: float | None
    nonzero_mac_speedup: float | None
    cycle_speedup: float | None
    interval_speedup: float | None
    measured_speedup: float | None
    points: float | None


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Evaluation:
    """A model, a recipe, and all stages on the way.

    model, recipe: what they are called. split, samples: of the data that were judged. target: part,
    clock and ports that cycles are of. stages: the original and one for each pass. file_bytes: a
    file of the last stage, with names, shapes and checksums, as `save_weights` writes it. notes:
    what limits the figures.
    """

    model: str
    recipe: str
    split: str
    samples: int
    target: str
    stages: tuple[Stage, ...]
    file_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def original(self) -> Stage:
        """Before the first pass."""
        return self.stages[0]

    @property
    def result(self) -> Stage:
        """After the last pass."""
        return self.stages[-1]

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Of every stage against the one before. The original's says what coding alone does, and
        zeros that it had: the factors of all rows make the total."""
        first = self.original
        pairs = zip(self.stages, self.stages[1:], strict=False)
        return (
            _change(ORIGINAL, first, first, first.plain_bits, first.macs),
            *(_change(b.name, a, b, a.coded_bits, a.nonzero_macs) for a, b in pairs),
        )

    @cached_property
    def total(self) -> Change:
        """The last stage against the original as 32-bit floats with all multiply-adds."""
        first = self.original
        return _change(TOTAL, first, self.result, first.plain_bits, first.macs)

    def rate(self, stage: Stage) -> float | None:
        """How many times fewer bits a stage takes, coded, than the original as 32-bit floats."""
        return _ratio(self.original.plain_bits, stage.coded_bits)

    def to_json(self) -> str:
        """All figures, rates and totals too; `from_json` reads it back as an equal evaluation."""
        return _dumped(FORMAT, self._document())

    def _document(self) -> dict[str, Any]:
        derived = {"changes": [asdict(each) for each in self.changes], "total": asdict(self.total)}
        return {**asdict(self), **derived}

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "evaluation") -> Evaluation:
        """An evaluation again. Raises FxloomError where it is damaged or of another format."""
        return _loaded(FORMAT, text, source, cls._of)

    @classmethod
    def _of(cls, document: dict[str, Any]) -> Evaluation:
        changes, total = document.pop("changes"), document.pop("total")
        found = TypeAdapter(cls).validate_python(document)
        if not found.stages:
            raise ValueError("required stages, got none")
        if [asdict(each) for each in found.changes] != changes or asdict(found.total) != total:
            raise ValueError("its rates are not those of its stages")
        return found

    def to_text(self, width: int | None = None) -> str:
        """Tables for people, and below them what they say. width: columns of a terminal."""
        from fxloom.evaluation_tables import evaluation_text

        return evaluation_text(self, width)

    def save_png(self, path: str | Path) -> None:
        """Write the plot of accuracy over compression rate, pass by pass.

        Raises ToolError without matplotlib.
        """
        Evaluations((self,)).save_png(path)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Evaluations:
    """Several recipes for one model, on the same data and target."""

    evaluations: tuple[Evaluation, ...]

    def to_json(self) -> str:
        """All figures; `from_json` reads it back as an equal object."""
        return _dumped(MANY, {"evaluations": [each._document() for each in self.evaluations]})

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "evaluations") -> Evaluations:
        """They again. Raises FxloomError where it is damaged or of another format."""
        return _loaded(MANY, text, source, cls._of)

    @classmethod
    def _of(cls, document: dict[str, Any]) -> Evaluations:
        found = tuple(Evaluation._of(each) for each in document.pop("evaluations"))
        if document or not found:
            raise ValueError("required evaluations and nothing else")
        return cls(found)

    def to_text(self, width: int | None = None) -> str:
        """A table with a line a recipe, then each by itself. width: columns of a terminal."""
        from fxloom.evaluation_tables import evaluations_text

        return evaluations_text(self, width)

    def save_png(self, path: str | Path) -> None:
        """Write the plot of accuracy over compression rate. Raises ToolError without matplotlib."""
        from fxloom.evaluation_plot import evaluations_png
        from fxloom.plots import write_image

        write_image(path, evaluations_png(self))


def _change(name: str, before: Stage, after: Stage, coded_bits: int, nonzero_macs: int) -> Change:
    """coded_bits, nonzero_macs: what those of `after` are compared with."""
    rate = _ratio(coded_bits, after.coded_bits)
    old, new = before.quality.accuracy, after.quality.accuracy
    return Change(
        name=name,
        plain_rate=_ratio(before.plain_bits, after.plain_bits),
        coded_rate=rate,
        space_saving=None if rate is None else 1 - 1 / rate,
        mac_speedup=_ratio(before.macs, after.macs),
        nonzero_mac_speedup=_ratio(nonzero_macs, after.nonzero_macs),
        cycle_speedup=_ratio(before.latency.value, after.latency.value),
        interval_speedup=_ratio(before.interval.value, after.interval.value),
        measured_speedup=_ratio(before.seconds, after.seconds),
        points=None if old is None or new is None else 100 * (new - old),
    )


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before and after else None


def _dumped(kind: str, document: Mapping[str, Any]) -> str:
    whole = {"format": kind, "version": VERSION, **document}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _loaded(
    kind: str, text: str | bytes, source: str, read: Callable[[dict[str, Any]], Read]
) -> Read:
    try:
        document = json.loads(text)
        found, version = document.pop("format"), document.pop("version")
        if (found, version) != (kind, VERSION):
            raise FxloomError(
                f"{source}: required {kind} version {VERSION}, got {found!r} {version!r}"
            )
        return read(document)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
        from fxloom.weight_file import first_line  # torch, which other ways do not need

        raise FxloomError(f"{source}: damaged: {first_line(fault)}") from None
