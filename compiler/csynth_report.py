"""Reports of Vivado HLS and Vitis HLS: C synthesis, and simulation of what it made.

Of syn/report, NAME_csynth.xml is about one function, the top or any below it; csynth.xml, of Vitis
only, has the top with all modules and which contains which. sim/report has NAME_cosim.rpt. Fields:
AMD UG1399, and as hls4ml's own reader has them (hls4ml/report/vivado_report.py).
"""

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from fxloom.errors import FxloomError
from fxloom.measured import Cycles, Measured, Usage
from fxloom.report_values import (
    MAX_NS,
    count,
    cycles,
    decimal,
    parse_xml,
    require_all,
    shown,
    whole_lines,
)

FIRST_YEAR = 2015
"""Of the versions that write these fields."""

_TAGS = {
    "lut": ("LUT",),
    "ff": ("FF",),
    "dsp": ("DSP", "DSP48E"),
    "bram18": ("BRAM_18K",),
    "uram": ("URAM",),
}


def read_csynth(text: str, source: str) -> Measured:
    """A csynth.xml or NAME_csynth.xml. Raises FxloomError."""
    root = parse_xml(text)
    if root.tag != "profile":
        raise FxloomError(f"required a report of C synthesis (<profile>), got <{root.tag[:40]}>")
    parts = [child.tag for child in root]
    require_all(parts, ("UserAssignments", "PerformanceEstimates", "AreaEstimates"), "a csynth.xml")
    top = _text(root, "UserAssignments/TopModelName")
    if not top:
        raise FxloomError("UserAssignments: required the name of the function (TopModelName)")
    version = _version(_text(root, "ReportVersion/Version"))
    vivado = version is not None and version < "2020"
    return Measured(
        tool="Vivado HLS" if vivado else "Vitis HLS",
        level="csynth",
        top=_whole(root, top),
        source=source,
        design=top,
        version=version,
        part=_text(root, "UserAssignments/Part"),
        clock_ns=_nanoseconds(root, "UserAssignments/TargetClockPeriod"),
        modules=dict(_modules(root)),
        children=_children(root, top),
    )


def read_cosim(text: str, source: str) -> Measured:
    """A NAME_cosim.rpt: cycles of the whole design in RTL simulation. Raises FxloomError."""
    lines = [line for line in whole_lines(text) if line.strip()]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    runs = [row for row in rows if row[:1] in (["VHDL"], ["Verilog"]) and row[1:2] != ["NA"]]
    if len(runs) != 1 or len(runs[0]) < 8 or not lines[-1].startswith("+--"):
        raise FxloomError("truncated, or not a cosim.rpt: required one language that was simulated")
    language, status, *counts = runs[0]
    if status != "Pass":
        raise FxloomError(f"the simulation of the {language} did not pass: {shown(status)}")
    latency, interval = (
        cycles(count(counts[at], what), count(counts[at + 2], what), what)
        for at, what in ((0, "Latency"), (3, "Interval"))
    )
    top = Usage(latency_cycles=latency, interval_cycles=interval)
    return Measured(tool="Vitis or Vivado HLS", level="simulation", top=top, source=source)


def _version(text: str | None) -> str | None:
    if text is None:
        return None
    found = re.fullmatch(r"(20\d\d)\.\d(\.\d)?", text, re.ASCII)
    if found is None or int(found[1]) < FIRST_YEAR:
        raise FxloomError(
            f"ReportVersion: required a version from {FIRST_YEAR}.1 on, got {shown(text)}"
        )
    return text


def _whole(root: Element, name: str) -> Usage:
    """What the report is about, which has LUTs and flip-flops, if none."""
    found = _usage(root, name)
    counts = found.resources()
    require_all((key for key, value in counts.items() if value is not None), ("lut", "ff"), name)
    return found


def _usage(node: Element, name: str) -> Usage:
    places = "AreaEstimates/Resources", "PerformanceEstimates/SummaryOfOverallLatency"
    resources, summary = (node.find(place) for place in places)
    if resources is None or summary is None:
        missing = places[resources is not None]
        raise FxloomError(f"{name}: truncated, or not a csynth.xml: it has no {missing}")
    counts = {
        key: next((_count(resources, tag, name) for tag in tags if _has(resources, tag)), None)
        for key, tags in _TAGS.items()
    }
    latency = cycles(
        _count(summary, "Best-caseLatency", name),
        _count(summary, "Worst-caseLatency", name),
        f"{name}: latency",
    )
    return Usage(
        **counts,
        latency_cycles=latency,
        interval_cycles=_interval(summary, name),
        achieved_ns=_nanoseconds(
            node, "PerformanceEstimates/SummaryOfTimingAnalysis/EstimatedClockPeriod"
        ),
    )


def _interval(summary: Element, name: str) -> Cycles | None:
    """The module list of csynth.xml has one field, as "4" or "4 ~ 6"; all else has two."""
    if _has(summary, "Interval-min"):
        least, most = (_count(summary, f"Interval-{end}", name) for end in ("min", "max"))
    else:
        text = _text(summary, "PipelineInitiationInterval") or ""
        first, _, last = text.partition("~")
        least = count(first, f"{name}: interval")
        most = count(last, f"{name}: interval") if last else least
    return cycles(least, most, f"{name}: interval")


def _modules(root: Element) -> Iterator[tuple[str, Usage]]:
    seen = set()
    for module in root.iterfind("ModuleInformation/Module"):
        name = _text(module, "Name")
        if not name or name in seen:
            raise FxloomError(f"ModuleInformation: required names, each once, got {shown(name)}")
        seen.add(name)
        yield name, _usage(module, name)


def _children(root: Element, top: str) -> dict[str, tuple[str, ...]]:
    """Modules that each module contains; a module that is there several times lists the same."""
    found: dict[str, tuple[str, ...]] = {}
    first = root.find("RTLDesignHierarchy/TopModule")
    waiting = [] if first is None else [(top, first)]
    while waiting:
        name, node = waiting.pop()
        inner = [
            (_text(each, "ModuleName") or "", each)
            for each in node.iterfind("InstancesList/Instance")
        ]
        found[name] = tuple(child for child, _ in inner)
        waiting.extend(inner)
    return found


def _has(node: Element, tag: str) -> bool:
    return node.find(tag) is not None


def _text(node: Element, path: str) -> str | None:
    found = node.findtext(path)
    return None if found is None else found.strip()


def _count(node: Element, tag: str, name: str) -> int | None:
    return count(_text(node, tag), f"{name}: {tag}")


def _nanoseconds(root: Element, path: str) -> float | None:
    return decimal(_text(root, path), path.rpartition("/")[2], MAX_NS)
