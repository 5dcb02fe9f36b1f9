"""The simulator and the compiled C++ of the hls4ml backend give the same integers."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fxloom import ops
from fxloom.backends import get
from fxloom.backends import hls4ml as hls4ml_backend
from fxloom.backends.hls4ml import csim
from fxloom.backends.hls4ml.build import Hls4mlBuild
from fxloom.backends.hls4ml.dialect import ValueType
from fxloom.backends.hls4ml.kernels import RULES, UNSUPPORTED
from fxloom.backends.hls4ml.plan import Plan, make_plan
from fxloom.backends.simulator import reference, trace_all
from fxloom.errors import VerifyError
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.ops import OPS
from fxloom.program import Program, ProgramBuilder, Value
from fxloom.target import Target
from tests.conformance.packing import corner_inputs, draw_programs, pack
from tests.strategies import PROGRAMS

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

PROGRAMS_PER_OP = 30
SAMPLES = 64


def emit(program: Program, out: Path) -> Hls4mlBuild:
    build = get("hls4ml").emit(program, Target(), out / "project", cache=out / "cache")
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


@pytest.fixture
def unoptimized(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand kernels compile three times as fast so, and run only a few samples."""
    monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-O0"))


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


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("matmul", {"Dense", "FxloomKernel"}),
        ("conv", {"Conv2D", "DepthwiseConv2D", "FxloomKernel"}),
    ],
)
def test_the_corpus_has_hls4mls_own_layers_and_ours(name: str, classes: set[str]) -> None:
    programs = draw_programs(PROGRAMS[name](9), PROGRAMS_PER_OP * 2 // 3, 1)
    layers = [layer for program in programs for layer in make_plan(program).layers]
    heads = Counter(layer.kind for layer in layers if layer.ops[0] == name)
    assert set(heads) == classes
    fused = [layer for layer in layers if layer.ops[:2] == (name, "requantize")]
    assert fused  # how many are drawn depends on the modules that Hypothesis takes constants from


HEADS = ["dense", "conv", "depthwise", "dilated"]


def biased(head: str, number: int) -> Program:
    """A layer with a bias of any format, on either side, shaped as channels or as one number."""
    rng = np.random.default_rng(number)
    b = ProgramBuilder()

    def kind(width: int) -> FixedPoint:
        bits = int(rng.integers(1, width + 1))
        return FixedPoint(bits, int(rng.integers(-3, bits + 4)), bool(rng.integers(2)))

    def constant(shape: tuple[int, ...]) -> Value:
        to = kind(8)
        return b.constant("c", rng.integers(to.lo, to.hi, shape, endpoint=True), to)

    if head == "dense":
        x = b.input("x", (6,), kind(8))
        y = b.emit(ops.MatMul(), [x, constant((6, 4))], head)
    else:
        x = b.input("x", (4, 3, 4), kind(8))
        op, shape = {
            "conv": (ops.Conv((1, 2), ((1, 0), (2, 1))), (2, 3, 4, 4)),
            "depthwise": (ops.Conv((2, 1), ((0, 1), (1, 1)), groups=4), (3, 2, 1, 4)),
            "dilated": (ops.Conv((1, 1), ((1, 1), (1, 1)), (2, 2), 2), (2, 2, 2, 4)),
        }[head]
        y = b.emit(op, [x, constant(shape)], head)
    bias = constant([(4,), (1,), (1, 4)][int(rng.integers(2 if head == "dense" else 3))])
    y = b.emit(ops.Add(), [y, bias] if rng.integers(2) else [bias, y], head)
    if rng.integers(3):
        rounding = list(Rounding)[rng.integers(7)]
        fit = ops.Requantize(kind(10), rounding, list(Overflow)[rng.integers(4)])
        y = b.emit(fit, [y], head)
    b.output(y, "y")
    return b.build()


@needs_compiler
@pytest.mark.usefixtures("unoptimized")
@pytest.mark.parametrize("head", HEADS)
def test_biases_of_any_format_are_exact(head: str, tmp_path: Path) -> None:
    programs = [biased(head, number) for number in range(20)]
    kinds = {layer.ops[:2] for p in programs for layer in make_plan(p).layers}
    assert ((("matmul" if head == "dense" else "conv"), "add") in kinds) == (head != "dilated")
    assert mismatches(pack(programs), tmp_path) == {}


def wide_program() -> Program:
    """Values of 54 to 63 bits, which no double holds."""
    b = ProgramBuilder()
    x = b.input("x", (4,), FixedPoint(40, 7))
    z = b.input("z", (4,), FixedPoint(63, 20, False))
    w = b.constant("w", np.array([[2**20 + 1], [3], [-(2**19)], [1]]), FixedPoint(22, 22))
    huge = b.constant("huge", np.array([2**61 + 1, -(2**61) + 1, 0, 5]), FixedPoint(63, 63))
    b.output(b.emit(ops.MatMul(), [x, w], "matmul"), "product")
    half = b.emit(ops.Requantize(FixedPoint(62, 20), Rounding.RND_CONV, Overflow.SAT), [z], "half")
    b.output(half, "half")
    integer = b.emit(ops.Requantize(FixedPoint(61, 61), Rounding.RND, Overflow.WRAP), [z], "int")
    b.output(b.emit(ops.Add(), [integer, huge], "add"), "sum")
    tall = b.constant("tall", np.array([[2**54 + 1, 1], [1, 0], [0, 1], [0, -(2**54)]]), huge.type)
    bit = b.input("bit", (4,), FixedPoint(1, 1, False))
    b.output(b.emit(ops.MatMul(), [bit, tall], "tall"), "tall")
    b.output(b.emit(ops.Max(), [half, x], "max"), "max")
    return b.build()


@needs_compiler
def test_scalars(tmp_path: Path) -> None:
    b = ProgramBuilder()
    x = b.input("x", (), FixedPoint(6, 3))
    z = b.input("z", (3,), FixedPoint(5, 2))
    total = b.emit(
        ops.Reshape(()),
        [
            b.emit(
                ops.Pool("sum", (3, 1), (1, 1)),
                [b.emit(ops.Reshape((3, 1, 1)), [z], "image")],
                "sum",
            )
        ],
        "total",
    )
    three = b.constant("three", np.array(3), FixedPoint(4, 2))
    results = [
        b.emit(ops.Add(), [x, z], "add"),
        b.emit(ops.Mul(), [x, total], "mul"),
        b.emit(ops.Max(), [total, three], "max"),
        b.emit(ops.Pad(()), [x], "pad"),
        b.emit(ops.Transpose(()), [x], "transpose"),
        b.emit(ops.Requantize(FixedPoint(3, 3)), [total], "requantize"),
    ]
    for value in results:
        b.output(value, value.name)
    assert mismatches(b.build(), tmp_path) == {}


@needs_compiler
def test_values_beyond_53_bits_cross_unharmed(tmp_path: Path) -> None:
    program = wide_program()
    build = emit(program, tmp_path)
    inputs = corner_inputs(program, SAMPLES, 3)
    outputs = build.run_mantissas(inputs)
    for a, b in zip(reference(program, inputs), outputs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert max(int(abs(array).max()).bit_length() for array in outputs) >= 62
    assert [x["class"] for x in build.layers if x["origin"] == "tall"] == ["FxloomKernel"]


@needs_compiler
@pytest.mark.parametrize("fault", ["narrow and saturating", "drops fraction bits"])
def test_a_wrong_accumulator_is_caught(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    b = ProgramBuilder()
    x = b.input("x", (16,), FixedPoint(8, 2))
    w = b.constant("w", rng.integers(-128, 128, (16, 8)), FixedPoint(8, 1))
    y = b.emit(ops.MatMul(), [x, w], "fc")
    b.output(b.emit(ops.Requantize(FixedPoint(9, 4), Rounding.RND, Overflow.WRAP), [y], "fc"), "y")
    program = b.build()

    def wrong_plan(program: Program, target: Target) -> Plan:
        plan = make_plan(program, target)
        dense = plan.layers[1]
        assert dense.accum is not None
        kind = dense.accum.format
        accum = {
            "narrow and saturating": ValueType(
                replace(kind, width=kind.width - 3, integer=kind.integer - 3),
                overflow=Overflow.SAT,
            ),
            "drops fraction bits": ValueType(replace(kind, width=kind.width - 5)),
        }[fault]
        wrong = replace(dense, accum=accum)
        return Plan((plan.layers[0], wrong), plan.inputs, (wrong,))

    assert mismatches(program, tmp_path / "right") == {}
    monkeypatch.setattr(hls4ml_backend, "make_plan", wrong_plan)
    assert mismatches(program, tmp_path / "wrong")["y"] > 10


@needs_compiler
def test_an_accumulator_may_wrap_where_the_sum_fits(tmp_path: Path) -> None:
    b = ProgramBuilder()
    x = b.input("x", (3,), FixedPoint(8, 8, False))
    # Partial sums reach 127 * 255 + 100; the result, and so the accumulator, is far narrower.
    w = b.constant("w", np.array([[127], [0], [0]]), FixedPoint(8, 8))
    square = b.emit(ops.MatMul(), [x, w], "fc")
    bias = b.constant("b", np.array([-16000]), FixedPoint(15, 15))
    b.output(b.emit(ops.Add(), [square, bias], "fc"), "y")
    program = b.build()
    accum = make_plan(program).layers[1].accum
    assert accum is not None
    assert accum.format.width < 17
    assert mismatches(program, tmp_path) == {}


def evaluates(program: Program) -> bool:
    """Whether int64 can run it: interval arithmetic allows aligned arguments beyond 63 bits."""
    try:
        reference(program, corner_inputs(program, 4, 0))
    except VerifyError:
        return False
    return True


# -- requantize: every mode over every kind of format pair ---------------------------------------

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
@pytest.mark.usefixtures("unoptimized")
@pytest.mark.parametrize("part", [0, 1])
def test_every_mode_of_requantize_over_many_formats(part: int, tmp_path: Path) -> None:
    program = requantize_program(SOURCES[part::2], through_matmul=False)
    assert mismatches(program, tmp_path, 60) == {}


@needs_compiler
@pytest.mark.usefixtures("unoptimized")
def test_every_mode_fused_into_hls4mls_own_layers(tmp_path: Path) -> None:
    program = requantize_program([SOURCES[0], SOURCES[4]], through_matmul=True)
    kinds = [layer.kind for layer in make_plan(program).layers]
    assert kinds.count("Dense") == 2 * len(TARGETS) * len(MODES)
    # Kernels: SAT_SYM into one signed bit, and rounding off more bits than there are.
    assert 2 * len(Rounding) <= kinds.count("FxloomKernel") < len(kinds) // 4
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
