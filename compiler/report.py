"""What a compilation costs and how exact it is: figures with unit and origin, layer by layer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import log1p
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, TypeAdapter, with_config

from fxloom.errors import FxloomError
from fxloom.made_from import MadeFrom
from fxloom.report_graph import Graph
from fxloom.storage_table import TITLE, StorageRow, times
from fxloom.storage_table import table as storage_cells
from fxloom.storage_table import total as storage_total
from fxloom.text_tables import ruled, sparkline, wrapped
from fxloom.value_histograms import BINS, ValueHistogram
from fxloom.verdict import Verdict, verdict

if TYPE_CHECKING:
    from fxloom.measured_report import Comparison

FORMAT = "fxloom-report"
VERSION = 2

SEPARATOR = " | "
"""Between the sources of a figure that is a sum."""

_NUMBERS = re.compile(r"\[\n[-\d.e+,\s]+\]")

Provenance = Literal["counted", "rule", "fitted", "measured", "unknown"]


def number(value: int | float) -> str:
    """For people: thousands apart, no more digits than a figure deserves."""
    whole = float(value).is_integer() or abs(value) >= 1000
    return f"{value:,.0f}" if whole else f"{value:,.4g}"


def percent(figure: Figure) -> str:
    """A share of the part with its interval."""
    head, _, interval = str(figure).partition(" ")
    return f"{head}% {interval}".rstrip() if figure.value is not None else head


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that is not simply counted in the program.

    value: None where no rule is known. low, high: where it is not certain. provenance: a rule
    that holds exactly on others' syntheses, a fit with its leave-one-out interval, a measurement.
    source: which rule or fit, and its limits.
    """

    value: int | float | None
    unit: str
    provenance: Provenance
    source: str
    low: int | float | None = None
    high: int | float | None = None

    @property
    def bounds(self) -> tuple[int | float, int | float]:
        """Least and most of a figure that is known: itself where it is certain."""
        assert self.value is not None
        low = self.value if self.low is None else self.low
        return low, self.value if self.high is None else self.high

    def __str__(self) -> str:
        if self.value is None:
            return "?"
        if self.low is None or self.high is None or self.low == self.value == self.high:
            return number(self.value)
        return f"{number(self.value)} ({number(self.low)} to {number(self.high)})"


def nanoseconds(cycles: Figure, clock_ns: float) -> Figure:
    """The same time in nanoseconds."""
    value, low, high = (
        None if each is None else round(each * clock_ns, 3)
        for each in (cycles.value, cycles.low, cycles.high)
    )
    source = f"{cycles.source}; {clock_ns:g} ns a cycle"
    return Figure(value, "ns", cycles.provenance, source, low, high)


RESOURCES = {"lut": "LUT", "ff": "FF", "dsp": "DSP", "bram18": "BRAM18", "uram": "URAM"}
"""What a part has, as keys and as units."""

LEVELS = {
    "csynth": "as C synthesis reports it",
    "synthesis": "after logic synthesis",
}
"""Where a tool counts resources. The same design takes about twice the LUTs in the first."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What is taken of a part, at one of LEVELS, in units of RESOURCES or in percent of them."""

    lut: Figure
    ff: Figure
    dsp: Figure
    bram18: Figure
    uram: Figure

    def items(self) -> Iterator[tuple[str, Figure]]:
        """Figures by their keys in RESOURCES."""
        return ((key, getattr(self, key)) for key in RESOURCES)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer of the user's model.

    result, weights, accumulator: formats; accumulator is the widest in which sums are added up:
    that of the exact sum, or a narrower one where its upper bits are dropped.
    weight_count counts every constant, nonzero those that are not 0, stored_bits is count times
    width, tables included; of a sparse kernel it is what that keeps: weights, indices and padding.
    macs: multiply-adds by weights and between computed values, of one sample; of a sparse kernel
    those that it does. csynth, synthesis: resources at LEVELS, which are never added up together.
    latency, interval: cycles until the last result of a sample, and until the next sample may
    begin. kernel: which one multiplies by the weights and why, where that is not a matter of
    course. rounding: the LUTs of `synthesis` that round and saturate; rounding_saved: those that
    it would have besides, if saturation were left out only where formats show that nothing
    overflows, not where the proven interval does.
    """

    name: str
    ops: tuple[str, ...]
    shape: tuple[int, ...]
    result: str
    weights: tuple[str, ...]
    accumulator: str | None
    weight_count: int
    nonzero: int
    stored_bits: int
    macs: int
    csynth: Resources
    synthesis: Resources
    latency: Figure
    interval: Figure
    rounding: Figure | None = None
    rounding_saved: int = 0
    float_error: Figure | None = None
    kernel: str = ""

    @property
    def is_wires(self) -> bool:
        """Whether nothing is stored or built for it, and it takes no time."""
        figures = [f for level in LEVELS for _, f in getattr(self, level).items()]
        none = all(f.value == 0 and not f.high for f in (*figures, self.latency))
        return none and not self.stored_bits


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all layers, and the device they have to fit in."""

    weight_count: int
    nonzero: int
    stored_bits: int
    macs: int
    csynth: Resources
    synthesis: Resources
    csynth_percent: Resources
    synthesis_percent: Resources
    latency: Figure
    interval: Figure
    rounding: Figure | None = None
    latency_ns: Figure | None = None
    interval_ns: Figure | None = None


@dataclass(frozen=True, slots=True)
class LayerCost:
    """The figures of a layer that passes change: as in a LayerReport."""

    weight_count: int
    nonzero: int
    stored_bits: int
    macs: int
    csynth: Resources
    latency: Figure


@dataclass(frozen=True, slots=True)
class StageLayer:
    """A layer before and after a pass; None where there was none."""

    name: str
    before: LayerCost | None
    after: LayerCost | None


@dataclass(frozen=True, slots=True)
class PassReport:
    """One pass of the recipe: what it did, and figures of the graph before and after.

    summary: as the pass gives it; sentences under "remarks" are shown to people. layers: of a
    recipe that makes hardware smaller, what each layer would cost if the graph were quantized right
    before and right after the pass.
    """

    name: str
    modified: bool
    summary: Mapping[str, Any]
    before: Mapping[str, int]
    after: Mapping[str, int]
    layers: tuple[StageLayer, ...] = ()


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The program against the float model on the user's data.

    Errors are of the outputs, in the model's own units. float_accuracy, fixed_accuracy: the share
    of samples whose largest output is the label, where there are labels.
    """

    split: str
    samples: int
    max_error: float
    mean_error: float
    largest_output: float
    float_accuracy: float | None = None
    fixed_accuracy: float | None = None


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class Report:
    """Figures of a program on a target; passes and accuracy where it was compiled with data.

    float_bits: what the weights and biases of the float model take, at 32 bits each. made_from and
    graph where it was compiled; histograms where there was data. storage: what the constants take
    when they are coded, where it was compiled.
    """

    part: str
    clock_ns: float
    layers: tuple[LayerReport, ...]
    total: Totals
    program: str
    float_bits: int | None = None
    passes: tuple[PassReport, ...] = ()
    accuracy: Accuracy | None = None
    notes: tuple[str, ...] = field(default=())
    made_from: MadeFrom | None = None
    graph: Graph | None = None
    histograms: tuple[ValueHistogram, ...] = ()
    storage: tuple[StorageRow, ...] = ()

    def to_json(self) -> str:
        """All of it, stable; `from_json` reads it back as an equal report."""
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        text = json.dumps(document, indent=1, ensure_ascii=False, default=list)
        # Lists of numbers in a line. No string has a line break in JSON, so these are lists.
        return _NUMBERS.sub(lambda found: "".join(found[0].split()), text) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "report") -> Report:
        """A report again. Raises FxloomError where it is damaged or from a newer fxloom."""
        try:
            document = json.loads(text)
            kind, version = document.pop("format"), document.pop("version")
            if kind != FORMAT or version != VERSION:
                raise FxloomError(
                    f"{source}: required {FORMAT} version {VERSION}, got {kind!r} {version!r}"
                )
            return TypeAdapter(cls).validate_python(document)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
            first = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
            raise FxloomError(f"{source}: damaged: {first}") from None

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """The report of a file."""
        try:
            return cls.from_json(Path(path).read_bytes(), str(path))
        except OSError as fault:
            raise FxloomError(f"{path}: cannot be read: {fault.strerror}") from None

    def to_text(self, width: int | None = None) -> str:
        """Tables for people, a summary above and below where each kind of figure comes from.

        width: columns of a terminal, which nothing but long names then exceeds.
        """
        tables = [
            line
            for title, rows, ends in self.tables()
            for line in (*([title, ""] if title else []), *ruled(rows, ends, width), "")
        ]
        summary = [line for text in self.summary() for line in wrapped(text, width)]
        remarks = [line for text in dict.fromkeys(self._remarks()) for line in wrapped(text, width)]
        return "\n".join([self.title, "", *summary, "", *tables, *remarks, ""])

    def to_html(self, measured: Comparison | None = None) -> str:
        """One page that needs nothing else; measured: what tools said of the same design."""
        from fxloom.pages.report_page import report_page

        return report_page(self, measured)

    def tables(self) -> Iterator[tuple[str, list[list[str]], int]]:
        """Every table: its title, rows of cells from the header on, and how many rows at its end
        are sums."""
        total = self.total
        counts = [total.weight_count, total.nonzero, total.stored_bits, total.macs]
        end = ["total", "", "", "", *(f"{n:,}" for n in counts), ""]
        yield "", [HEADER, *(_cells(layer) for layer in self.layers), end], 1
        wires = sum(layer.is_wires for layer in self.layers)
        wires = wires if wires > FEW_WIRES else 0
        for level, name in LEVELS.items():
            shown = [each for each in self.layers if not (wires and each.is_wires)]
            rows = [_resource_cells(each, level) for each in shown]
            title = f"resources {name}" + (", and cycles" if level == "csynth" else "")
            title += f" ({wires} layers that are only wires left out)" if wires else ""
            yield title, [_resource_header(level), *rows, *self._sums(level)], 2
        if self.storage:
            yield TITLE, self.storage_cells(), 1
        for step in self.passes:
            changed = [layer for layer in step.layers if layer.before != layer.after]
            if changed:
                cells = [_stage_cells(each) for each in changed]
                yield f"pass {step.name}, before -> after", [STAGE_HEADER, *cells], 0
        if self.histograms:
            cells = [_histogram_cells(each) for each in self.histograms]
            yield HISTOGRAMS, [HISTOGRAM_HEADER, *cells], 0
        if self.graph is not None:
            edges = [[f"{start} -> {end}", label] for start, end, label in self.graph.rows()]
            yield "values between layers", [["from -> to", "format and shape"], *edges], 0

    def _sums(self, level: str) -> list[list[str]]:
        """The total of a table of resources, and its share of the part."""
        shares = [percent(figure) for _, figure in getattr(self.total, f"{level}_percent").items()]
        return [
            _resource_cells(self.total, level),
            [f"of {self.part}", *shares, *([""] * (len(_resource_header(level)) - 6))],
        ]

    def storage_cells(self) -> list[list[str]]:
        """The table of what is stored, its sum at the end."""
        return storage_cells(self.storage, self.float_bits)

    @property
    def coded_bits(self) -> int:
        """Of all constants with Huffman codes, and all that is needed to decode them."""
        return storage_total(self.storage).huffman_bits

    def overflows(self) -> list[str]:
        """What the part has not enough of: a sentence for each, with the layers that take most."""
        return [
            sentence
            for level, name in LEVELS.items()
            for key, unit in RESOURCES.items()
            for sentence in self._overflow(level, name, key, unit)
        ]

    def _overflow(self, level: str, name: str, key: str, unit: str) -> Iterator[str]:
        share = getattr(getattr(self.total, f"{level}_percent"), key)
        if share.value is None or share.value <= 100:
            return
        total = getattr(getattr(self.total, level), key).value
        taken = [(getattr(getattr(layer, level), key).value or 0, layer) for layer in self.layers]
        largest = sorted(taken, key=lambda each: -each[0])[:LARGEST]
        shares = ", ".join(
            f"{layer.name} {round(100 * value / total)}%" for value, layer in largest if value
        )
        certain = share.low is None or share.low > 100
        yield (
            f"{'does not fit' if certain else 'may not fit'}: {unit} {percent(share)} of "
            f"{self.part} ({name}; largest: {shares}). {ADVICE[key]}"
        )

    def summary(self) -> Iterator[str]:
        """What matters most, and what the report is about."""
        yield self.verdict.text
        total = self.total
        if total.latency_ns is not None and total.latency_ns.value is not None:
            yield f"latency: {total.latency} cycles, {total.latency_ns} ns"
        if total.interval_ns is not None and total.interval_ns.value:
            rate = 1e9 / total.interval_ns.value
            every = (
                "a sample every cycle"
                if total.interval.value == 1
                else (f"a sample every {total.interval} cycles")
            )
            yield f"{every}, {number(round(rate))} in a second"
        if self.accuracy is not None:
            yield from _accuracy_lines(self.accuracy)
        if self.compression is not None:
            yield (
                f"weights and biases: {self.float_bits:,} bits as 32-bit floats, "
                f"{self.total.stored_bits:,} now with tables ({' times '.join(self.saving)})"
            )
        if self.storage and self.float_bits:
            yield (
                f"coded in files: {self.coded_bits:,} bits with codebooks and Huffman codes "
                f"({' times '.join(times(self.float_bits, self.coded_bits))})"
            )
        if self.made_from is not None:
            yield from self.made_from.lines()

    @property
    def verdict(self) -> Verdict:
        """Whether it fits the part."""
        return verdict(self)

    @property
    def title(self) -> str:
        """What the report is about, in a line."""
        return f"fxloom report: {self.part} at {self.clock_ns:g} ns, program {self.program[:12]}"

    @property
    def compression(self) -> float | None:
        """How many times fewer bits are stored, tables included, than weights and biases have as
        32-bit floats."""
        if not self.float_bits or not self.total.stored_bits:
            return None
        return self.float_bits / self.total.stored_bits

    @property
    def saving(self) -> tuple[str, str]:
        """How many times, and "fewer" or "more", for tables may take more than weights save."""
        return times(self.float_bits or 1, self.total.stored_bits or self.float_bits or 1)

    def _remarks(self) -> Iterator[str]:
        for step in self.passes:
            changed = [
                f"{key} {before:,} -> {step.after[key]:,}"
                for key, before in step.before.items()
                if key in step.after and before != step.after[key]
            ]
            yield f"pass {step.name}: {', '.join(changed) or 'counts unchanged'}"
            for remark in step.summary.get("remarks", ()):
                yield f"pass {step.name}: {remark}"
        for layer in self.layers:
            if layer.kernel:
                yield f"{layer.name}: {layer.kernel}"
        total = self.total
        for figure in (*_figures(total), total.rounding):
            if figure is not None and "at least" in figure.source:
                yield f"total {figure.unit}: {figure.source}"
        if saved := sum(layer.rounding_saved for layer in self.layers):
            yield f"rounding LUTs: {saved:,} fewer, for proofs that some values cannot overflow"
        yield from self.overflows()
        figures = [f for layer in self.layers for f in (*_figures(layer), layer.rounding)]
        sources = dict.fromkeys(
            (f.unit, source)
            for f in figures
            if f is not None and (f.value != 0 or f.high)
            for source in f.source.split(SEPARATOR)
        )
        for unit, source in sources:
            yield f"{unit}: {source}"
        yield from self.notes


HEADER = [
    "layer",
    "result",
    "weights",
    "accumulator",
    "count",
    "non-zero",
    "bits",
    "MACs",
    "float error",
]
STAGE_HEADER = ["layer", "weights", "non-zero", "bits", "MACs", *RESOURCES.values(), "cycles"]
HISTOGRAMS = "values in the float model (heights are logarithms), and what their format holds"
HISTOGRAM_HEADER = ["layer", "values", "from", "to", "format", "from", "to", "outside", "samples"]
FEW_WIRES = 3
"""So many layers without logic are not worth leaving out."""

SPARKS = BINS // 2
LARGEST = 3
ADVICE = {
    "lut": "Fewer bits or weights, a larger reuse factor, or a larger part",
    "ff": "Fewer bits or weights, a larger reuse factor, or a larger part",
    "dsp": "The vendor's tool can build multipliers from LUTs instead; else fewer bits, a larger "
    "reuse factor or a larger part",
    "bram18": "Fewer bits or weights, or a larger part",
    "uram": "Fewer bits or weights, or a larger part",
}


def _cells(layer: LayerReport) -> list[str]:
    counts = [layer.weight_count, layer.nonzero, layer.stored_bits, layer.macs]
    return [
        layer.name,
        layer.result,
        " ".join(layer.weights),
        layer.accumulator or "",
        *(f"{n:,}" if n else "" for n in counts),
        _error_text(layer.float_error),
    ]


def _figures(row: LayerReport | Totals) -> list[Figure]:
    """All figures of resources and time."""
    resources = [f for level in LEVELS for _, f in getattr(row, level).items()]
    return [*resources, row.latency, row.interval]


def _resource_header(level: str) -> list[str]:
    last = ["cycles", "interval"] if level == "csynth" else ["rounding LUTs"]
    return ["layer", *RESOURCES.values(), *last]


def _resource_cells(row: LayerReport | Totals, level: str) -> list[str]:
    name = row.name if isinstance(row, LayerReport) else "total"
    found = [str(figure) for _, figure in getattr(row, level).items()]
    rounding = "" if row.rounding is None else str(row.rounding)
    last = [str(row.latency), str(row.interval)] if level == "csynth" else [rounding]
    return [name, *found, *last]


def _stage_cells(layer: StageLayer) -> list[str]:
    pairs = [stage_texts(layer.before), stage_texts(layer.after)]
    cells = [
        a if a == b else f"{a or 'none'} -> {b or 'none'}" for a, b in zip(*pairs, strict=True)
    ]
    return [layer.name, *cells]


def stage_texts(cost: LayerCost | None) -> list[str]:
    """Cells of STAGE_HEADER but the first; empty where there is no such layer."""
    if cost is None:
        return [""] * (len(STAGE_HEADER) - 1)
    counts = [cost.weight_count, cost.nonzero, cost.stored_bits, cost.macs]
    # Two columns of intervals would hide what changed: the report's other tables have them.
    figures = [figure for _, figure in cost.csynth.items()] + [cost.latency]
    values = ["?" if figure.value is None else number(figure.value) for figure in figures]
    return [*(f"{n:,}" for n in counts), *values]


def _histogram_cells(seen: ValueHistogram) -> list[str]:
    ends = [f"{end:.4g}" for end in (seen.least, seen.largest, seen.low, seen.high)]
    pairs = zip(seen.counts[::2], (*seen.counts[1::2], 0), strict=False)
    heights = sparkline([log1p(sum(pair)) for pair in pairs]).ljust(SPARKS)
    outside = f"{100 * seen.saturated:.2g}%" if seen.saturated else "0"
    samples = str(seen.samples)
    return [seen.name, heights, ends[0], ends[1], seen.format, ends[2], ends[3], outside, samples]


def _error_text(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return "?" if figure.value is None else f"{figure.value:.2g}"


def _accuracy_lines(accuracy: Accuracy) -> Iterator[str]:
    yield (
        f"output error against the float model on {accuracy.samples} {accuracy.split} samples: "
        f"at most {accuracy.max_error:.3g}, mean {accuracy.mean_error:.3g} "
        f"(largest float output {accuracy.largest_output:.3g}) [measured]"
    )
    if accuracy.float_accuracy is not None and accuracy.fixed_accuracy is not None:
        yield (
            f"accuracy: float {100 * accuracy.float_accuracy:.2f}%, "
            f"fixed point {100 * accuracy.fixed_accuracy:.2f}% [measured]"
        )
