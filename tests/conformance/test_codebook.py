"""Codebooks: the kernel gives the simulator's integers, with one multiplication for each value of
an output, or of an input."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fxloom import ops
from fxloom.backends.hls4ml import csim
from fxloom.backends.hls4ml.dialect import DIALECTS
from fxloom.backends.hls4ml.plan import make_plan
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.kernels import codebook
from fxloom.matrices import Matrix
from fxloom.program import Program, ProgramBuilder
from fxloom.target import LayerTable, Target
from tests.conformance.packing import pack
from tests.conformance.test_sparse import COUNTING, HEADS, REUSE, differences, unoptimized

__all__ = ["unoptimized"]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

Io = Literal["parallel", "stream"]

PATTERNS = ("few", "one value", "zeros", "powers", "none", "negative", "by output", "all different")


@pytest.fixture
def either_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums or products first, whatever is cheaper, by a number that tells matrices apart."""
    forms = codebook.forms

    def one_order(matrix: Matrix, reuse: int) -> Iterator[codebook.Form]:
        found = list(forms(matrix, reuse))
        orders = sorted({form.order for form in found})
        order = orders[int(np.abs(matrix.weights.astype(np.int64)).sum()) % len(orders)]
        return iter([form for form in found if form.order == order])

    monkeypatch.setattr(codebook, "forms", one_order)


def few_values(
    shape: tuple[int, ...], pattern: str, kind: FixedPoint, rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Mantissas of a format, of which many are the same."""
    size = int(rng.integers(2, 9))
    centroids = rng.choice(np.arange(kind.lo, kind.hi + 1), size, replace=False)
    if pattern == "one value":
        centroids = centroids[:1]
    elif pattern == "powers":
        shifts = rng.integers(0, kind.width - 1, size)
        centroids = np.where(centroids < 0, -2 << shifts, 1 << shifts)
    elif pattern == "none":
        centroids[...] = 0
    elif pattern == "negative":
        centroids = np.unique(np.minimum(centroids, 0)) if kind.signed else centroids
    found = rng.choice(centroids, shape)
    if pattern == "zeros":
        found[rng.random(shape) < rng.uniform(0.3, 0.9)] = 0
    elif pattern == "by output":  # every second half of the outputs has other values
        half = (shape[-1] + 1) // 2
        found[..., half:] = rng.choice(np.arange(kind.lo, kind.hi + 1), 2)[found[..., half:] % 2]
    elif pattern == "all different":
        found = rng.integers(kind.lo, kind.hi, shape, endpoint=True)
    return found


def shared_program(head: str, pattern: str, number: int) -> Program:
    """A layer of few values, with or without a bias and what follows it."""
    rng = np.random.default_rng(number)
    shape, weights, op = HEADS[head]
    b = ProgramBuilder()
    bits = int(rng.integers(1, 10))
    x = b.input("x", shape, FixedPoint(bits, int(rng.integers(-2, bits + 3)), number % 3 > 0))
    width = int(rng.integers(5, 12))
    kind = FixedPoint(width, int(rng.integers(-2, width + 3)), number % 5 > 0)
    y = b.emit(op, [x, b.constant("w", few_values(weights, pattern, kind, rng), kind)], head)
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
    """A quarter of all pairs of a layer and a pattern: every layer, every pattern; reuse factors
    in turn."""
    pairs = [(head, pattern) for pattern in PATTERNS for head in HEADS]
    programs, layers = [], {}
    for number, pair in enumerate(pairs):
        if (number + number // len(HEADS)) % 4 == part:
            reuse = REUSE[(number * 5 + number // 8) % len(REUSE)]
            layers[f"p{len(programs)}.*"] = LayerTable(reuse=reuse)
            programs.append(shared_program(*pair, number))
    return pack(programs), layers


# -- integers ---------------------------------------------------------------


@needs_compiler
@pytest.mark.usefixtures("either_order")
@pytest.mark.parametrize(("io", "part"), [("parallel", 0), ("stream", 1)])
def test_codebooks_give_the_simulators_integers(io: Io, part: int, tmp_path: Path) -> None:
    program, layers = corpus(part)
    backend: Literal["Vitis", "Vivado"] = "Vitis" if io == "parallel" else "Vivado"
    target = Target(io=io, backend=backend, kernel="codebook", layers=layers)
    assert differences(program, target, tmp_path) == {}


@needs_compiler
@pytest.mark.usefixtures("either_order")
def test_codebooks_of_ac_types(tmp_path: Path) -> None:
    program, layers = corpus(2)
    target = Target(backend="Catapult", kernel="codebook", layers=layers)
    assert differences(program, target, tmp_path) == {}


def wide_program(order: str) -> Program:
    """Weights of 40 bits; groups, so that sums come first, or none."""
    rng = np.random.default_rng(3)
    b = ProgramBuilder()
    x, op = b.input("x", (3, 3, 4), FixedPoint(9, 4)), ops.Conv(groups=2 if order == "sums" else 1)
    values = rng.integers(-(1 << 39), 1 << 39, 3)
    w = rng.choice(values, (2, 2, 4 // op.groups, 6))
    y = b.emit(op, [x, b.constant("w", w, FixedPoint(40, 20))], order)
    b.output(b.emit(ops.Requantize(FixedPoint(30, 12), Rounding.RND), [y], order), "y")
    return b.build()


@needs_compiler
@pytest.mark.usefixtures("either_order")
def test_memories_as_wide_as_their_words_hold_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What synthesis reads: arrays of ap_int instead of built-in integers."""
    monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-DFXLOOM_LITERALS"))
    pairs = [("linear", "few"), ("time-distributed", "zeros"), ("conv2d", "few"), ("groups", "few")]
    programs = [shared_program(*pair, number) for number, pair in enumerate(pairs)]
    program = pack([*programs, wide_program("sums"), wide_program("products")])
    target = Target(io="stream", kernel="codebook", reuse=4)
    assert differences(program, target, tmp_path) == {}


@pytest.mark.usefixtures("either_order")
def test_every_way_to_a_product_is_in_the_corpus() -> None:
    text = []
    for part in range(3):
        program, layers = corpus(part)
        plan = make_plan(program, Target(kernel="codebook", layers=layers))
        text += [layer.kernel.declarations for layer in plan.layers if layer.kernel]
        assert {layer.allotment.kernel for layer in plan.layers if layer.allotment} == {"codebook"}
    for line in ("codebook_sums<", "codebook_products<", "lag = 1;", "shifted_product<"):
        assert sum(line in each for each in text) > 5, line
    for name in ("wide", "turns", "codebooks", "lanes_of_book"):
        found = [int(n) for each in text for n in re.findall(rf"int {name} = (\d+);", each)]
        assert sum(n > 1 for n in found) > 2, name
        assert sum(n == 1 for n in found) > 2, name


# -- must hold: what is multiplied -----------------------------------------------------------------


def shared(n_in: int, n_out: int, values: int, seed: int = 0) -> Program:
    """A linear layer whose 8-bit weights have so many values, none of them zero."""
    rng = np.random.default_rng(seed)
    b = ProgramBuilder()
    x = b.input("x", (n_in,), FixedPoint(8, 3))
    magnitudes = np.arange(11, 120, 2)
    centroids = np.sort(rng.choice([*magnitudes, *-magnitudes], values, replace=False))
    weights = rng.choice(centroids, (n_in, n_out))
    y = b.emit(ops.MatMul(), [x, b.constant("w", weights, FixedPoint(8, 1))], "fc")
    bias = b.constant("b", rng.integers(-100, 100, n_out), FixedPoint(8, 2))
    y = b.emit(ops.Add(), [y, bias], "fc")
    y = b.emit(ops.Requantize(FixedPoint(8, 4), Rounding.RND, Overflow.SAT), [y], "fc")
    b.output(y, "y")
    return b.build()


@pytest.mark.parametrize("reuse", [1, 2, 8, 64, 256, 512, 4096])
def test_the_estimate_has_a_sixteenth_of_the_products(reuse: int) -> None:
    program = shared(256, 256, 16)
    dense, few = (
        Target(part="xcvu9p", strategy="resource", reuse=reuse, kernel=kernel)
        for kernel in ("dense", "codebook")
    )
    before, after = (estimate(program, target).layers[0] for target in (dense, few))
    assert (before.macs, after.macs) == (256 * 256, 256 * 16)
    assert after.kernel.startswith("codebook: asked for, 16 values ")
    held = make_plan(program, few).layers[1]
    assert held.allotment is not None
    if reuse > 1:  # constants: equal products of an input are formed once by the dense one too
        # Of a single position sums and products take half of the steps each.
        fewer = 8 if held.allotment.form == "sums" else 16
        assert after.csynth.dsp.value <= max(before.csynth.dsp.value / fewer, 16)
    (rom,) = (each for each in held.weights.values() if each.memory)
    index_bits = 4 * 256 * 256
    assert rom.mantissas.size * rom.kind.width in (index_bits, 4096 * 8)
    assert index_bits < after.stored_bits <= index_bits + 4096 * 8 + 256 * 8
    assert before.stored_bits == 8 * 256 * 256 + 256 * 8


@pytest.mark.parametrize(
    ("head", "order", "steps", "positions"),
    [
        # Alone it has nothing to overlap with: half of the steps for sums, half for products.
        ("linear", "sums", 3, 1 + 1),
        ("linear", "products", 6, 1),
        ("time-distributed", "sums", 6, 6 + 1),
        ("time-distributed", "products", 6, 6),
        # In every row of windows the first comes in, and in the end sums are multiplied.
        ("conv2d", "sums", 6, 5 * (6 + 2)),
        ("conv2d", "products", 6, 5 * (6 + 1)),
    ],
)
def test_the_estimate_has_the_cycles_of_the_loops(
    head: str, order: str, steps: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = codebook.forms
    monkeypatch.setattr(
        codebook, "forms", lambda *of: (form for form in forms(*of) if form.order == order)
    )
    shape, weights, op = HEADS[head]
    b = ProgramBuilder()
    x = b.input("x", shape, FixedPoint(8, 3))
    values = few_values(weights, "few", FixedPoint(8, 3), np.random.default_rng(0))
    b.output(b.emit(op, [x, b.constant("w", values, FixedPoint(8, 3))], head), "y")
    program, target = b.build(), Target(kernel="codebook", reuse=6)
    given = make_plan(program, target).layers[1].allotment
    assert given is not None
    assert (given.form, given.reuse) == (order, steps)
    assert estimate(program, target).layers[0].interval.value == positions * steps


COUNTER = """
struct counted {
    template <class X, class W> static auto times(const X &x, const W &w) -> decltype(x * w) {
        products++;
        return x * w;
    }
};
"""
COUNTED = {
    "sums": """
struct counting : config2_multiplying { typedef counted product; };
struct config : config2 {
    typedef counting multiplying;
    typedef fxloom::codebook_sums<config> engine;
};
""",
    "products": """
struct config : config2 {
    typedef counted product;
    typedef fxloom::codebook_products<config> engine;
};
""",
}


@needs_compiler
@pytest.mark.parametrize(("order", "reuse"), [("sums", 8), ("products", 256)])
def test_the_generated_code_does_a_sixteenth_of_the_products_and_is_exact(
    order: str, reuse: int, tmp_path: Path
) -> None:
    program = shared(256, 256, 16)
    target = Target(part="xcvu9p", strategy="resource", reuse=reuse, kernel="codebook")
    assert differences(program, target, tmp_path) == {}
    folder = tmp_path / "project"
    lines = (folder / "firmware" / "myproject.cpp").read_text().splitlines()
    call = next(line for line in lines if "_matmul<config2>(" in line)
    call = re.sub(r"\bn1_x\b", "x", call.replace("config2>", "config>").replace("layer2_out", "y"))
    source = COUNTING.replace("@CONFIG@", COUNTER + COUNTED[order]).replace("@CALL@", call)
    source = source.replace("@N_IN@", "256").replace("@N_OUT@", "256")
    (folder / "count.cpp").write_text(source)
    includes = [f"-I{folder / name}" for name in (".", *DIALECTS["Vitis"].includes)]
    command = ["g++", "-std=c++11", "-DNDEBUG", "-w", *includes, "count.cpp", "-o", "count"]
    subprocess.run(command, cwd=folder, check=True)
    run = subprocess.run([folder / "count"], capture_output=True, text=True, check=True)
    assert int(run.stdout) == 256 * 256 // 16
