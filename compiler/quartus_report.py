"""Reports of Intel's tools: the fitter's of Quartus, and those of the HLS compilers around it.

Resources that the HLS compiler foresees (report_data.js, summary.ndjson) are of level "csynth",
those of the fitter (quartus_data.js, quartus.json, acl_quartus_report.txt, *.fit.summary,
*.fit.rpt) of "implementation". Fields: as Intel's own scripts write them, and as hls4ml reads them
(hls4ml/report/quartus_report.py and oneapi_report.py).
"""

import json
import re
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, NoReturn

from fxloom.errors import FxloomError
from fxloom.measured import Measured, Usage, period_ns
from fxloom.report_values import MAX_COUNT, count, decimal, known, require_all, shown, whole_lines

MAX_MHZ = 10_000.0
_ALUTS = "Combinational ALUT usage for logic"
_OF_DEVICE = re.compile(r"([\d,]+) / [\d,]+ \( *(?:< *)?\d+ *% *\)")
_COLUMNS = {"ALUTs": "lut", "FFs": "ff", "RAMs": "bram18", "DSPs": "dsp", "MLABs": "mlab"}
_ORDER = tuple(_COLUMNS.values())


def read_fit_summary(text: str, source: str) -> Measured:
    """A *.fit.summary: "key : value" lines."""
    pairs = (line.partition(" : ") for line in whole_lines(text))
    return _fitted({key.strip(): value.strip() for key, _, value in pairs}, source)


def read_fit_report(text: str, source: str) -> Measured:
    """A *.fit.rpt: the same in a table, and the ALUTs in another."""
    values: dict[str, str] = {}
    for line in whole_lines(text):
        cells = [cell.strip() for cell in line.split(";")]
        if len(cells) >= 4 and cells[0] == "" and cells[-1] == "":
            values.setdefault(cells[1].lstrip("- "), cells[2])
    require_all(values, (_ALUTS,), "a whole *.fit.rpt")
    return _fitted(values, source)


def _fitted(values: Mapping[str, str], source: str) -> Measured:
    needed = (
        "Fitter Status",
        "Device",
        "Logic utilization (in ALMs)",
        "Total registers",
        "Total RAM Blocks",
        "Total DSP Blocks",
    )
    require_all(values, needed, "a report of Quartus' fitter for a part with ALMs")
    if not values["Fitter Status"].startswith("Successful"):
        raise FxloomError(f"the fitter failed: {shown(values['Fitter Status'])}")
    versions = [value for key, value in values.items() if re.fullmatch("Quartus.* Version", key)]
    return Measured(
        tool="Quartus",
        level="implementation",
        top=Usage(
            lut=count(values.get(_ALUTS), "ALUTs"),
            ff=known(values["Total registers"], "Total registers"),
            dsp=_of_device(values["Total DSP Blocks"], "Total DSP Blocks"),
            bram18=_of_device(values["Total RAM Blocks"], "Total RAM Blocks"),
            alm=_of_device(values["Logic utilization (in ALMs)"], "Logic utilization"),
        ),
        source=source,
        version=versions[0].split()[0] if versions and versions[0] else None,
        part=values["Device"],
    )


def read_acl_report(text: str, source: str) -> Measured:
    """An acl_quartus_report.txt: "key: value" lines."""
    pairs = (line.partition(":") for line in whole_lines(text))
    values = {key.strip(): value.strip() for key, _, value in pairs}
    rams = [key for key in ("RAM blocks", "M10K blocks", "M20K blocks") if key in values]
    needed = ("ALUTs", "Registers", "Logic utilization", "DSP blocks", "Kernel fmax")
    require_all(values, (*needed, *([] if rams else ["RAM blocks"])), "an acl_quartus_report.txt")
    return Measured(
        tool="Quartus",
        level="implementation",
        top=Usage(
            lut=known(values["ALUTs"], "ALUTs"),
            ff=known(values["Registers"], "Registers"),
            dsp=_of_device(values["DSP blocks"], "DSP blocks"),
            bram18=_of_device(values[rams[0]], rams[0]),
            alm=_of_device(values["Logic utilization"], "Logic utilization"),
            achieved_ns=_period(values["Kernel fmax"]),
        ),
        source=source,
    )


def read_quartus_json(text: str, source: str) -> Measured:
    """A quartus_data.js, quartus.json or quartus.ndjson: the fitter's figures of the components."""
    script = text.lstrip().startswith("var ")
    document = _variable(text, "quartusJSON") if script else _json(text)
    resources, clocks = (
        _nodes(document, f"quartusFit{name}Summary") for name in ("ResourceUsage", "Clock")
    )
    whole = [node for node in resources if node.get("type") == "system"] or resources[-1:]
    node = whole[0]
    if "TBD" in node.values():
        raise FxloomError("the fitter has not run yet (TBD). Compile the project with Quartus")
    alut = node.get("alut")
    clock = next((clocks[0][key] for key in ("clock", "kernel clock") if key in clocks[0]), None)
    return Measured(
        tool="Quartus",
        level="implementation",
        top=Usage(
            lut=None if alut is None else _amount(alut, "alut"),
            alm=_amount(node.get("alm"), "alm"),
            ff=_amount(node.get("reg"), "reg"),
            dsp=_amount(node.get("dsp"), "dsp"),
            bram18=_amount(node.get("ram"), "ram"),
            achieved_ns=None if clock is None else _period(str(clock)),
        ),
        source=source,
    )


def read_hls_report(text: str, source: str) -> Measured:
    """A report_data.js of Intel HLS: what the compiler foresees."""
    area = _variable(text, "areaJSON")
    columns = area.get("columns", list(_COLUMNS))
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        _damaged("columns", columns)
    order = tuple(_COLUMNS[name] for name in columns if name in _COLUMNS)
    return _foreseen("Intel HLS", area.get("total"), order, source)


def read_summary_ndjson(text: str, source: str) -> Measured:
    """A summary.ndjson of oneAPI: a JSON object a line, one of them the total."""
    rows = [_json(line) for line in text.splitlines() if line.strip()]
    totals = [row.get("data") for row in rows if row.get("name") == "Total"]
    if len(totals) != 1:
        raise FxloomError(f"required one row named Total, got {len(totals)}")
    # hls4ml reads them in this order.
    return _foreseen("oneAPI", totals[0], ("lut", "ff", "bram18", "dsp", "mlab"), source)


def _foreseen(tool: str, total: Any, order: tuple[str, ...], source: str) -> Measured:
    if not isinstance(total, list) or len(total) < len(order) or len(order) < len(_ORDER) - 1:
        raise FxloomError(f"required totals of {', '.join(_ORDER)}, got {shown(total)}")
    found = {key: _amount(value, key) for key, value in zip(order, total, strict=False)}
    require_all(found, ("lut", "ff", "bram18", "dsp"), "whole")
    top = Usage(lut=found["lut"], ff=found["ff"], dsp=found["dsp"], bram18=found["bram18"])
    return Measured(tool=tool, level="csynth", top=top, source=source)


def _variable(text: str, name: str) -> dict[str, Any]:
    """The value of `var NAME=...;`, which these files write as JSON but for \\'."""
    found = re.search(rf"\bvar {name} ?= ?", text)
    if found is None:
        raise FxloomError(f"truncated, or another file: it has no variable {name}")
    rest = re.sub(r"\\(\\|')", lambda each: "'" if each[1] == "'" else each[0], text[found.end() :])
    return _json(rest, lambda decoder, body: decoder.raw_decode(body)[0])


def _json(
    text: str, decode: Callable[[json.JSONDecoder, str], Any] = json.JSONDecoder.decode
) -> dict[str, Any]:
    try:
        document = decode(json.JSONDecoder(parse_constant=_constant), text)
    except (ValueError, RecursionError) as fault:
        raise FxloomError(f"truncated or damaged: {shown(str(fault))}") from None
    if not isinstance(document, dict):
        raise FxloomError(f"required a JSON object, got {shown(document)}")
    return document


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _nodes(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The rows of a table."""
    table = document.get(key)
    rows = table.get("nodes") if isinstance(table, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        _damaged(f"{key}.nodes", rows)
    return rows


def _damaged(what: str, got: object) -> NoReturn:
    raise FxloomError(f"{what}: truncated or damaged: required a list of rows, got {shown(got)}")


def _amount(value: Any, what: str) -> int:
    """A count that may be written as text and with a fraction: ALMs are shared. Rounded up."""
    text = value.replace(",", "") if isinstance(value, str) else repr(value)
    if not re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text, re.ASCII) or float(text) > MAX_COUNT:
        raise FxloomError(f"{what}: required a count of 0 to {MAX_COUNT:,}, got {shown(value)}")
    return ceil(float(text))


def _of_device(text: str, what: str) -> int:
    """The first number of "1,299 / 1,518 ( 86 % )"."""
    found = _OF_DEVICE.match(text)
    if found is None:
        raise FxloomError(f"{what}: required 'used / available ( share % )', got {shown(text)}")
    return known(found[1], what)


def _period(megahertz: str) -> float | None:
    frequency = decimal(megahertz, "clock frequency in MHz", MAX_MHZ)
    return None if frequency is None else period_ns(frequency)
