"""Conversions synthesised by yosys beside what the estimate says of them.

`python -m benchmarks.requantize_luts`; needs yosys (0.23 for the published figures) in PATH.
Every conversion is a module of its own; LUTs are counted before placement, so that a carry chain
whose places are only passed through costs nothing here and its bits in the estimate.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.requantize_cost import conversion_luts

# Width, dropped bits, width of the result.
WIDTHS = [(12, 4, 4), (14, 6, 6), (16, 6, 8), (19, 8, 8), (22, 9, 8), (24, 4, 16), (12, 3, 8),
          (20, 12, 6), (10, 5, 4), (28, 12, 12), (16, 8, 4)]  # fmt: skip
SIGNS = [(True, True), (False, False), (True, False)]
MODES = [
    (rounding, overflow)
    for rounding in (Rounding.TRN, Rounding.RND, Rounding.RND_CONV)
    for overflow in (Overflow.WRAP, Overflow.SAT)
    if (rounding, overflow) != (Rounding.TRN, Overflow.WRAP)
]


@dataclass(frozen=True)
class Conversion:
    """One number of a format into a narrower one."""

    source: FixedPoint
    to: FixedPoint
    rounding: Rounding
    overflow: Overflow

    def verilog(self, name: str) -> str:
        """A module with ports x and y."""
        dropped = self.source.fraction - self.to.fraction
        width, to = self.source.width, self.to.width
        kept = width - dropped + (self.rounding is not Rounding.TRN)
        sign = f"x[{width - 1}]" if self.source.signed else "1'b0"
        carry = {
            Rounding.TRN: "1'b0",
            Rounding.RND: f"x[{dropped - 1}]",
            Rounding.RND_CONV: f"(x[{dropped - 1}] & (x[{dropped}] | (|x[{dropped - 2}:0])))",
        }[self.rounding]
        lines = [
            f"module {name}(input [{width - 1}:0] x, output [{to - 1}:0] y);",
            f"wire [{width}:0] e = {{{sign}, x}};",
            f"wire [{kept - 1}:0] r = e[{dropped}+:{kept}] + {carry};",
            f"assign y = {self._fitted(kept, to)};",
            "endmodule",
        ]
        return "\n".join(lines)

    def _fitted(self, kept: int, to: int) -> str:
        low = f"r[{to - 1}:0]"
        if self.overflow is Overflow.WRAP:
            return low
        top = f"r[{kept - 1}]" if self.source.signed else "1'b0"
        if self.to.signed:
            over = f"r[{kept - 1}:{to - 1}]"
            return f"(!(&{over} | ~|{over})) ? {{{top}, {{{to - 1}{{~{top}}}}}}} : {low}"
        last = kept - 1 - self.source.signed
        over = f"|r[{last}:{to}]" if last >= to else "1'b0"
        return f"{top} ? {to}'d0 : ({over}) ? {{{to}{{1'b1}}}} : {low}"


def conversions() -> list[Conversion]:
    """All that are measured."""
    found = []
    for rounding, overflow in MODES:
        for width, dropped, to in WIDTHS:
            for signed, to_signed in SIGNS:
                source = FixedPoint(width, width - dropped, signed)
                found.append(Conversion(source, FixedPoint(to, to, to_signed), rounding, overflow))
    return found


def measured(designs: list[Conversion]) -> list[int]:
    """LUTs of every design."""
    modules = [each.verilog(f"m{number}") for number, each in enumerate(designs)]
    ports, calls = [], []
    for number, each in enumerate(designs):
        ports += [f"input [{each.source.width - 1}:0] x{number}",
                  f"output [{each.to.width - 1}:0] y{number}"]  # fmt: skip
        calls.append(f"(* keep_hierarchy *) m{number} u{number}(.x(x{number}), .y(y{number}));")
    top = [f"module top({', '.join(ports)});", *calls, "endmodule"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "all.v").write_text("\n".join([*modules, *top]) + "\n")
        commands = "read_verilog all.v; synth_xilinx -family xcup -noiopad -noclkbuf -top top; stat"
        run = subprocess.run(
            ["yosys", "-p", commands], cwd=folder, capture_output=True, text=True, check=True
        )
    found = dict.fromkeys(range(len(designs)), 0)
    for part in run.stdout.rpartition("Printing statistics")[2].split("=== ")[1:]:
        if match := re.match(r"m(\d+) ===", part):
            found[int(match[1])] = sum(int(n) for n in re.findall(r"\sLUT\d\s+(\d+)", part))
    return list(found.values())


def main() -> None:
    designs = conversions()
    outside, likely, have = 0, 0, 0
    for each, luts in zip(designs, measured(designs), strict=True):
        rounding, saturation = conversion_luts(each.source, each.to, each.rounding, each.overflow)
        low, high = rounding.least + saturation.least, rounding.most + saturation.most
        outside += not low <= luts <= high
        likely, have = likely + rounding.likely + saturation.likely, have + luts
        modes = f"{each.rounding}, {each.overflow}"
        estimated = f"{rounding.likely} + {saturation.likely} ({low} to {high})"
        print(f"{each.source} -> {each.to}, {modes}: {luts} LUTs, estimated {estimated}")
    print(f"{len(designs)} designs, {outside} outside their interval; sum {have}, likely {likely}")


if __name__ == "__main__":
    main()
