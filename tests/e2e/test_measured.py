"""`fxloom report --measured`: reports that a tool left in a build, beside its estimate."""

import csv
import json
from pathlib import Path

from typer.testing import CliRunner

from fxloom import cli
from tests.e2e.conftest import snapshot
from tests.vendor_samples import SYN, UTILIZATION, csynth_xml, write_csynth


def run(*line: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, list(line))
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else " ".join(result.stderr.split())


def modules(build: Path) -> dict[str, tuple[int, int, int, int, int]]:
    """A module for every layer of a build's project, each larger than the one before."""
    layers = json.loads((build / "hls" / "layers.json").read_text())["layers"]
    names = [layer["name"].partition("_")[0].removeprefix("n") for layer in layers]
    return {
        f"kernel_ap_fixed_8_2_config{number}_s": (0, place, 10 * place, 100 * place, 0)
        for place, number in enumerate(names)
        if layers[place]["class"] != "InputLayer"
    }


def test_reports_in_a_build_are_found_and_stand_beside_the_estimate(build: Path) -> None:
    write_csynth(build, modules(build))
    (build / "hls" / "vivado_synth.rpt").write_text(UTILIZATION)
    before = snapshot(build)
    text = run("report", str(build), "--measured", str(build))
    assert "measured as C synthesis reports it: Vitis HLS 2023.2, xc7z020clg400-1 at 5 ns" in text
    assert "measured after logic synthesis: Vivado 2023.2, xc7z020clg400-1" in text
    assert "measured figures lie in the estimate's interval" in text
    document = json.loads(run("report", str(build), "--measured", str(build), "--json"))
    measured = {
        (each["layer"], each["figure"]): each["measured"] for each in document["runs"][0]["figures"]
    }
    layers = json.loads((build / "hls" / "layers.json").read_text())["layers"]
    places = [place for place, layer in enumerate(layers) if layer["origin"] == "conv"]
    assert measured["conv", "LUT"] == [100 * sum(places)] * 2
    assert measured[None, "LUT"] == [14500, 14500]
    assert document["runs"][1]["figures"][0]["measured"] == [7210, 7210]
    assert snapshot(build) == before


def test_measured_layers_are_written_as_rows(build: Path, tmp_path: Path) -> None:
    write_csynth(build, modules(build))
    file = tmp_path / "rows.csv"
    run("report", str(build), "--measured", str(build / SYN), "--csv", str(file))
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(modules(build))
    head = next(row for row in rows if row["layer"] == "head")
    assert (head["op"], head["n_in"], head["n_out"], head["w_n"]) == ("dense", "27", "4", "108")


def test_what_cannot_be_compared_is_an_error_in_a_line(build: Path, tmp_path: Path) -> None:
    page = str(tmp_path / "page.html")
    bad = tmp_path / "csynth.xml"
    flat = tmp_path / "vivado_synth.rpt"
    other = tmp_path / "other_csynth.xml"
    bad.write_text('<!DOCTYPE p [<!ENTITY a "ha">]><profile>&a;</profile>')
    flat.write_text(UTILIZATION)
    other.write_text(csynth_xml("myproject", (0, 1, 2, 3, 4), part="xcu250-figd2104-2L-e"))
    for options, message in (
        (["--measured", str(build)], f"{build}: no report of a vendor's tool below it"),
        (["--measured", str(bad)], "has a document type or entities"),
        (["--measured", str(other)], "of part xcu250-figd2104-2L-e, the estimate of xc7z020"),
        (["--measured", str(tmp_path / "no.rpt")], "no such file or folder"),
        (["--csv", page], "--csv: required reports to make rows of; add --measured"),
        (["--measured", str(flat), "--csv", page], "required a report of C synthesis among"),
    ):
        assert message in run("report", str(build), *options, code=2)
    assert not Path(page).exists()


def test_the_page_has_measurements_beside_estimates(build: Path, tmp_path: Path) -> None:
    write_csynth(build, modules(build))
    page = tmp_path / "page.html"
    assert run("report", str(build), "--measured", str(build / SYN), "--html", str(page)) == ""
    text = page.read_text()
    assert '<section id="measured">' in text
    assert "Vitis HLS 2023.2, xc7z020clg400-1 at 5 ns" in text
    assert "measured figures lie in the estimate&#39;s interval" in text
    assert '<section id="measured">' not in (build / "report.html").read_text()


def test_a_single_report_has_the_total_only(build: Path, tmp_path: Path) -> None:
    file = tmp_path / "a report"
    file.write_text(csynth_xml("myproject", (0, 1, 2, 3, 4)))
    text = run("report", str(build), "--measured", str(file), "--json")
    figures = json.loads(text)["runs"][0]["figures"]
    assert {(each["layer"], each["figure"]) for each in figures} == {
        (None, name) for name in ("LUT", "FF", "DSP", "BRAM18", "URAM", "cycles", "interval")
    }
