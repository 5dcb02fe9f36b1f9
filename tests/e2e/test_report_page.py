"""The page of a report in a browser: no error, no request, nothing wider than the screen."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import NAMES, Browser, browser, find
from tests.reports import bare, full

WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find() is None:
        pytest.skip(f"needs a browser on PATH: {', '.join(NAMES)}")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports as files: one with everything and hostile names, one with nothing."""
    folder = tmp_path_factory.mktemp("pages")
    for name, report in {"full": full(), "bare": bare()}.items():
        (folder / f"{name}.html").write_text(report.to_html(), encoding="utf-8")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["full", "bare"])
def test_page_in_a_browser(
    tab: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    tab.open(pages[name], width, scheme)
    assert tab.value("document.querySelectorAll('section').length") >= 4
    assert tab.value("document.documentElement.scrollWidth") == width
    assert tab.value("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    assert tab.faults() == []
    assert tab.requests() == [pages[name].as_uri()]


def test_a_fault_a_request_and_a_wide_page_are_noticed(tab: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><img src='missing.png'><script>console.error('no')</script>"
        "<div style='width: 2000px'>wide</div>"
    )
    tab.open(page, 1280, "light")
    assert any("no" in fault for fault in tab.faults())
    assert len(tab.requests()) == 2
    assert tab.value("document.documentElement.scrollWidth") == 2008


CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if (colour[3]) return colour;
    }
    return rgb('white');
  };
  let worst = 99, where = '';
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || node.closest('svg') || !node.getClientRects().length) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst) { worst = ratio; where = node.outerHTML.slice(0, 120); }
  }
  return [worst, where];
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(tab: Browser, pages: dict[str, Path], scheme: str) -> None:
    """Contrast of at least 4.5, as WCAG 2.1 AA has it."""
    tab.open(pages["full"], 1280, scheme)
    worst, where = tab.value(CONTRAST)
    assert worst >= 4.5, where
