"""Accumulators with fewer bits than their sums: the same integers, where sums overflow as well."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from fxloom import ops
from fxloom.accumulators import accumulators
from fxloom.backends import get
from fxloom.backends.hls4ml import csim
from fxloom.backends.hls4ml.plan import make_plan
from fxloom.backends.simulator import quantize_inputs, reference, simulate
from fxloom.data import Data
from fxloom.exact import exact_forward
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.narrow_accumulators import NarrowAccumulators
from fxloom.passes.quantize import Quantize
from fxloom.program import Program, ProgramBuilder
from fxloom.target import LayerTable, Target
from tests.conformance.packing import corner_inputs, pack
from tests.models import make

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

Io = Literal["parallel", "stream"]

SAMPLES = 40
HEADS = ("dense", "conv", "depthwise", "pointwise", "dilated")
SETTINGS: list[LayerTable] = [
    {"strategy": "latency", "reuse": 1},
    {"strategy": "resource", "reuse": 4},
]


@pytest.fixture(autouse=True)
def unoptimized(monkeypatch: pytest.MonkeyPatch) -> None:
    """These projects are large, and run only a few samples."""
    monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-O0"))


def narrowed(head: str, endings: list[ops.Requantize], biased: bool, power: bool) -> Program:
    """A layer with the conversions that follow it; power: of weights that are powers of two."""
    rng = np.random.default_rng(len(head) + len(endings) + biased)
    b = ProgramBuilder()
    op: ops.MatMul | ops.Conv = ops.MatMul()
    shape, weights = (12,), (12, 4)
    if head != "dense":
        shape, weights = (5, 5, 4), (1, 1, 4, 4) if head == "pointwise" else (3, 3, 4, 4)
        if head == "depthwise":
            weights = (3, 3, 1, 4)
        dilation = (2, 2) if head == "dilated" else (1, 1)
        op = ops.Conv((1, 1), ((1, 1), (1, 1)), dilation, 4 if head == "depthwise" else 1)
        if head == "pointwise":
            op = ops.Conv((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    x = b.input("x", shape, FixedPoint(5, 2))
    data = rng.integers(-16, 16, weights)
    if power:
        data = np.sign(data) << np.abs(data) % 4
    w = b.constant("w", data, FixedPoint(5, 3))
    y = b.emit(op, [x, w], "layer")
    if biased:
        bias = b.constant("b", rng.integers(-250, 250, weights[-1]), FixedPoint(9, 5))
        y = b.emit(ops.Add(), [y, bias], "layer")
    for ending in endings:
        y = b.emit(ending, [y], "layer")
    b.output(y, "y")
    return b.build()


def sums_of(head: str) -> list[Program]:
    """Every way to narrow an accumulator, for one kind of layer."""
    # The exact sum has 5 fraction bits (and 6 to 10 integer bits).
    wrap = ops.Requantize(FixedPoint(8, 3))
    unsigned = ops.Requantize(FixedPoint(9, 4, False))
    programs = [
        narrowed(head, [wrap], True, False),
        narrowed(head, [wrap, ops.Requantize(FixedPoint(4, 2), Rounding.RND, Overflow.SAT)],
                 True, True),
        narrowed(head, [unsigned, ops.Requantize(FixedPoint(5, 3), Rounding.TRN, Overflow.SAT)],
                 False, False),
        narrowed(head, [wrap, ops.Requantize(FixedPoint(6, 1), Rounding.RND, Overflow.WRAP),
                        ops.Requantize(FixedPoint(9, 2), Rounding.TRN, Overflow.SAT)],
                 True, False),
        narrowed(head, [wrap, ops.Requantize(FixedPoint(7, 2)),
                        ops.Requantize(FixedPoint(5, 3), Rounding.RND_CONV, Overflow.SAT_SYM)],
                 True, False),
    ]  # fmt: skip
    programs += [
        narrowed(head, [ops.Requantize(FixedPoint(5, 3), rounding, Overflow.WRAP)], True, False)
        for rounding in Rounding
    ]
    return programs


@pytest.mark.parametrize("io", ["parallel", "stream"])
def test_sums_that_overflow_give_the_simulators_integers(io: Io, tmp_path: Path) -> None:
    programs = [program for head in HEADS for program in sums_of(head)]
    layers = {f"p{number}.*": SETTINGS[number % 2] for number in range(len(programs))}
    packed = pack(programs)
    build = get("hls4ml").emit(
        packed, Target(io=io, layers=layers), tmp_path / "project", cache=tmp_path / "cache"
    )
    inputs = corner_inputs(packed, SAMPLES, 1)
    got = build.run_mantissas(inputs)
    for port, a, b in zip(packed.outputs, reference(packed, inputs), got, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=port.name)


def last_sums(program: Program) -> Iterator[str]:
    """The names of the values that a Requantize reads, and no other does before."""
    rounded = {i.result.name for i in program.instrs if isinstance(i.op, ops.Requantize)}
    for instr in program.instrs:
        if isinstance(instr.op, ops.Requantize) and instr.args[0] not in rounded:
            yield instr.args[0]


def test_the_corpus_has_narrow_accumulators_that_overflow() -> None:
    narrow = 0
    for head in HEADS:
        for program in sums_of(head):
            (name,) = last_sums(program)
            accum, exact = accumulators(program)[name], program.value(name)
            layer = next(each for each in make_plan(program).layers if each.origin == "layer")
            if layer.accum is not None:
                assert layer.accum.format == accum
            narrow += accum.width < exact.type.width
            inputs = corner_inputs(program, SAMPLES, 1)
            (sums,) = reference(read_out(program, name), inputs)
            assert ((sums < accum.lo) | (sums > accum.hi)).mean() > 0.02 or accum == exact.type
    assert narrow >= len(HEADS) * 9


def read_out(program: Program, name: str) -> Program:
    """A program that ends with one of its values."""
    b = ProgramBuilder()
    values = {}
    for port in program.inputs:
        values[port.value.name] = b.input(port.value.name, port.value.shape, port.value.type)
    for constant in program.constants.values():
        values[constant.value.name] = b.constant(
            constant.value.name, constant.data, constant.value.type
        )
    for instr in program.instrs:
        values[instr.result.name] = b.emit(
            instr.op, [values[arg] for arg in instr.args], instr.origin
        )
        if instr.result.name == name:
            break
    b.output(values[name], "y")
    return b.build()


@pytest.mark.parametrize("io", ["parallel", "stream"])
def test_whole_models_agree_on_inputs_that_overflow(io: Io, tmp_path: Path) -> None:
    """Quantized graph, simulator, definition and C++; accumulators far too narrow, so that many
    sums overflow even on the calibration data, and inputs beyond those."""
    programs, inputs = [], []
    for name in ("mlp", "resnet avg 3", "separable", "signals"):
        model, x = make(name)
        data = Data(x_train=x[0])
        quantized = Quantize(weights=5, activations=6)(capture(model, x[0][:2]), data).graph
        step = NarrowAccumulators(bits=9)(quantized, data)
        figures = step.summary["accumulators"]
        assert isinstance(figures, dict)
        assert any(each["overflowed"] for each in figures.values())
        program = lower(step.graph)
        beyond = 3 * x[0][:SAMPLES]
        arrays = quantize_inputs(program, [beyond.numpy()])
        wanted = simulate(program, beyond.numpy())
        np.testing.assert_array_equal(exact_forward(step.graph, beyond).numpy(), wanted)
        port = program.outputs[0]
        definition = reference(program, arrays)[0] * program.value(port.value).type.step
        axes = (0, *(axis + 1 for axis in port.axes))
        np.testing.assert_array_equal(definition.transpose(axes), wanted)
        plain = lower(quantized)
        assert (simulate(plain, beyond.numpy()) != wanted).any()
        programs.append(program)
        inputs += arrays
    packed = pack(programs)
    build = get("hls4ml").emit(
        packed, Target(io=io), tmp_path / "project", cache=tmp_path / "cache"
    )
    for got, definition in zip(build.run_mantissas(inputs), reference(packed, inputs), strict=True):
        np.testing.assert_array_equal(got, definition)
