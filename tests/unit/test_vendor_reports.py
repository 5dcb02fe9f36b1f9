"""Reports of the vendors' tools: read whole as they write them, or refused by name."""

import random
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from fxloom import report_values, vendor_reports
from fxloom.errors import FxloomError
from fxloom.measured import Measured, Usage
from fxloom.vendor_reports import read_report, read_reports
from tests.vendor_samples import (
    ACL_REPORT,
    BUNDLED,
    COSIM_REPORT,
    FIT_REPORT,
    FIT_SUMMARY,
    HIERARCHY,
    MODULES,
    QUARTUS_DATA,
    REPORT_DATA,
    SUMMARY_NDJSON,
    SYN,
    TOP,
    UTILIZATION,
    csynth_xml,
    write_csynth,
)

HLS = Usage(14500, 4890, 227, 0, 0, None, (7, 7), (1, 1), 3.414)
SYNTHESISED = Usage(7210, 3051, 198, 9)
FITTED = Usage(ff=10350, dsp=88, bram18=4, alm=5454)
FORESEEN = Usage(lut=9120, ff=13300, dsp=96, bram18=4)
PERIOD = 1000 / 231.75

EXPECTED = {
    "myproject_csynth.xml": ("Vitis HLS", "2023.2", "csynth", "xc7z020clg400-1", HLS),
    "csynth.xml": ("Vitis HLS", "2023.2", "csynth", "xc7z020clg400-1", HLS),
    "myproject_cosim.rpt": (
        "Vitis or Vivado HLS",
        None,
        "simulation",
        None,
        Usage(latency_cycles=(7, 9), interval_cycles=(1, 2)),
    ),
    "vivado_synth.rpt": ("Vivado", "2023.2", "synthesis", "xc7z020clg400-1", SYNTHESISED),
    "util.rpt": ("Vivado", "2023.2", "synthesis", "xc7z020clg400-1", SYNTHESISED),
    "quartus_compile.fit.summary": (
        "Quartus",
        "22.1std.2",
        "implementation",
        "10AX115S2F45I1SG",
        FITTED,
    ),
    "quartus_compile.fit.rpt": (
        "Quartus",
        "22.1std.2",
        "implementation",
        "10AX115S2F45I1SG",
        Usage(8421, 10350, 88, 4, alm=5454),
    ),
    "acl_quartus_report.txt": (
        "Quartus",
        None,
        "implementation",
        None,
        Usage(8421, 10350, 88, 4, alm=5454, achieved_ns=PERIOD),
    ),
    "quartus_data.js": (
        "Quartus",
        None,
        "implementation",
        None,
        Usage(None, 10350, 88, 4, alm=5455, achieved_ns=PERIOD),
    ),
    "report_data.js": ("Intel HLS", None, "csynth", None, FORESEEN),
    "summary.ndjson": ("oneAPI", None, "csynth", None, FORESEEN),
}


def read(folder: Path, text: str, name: str = "report") -> Measured:
    (folder / name).write_text(text)
    return read_report(folder / name)


@pytest.mark.parametrize("name", BUNDLED)
def test_every_kind_of_report_is_known_by_what_is_in_it(name: str, tmp_path: Path) -> None:
    found = read(tmp_path, BUNDLED[name])
    assert (found.tool, found.version, found.level, found.part, found.top) == EXPECTED[name]
    assert found.source == str(tmp_path / "report")


@pytest.mark.parametrize("name", BUNDLED)
def test_lines_may_end_as_on_windows(name: str, tmp_path: Path) -> None:
    whole = read(tmp_path, BUNDLED[name])
    data = BUNDLED[name].replace("\n", "\r\n").encode("utf-8-sig")
    (tmp_path / "report").write_bytes(data)
    assert read_report(tmp_path / "report") == whole


def test_modules_and_which_contains_which(tmp_path: Path) -> None:
    listing = read(tmp_path, BUNDLED["csynth.xml"])
    assert listing.children["myproject"] == tuple(MODULES)
    dense = listing.modules[next(iter(MODULES))]
    assert dense == Usage(9810, 2904, 158, 0, 0, None, (3, 4), (1, 2), 3.414)
    deep = read(tmp_path, HIERARCHY)
    assert "myproject_mul_8s_9ns_17_1" in deep.children["myproject_dense_latency_ap_f_config2_s"]
    assert deep.modules["myproject_dense_latency_ap_f_config2_s"] == Usage(4800, 1800, 140, 0)


def test_vivado_hls_calls_its_multipliers_dsp48e(tmp_path: Path) -> None:
    found = read(tmp_path, csynth_xml("myproject", TOP, version="2019.1"))
    assert (found.tool, found.top.dsp) == ("Vivado HLS", TOP[1])


def test_what_the_tool_did_not_know_stays_unknown(tmp_path: Path) -> None:
    text = csynth_xml("myproject", TOP).replace("<Best-caseLatency>3<", "<Best-caseLatency>undef<")
    found = read(tmp_path, re.sub("<URAM>.*</URAM>", "", text))
    assert (found.top.latency_cycles, found.top.uram, found.top.lut) == (None, None, 14500)


@pytest.mark.parametrize(
    ("state", "level"),
    [
        ("Optimized", "synthesis"),
        ("Fully Placed", "implementation"),
        ("Routed", "implementation"),
        ("Physopt postRoute", "implementation"),
    ],
)
def test_the_state_of_the_design_is_the_level(state: str, level: str, tmp_path: Path) -> None:
    assert read(tmp_path, UTILIZATION.replace("Synthesized", state)).level == level


def test_columns_and_names_of_other_families(tmp_path: Path) -> None:
    text = UTILIZATION.replace("Slice LUTs*", "CLB LUTs*  ").replace(
        "Slice Registers", "CLB Registers  "
    )
    uram = "| URAM              |    7 |     0 |          0 |       960 |  3.21 |\n"
    text = text.replace("|   RAMB18          |", uram + "|   RAMB18          |")
    text = text.replace(" Prohibited |", "").replace(" ---------- |", "")
    text = re.sub(r"(\| +\d+\.?\d* \| +\d+ \|) +0 \|", r"\1", text)
    text = re.sub(r"(\| +\d+ \| +\|) +\|( +\|)", r"\1\2", text)
    assert read(tmp_path, text).top == Usage(7210, 3051, 198, 9, 7)


FAULTS: dict[str, tuple[str, str]] = {
    "negative": (csynth_xml("f", (0, -3, 5, 5, 0)), r"f: DSP: required a count .* got '-3'"),
    "NaN": (csynth_xml("f", TOP).replace("3.414", "nan"), "EstimatedClockPeriod: .*'nan'"),
    "no clock": (csynth_xml("f", TOP, clock="0.00"), "TargetClockPeriod: .*'0.00'"),
    "gigantic": (csynth_xml("f", (0, 1, 10**10, 5, 0)), "f: FF: required a count of 0 to 1,000,0"),
    "very gigantic": (
        csynth_xml("f", (0, 1, 7, 5, 0)).replace(">7<", f">{'9' * 5000}<"),
        "f: FF: required a count",
    ),
    "fraction": (csynth_xml("f", TOP).replace("14500", "145.5"), "f: LUT: .*'145.5'"),
    "other digits": (
        csynth_xml("f", TOP).replace("14500", "\u0661\u0664"),
        "f: LUT: required a count",
    ),
    "turned round": (csynth_xml("f", TOP, (9, 7)), "latency: required the fewest before the most"),
    "old": (csynth_xml("f", TOP, version="2012.4"), "ReportVersion: required a version from 2015"),
    "new": (csynth_xml("f", TOP, version="v9"), "ReportVersion: required a version .* 'v9'"),
    "no LUTs": (re.sub("<LUT>.*</LUT>", "", csynth_xml("f", TOP)), "it has no 'lut'"),
    "no area": (re.sub("(?s)<Area.*</Area.*?>", "", csynth_xml("f", TOP)), "no 'AreaEstimates'"),
    "other XML": ("<svg></svg>", "required a report of C synthesis .* got <svg>"),
    "half XML": (csynth_xml("f", TOP)[:900], "truncated or damaged"),
    "cosim failed": (COSIM_REPORT.replace("Pass", "Fail"), "Verilog did not pass: 'Fail'"),
    "no cosim": (COSIM_REPORT.replace("Pass", "  NA"), "one language that was simulated"),
    "state": (UTILIZATION.replace("Synthesized", "Elaborated"), "Design State: .* 'Elaborated'"),
    "quarter tile": (UTILIZATION.replace(" 4.5 ", " 4.25"), "whole or half tiles, got '4.25'"),
    "tiles": (UTILIZATION.replace(" 4.5 ", " 5.5 "), "Block RAM Tile is not RAMB36 and half"),
    "unknown": (UTILIZATION.replace("| 7210 |", "|    - |"), "LUTs: required a count, got '-'"),
    "no DSPs": (UTILIZATION[: UTILIZATION.index("3. DSP\n-")], "it has no 'dsp'"),
    "short row": (UTILIZATION.replace("| 90.00 |", "|"), "truncated or damaged at '| DSPs"),
    "no end": (HIERARCHY[: HIERARCHY.rindex("+--", 0, -200)], "a table has no end"),
    "two tops": (HIERARCHY.replace("|   grp_req", "| grp_req  "), "one instance that contains all"),
    "depth": (HIERARCHY.replace("|   grp_req", "|       grp_req"), "'grp_req.* indented too far"),
    "fit failed": (FIT_SUMMARY.replace("Successful", "Failed"), "the fitter failed: 'Failed"),
    "no ALMs": (FIT_SUMMARY.replace("Logic util", "Total elem"), "it has no 'Logic utilization"),
    "bare": (FIT_SUMMARY.replace("88 / 1,518 ( 6 % )", "88"), "Total DSP Blocks: required 'used"),
    "half fit": (FIT_REPORT[: FIT_REPORT.index("; Combin")], "it has no 'Combinational ALUT"),
    "fmax": (ACL_REPORT.replace("fmax: 231.75", "fmax: 1e99"), "frequency in MHz: .*'1e99'"),
    "TBD": (QUARTUS_DATA.replace("5454.3", "TBD"), "the fitter has not run yet"),
    "minus": (QUARTUS_DATA.replace('"88"', '"-88"'), "dsp: required a count .* '-88'"),
    "JSON NaN": (REPORT_DATA.replace("[9120,", "[NaN,"), "NaN is no number"),
    "nested": ('var areaJSON={"a":' + "[" * 100_000, "truncated or damaged"),
    "short total": (REPORT_DATA.replace("4,96,5],\n", "4],\n"), "required totals of lut, ff"),
    "text total": (REPORT_DATA.replace("[9120", '["9120x"'), "lut: required a count"),
    "columns": (REPORT_DATA.replace('"ALUTs"', '{"ALUTs": 1}'), "columns: truncated or damaged"),
    "two totals": (SUMMARY_NDJSON.replace("Available", "Total"), "one row named Total, got 2"),
    "a list": ('[1, "quartusFitClockSummary"]', "required a JSON object"),
    "no nodes": ('{"quartusFitClockSummary": 3}', "Summary.nodes: truncated or damaged"),
    "foreign": ("PASS: all tests\n", "not a report that is known. Known: csynth.xml"),
    "empty": ("", "not a report that is known"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_not_a_whole_report_is_refused(fault: str, tmp_path: Path) -> None:
    text, message = FAULTS[fault]
    with pytest.raises(FxloomError, match=message) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'report'}: ")


ENTITIES = {
    "laughs": '<!DOCTYPE p [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><profile>&b;</profile>',
    "external": '<!DOCTYPE p [<!ENTITY a SYSTEM "file:///etc/hostname">]><profile>&a;</profile>',
    "parameter": '<!DOCTYPE p [<!ENTITY % a SYSTEM "x.dtd"> %a;]><profile/>',
    "document type": '<!DOCTYPE profile SYSTEM "http://127.0.0.1:9/p.dtd"><profile/>',
    "deep": "<a>" * 300 + "</a>" * 300,
}


@pytest.mark.parametrize("kind", ENTITIES)
def test_xml_that_is_more_than_data_is_refused(kind: str, tmp_path: Path) -> None:
    message = "elements inside each other" if kind == "deep" else "has a document type or entities"
    with pytest.raises(FxloomError, match=message):
        read(tmp_path, ENTITIES[kind])


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_values, "MAX_BYTES", 1000)
    with pytest.raises(FxloomError, match="required at most 1,000 bytes"):
        read(tmp_path, csynth_xml("f", TOP))


@pytest.mark.parametrize("name", BUNDLED)
def test_a_truncated_file_is_refused_or_loses_nothing(name: str, tmp_path: Path) -> None:
    text, file = BUNDLED[name], tmp_path / name
    file.write_text(text)
    whole = read_report(file)
    refused = 0
    for end in range(0, len(text), 1 + len(text) // 70):
        file.write_text(text[:end])
        try:
            assert read_report(file) == whole, end
        except FxloomError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("name", BUNDLED)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(name: str, tmp_path: Path) -> None:
    dice = random.Random(name)
    clean = BUNDLED[name].encode()
    for _ in range(25):
        data = bytearray(clean)
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(data))
            if dice.random() < 0.7:
                data[place] = dice.randrange(256)
            else:
                begin = dice.randrange(len(data))
                data[place:place] = data[begin : begin + dice.randint(1, 80)]
        (tmp_path / name).write_bytes(data)
        try:
            found = read_report(tmp_path / name)
        except FxloomError:
            continue
        assert all(0 <= (value or 0) <= 10**9 for value in found.top.resources().values())


def test_a_folder_of_c_synthesis_is_one_run(tmp_path: Path) -> None:
    place = write_csynth(tmp_path)
    (run,) = read_reports([tmp_path])
    assert (run.top, run.source, set(run.modules)) == (HLS, str(place), set(MODULES))
    # A file of its own says more about a module than the list does.
    assert run.modules["elementwise_config3_s"].latency_cycles == (3, 3)
    (place / "csynth.xml").unlink()
    with pytest.raises(FxloomError, match=r"required a csynth\.xml, or one for the whole design"):
        read_reports([tmp_path])
    (run,) = read_reports([place], top="myproject")
    assert (run.top, set(run.modules), run.children) == (HLS, set(MODULES), {})


def test_files_of_different_runs_are_not_mixed(tmp_path: Path) -> None:
    place = write_csynth(tmp_path)
    name = "elementwise_config3_s"
    for text, message in (
        (csynth_xml(name, MODULES[name], version="2022.1"), "version 2022.1 and 2023.2"),
        (csynth_xml(name, (0, 0, 1, 1, 0)), f"{name}: another file of its folder disagrees"),
    ):
        (place / f"{name}_csynth.xml").write_text(text)
        with pytest.raises(FxloomError, match=message):
            read_reports([tmp_path])


def test_two_runs_of_one_level_are_refused(tmp_path: Path) -> None:
    write_csynth(tmp_path / "a")
    write_csynth(tmp_path / "b")
    with pytest.raises(FxloomError, match=r"two reports of the same level \(csynth\): .*a/hls.*b/"):
        read_reports([tmp_path])
    assert len(read_reports([tmp_path / "a"])) == 1


def test_what_tools_keep_for_themselves_is_not_searched(tmp_path: Path) -> None:
    write_csynth(tmp_path / ".autopilot")
    with pytest.raises(FxloomError, match="no report of a vendor's tool below it"):
        read_reports([tmp_path])
    with pytest.raises(FxloomError, match="no such file or folder"):
        read_reports([tmp_path / "missing"])


def write(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_a_flat_and_a_hierarchical_report_are_one_run(tmp_path: Path) -> None:
    write_csynth(tmp_path)
    write(tmp_path, {"hls/vivado_synth.rpt": UTILIZATION, "hls/util.rpt": HIERARCHY})
    write(tmp_path, {"hls/myproject_prj/solution1/sim/report/myproject_cosim.rpt": COSIM_REPORT})
    first, simulated, second = read_reports([tmp_path])
    levels = first.level, simulated.level, second.level
    assert levels == ("csynth", "simulation", "synthesis")
    assert second.top == SYNTHESISED
    assert len(second.modules) == 5
    write(tmp_path, {"hls/util.rpt": HIERARCHY.replace(" 7210 |", " 7310 |")})
    with pytest.raises(FxloomError, match="two reports of the same level"):
        read_reports([tmp_path])


def test_of_intels_reports_of_one_run_the_nearest_to_the_design_is_taken(tmp_path: Path) -> None:
    project = "hls/myproject-fpga.prj"
    reports = {
        f"{project}/reports/lib/report_data.js": REPORT_DATA,
        f"{project}/reports/lib/quartus_data.js": QUARTUS_DATA,
        f"{project}/acl_quartus_report.txt": ACL_REPORT,
        f"{project}/quartus/quartus_compile.fit.summary": FIT_SUMMARY,
        f"{project}/quartus/quartus_compile.fit.rpt": FIT_REPORT,
    }
    write(tmp_path, reports)
    foreseen, fitted = read_reports([tmp_path])
    assert (foreseen.level, fitted.level) == ("csynth", "implementation")
    assert fitted.source.endswith("quartus_data.js")


def test_the_paths_are_those_of_the_emitted_scripts(pristine_scripts: str) -> None:
    assert "${project_name}_prj" in pristine_scripts
    assert 'open_solution "solution1"' in pristine_scripts
    assert "report_utilization -file vivado_synth.rpt" in pristine_scripts
    assert re.fullmatch(vendor_reports._NAMES[1], "vivado_synth.rpt")
    assert SYN.as_posix() == "hls/myproject_prj/solution1/syn/report"


@pytest.fixture
def pristine_scripts() -> str:
    from fxloom.backends.hls4ml.writer import SCRIPTS, TEMPLATES

    return "".join((TEMPLATES / name).read_text() for name in SCRIPTS["Vitis"])
