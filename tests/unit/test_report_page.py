"""The page of a report: whole, closed in itself, and safe whatever layers are called."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fxloom.pages.report_page import MOST_DRAWN, MOST_VALUES
from fxloom.report import Figure, Report
from tests.reports import HOSTILE, bare, full, graph

VOID = {"meta", "link", "br", "wbr", "input", "img", "path", "rect"}


class Page(HTMLParser):
    """Elements and text of a page; elements must be closed as they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(full().to_html())


def test_names_stay_text(page: Page) -> None:
    harmless = Page(full([f"layer_{n}" for n in range(len(HOSTILE))]).to_html())
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in harmless.elements}
    assert not page.all("script")
    assert not page.all("img")
    attributes = {name for _, found in page.elements for name in found}
    assert attributes == {name for _, found in harmless.elements for name in found}
    for name in HOSTILE:
        assert name.replace("\u202e", "\\u202e") in page.text
    assert "\u202e" not in page.text
    assert "49" not in page.all("h1")[0].values()


def test_nothing_is_asked_of_a_network(page: Page) -> None:
    links = [a[key] for _, a in page.elements for key in ("href", "src", "data") if key in a]
    assert {link[0] for link in links} == {"#", "d"}
    assert {link for link in links if not link.startswith("#")} == {"data:,"}
    style = "".join(found.get("style", "") for _, found in page.elements) + page.text
    assert set(re.findall(r"url\(([^)]*)\)", style)) <= {"#hatch", "#arrow"}
    assert "@import" not in style


def test_every_link_within_the_page_leads_somewhere(page: Page) -> None:
    places = Counter(found["id"] for _, found in page.elements if "id" in found)
    assert set(places.values()) == {1}
    for link in page.all("a"):
        assert link["href"].removeprefix("#") in places
    sections = [found["id"] for tag, found in page.elements if tag == "section"]
    assert sections == [
        *(
            "summary",
            "accuracy",
            "passes",
            "storage",
            "graph",
            "layers",
            "values",
            "made",
            "sources",
        )
    ]


def test_every_figure_names_its_source() -> None:
    report = full(["a", "b"])
    page = Page(report.to_html())
    sources = {
        figure.source.split(": ", 1)[-1]
        for row in (*report.layers, report.total)
        for figure in (*dict(row.csynth.items()).values(), row.latency, row.interval)
    }
    for source in sources:
        assert source in page.text
    # LUT, FF, DSP, BRAM18, URAM, cycles, interval; after logic synthesis five and rounding.
    cells = 2 * (7 + 6) + 7 + 5
    assert len(page.all("a", **{"class": "ref"})) == cells + 2 * 5 + 2 + 2


def test_tables_have_heads_with_scope_and_drawings_have_names(page: Page) -> None:
    assert all(found.get("scope") in ("row", "col") for found in page.all("th"))
    for drawing in page.all("svg"):
        assert drawing.get("aria-label") or drawing.get("aria-hidden") == "true"
    for region in page.all("div", **{"class": "scroll"}):
        assert region["aria-label"]
        assert region["tabindex"] == "0"


def test_bars_have_whiskers_where_a_figure_has_an_interval() -> None:
    page = Page(full(["a"]).to_html())
    bars = [found["style"] for found in page.all("span") if "bar" in found.get("class", "").split()]
    ranged = [style for style in bars if "--l" in style]
    assert ranged
    assert len(page.all("i")) == len(ranged)
    for style in ranged:
        value, low, high = (float(n) for n in re.findall(r"--[vlh]:([\d.]+)", style))
        assert 0 <= low <= value <= high <= 100


def test_the_graph_is_drawn_with_types_and_a_large_one_listed() -> None:
    names = [f"layer{n}" for n in range(5)]
    page = Page(full(names).to_html())
    assert len(page.all("rect", rx="7")) == len(names) + 2
    assert "layer0 to layer1: ufixed<8,1> [4x4]" in page.text
    assert "layer4 to layer0: fixed<9,2> [1] \N{MULTIPLICATION SIGN}19" in page.text
    large = replace(full(names), graph=graph([f"n{n}" for n in range(MOST_DRAWN)]))
    page = Page(large.to_html())
    assert not page.all("rect", rx="7")
    assert f"{MOST_DRAWN + 2} nodes are too many to draw" in page.text
    assert "n198" in page.text


def test_of_many_layers_those_that_saturate_are_seen_first() -> None:
    names = [f"n{n}" for n in range(MOST_VALUES + 5)]
    report = full(names)
    last = replace(report.histograms[-1], above=0.5)
    page = Page(replace(report, histograms=(*report.histograms[:-1], last)).to_html())
    drawn = [found["aria-label"] for found in page.all("figure")]
    assert len(drawn) == len(names)
    assert drawn[0] == f"Values of {names[-1]}"
    assert "5 more, with no larger share outside their ranges" in page.text


@pytest.mark.parametrize(
    ("share", "said", "sign"),
    [
        (30.0, "Fits xczu9eg", "good"),
        (90.0, "May not fit xczu9eg: LUT 90% (45 to 108)", "warn"),
        (300.0, "Does not fit xczu9eg: LUT 300% (150 to 360)", "bad"),
    ],
)
def test_the_page_begins_with_whether_it_fits(share: float, said: str, sign: str) -> None:
    page = Page(full(["a"], share).to_html())
    assert said in page.text
    assert page.all("p", **{"class": f"verdict {sign}"})


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        (0.98, "as float"),
        (0.88, "\u221210.00 points"),
        (0.97999, "as float"),
        (1.0, "+2.00 points"),
    ],
)
def test_ten_points_lost_are_not_none(accuracy: float, said: str) -> None:
    report = full(["a"])
    assert report.accuracy is not None
    text = Page(
        replace(report, accuracy=replace(report.accuracy, fixed_accuracy=accuracy)).to_html()
    ).text
    assert said in text


def test_a_report_that_knows_nothing_is_a_page_too() -> None:
    page = Page(bare().to_html())
    assert "Not known whether it fits 10ax115: LUT, FF, DSP, BRAM18, URAM not estimated" in (
        page.text
    )
    assert "not measured: there was no data" in page.text
    assert not page.all("section", id="graph")


def test_a_sum_that_misses_parts_is_marked_as_a_lower_bound() -> None:
    report = full(["a"])
    part = Figure(2363, "DSP", "rule", "sum over the layers; at least, for x is not all known")
    total = replace(report.total, csynth=replace(report.total.csynth, dsp=part))
    assert "\N{GREATER-THAN OR EQUAL TO} 2,363" in Page(replace(report, total=total).to_html()).text


def test_pages_of_equal_reports_are_equal() -> None:
    report = full()
    assert Report.from_json(report.to_json()).to_html() == report.to_html()


def test_what_is_stored_is_without_and_with_huffman_codes() -> None:
    page = Page(full(["fc.weight", "conv.weight"]).to_html())
    assert "fc.weight10010.0%83 \N{RIGHTWARDS ARROW} 2.50" in "".join(page.text.split("\n"))
    assert "164 \N{RIGHTWARDS ARROW} 147" in page.text
    assert "In all 377 bits, 8.49 times fewer than the float model has." in page.text
    assert not Page(bare().to_html()).all("section", id="storage")
