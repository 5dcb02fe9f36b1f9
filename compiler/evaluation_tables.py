"""Evaluations as tables for terminals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

from fxloom.evaluation_report import Change, Evaluation, Evaluations, Quality, Stage
from fxloom.report import number
from fxloom.stream_schedule import SCHEDULED
from fxloom.text_tables import ruled, wrapped

STORED = (
    "stored",
    "numbers",
    "parameters",
    "non-zero",
    "bits as they are",
    "rate",
    "bits coded",
    "rate",
    "space saved",
)
WORK = (
    "computed",
    "multiply-adds",
    "speed-up",
    "by non-zeros",
    "speed-up",
    "cycles",
    "speed-up",
    "interval",
    "speed-up",
)
WORTH = (
    "worth",
    "accuracy",
    "points",
    "error to labels",
    "error to original",
    "measured ms",
    "speed-up",
)
RECIPES = (
    "recipe",
    "rate as it is",
    "rate coded",
    "space saved",
    "MAC speed-up",
    "by non-zeros",
    "cycle speed-up",
    "accuracy",
    "points",
    "error to original",
    "front",
)

COUNTED = (
    "rates and speed-ups: of each pass against the row above it, of the total against the "
    "original; those of the rows multiply up to the total's, points add up",
    "bits as they are: zeros too, 32 a float, integers in their width and 16 a format; buffers "
    "and tables count. Pruning alone saves nothing here",
    "bits coded: the same numbers as code_weights stores them, with all codebooks, run lengths, "
    "code tables and formats; a tensor of more than 65,535 different values as it is. The rate of "
    "the first row is what coding does to the original",
)


def evaluation_text(found: Evaluation, width: int | None = None) -> str:
    """Three tables and what they say."""
    return "\n".join([_title(found), "", *_body(found, width), *_legend([found], width), ""])


def evaluations_text(found: Evaluations, width: int | None = None) -> str:
    """A table of recipes, then each by itself."""
    first, front = found.evaluations[0], pareto_front(found)
    rows = [list(RECIPES)]
    for each in found.evaluations:
        change, quality = each.total, each.result.quality
        rows.append(
            [
                each.recipe,
                times(change.plain_rate),
                times(change.coded_rate),
                share(change.space_saving),
                times(change.mac_speedup),
                times(change.nonzero_mac_speedup),
                times(change.cycle_speedup),
                share(quality.accuracy),
                _points(change.points),
                share(quality.error),
                "front" if each in front else "",
            ]
        )
    lines = [
        _title(first, recipes=len(found.evaluations)),
        "",
        *ruled(_shown(rows), 0, width),
        "",
        *wrapped(
            "front: no other recipe is better in one of rate and "
            f"{metric(found)[0]} and as good in the other",
            width,
        ),
        "",
    ]
    for each in found.evaluations:
        lines += [f"recipe {each.recipe}", "", *_body(each, width)]
    return "\n".join([*lines, *_legend(found.evaluations, width), ""])


def metric(found: Evaluations) -> tuple[str, bool]:
    """What recipes are judged by, and whether more of it is better."""
    results = [stage.quality for each in found.evaluations for stage in each.stages]
    if all(each.accuracy is not None for each in results):
        return "accuracy", True
    if all(each.label_error is not None for each in results):
        return "error against the labels", False
    return "error against the original", False


def value_of(quality: Quality, name: str) -> float | None:
    """The figure that `metric` names."""
    if name == "accuracy":
        return quality.accuracy
    return quality.label_error if name == "error against the labels" else quality.error


def pareto_front(found: Evaluations) -> list[Evaluation]:
    """The recipes than which none is better in one of rate and accuracy and as good in the other,
    by falling rate. Where the figure is not known a recipe is not among them."""
    name, more = metric(found)
    known: list[tuple[float, float, Evaluation]] = []
    for each in found.evaluations:
        value, rate = value_of(each.result.quality, name), each.rate(each.result)
        if value is not None and rate is not None:
            known.append((rate, value if more else -value, each))
    return [
        each
        for rate, worth, each in sorted(known, key=lambda item: (-item[0], -item[1]))
        if not any(
            r >= rate and w >= worth and (r, w) != (rate, worth) for r, w, _ in known
        )
    ]  # fmt: skip


def times(ratio: float | None) -> str:
    """A factor for people; nothing where it is not known."""
    return "" if ratio is None else f"{ratio:,.2f}"


def _fewer(ratio: float) -> str:
    """A factor below one as what it is."""
    return f"{times(ratio)} times fewer" if ratio >= 1 else f"{times(1 / ratio)} times more"


def share(part: float | None) -> str:
    """A percentage for people."""
    return "" if part is None else f"{100 * part:.2f}%"


def _title(found: Evaluation, recipes: int = 1) -> str:
    what = f"recipe {found.recipe}" if recipes == 1 else f"{recipes} recipes"
    return (
        f"fxloom evaluate: {found.model}, {what}, {found.samples:,} {found.split} samples, "
        f"{found.target}"
    )


def _body(found: Evaluation, width: int | None) -> Iterator[str]:
    changes = (*found.changes, found.total)
    stages = (*found.stages, found.result)
    pairs = [(_name(change, stage), stage, change) for change, stage in zip(changes, stages)]  # noqa: B905
    for header, cells in ((STORED, _stored), (WORK, _work), (WORTH, _worth)):
        rows = [list(header), *([name, *cells(stage, change)] for name, stage, change in pairs)]
        yield from ruled(_shown(rows), 1, width)
        yield ""
    for text in _remarks(found):
        yield from wrapped(text, width)


def _name(change: Change, stage: Stage) -> str:
    return change.name if stage.modified or change.name == "total" else f"{change.name} (unchanged)"


def _stored(stage: Stage, change: Change) -> list[str]:
    return [
        stage.numbers,
        f"{stage.parameters:,}",
        f"{stage.nonzero:,}",
        f"{stage.plain_bits:,}",
        times(change.plain_rate),
        f"{stage.coded_bits:,}",
        times(change.coded_rate),
        share(change.space_saving),
    ]


def _work(stage: Stage, change: Change) -> list[str]:
    return [
        f"{stage.macs:,}",
        times(change.mac_speedup),
        f"{stage.nonzero_macs:,}",
        times(change.nonzero_mac_speedup),
        str(stage.latency),
        times(change.cycle_speedup),
        str(stage.interval),
        times(change.interval_speedup),
    ]


def _worth(stage: Stage, change: Change) -> list[str]:
    quality = stage.quality
    return [
        share(quality.accuracy),
        _points(change.points),
        "" if quality.label_error is None else number(quality.label_error),
        share(quality.error),
        "" if stage.seconds is None else f"{1000 * stage.seconds:.3g}",
        times(change.measured_speedup),
    ]


def _points(points: float | None) -> str:
    return "" if points is None else f"{points:+.2f}" if points else "0.00"


def _shown(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Rows without columns in which nothing is known."""
    kept = [
        column
        for column in range(len(rows[0]))
        if column == 0 or any(row[column] for row in rows[1:])
    ]
    return [[row[column] for column in kept] for row in rows]


def _remarks(found: Evaluation) -> Iterator[str]:
    total, result, first = found.total, found.result.quality, found.original.quality
    if total.coded_rate is not None and total.space_saving is not None:
        yield (
            f"total: {_fewer(total.coded_rate)} bits than as 32-bit floats "
            f"({share(total.space_saving)} of the space saved)"
        )
    if tables := found.result.table_bits:
        rest = found.original.plain_bits / max(found.result.coded_bits - tables, 1)
        yield (
            f"{tables:,} of the coded bits are tables of functions, which the original computes; "
            f"all else takes {_fewer(rest)} bits"
        )
    yield f"as a file with names, shapes and checksums: {found.file_bytes:,} bytes"
    if total.points is not None:
        text = (
            f"accuracy: {share(first.accuracy)} -> {share(result.accuracy)}, "
            f"{_points(total.points)} points: {result.lost:,} lost and {result.gained:,} gained"
        )
        if result.places == found.samples:  # several of one sample are not independent
            errors = 200 * sqrt(result.lost + result.gained) / result.places
            text += f", two standard errors {errors:.2f} points"
        yield text
    if len(result.errors) > 1:
        each = ", ".join(share(error) or "?" for error in result.errors)
        yield f"error of the outputs, in order: {each}"
    yield ""


def _legend(found: Sequence[Evaluation], width: int | None) -> Iterator[str]:
    lines = [*COUNTED]
    lines += dict.fromkeys(
        f"cycles: {stage.latency.source}"
        for each in found
        for stage in each.stages
        if stage.latency.value is None
    )
    known = [s.latency for each in found for s in each.stages if s.latency.value is not None]
    if known:
        simulated = all(SCHEDULED in figure.source for figure in known)
        how = "of a schedule that simulates every pack" if simulated else "estimated"
        lines.append(
            f"cycles: {how}, until a sample is done and from one to the next; float models, the "
            "original too, as if quantized to 8 bits"
        )
    lines.append(
        "error to original: root mean square of the difference, of the original's output; the "
        "largest of several outputs"
    )
    lines += dict.fromkeys(note for each in found for note in each.notes)
    for line in lines:
        yield from wrapped(line, width)
