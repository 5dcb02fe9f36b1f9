"""The files of a project that let it check itself: ports, testbench, samples.

Integers only: a testbench that compares decimals would accept what is not equal.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fxloom.backends.hls4ml.plan import Layer, Plan
from fxloom.backends.hls4ml.writer import template
from fxloom.backends.simulator import Simulator
from fxloom.fixed_point import Int64Array
from fxloom.program import Program

SAMPLES = 32
PORTS = "fxloom_ports.h"


def default_samples(program: Program) -> list[Int64Array]:
    """Mantissas for every input: its extremes, zero, and random ones from a fixed seed."""
    rng = np.random.default_rng(0)
    result = []
    for port in program.inputs:
        kind = port.value.type
        shape = (SAMPLES, *port.value.shape)
        data = rng.integers(kind.lo, kind.hi, shape, dtype=np.int64, endpoint=True)
        data[0], data[1], data[2] = 0, kind.lo, kind.hi
        result.append(data)
    return result


def flat_samples(arrays: Sequence[Int64Array]) -> npt.NDArray[np.int64]:
    """[N, all elements of all ports]: the layout of every file and of the driver."""
    parts = [array.reshape(len(array), prod(array.shape[1:])) for array in arrays]
    return np.concatenate(parts, axis=1)


def _type_name(layer: Layer, plan: Plan) -> str:
    """hls4ml's name for a port's element type."""
    if layer.kind == "InputLayer":
        return "input_t" if layer.index == 1 else f"input{layer.index}_t"
    return "result_t" if len(plan.outputs) == 1 else f"layer{layer.index}_t"


def _port_lines(layer: Layer, plan: Plan, word: str, number: int, start: int) -> tuple[str, ...]:
    """Declaration of a port, and the line that moves a sample between it and its mantissas."""
    name, kind = f"{word}{number}", _type_name(layer, plan)
    if not plan.stream:
        at = f"{word}[{start} + i]"
        moved = (
            f"{name}[i] = fxloom::write<{kind}>({at});"
            if word == "input"
            else f"{at} = fxloom::to_integer({name}[i]);"
        )
        return (
            f"    static {kind} {name}[{layer.size}]; // {layer.name}",
            f"    for (int i = 0; i < {layer.size}; i++) {moved}",
        )
    function = "push_mantissas" if word == "input" else "pop_mantissas"
    return (
        f'    hls::stream<{kind}> {name}("{name}"); // {layer.name}',
        f"    fxloom::{function}<{kind}, {layer.packs}>({name}, {word} + {start});",
    )


def ports_text(plan: Plan, project: str, samples: int) -> str:
    """A header with one function from the mantissas of a sample to those of its outputs."""
    declarations: list[str] = []
    moves: dict[str, list[str]] = {"input": [], "output": []}
    names: list[str] = []
    for layers, word in ((plan.inputs, "input"), (plan.outputs, "output")):
        start = 0
        for number, layer in enumerate(layers):
            declared, moved = _port_lines(layer, plan, word, number, start)
            declarations.append(declared)
            moves[word].append(moved)
            names.append(f"{word}{number}")
            start += layer.size
    lines = [
        "// The top function, called with mantissas: for the testbench and the C simulation.",
        '#include "firmware/nnet_utils/fxloom_kernels.h"',
        f'#include "firmware/{project}.h"',
        "",
        f"static const int FXLOOM_INPUT_LENGTH = {sum(p.size for p in plan.inputs)};",
        f"static const int FXLOOM_OUTPUT_LENGTH = {sum(p.size for p in plan.outputs)};",
        f"static const int FXLOOM_TB_SAMPLES = {samples};",
        "",
        "static void fxloom_call(const long long *input, long long *output) {",
        *declarations,
        *moves["input"],
        f"    {project}({', '.join(names)});",
        *moves["output"],
        "}",
        "",
        "// Returns what a stream complained of: read while empty, or left with data.",
        "static std::string fxloom_run_sample(const long long *input, long long *output) {",
        "    const fxloom::complaints heard;",
        "    fxloom_call(input, output);",
        "    return heard.of_streams();",
        "}",
        "",
    ]
    return "\n".join(lines)


def write_testbench(
    program: Program,
    plan: Plan,
    project: str,
    out: Path,
    inputs: Sequence[Int64Array],
) -> None:
    """Write ports, testbench and its data; inputs: mantissas of at least one sample."""
    text = ports_text(plan, project, len(inputs[0]))
    (out / PORTS).write_text(text, encoding="ascii")
    bench = template("testbench.cpp")
    (out / f"{project}_test.cpp").write_text(bench, encoding="ascii")
    data = out / "tb_data"
    data.mkdir()
    outputs = Simulator(program).run_mantissas(inputs)
    for name, arrays in (("inputs.dat", inputs), ("expected.dat", outputs)):
        rows = (" ".join(map(str, row)) for row in flat_samples(arrays).tolist())
        (data / name).write_text("\n".join(rows) + "\n", encoding="ascii")
