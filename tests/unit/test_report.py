"""Reports: their three forms, and reading them back."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Literal

import numpy as np
import pytest

from fxloom.errors import FxloomError
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.made_from import MadeFrom
from fxloom.ops import Add, MatMul, Max, Requantize
from fxloom.passes import Quantize
from fxloom.program import ProgramBuilder
from fxloom.recipe import Recipe
from fxloom.report import LEVELS, RESOURCES, Accuracy, Figure, PassReport, Report
from fxloom.report_graph import graph_of
from fxloom.storage_table import storage_rows
from fxloom.target import Target
from fxloom.value_histograms import ValueHistogram
from tests.golden import Golden


@pytest.fixture
def report() -> Report:
    """A small program's, with all that a compilation adds."""
    builder = ProgramBuilder()
    x = builder.input("x", (3,), FixedPoint(8, 1, False))
    w = builder.constant("fc.weight", np.array([[11, 0], [11, -11], [2, 45]]), FixedPoint(8, 1))
    b = builder.constant("fc.bias", np.array([100, -7]), FixedPoint(8, -6))
    y = builder.emit(Add(), [builder.emit(MatMul(), [x, w], "fc<b>"), b], "fc<b>")
    zero = builder.constant("zero", np.array([0]), FixedPoint(1, 1, False))
    y = builder.emit(Max(), [y, zero], "relu")
    y = builder.emit(Requantize(FixedPoint(8, 1, False), Rounding.RND, Overflow.SAT), [y], "relu")
    builder.output(y, "y")
    program = builder.build()
    found = estimate(program, Target(part="xczu7ev", clock_ns=4.0))
    error = Figure(0.0123, "of the value's root mean square", "measured", "3 samples")
    steps = (PassReport("quantize", True, {"n": [1]}, {"parameters": 9}, {"parameters": 8}),)
    return replace(
        found,
        layers=(found.layers[0], replace(found.layers[1], float_error=error)),
        float_bits=9 * 32,
        passes=steps,
        accuracy=Accuracy("test", 3, 0.01, 0.002, 1.5, 1.0, 2 / 3),
        notes=("a note",),
        storage=storage_rows(program),
        made_from=MadeFrom(
            model="Net",
            parameters=9,
            recipe=Recipe([Quantize(weights=6)]).to_toml(),
            target=Target(part="xczu7ev", clock_ns=4.0).to_toml(),
            versions={"fxloom": "0.1.0", "torch": "2.13.0"},
        ),
        graph=graph_of(program),
        histograms=(
            ValueHistogram(
                "relu", "ufixed<8,1>", 0.0, 1.992, 0.0, 2.1, 0.0, 0.25, 0.0, 0.5, (9, 0, 3, 0, 1), 3
            ),
        ),
    )


def test_report_read_back_is_equal(report: Report) -> None:
    assert Report.from_json(report.to_json()) == report


def test_text_is_as_agreed(report: Report, golden: Golden) -> None:
    golden.check("report.txt", report.to_text())


def test_every_figure_in_json_has_unit_provenance_and_source(report: Report) -> None:
    document = json.loads(report.to_json())
    rows = [*document["layers"], document["total"]]
    figures = [row[key] for row in rows for key in ("latency", "interval")]
    figures += [figure for row in rows for level in LEVELS for figure in row[level].values()]
    percent = [f"{level}_percent" for level in LEVELS]
    figures += [figure for level in percent for figure in document["total"][level].values()]
    assert len(figures) == 3 * (2 + 2 * len(RESOURCES)) + 2 * len(RESOURCES)
    for figure in figures:
        assert figure["unit"]
        assert figure["source"]
        assert figure["provenance"] in ("rule", "fitted", "measured", "unknown")
        if figure["provenance"] == "fitted":
            assert figure["low"] <= figure["value"] <= figure["high"]


def test_page_needs_nothing_else_and_escapes_names(report: Report) -> None:
    class Page(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.opened: list[str] = []
            self.links: list[str] = []
            self.text = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.opened.append(tag)
            self.links += [str(value) for name, value in attrs if name in ("src", "href")]

        def handle_data(self, data: str) -> None:
            self.text += data

    page = Page()
    page.feed(report.to_html())
    assert [link for link in page.links if not link.startswith(("#", "data:,"))] == []
    assert "script" not in page.opened
    assert "fc<b>" in page.text


def test_a_design_too_large_for_its_part_is_said_to_be(report: Report) -> None:
    share = replace(report.total.csynth_percent.dsp, value=101.0)
    percent = replace(report.total.csynth_percent, dsp=share)
    crowded = replace(report, total=replace(report.total, csynth_percent=percent))
    assert "does not fit: DSP 101% of xczu7ev (as C synthesis reports it; largest: fc<b> 100%)" in (
        crowded.to_text()
    )
    assert "not fit" not in report.to_text()
    uncertain = replace(percent, dsp=replace(share, low=90.0, high=110.0))
    crowded = replace(report, total=replace(report.total, csynth_percent=uncertain))
    assert "may not fit: DSP 101% (90 to 110) of xczu7ev" in crowded.to_text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "fxloom-report", "version": 1}',
        '{"format": "fxloom-report", "version": 2}',
        '{"format": "other", "version": 1}',
    ],
)
def test_a_damaged_report_is_refused(text: str) -> None:
    with pytest.raises(FxloomError, match=r"^r\.json: "):
        Report.from_json(text, "r.json")


def test_an_unknown_key_is_refused(report: Report) -> None:
    document = json.loads(report.to_json()) | {"extra": 1}
    with pytest.raises(FxloomError, match="damaged"):
        Report.from_json(json.dumps(document))


@pytest.mark.parametrize("io", ["parallel", "stream"])
def test_nanoseconds_are_those_of_the_cycles(io: Literal["parallel", "stream"]) -> None:
    builder = ProgramBuilder()
    x = builder.input("x", (4, 3), FixedPoint(8, 1, False))
    w = builder.constant("fc.weight", np.array([[11, 0], [11, -11], [2, 45]]), FixedPoint(8, 1))
    builder.output(builder.emit(MatMul(), [x, w], "fc"), "y")
    total = estimate(builder.build(), Target(clock_ns=2.5, io=io)).total
    for cycles, ns in ((total.latency, total.latency_ns), (total.interval, total.interval_ns)):
        assert ns is not None
        assert cycles.value is not None
        assert (ns.value, ns.unit) == (2.5 * cycles.value, "ns")


def test_tables_may_take_more_than_weights_save(report: Report) -> None:
    larger = replace(report, float_bits=32)
    assert "32 bits as 32-bit floats, 64 now with tables (2.00 times more)" in larger.to_text()
    assert "more bits than float32" in larger.to_html()
