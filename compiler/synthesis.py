"""Verilog of a product simulated with Icarus Verilog and synthesised with yosys, where installed.

Both run in a temporary folder, as child processes that end at the latest after a given time.
yosys 0.23 and Icarus Verilog 11 of Debian 12 are what the figures of fxloom were made with.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from fxloom.adder_graph import AdderGraph
from fxloom.children import wait
from fxloom.errors import ToolError
from fxloom.rtl import ADDER, PRODUCT, TESTBENCH, ports, template

SIMULATORS, SYNTHESIS = ("iverilog", "vvp"), "yosys"
SCRIPT = "synthesis.ys"
COMPLETE = "FXLOOM SYNTHESIS COMPLETE"
PACKAGES = {"iverilog": "iverilog", "vvp": "iverilog", "yosys": "yosys"}

_COMPARED = re.compile(r"FXLOOM COMPARED (\d+) DIFFERENT (\d+)")
_FIRST = re.compile(r"FXLOOM FIRST (\d+) ([0-9a-fxzXZ]+)")


@dataclass(frozen=True, slots=True)
class Difference:
    """The first integer that differs. value: the simulated one, None where bits are undefined."""

    sample: int
    output: int
    value: int | None
    expected: int

    def __str__(self) -> str:
        value = "undefined bits" if self.value is None else f"{self.value:,}"
        return (
            f"sample {self.sample}, output {self.output}: Verilog {value}, "
            f"Program {self.expected:,}"
        )


def require_tools() -> None:
    """Raise ToolError, saying what to install, where a tool is missing."""
    missing = [name for name in (*SIMULATORS, SYNTHESIS) if shutil.which(name) is None]
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGES[name] for name in missing))
        raise ToolError(
            f"not on PATH: {', '.join(missing)}; checking estimates by synthesis needs Icarus "
            "Verilog and yosys, nothing else of fxloom does. Debian and Ubuntu: "
            f"apt-get install {packages}"
        )


def simulate(
    folder: Path, graph: AdderGraph, expected: list[list[int]], timeout_s: float
) -> Difference | None:
    """Run the testbench that rtl.write left in a folder; the first difference, None for none.

    expected: what it compares with, by sample and output. Raises ToolError where a tool fails or
    compares fewer samples than there are.
    """
    _run(["iverilog", "-g2005", "-o", "simulation", TESTBENCH, PRODUCT, ADDER], folder, timeout_s)
    said = _run(["vvp", "-n", "simulation"], folder, timeout_s)
    compared = _COMPARED.search(said)
    if compared is None or int(compared[1]) != len(expected):
        raise ToolError(
            f"the simulation ended before its {len(expected)} samples were compared: "
            f"{_last_line(said)}"
        )
    first = _FIRST.search(said)
    if int(compared[2]) == 0 and first is None:
        return None
    if first is None:
        raise ToolError(f"the simulation does not say what differs: {_last_line(said)}")
    sample, wanted = int(first[1]), expected[int(first[1])]
    if not re.fullmatch(r"[0-9a-f]+", first[2]):
        return Difference(sample, 0, None, wanted[0])
    found = ports(graph)[1].unpack(int(first[2], 16))
    output = next(n for n, value in enumerate(found) if value != wanted[n])
    return Difference(sample, output, found[output], wanted[output])


def synthesise(folder: Path, timeout_s: float) -> int:
    """LUTs of the product whose Verilog is in a folder. Raises ToolError, also at a cut-off log."""
    (folder / SCRIPT).write_text(template(SCRIPT), encoding="ascii")
    return luts_of(_run([SYNTHESIS, "-s", SCRIPT], folder, timeout_s))


def luts_of(log: str) -> int:
    """LUTs of the whole design from a log of yosys, which must be complete."""
    if COMPLETE not in log.splitlines():
        raise ToolError(
            f"yosys: required the line {COMPLETE!r} behind the statistics, got a log that ends "
            f"with {_last_line(log)!r}. It was cut off, so its figures are not used"
        )
    whole = log[: log.rindex(COMPLETE)].rpartition("Printing statistics.")[2].rpartition("=== ")[2]
    if "Number of cells:" not in whole:
        raise ToolError("yosys: required the number of cells in its statistics, got none")
    if re.search(r"\sDSP48\w*\s", whole):
        raise ToolError("yosys: required no DSP block in the netlist, got some")
    return sum(int(count) for count in re.findall(r"\sLUT[1-6]\s+(\d+)", whole))


def _run(command: list[str], folder: Path, timeout_s: float) -> str:
    """What a command prints; ToolError with its last line where it fails."""
    log = folder / f"{command[0]}.log"
    with open(log, "wb") as output:
        try:
            code = wait(command, output, timeout_s, None, None, folder)
        except ToolError as stopped:
            raise ToolError(
                f"{stopped}\nAllow more seconds (--timeout), or check a smaller layer"
            ) from None
    said = log.read_text(errors="replace")
    if code != 0:
        raise ToolError(f"{command[0]} failed: {_last_line(said)}", " ".join(command), code)
    return said


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
