"""Reports of the vendors' tools: which file is which, where they lie, and what they say together.

What kind of report a file is follows from what is in it, not from its name. Files are other
people's: they are read as data, whole or not at all.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from fxloom.csynth_report import read_cosim, read_csynth
from fxloom.errors import FxloomError
from fxloom.measured import Level, Measured, Usage
from fxloom.quartus_report import (
    read_acl_report,
    read_fit_report,
    read_fit_summary,
    read_hls_report,
    read_quartus_json,
    read_summary_ndjson,
)
from fxloom.report_values import read_text
from fxloom.vivado_report import read_utilization

MAX_FILES = 200_000
"""That are looked at below one folder."""

_NAMES = (
    r"(.*_)?csynth\.xml",
    r"vivado_synth\.rpt",
    r"util\.rpt",
    r".*utilization.*\.rpt",
    r".*_cosim\.rpt",
    r"quartus_data\.js|quartus\.(nd)?json",
    r"acl_quartus_report\.txt",
    r".*\.fit\.summary",
    r".*\.fit\.rpt",
    r"report_data\.js",
    r"summary\.ndjson",
)
"""Names of reports, as the tools and hls4ml's scripts (build_prj.tcl, vivado_synth.tcl, the
Makefile) choose them. Of several of one run of Intel's tools the first kind is taken."""

_INTEL_FIRST = 5

Reader = Callable[[str, str], Measured]
_READERS: tuple[tuple[str, Reader], ...] = (
    (r"\A\s*<", read_csynth),
    (r"^\| Design State", read_utilization),
    (r"^\| *(VHDL|Verilog) *\|", read_cosim),
    (r"^; Fitter Status", read_fit_report),
    (r"^Fitter Status", read_fit_summary),
    (r"^Kernel fmax:|^ALUTs:", read_acl_report),
    (r"quartusFit(ResourceUsage|Clock)Summary", read_quartus_json),
    (r"\bvar areaJSON", read_hls_report),
    (r"\A\s*\{", read_summary_ndjson),
)
KINDS = (
    "csynth.xml and cosim.rpt of Vivado HLS or Vitis HLS, report_utilization of Vivado, and of "
    "Quartus and Intel HLS *.fit.summary, *.fit.rpt, acl_quartus_report.txt, quartus_data.js, "
    "quartus.json, report_data.js or summary.ndjson"
)


def read_report(path: str | Path) -> Measured:
    """What one file says, by itself. Raises FxloomError for whatever is not a whole report."""
    file = Path(path)
    with _named(path):
        text = read_text(file)
        for pattern, reader in _READERS:
            if re.search(pattern, text, re.MULTILINE):
                return reader(text, str(path))
        raise FxloomError(f"not a report that is known. Known: {KINDS}")


def read_reports(paths: Iterable[str | Path], top: str | None = None) -> tuple[Measured, ...]:
    """What files and folders of reports say: one Measured a run of a tool.

    They come in the order of their levels. paths: a folder is searched, and all reports of C
    synthesis in one of its folders are one run, modules by name. top: the function that is the
    whole design, where a folder has several and no csynth.xml that says it. Raises FxloomError,
    also where two runs are of the same level.
    """
    runs: list[Measured] = []
    for path in paths:
        file = Path(path)
        if not file.exists():
            raise FxloomError(f"{path}: no such file or folder")
        runs += _of_folder(file, top) if file.is_dir() else [read_report(file)]
    for number, run in enumerate(runs):
        for other in runs[:number]:
            if run.level == other.level:
                raise FxloomError(
                    f"two reports of the same level ({run.level}): {other.source} and "
                    f"{run.source}. Name the one that counts"
                )
    return tuple(sorted(runs, key=lambda run: get_args(Level).index(run.level)))


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Faults of a file with its name in front."""
    try:
        yield
    except FxloomError as fault:
        raise FxloomError(f"{path}: {fault}") from None


def _of_folder(folder: Path, top: str | None) -> list[Measured]:
    found = _find(folder)
    runs = [
        _c_synthesis(place, files, top)
        for place, files in _by_folder(found.get(_NAMES[0], ())).items()
    ]
    utilization = [file for name in _NAMES[1:_INTEL_FIRST] for file in found.get(name, ())]
    runs += _joined([read_report(file) for file in utilization])
    levels = set()
    for name in _NAMES[_INTEL_FIRST:]:
        measured = [read_report(file) for file in found.get(name, ())]
        runs += [each for each in measured if each.level not in levels]
        levels |= {each.level for each in measured}
    if not runs:
        raise FxloomError(f"{folder}: no report of a vendor's tool below it. Known: {KINDS}")
    return runs


def _find(folder: Path) -> dict[str, list[Path]]:
    """Reports below a folder by the pattern of their name, in the order of their paths.

    Folders that begin with a dot hold what tools keep for themselves.
    """
    found: dict[str, list[Path]] = {}
    seen = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        seen += len(files)
        if seen > MAX_FILES:
            raise FxloomError(f"{folder}: more than {MAX_FILES:,} files. Name the report's folder")
        for file in sorted(files):
            pattern = next((name for name in _NAMES if re.fullmatch(name, file)), None)
            if pattern is not None:
                found.setdefault(pattern, []).append(Path(place) / file)
    return found


def _by_folder(files: Sequence[Path]) -> dict[Path, list[Path]]:
    found: dict[Path, list[Path]] = {}
    for file in files:
        found.setdefault(file.parent, []).append(file)
    return found


def _c_synthesis(place: Path, files: Sequence[Path], top: str | None) -> Measured:
    """The top function with all modules, from the files of one syn/report."""
    listing: Measured | None = None
    functions: dict[str, Measured] = {}
    for file in files:
        with _named(file):
            measured = read_csynth(read_text(file), str(file))
        if file.name == "csynth.xml":
            listing = measured
        else:
            functions[str(measured.design)] = measured
    if listing is not None:
        whole = listing
    else:
        name = top if top in functions else next(iter(functions))
        if len(functions) > 1 and top not in functions:
            raise FxloomError(
                f"{place}: required a csynth.xml, or one for the whole design"
                + (f" ({top}_csynth.xml)" if top else "")
                + f"; it has those of {', '.join(sorted(functions)[:5])}"
            )
        whole = functions[name]
    for other in functions.values():
        for key in ("version", "part", "clock_ns"):
            if getattr(other, key) != getattr(whole, key):
                raise FxloomError(
                    f"{other.source}: is of another run than {whole.source}: {key} "
                    f"{getattr(other, key)} and {getattr(whole, key)}"
                )
    modules = {**whole.modules, **{key: each.top for key, each in functions.items()}}
    modules.pop(str(whole.design), None)
    return replace(whole, modules=_checked(modules, whole), source=str(place))


def _checked(modules: Mapping[str, Usage], whole: Measured) -> dict[str, Usage]:
    """The modules. Raises FxloomError where files of two runs were mixed."""
    for name, usage in whole.modules.items():
        other = modules.get(name, usage)
        if other.resources() != usage.resources():
            raise FxloomError(f"{whole.source}: {name}: another file of its folder disagrees")
    return dict(modules)


def _joined(runs: Sequence[Measured]) -> Iterator[Measured]:
    """A flat and a hierarchical report of the same design are one."""
    by_level: dict[str, list[Measured]] = {}
    for run in runs:
        by_level.setdefault(run.level, []).append(run)
    for each in by_level.values():
        flat, deep = ([run for run in each if bool(run.modules) == has] for has in (False, True))
        if len(flat) == len(deep) == 1 and flat[0].top.resources() == deep[0].top.resources():
            yield replace(deep[0], top=flat[0].top, source=f"{flat[0].source}, {deep[0].source}")
        else:
            yield from each
