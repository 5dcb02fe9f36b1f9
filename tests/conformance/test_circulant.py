"""Block-circulant weights: the circulant kernel and the simulator's dense expansion give the same
integers, and one value a class is all that is stored."""

import re
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fxloom import ops
from fxloom.backends import get
from fxloom.backends.hls4ml import csim
from fxloom.backends.hls4ml.build import Hls4mlBuild
from fxloom.backends.hls4ml.plan import make_plan
from fxloom.backends.simulator import reference
from fxloom.circulant_layout import find_block, stored_values
from fxloom.errors import TargetError
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.program import Program, ProgramBuilder
from fxloom.target import LayerTable, Target
from tests.conformance.packing import corner_inputs, pack

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

Io = Literal["parallel", "stream"]
Ints = np.ndarray[Any, Any]

REUSE = (1, 2, 3, 5, 8, 16, 64, 10**9)
SAMPLES = 20

HEADS: dict[str, tuple[tuple[int, ...], tuple[int, ...], ops.Op, int]] = {
    "linear": ((40,), (40, 24), ops.MatMul(), 8),
    "cut off": ((13,), (13, 22), ops.MatMul(), 5),
    "one block": ((16,), (16, 16), ops.MatMul(), 16),
    "time-distributed": ((2, 3, 12), (12, 10), ops.MatMul(), 4),
    "conv1d": ((1, 12, 4), (1, 3, 4, 6), ops.Conv((1, 2), ((0, 0), (1, 1))), 3),
    "conv2d": ((5, 6, 4), (3, 3, 4, 8), ops.Conv((1, 1), ((1, 1), (1, 1))), 4),
    "stride": ((7, 6, 2), (3, 2, 2, 4), ops.Conv((3, 2), ((2, 0), (0, 1))), 2),
    "dilation": ((6, 7, 5), (2, 3, 5, 7), ops.Conv((1, 1), ((1, 1), (2, 2)), (2, 2)), 3),
    "pointwise": ((3, 4, 16), (1, 1, 16, 12), ops.Conv((2, 1), ((0, 0), (0, 0))), 7),
}


@pytest.fixture(autouse=True)
def unoptimized(monkeypatch: pytest.MonkeyPatch) -> None:
    """These projects are large, and run only a few samples."""
    monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-O0"))


def circulant(shape: tuple[int, ...], block: int, kind: FixedPoint, rng: Any) -> Ints:
    """Mantissas of the shape [..., channels, outputs] that are block-circulant."""
    *taps, channels, n_out = shape
    rows, columns = -(-channels // block), -(-n_out // block)
    values = rng.integers(kind.lo, kind.hi, (*taps, rows, columns, block), endpoint=True)
    channel, output = np.arange(channels)[:, None], np.arange(n_out)
    found: Ints = values[..., channel // block, output // block, (output - channel) % block]
    return found


def circulant_program(head: str, number: int) -> Program:
    """A layer with block-circulant weights, with or without a bias and what follows it."""
    rng = np.random.default_rng(number)
    shape, weights, op, block = HEADS[head]
    b = ProgramBuilder()
    bits = int(rng.integers(1, 10))
    x = b.input("x", shape, FixedPoint(bits, int(rng.integers(-2, bits + 3)), number % 3 > 0))
    width = int(rng.integers(4, 12))
    kind = FixedPoint(width, int(rng.integers(-2, width + 3)), number % 5 > 0)
    data = circulant(weights, block, kind, rng)
    if number % 6 == 5:  # powers of two
        data = np.where(data < 0, -1, 1) * np.where(data % 3 == 0, 2, 4) * (kind.lo < 0 or data > 0)
    y = b.emit(op, [x, b.constant("w", data, kind)], head)
    if number % 2:
        to = FixedPoint(7, int(rng.integers(-3, 9)))
        bias = b.constant("b", rng.integers(to.lo, to.hi, weights[-1], endpoint=True), to)
        y = b.emit(ops.Add(), [y, bias], head)
    if number % 7 == 3:  # a narrow accumulator: upper bits are dropped
        y = b.emit(ops.Requantize(FixedPoint(6, 6 - y.type.fraction)), [y], head)
    if number % 4:
        fit = FixedPoint(8, y.type.integer - 2, bool(number % 3))
        rounding, overflow = list(Rounding)[number % 7], list(Overflow)[number % 4]
        y = b.emit(ops.Requantize(fit, rounding, overflow), [y], head)
    b.output(y, "y")
    return b.build()


def corpus(part: int) -> tuple[Program, dict[str, LayerTable]]:
    """Every layer with reuse factors in turn: half of all pairs."""
    pairs = [(head, reuse) for reuse in REUSE for head in HEADS]
    chosen = [(n, *pair) for n, pair in enumerate(pairs) if n % 2 == part]
    layers: dict[str, LayerTable] = {
        f"p{place}.*": {"reuse": reuse} for place, (_, _, reuse) in enumerate(chosen)
    }
    return pack([circulant_program(head, number) for number, head, _ in chosen]), layers


def differences(program: Program, target: Target, out: Path) -> dict[str, int]:
    """Different integers an output, between the reference and the compiled C++."""
    build = get("hls4ml").emit(program, target, out / "project", cache=out / "cache")
    assert isinstance(build, Hls4mlBuild)
    inputs = corner_inputs(program, SAMPLES, 1)
    got = build.run_mantissas(inputs)
    return {
        port.name: int((a != b).sum())
        for port, a, b in zip(program.outputs, reference(program, inputs), got, strict=True)
        if (a != b).any()
    }


# -- integers ---------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(
    ("io", "backend", "part"), [("parallel", "Vitis", 0), ("stream", "Vivado", 1)]
)
def test_the_circulant_kernel_gives_the_simulators_integers(
    io: Io, backend: Literal["Vitis", "Vivado"], part: int, tmp_path: Path
) -> None:
    program, layers = corpus(part)
    target = Target(io=io, backend=backend, kernel="circulant", layers=layers)
    plan = make_plan(program, target)
    found = [layer.allotment for layer in plan.layers if layer.allotment is not None]
    assert [given.kernel for given in found] == ["circulant"] * (len(REUSE) * len(HEADS) // 2)
    assert differences(program, target, tmp_path) == {}
