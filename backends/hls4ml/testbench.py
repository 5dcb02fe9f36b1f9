"""The files of a project that let it check itself: ports, testbench, samples.

Integers only: a testbench that compares decimals would accept what is not equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fxloom.backends.hls4ml.graph import pascal_case, pipe_name
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
    """hls4ml's name for a port's type: of an element, with streams of a pack, with pipes of all."""
    if layer.kind == "InputLayer":
        return "input_t" if layer.index == 1 else f"input{layer.index}_t"
    return "result_t" if len(plan.outputs) == 1 else f"layer{layer.index}_t"


@dataclass(frozen=True, slots=True)
class _Port:
    """An input or output of the top function. start: of its mantissas among those of a sample."""

    layer: Layer
    word: str
    number: int
    start: int
    type: str

    @property
    def name(self) -> str:
        """Of a variable of its own."""
        return f"{self.word}{self.number}"

    def moves(self, array: str, element: str) -> str:
        """The loop that moves a sample between an array and its mantissas."""
        at = f"{self.word}[{self.start} + i]"
        moved = (
            f"{array}[i] = fxloom::write<{element}>({at});"
            if self.word == "input"
            else f"{at} = fxloom::to_integer({array}[i]);"
        )
        return f"    for (int i = 0; i < {self.layer.size}; i++) {moved}"


def _ports(plan: Plan) -> tuple[list[_Port], list[_Port]]:
    """Inputs and outputs."""
    groups: tuple[list[_Port], list[_Port]] = ([], [])
    for ports, layers, word in zip(
        groups, (plan.inputs, plan.outputs), ("input", "output"), strict=True
    ):
        start = 0
        for number, layer in enumerate(layers):
            ports.append(_Port(layer, word, number, start, _type_name(layer, plan)))
            start += layer.size
    return groups


def _arrays(ports: Sequence[_Port]) -> list[str]:
    return [f"    static {p.type} {p.name}[{p.layer.size}]; // {p.layer.name}" for p in ports]


def _call_arrays(inputs: Sequence[_Port], outputs: Sequence[_Port], call: str) -> list[str]:
    """Every port an argument, an array."""
    return [
        *_arrays([*inputs, *outputs]),
        *(port.moves(port.name, port.type) for port in inputs),
        f"    {call}({', '.join(port.name for port in [*inputs, *outputs])});",
        *(port.moves(port.name, port.type) for port in outputs),
    ]


def _call_streams(inputs: Sequence[_Port], outputs: Sequence[_Port], call: str) -> list[str]:
    """Every port an argument, a stream."""
    ports = [*inputs, *outputs]

    def moves(group: Sequence[_Port], function: str) -> list[str]:
        return [
            f"    fxloom::{function}<{port.type}, {port.layer.packs}>"
            f"({port.name}, {port.word} + {port.start});"
            for port in group
        ]

    return [
        *(f'    hls::stream<{p.type}> {p.name}("{p.name}"); // {p.layer.name}' for p in ports),
        *moves(inputs, "push_mantissas"),
        f"    {call}({', '.join(port.name for port in ports)});",
        *moves(outputs, "pop_mantissas"),
    ]


def _call_structs(inputs: Sequence[_Port], outputs: Sequence[_Port], call: str) -> list[str]:
    """One argument with all inputs, one result with all outputs."""
    return [
        "    static input_data inputs;",
        *(port.moves(f"inputs.{port.layer.array}", port.type) for port in inputs),
        f"    const output_data outputs = {call}(inputs);",
        *(port.moves(f"outputs.{port.layer.array}", port.type) for port in outputs),
    ]


def _call_pipes(inputs: Sequence[_Port], outputs: Sequence[_Port], call: str) -> list[str]:
    """Every port a pipe that carries all its elements at once."""
    lines = ["    sycl::queue &queue = fxloom_queue();"]
    for port in inputs:
        lines += [
            f"    static {port.type} {port.name}; // {port.layer.name}",
            port.moves(port.name, f"{port.type}::value_type"),
            f"    {pipe_name(port.layer.array)}::write(queue, {port.name});",
        ]
    lines.append(f"    queue.single_task({pascal_case(call)}{{}});")
    for port in outputs:
        lines += [
            f"    const {port.type} {port.name} = {pipe_name(port.layer.array)}::read(queue);",
            port.moves(port.name, port.type),
        ]
    return [*lines, "    queue.wait();"]


def ports_text(plan: Plan, project: str, samples: int) -> str:
    """A header with one function from the mantissas of a sample to those of its outputs."""
    inputs, outputs = _ports(plan)
    backend = plan.dialect.name
    extra: list[str] = []
    call, of_call = project, _call_streams if plan.stream else _call_arrays
    if backend == "Quartus":
        of_call = _call_structs
    elif backend == "Catapult":
        # SCVerify finds the design in the testbench by these macros.
        extra, call = ["#include <mc_scverify.h>"], f"CCS_DESIGN({project})"
    elif backend == "oneAPI":
        extra, of_call = ['#include "fxloom_queue.h"'], _call_pipes
    heard = "heard.of_streams()" if plan.stream else "std::string()"
    lines = [
        "// The top function, called with mantissas: for the testbench and the C simulation.",
        # First, for it finds the types of the tool.
        f'#include "firmware/{project}.h"',
        '#include "firmware/nnet_utils/fxloom_kernels.h"',
        "#include <string>",
        *extra,
        "",
        f"static const int FXLOOM_INPUT_LENGTH = {sum(p.size for p in plan.inputs)};",
        f"static const int FXLOOM_OUTPUT_LENGTH = {sum(p.size for p in plan.outputs)};",
        f"static const int FXLOOM_TB_SAMPLES = {samples};",
        "",
        "static void fxloom_call(const long long *input, long long *output) {",
        *of_call(inputs, outputs, call),
        "}",
        "",
        "// Returns what a stream complained of: read while empty, or left with data.",
        "static std::string fxloom_run_sample(const long long *input, long long *output) {",
        *(["    const fxloom::complaints heard;"] if plan.stream else []),
        "    fxloom_call(input, output);",
        f"    return {heard};",
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
    source = out / plan.dialect.source
    (source / PORTS).write_text(text, encoding="ascii")
    bench = template("testbench.cpp")
    (source / f"{project}_test.cpp").write_text(bench, encoding="ascii")
    data = out / "tb_data"
    data.mkdir()
    outputs = Simulator(program).run_mantissas(inputs)
    for name, arrays in (("inputs.dat", inputs), ("expected.dat", outputs)):
        rows = (" ".join(map(str, row)) for row in flat_samples(arrays).tolist())
        (data / name).write_text("\n".join(rows) + "\n", encoding="ascii")
