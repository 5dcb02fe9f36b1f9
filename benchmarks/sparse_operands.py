"""LUTs of one lane of the sparse kernel for choosing what it multiplies, synthesised by yosys.

`python -m benchmarks.sparse_operands`; needs yosys (0.23 for the published figures) in PATH. An
index that is read chooses one of all inputs; with the indices as wires a lane chooses one of as
many values as it has steps. 8-bit inputs, UltraScale+, before placement.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

CASES = [(64, 4), (64, 8), (64, 16), (64, 64), (64, 256), (128, 16), (300, 16), (300, 64)]
BITS = 8


def module(inputs: int, steps: int, wired: bool) -> str:
    """A registered choice of one of the inputs for every step."""
    rng = np.random.default_rng(inputs * steps)
    indices = rng.choice(inputs, steps, replace=steps > inputs).tolist()
    ports = f"input clk, input [{inputs * BITS - 1}:0] x, input [{_width(steps) - 1}:0] step"
    if wired:
        choices = [f"{k}: y <= x[{i * BITS} +: {BITS}];" for k, i in enumerate(indices)]
        rest, after, register = f"y <= {BITS}'bx;", "", ""
    else:
        choices = [f"{k}: index <= {i};" for k, i in enumerate(indices)]
        rest, after = "index <= 0;", f"y <= x[index * {BITS} +: {BITS}];"
        register = f"reg [{_width(inputs) - 1}:0] index;"
    cases = "\n".join([*choices, f"default: {rest}"])
    return (
        f"module lane({ports}, output reg [{BITS - 1}:0] y);\n{register}\n"
        f"always @(posedge clk) begin case (step)\n{cases}\nendcase\n{after}\nend\nendmodule\n"
    )


def _width(count: int) -> int:
    return max((count - 1).bit_length(), 1)


def luts(text: str, options: str = "") -> int:
    """LUTs of a module. options: for synth_xilinx."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "lane.v"
        source.write_text(text)
        synthesis = f"synth_xilinx -family xcup -noiopad {options} -top lane"
        script = f"read_verilog {source}; {synthesis}; stat"
        run = subprocess.run(["yosys", "-p", script], capture_output=True, text=True, check=True)
    last = run.stdout.rpartition("Printing statistics")[2]
    return sum(int(count) for count in re.findall(r"\bLUT\d\s+(\d+)", last))


if __name__ == "__main__":
    print("inputs  steps  index read  wires")
    for inputs, steps in CASES:
        read, wires = (luts(module(inputs, steps, wired)) for wired in (False, True))
        print(f"{inputs:6}  {steps:5}  {read:10}  {wires:5}", flush=True)
