"""What a trace found: figures value by value, as text, JSON and HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import inf, log10, sqrt
from pathlib import Path

from fxloom.text_tables import aligned

CAUSES = ("weights", "inherited", "rounding", "saturation", "tables")

FORMAT, VERSION = "fxloom-trace", 1

REMEDIES = {
    "weights": 'more bits for its weights, or weight_rounding = "second_order"',
    "rounding": "more bits for its activations",
    "saturation": 'a wider range: method = "minmax", or more bits for its activations',
    "tables": "more table_bits",
}
"""What to change in the recipe where an error enters by a cause."""


@dataclass(frozen=True, slots=True)
class ValueTrace:
    """One rounded value against the float model.

    name: the layer at whose end it is rounded; layers: all that are computed before that rounding.
    given: the range of its format; used: what came to be rounded; float_range: the same in the
    float model. saturated_low, saturated_high: shares of the values beyond either end. float_rms,
    error_rms and causes: root mean squares of the float value, of the error and of its parts, which
    add up to it value by value. accuracy: with all values up to this one fixed and the rest
    float; lost, gained: samples that are wrong then and were right in float, and vice versa.
    """

    name: str
    layers: tuple[str, ...]
    op: str
    format: str
    given: tuple[float, float] | None
    used: tuple[float, float]
    float_range: tuple[float, float]
    saturated_low: float
    saturated_high: float
    float_rms: float
    error_rms: float
    causes: Mapping[str, float]
    accuracy: float | None
    lost: int
    gained: int

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio in decibels; infinite where there is no error."""
        return _decibels(self.float_rms, self.error_rms)

    @property
    def own(self) -> dict[str, float]:
        """Root mean squares of what enters here, by cause."""
        return {cause: size for cause, size in self.causes.items() if cause != "inherited"}

    @property
    def cause(self) -> str:
        """The largest cause of what enters here."""
        return max(self.own, key=self.own.__getitem__)

    @property
    def own_share(self) -> float:
        """How large what enters here by its largest cause is, of the float value."""
        size = self.own[self.cause]
        return size / self.float_rms if self.float_rms else inf if size else 0.0

    @property
    def is_drop(self) -> bool:
        """Whether accuracy is lower by more than chance: two standard errors of the difference."""
        return self.lost - self.gained > 2 * sqrt(self.lost + self.gained)


@dataclass(frozen=True, slots=True)
class Trace:
    """All rounded values, in the order of computation. Accuracies are given for labelled data."""

    split: str
    samples: int
    float_accuracy: float | None
    fixed_accuracy: float | None
    values: tuple[ValueTrace, ...]

    @property
    def first_drop(self) -> ValueTrace | None:
        """The first value with which accuracy is lower by more than chance."""
        return next((value for value in self.values if value.is_drop), None)

    @property
    def worst(self) -> ValueTrace | None:
        """The value in which the largest error enters, relative to the value."""
        found = max(self.values, key=lambda value: value.own_share, default=None)
        return found if found is not None and found.own_share > 0 else None

    def to_text(self) -> str:
        """A table for people, and below it what it says."""
        rows = [self._header(), *(self._cells(value) for value in self.values)]
        return "\n".join([self.title, "", *aligned(rows), "", *self.remarks(), ""])

    def to_json(self) -> str:
        """All figures. A ratio without error is null."""
        values = [
            asdict(value)
            | {"sqnr_db": None if value.sqnr_db in (inf, -inf) else value.sqnr_db}
            | {"cause": value.cause if value.own_share else None}
            for value in self.values
        ]
        first, worst = self.first_drop, self.worst
        document = asdict(self) | {
            "format": FORMAT,
            "version": VERSION,
            "values": values,
            "first_drop": first.name if first is not None else None,
            "worst": worst.name if worst is not None else None,
        }
        return json.dumps(document, indent=2, sort_keys=True) + "\n"

    def to_html(self) -> str:
        """One page, plot included. Raises ToolError without matplotlib."""
        from markupsafe import Markup

        from fxloom.pages import render
        from fxloom.plots import trace_svg

        return render(
            "trace.html",
            title=self.title,
            remarks=list(self.remarks()),
            plot=Markup(trace_svg(self)),  # text is paths in it
            header=self._header(),
            rows=[(" > ".join(value.layers), self._cells(value)) for value in self.values],
        )

    def save_png(self, path: str | Path) -> None:
        """Write the plot. Raises ToolError without matplotlib."""
        from fxloom.plots import trace_png, write_image

        write_image(path, trace_png(self))

    @property
    def title(self) -> str:
        """What was traced, in a line."""
        return (
            f"fxloom trace: {len(self.values)} rounded values, {self.samples} {self.split} samples"
        )

    def remarks(self) -> Iterator[str]:
        """What the figures say, in sentences."""
        worst, first = self.worst, self.first_drop
        if not self.values:
            yield "nothing was left to round: the model brought formats for everything along"
        if worst is not None:
            yield (
                f"largest error of its own: {worst.name}, by {worst.cause} "
                f"({_percent(worst.own_share)} of the value). "
                f"What helps there: {REMEDIES[worst.cause]}"
            )
        if self.float_accuracy is None or self.fixed_accuracy is None:
            yield "accuracy: not known; it needs labels of classes"
        else:
            yield (
                f"accuracy: float {100 * self.float_accuracy:.2f}%, "
                f"fixed {100 * self.fixed_accuracy:.2f}%"
            )
            if first is not None and first.accuracy is not None:
                yield (
                    f"accuracy goes first at {first.name}: {100 * first.accuracy:.2f}% with all up "
                    f"to it fixed ({first.lost} samples lost, {first.gained} gained)"
                )
            else:
                yield "accuracy: no value lowers it by more than two standard errors"
        yield (
            "errors: root mean squares, of the float value's; the causes add up sample by sample, "
            "so their squares need not. inherited: came in with the inputs; the others enter here"
        )

    def _header(self) -> list[str]:
        columns = ["layer", "format", "range given", "range used", "saturated", "SQNR", "error"]
        columns += CAUSES
        return columns + (["accuracy"] if self.float_accuracy is not None else [])

    def _cells(self, value: ValueTrace) -> list[str]:
        def part(size: float) -> str:
            if not size:
                return ""
            return _percent(size / value.float_rms) if value.float_rms else f"{size:.2g}"

        beyond = [value.saturated_low, value.saturated_high]
        saturated = " / ".join(_percent(share) for share in beyond) if any(beyond) else ""
        ratio = value.sqnr_db
        cells = [
            value.name,
            value.format,
            "" if value.given is None else _span(value.given),
            _span(value.used),
            saturated,
            "exact" if ratio == inf else "?" if ratio == -inf else f"{ratio:.1f} dB",
            part(value.error_rms),
            *(part(value.causes[cause]) for cause in CAUSES),
        ]
        if value.accuracy is not None:
            cells.append(f"{100 * value.accuracy:.2f}%")
        return cells


def _decibels(signal: float, noise: float) -> float:
    if not noise:
        return inf
    return 20 * log10(signal / noise) if signal else -inf


def _percent(share: float) -> str:
    if share == inf:
        return "all"
    percent = 100 * share
    return "0" if not percent else "<0.01%" if percent < 0.01 else f"{percent:.3g}%"


def _span(span: tuple[float, float]) -> str:
    return f"{span[0]:.4g} to {span[1]:.4g}"
