"""The simulator and the compiled C++ of the hls4ml backend give the same integers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from fxloom import ops
from fxloom.backends import get
from fxloom.backends.hls4ml.build import Hls4mlBuild
from fxloom.backends.hls4ml.kernels import RULES, UNSUPPORTED
from fxloom.backends.hls4ml.plan import make_plan
from fxloom.backends.simulator import reference, trace_all
from fxloom.errors import VerifyError
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.ops import OPS
from fxloom.program import Program, ProgramBuilder

from tests.conformance.packing import Anywhere, corner_inputs, draw_programs, pack
from tests.strategies import PROGRAMS

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

PROGRAMS_PER_OP = 12
SAMPLES = 64


def emit(program: Program, out: Path) -> Hls4mlBuild:
    build = get("hls4ml").emit(program, Anywhere(), out / "project", cache=out / "cache")  # type: ignore[arg-type, call-arg]
    assert isinstance(build, Hls4mlBuild)
    return build


def mismatches(program: Program, out: Path, count: int = SAMPLES) -> dict[str, int]:
    """Different integers an output, between the reference and the compiled C++."""
    inputs = corner_inputs(program, count, 1)
    got = emit(program, out).run_mantissas(inputs)
    return {
        port.name: int((a != b).sum())
        for port, a, b in zip(program.outputs, reference(program, inputs), got, strict=True)
        if (a != b).any()
    }


def test_every_operation_has_a_rule_or_a_declared_reason() -> None:
    assert set(RULES) | set(UNSUPPORTED) == set(OPS)
    assert not set(RULES) & set(UNSUPPORTED)
    assert get("hls4ml").unsupported == UNSUPPORTED


@needs_compiler
@pytest.mark.parametrize("name", sorted(set(OPS) - set(UNSUPPORTED)))
def test_every_operation_gives_the_simulators_integers(name: str, tmp_path: Path) -> None:
    narrow = draw_programs(PROGRAMS[name](9), PROGRAMS_PER_OP * 2 // 3, 1)
    wide = draw_programs(PROGRAMS[name](26), PROGRAMS_PER_OP // 3, 2)
    programs = [p for p in narrow + wide if evaluates(p)]
    assert len(programs) > PROGRAMS_PER_OP // 2
    assert mismatches(pack(programs), tmp_path) == {}


def evaluates(program: Program) -> bool:
    """Whether int64 can run it: interval arithmetic allows aligned arguments beyond 63 bits."""
    try:
        reference(program, corner_inputs(program, 4, 0))
    except VerifyError:
        return False
    return True


# -- requantize: every mode over every kind of format pair -----------------------------------------

SOURCES = [
    FixedPoint(8, 3),
    FixedPoint(8, 3, False),
    FixedPoint(1, 1),
    FixedPoint(1, 0, False),
    FixedPoint(5, -2),
    FixedPoint(4, 9),
    FixedPoint(40, 12),
]
TARGETS = [
    FixedPoint(4, 2),
    FixedPoint(4, 2, False),
    FixedPoint(1, 1),
    FixedPoint(1, 2, False),
    FixedPoint(3, -1),
    FixedPoint(3, 7),
    FixedPoint(12, 4),
]
MODES = [(rounding, overflow) for rounding in Rounding for overflow in Overflow]


def requantize_program(sources: list[FixedPoint], through_matmul: bool) -> Program:
    """Every mode for every pair of formats; through_matmul: in hls4ml's own accumulator."""
    b = ProgramBuilder()
    for index, source in enumerate(sources):
        x = b.input(f"x{index}", (6,), source)
        for number, to in enumerate(TARGETS):
            for rounding, overflow in MODES:
                value = x
                if through_matmul:
                    one = b.constant("one", np.eye(6, dtype=np.int64), FixedPoint(2, 2))
                    value = b.emit(ops.MatMul(), [x, one], "matmul")
                op = ops.Requantize(to, rounding, overflow)
                value = b.emit(op, [value], f"r{index}_{number}_{rounding}_{overflow}")
                b.output(value, value.name)
    return b.build()


@needs_compiler
@pytest.mark.parametrize("part", [0, 1])
def test_every_mode_of_requantize_over_many_formats(part: int, tmp_path: Path) -> None:
    program = requantize_program(SOURCES[part::2], through_matmul=False)
    assert mismatches(program, tmp_path, 60) == {}


@needs_compiler
def test_every_mode_fused_into_hls4mls_own_layers(tmp_path: Path) -> None:
    program = requantize_program([SOURCES[0], SOURCES[4]], through_matmul=True)
    kinds = [layer.kind for layer in make_plan(program).layers]
    assert kinds.count("Dense") == 2 * len(TARGETS) * len(MODES)
    assert kinds.count("FxloomKernel") == 2 * len(Rounding)  # SAT_SYM into one signed bit
    assert mismatches(program, tmp_path, 60) == {}


def test_the_corpus_really_saturates_wraps_and_ties() -> None:
    program = requantize_program(SOURCES, through_matmul=False)
    values = trace_all(program, corner_inputs(program, 60, 1))
    seen = {"tie": 0, "negative tie": 0, "above": 0, "below": 0, "negative": 0}
    for instr in program.instrs:
        source = program.value(instr.args[0])
        to = instr.op.to  # type: ignore[attr-defined]
        x = values[source.name]
        dropped = source.type.fraction - to.fraction
        if 0 < dropped < 60:
            tie = (x & ((1 << dropped) - 1)) == 1 << (dropped - 1)
            seen["tie"] += int(tie.sum())
            seen["negative tie"] += int((tie & (x < 0)).sum())
        exact = x * 2.0**-dropped
        seen["above"] += int((exact > to.hi + 1).sum())
        seen["below"] += int((exact < to.lo - 1).sum())
        seen["negative"] += int((x < 0).sum())
    assert min(seen.values()) > 1000, seen
