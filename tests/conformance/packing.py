"""Many small programs as one, so that their C++ is compiled in one translation unit.

Most of the cost of compiling a small project is its headers. Packed programs share one project with
all their inputs and outputs, which exercises ports and names as well.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from fxloom.program import Program, ProgramBuilder, Value
from tests.strategies import random_inputs


def draw_programs(strategy: SearchStrategy[Program], count: int, number: int) -> list[Program]:
    """count different programs; the same ones in every run."""
    found: dict[str, Program] = {}

    @seed(number)
    @settings(
        max_examples=4 * count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(program: Program) -> None:
        found.setdefault(program.digest(), program)

    collect()
    # Hypothesis begins with the smallest: take programs from everywhere in the sequence.
    programs = list(found.values())
    picks = np.linspace(0, len(programs) - 1, min(count, len(programs))).astype(int)
    return [programs[pick] for pick in picks.tolist()]


def pack(programs: Sequence[Program]) -> Program:
    """One program that computes all of them side by side, ports in their order."""
    b = ProgramBuilder()
    for number, program in enumerate(programs):
        values: dict[str, Value] = {}
        for port in program.inputs:
            name = port.value.name
            values[name] = b.input(f"p{number}.{name}", port.value.shape, port.value.type)
        for name, constant in program.constants.items():
            values[name] = b.constant(f"p{number}.{name}", constant.data, constant.value.type)
        for instr in program.instrs:
            values[instr.result.name] = b.emit(
                instr.op, [values[arg] for arg in instr.args], f"p{number}.{instr.origin}"
            )
        for output in program.outputs:
            b.output(values[output.value], f"p{number}.{output.name}")
    return b.build()


def corner_inputs(program: Program, count: int, number: int) -> list[np.ndarray[Any, Any]]:
    """Random samples over the whole range; the first ones all zero, all lowest, all highest."""
    inputs = random_inputs(program, count, number)
    for port, array in zip(program.inputs, inputs, strict=True):
        array[:3] = np.array([0, port.value.type.lo, port.value.type.hi]).reshape(
            3, *(1 for _ in port.value.shape)
        )
    return inputs
