"""Sparse weights: the sparse kernel, the dense one and the simulator give the same integers, and
what is zero is neither stored nor multiplied."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import fxloom
from fxloom import ops
from fxloom.backends import get
from fxloom.backends.hls4ml import csim
from fxloom.backends.hls4ml.build import Hls4mlBuild
from fxloom.backends.hls4ml.dialect import DIALECTS
from fxloom.backends.hls4ml.plan import make_plan
from fxloom.backends.simulator import reference
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.passes.quantize import Quantize
from fxloom.program import Program, ProgramBuilder
from fxloom.recipe import Recipe
from fxloom.target import KernelChoice, LayerTable, Target
from tests.conformance.packing import corner_inputs, pack
from tests.conformance.test_vendors import run_testbench

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

Io = Literal["parallel", "stream"]

REUSE = (1, 2, 3, 5, 8, 16, 64, 10**9)
SAMPLES = 30

HEADS: dict[str, tuple[tuple[int, ...], tuple[int, ...], ops.Op]] = {
    "linear": ((40,), (40, 24), ops.MatMul()),
    "one output": ((30,), (30, 1), ops.MatMul()),
    "one input": ((1,), (1, 9), ops.MatMul()),
    "time-distributed": ((2, 3, 12), (12, 10), ops.MatMul()),
    "conv1d": ((1, 12, 4), (1, 3, 4, 6), ops.Conv((1, 2), ((0, 0), (1, 1)))),
    "conv2d": ((5, 6, 3), (3, 3, 3, 5), ops.Conv((1, 1), ((1, 1), (1, 1)))),
    "stride": ((7, 6, 2), (3, 2, 2, 4), ops.Conv((3, 2), ((2, 0), (0, 1)))),
    "dilation": ((6, 7, 2), (2, 3, 2, 4), ops.Conv((1, 1), ((1, 1), (2, 2)), (2, 2))),
    "groups": ((4, 5, 6), (2, 3, 2, 9), ops.Conv((1, 1), ((1, 0), (1, 1)), (1, 1), 3)),
    "depthwise": ((5, 4, 5), (3, 3, 1, 5), ops.Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 5)),
    "dilated depthwise": ((6, 5, 3), (2, 2, 1, 6), ops.Conv((2, 1), ((1, 0), (0, 2)), (2, 2), 3)),
    "pointwise": ((3, 4, 16), (1, 1, 16, 8), ops.Conv((2, 1), ((0, 0), (0, 0)))),
}


@pytest.fixture(autouse=True)
def unoptimized(monkeypatch: pytest.MonkeyPatch) -> None:
    """These projects are large, and run only a few samples."""
    monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-O0"))


def sparsify(
    weights: np.ndarray[Any, Any], pattern: str, kind: FixedPoint, rng: np.random.Generator
) -> None:
    """Zeros among the mantissas of a format, in place."""
    n_out = weights.shape[-1]
    if pattern == "random":
        weights[rng.random(weights.shape) < rng.uniform(0.5, 0.97)] = 0
    elif pattern == "outputs":  # the first, the last and some between
        weights[..., rng.random(n_out) < 0.6] = 0
        weights[..., [0, n_out - 1]] = 0
        weights[rng.random(weights.shape) < 0.5] = 0
    elif pattern == "one":
        flat = weights.reshape(-1)
        kept = int(rng.integers(flat.size))
        flat[:kept] = 0
        flat[kept] |= 1
        flat[kept + 1 :] = 0
    elif pattern == "none":
        weights[...] = 0
    elif pattern == "powers":
        # Up to the largest, which only negative ones reach.
        shifts = rng.integers(0, kind.width - 1, weights.shape)
        weights[...] = np.where(weights < 0, -2 << shifts, 1 << shifts)
        weights[rng.random(weights.shape) < 0.7] = 0


PATTERNS = ("random", "outputs", "random", "one", "none", "powers", "full")


def product_program(
    head: str,
    shape: tuple[int, ...],
    op: ops.Op,
    number: int,
    weights: Callable[[FixedPoint, np.random.Generator], np.ndarray[Any, Any]],
) -> Program:
    """A layer with or without a bias and what follows it. weights: its mantissas, of a format."""
    rng = np.random.default_rng(number)
    b = ProgramBuilder()
    bits = int(rng.integers(1, 10))
    x = b.input("x", shape, FixedPoint(bits, int(rng.integers(-2, bits + 3)), number % 3 > 0))
    width = int(rng.integers(5, 12))
    kind = FixedPoint(width, int(rng.integers(-2, width + 3)), number % 5 > 0)
    data = weights(kind, rng)
    y = b.emit(op, [x, b.constant("w", data, kind)], head)
    if number % 2:
        to = FixedPoint(7, int(rng.integers(-3, 9)))
        bias = b.constant("b", rng.integers(to.lo, to.hi, data.shape[-1], endpoint=True), to)
        y = b.emit(ops.Add(), [y, bias], head)
    if number % 7 == 3:  # a narrow accumulator: upper bits are dropped
        y = b.emit(ops.Requantize(FixedPoint(6, 6 - y.type.fraction)), [y], head)
    if number % 4:
        fit = FixedPoint(8, y.type.integer - 2, bool(number % 3))
        rounding, overflow = list(Rounding)[number % 7], list(Overflow)[number % 4]
        y = b.emit(ops.Requantize(fit, rounding, overflow), [y], head)
    b.output(y, "y")
    return b.build()


def sparse_program(head: str, pattern: str, number: int) -> Program:
    """A layer with zeros among its weights."""
    shape, size, op = HEADS[head]

    def weights(kind: FixedPoint, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        data = rng.integers(kind.lo, kind.hi, size, endpoint=True)
        sparsify(data, pattern, kind, rng)
        return data

    return product_program(head, shape, op, number, weights)


def corpus(part: int) -> list[Program]:
    """Half of all pairs of a layer and a pattern of zeros: every layer, every pattern."""
    pairs = [(head, pattern) for pattern in PATTERNS for head in HEADS]
    return [
        sparse_program(*pair, number)
        for number, pair in enumerate(pairs)
        if (number + number // len(HEADS)) % 2 == part
    ]


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


def both_kernels(programs: list[Program]) -> tuple[Program, dict[str, LayerTable]]:
    """Every program with the sparse kernel and every other one with the dense or the indexed one as
    well, reuse factors in turn."""
    layers: dict[str, LayerTable] = {}
    packed = []
    for number, program in enumerate(programs):
        reuse = REUSE[(number * 5 + number // 8) % len(REUSE)]
        layers[f"p{len(packed)}.*"] = {"kernel": "sparse", "reuse": reuse}
        packed.append(program)
        if number % 2:
            kernel: KernelChoice = "dense" if number % 4 == 1 else "indexed"
            layers[f"p{len(packed)}.*"] = {"kernel": kernel, "reuse": reuse}
            packed.append(program)
    return pack(packed), layers


# -- integers ---------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(("io", "part"), [("parallel", 0), ("stream", 1)])
def test_sparse_indexed_and_dense_kernels_give_the_simulators_integers(
    io: Io, part: int, tmp_path: Path
) -> None:
    program, layers = both_kernels(corpus(part))
    target = Target(io=io, strategy="resource", layers=layers)
    found = [layer.allotment for layer in make_plan(program, target).layers]
    kernels = [given.kernel for given in found if given is not None]
    assert kernels.count("sparse") == len(HEADS) * len(PATTERNS) // 2
    assert kernels.count("dense") == 1 + kernels.count("indexed") == 11
    assert differences(program, target, tmp_path) == {}


@needs_compiler
@pytest.mark.parametrize("backend", ["Quartus", "Catapult"])
def test_sparse_kernels_of_ac_types(
    backend: Literal["Quartus", "Catapult"], tmp_path: Path
) -> None:
    programs = corpus(backend == "Quartus")[::2]
    layers: dict[str, LayerTable] = {
        f"p{number}.*": {"reuse": REUSE[number % len(REUSE)]} for number in range(len(programs))
    }
    part = {"Quartus": "10ax115"}.get(backend, "xc7z020")
    target = Target(part=part, backend=backend, kernel="sparse", layers=layers)
    assert differences(pack(programs), target, tmp_path) == {}


@needs_compiler
def test_sparse_kernels_in_the_testbench_of_oneapi(tmp_path: Path) -> None:
    """All that can be run of it, with the stand-in for SYCL."""
    program = pack(corpus(0)[:: len(PATTERNS)])
    target = Target(part="10ax115", backend="oneAPI", kernel="sparse", reuse=3)
    build = get("hls4ml").emit(program, target, tmp_path / "project")
    assert isinstance(build, Hls4mlBuild)
    done = run_testbench(build, tmp_path)
    assert (done.returncode, done.stdout) == (0, "PASS: 32 samples, every output equal\n")


@needs_compiler
def test_memories_as_wide_as_their_words_hold_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What synthesis reads: arrays of ap_int instead of built-in integers."""
    monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-DFXLOOM_LITERALS"))
    target = Target(io="stream", backend="Vivado", kernel="sparse", reuse=4)
    assert differences(pack(corpus(0)[:12]), target, tmp_path) == {}


def test_every_way_to_a_product_is_in_the_corpus() -> None:
    program, layers = both_kernels(corpus(0) + corpus(1))
    plan = make_plan(program, Target(strategy="resource", layers=layers))
    text = "\n".join(layer.kernel.declarations for layer in plan.layers if layer.kernel)
    for line in ("wired = true", "wired = false", "any_product", "shifted_product<"):
        assert text.count(line) > 5, line
    assert {
        re.findall(f"{key} = (true|false)", layer.kernel.declarations)[0]
        for layer in plan.layers
        for key in ("implied", "wired")
        if layer.kernel and layer.allotment and layer.allotment.kernel == "indexed"
    } == {"true", "false"}
    found = [layer.allotment for layer in plan.layers if layer.allotment]
    assert min(given.lanes for given in found if not given.is_dense) == 1
    assert max(given.lanes for given in found) > 100
    assert max(given.reuse for given in found if not given.is_dense) > 40


# -- must hold: what is stored and multiplied -----------------------------------------------------


def pruned(n_in: int, n_out: int, sparsity: float = 0.9, seed: int = 0) -> Program:
    """A dense layer of 8-bit weights of which most are zero."""
    rng = np.random.default_rng(seed)
    b = ProgramBuilder()
    x = b.input("x", (n_in,), FixedPoint(8, 3))
    magnitudes = rng.integers(1, 128, (n_in, n_out))
    weights = np.where(rng.random((n_in, n_out)) < 0.5, magnitudes, -magnitudes)
    order = rng.permutation(weights.size)[: round(sparsity * weights.size)]
    weights.reshape(-1)[order] = 0
    y = b.emit(ops.MatMul(), [x, b.constant("w", weights, FixedPoint(8, 1))], "fc")
    bias = b.constant("b", rng.integers(-100, 100, n_out), FixedPoint(8, 2))
    y = b.emit(ops.Add(), [y, bias], "fc")
    y = b.emit(ops.Requantize(FixedPoint(8, 4), Rounding.RND, Overflow.SAT), [y], "fc")
    b.output(y, "y")
    return b.build()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n_in", "n_out"), [(64, 64), (128, 64), (300, 100)])
def test_the_estimate_has_an_eighth_of_the_products_and_weights(
    n_in: int, n_out: int, seed: int
) -> None:
    program = pruned(n_in, n_out, seed=seed)
    for reuse in (2, 4, 8, 16, 64, 256):
        dense = Target(strategy="resource", reuse=reuse, kernel="dense")
        sparse = Target(strategy="resource", reuse=reuse)
        before, after = (estimate(program, target).layers[0] for target in (dense, sparse))
        assert after.kernel.startswith("sparse: ")
        assert before.macs >= 8 * after.macs
        held = [make_plan(program, target).layers[1] for target in (dense, sparse)]
        assert held[0].weights["weight"].mantissas.size == n_in * n_out
        assert n_in * n_out >= 8 * held[1].weights["weight"].mantissas.size
        assert held[1].allotment is not None
        assert after.csynth.dsp.value == held[1].allotment.lanes <= before.csynth.dsp.value / 8
        # What the report counts is what the project holds; the bias is 8 bits in both.
        memories = [each for each in held[1].weights.values() if each.memory]
        bits = sum(each.mantissas.size * each.kind.width for each in memories)
        assert after.stored_bits == bits + 8 * n_out
        assert before.stored_bits == 8 * n_in * n_out + 8 * n_out


COUNTING = """
#include "firmware/myproject.cpp"
#include <cstdio>

static long long products = 0;

@CONFIG@

int main() {
    static input_t x[@N_IN@];
    static result_t y[@N_OUT@];
    for (int k = 0; k < @N_IN@; k++) x[k] = 1;
    @CALL@
    std::printf("%lld\\n", products);
}
"""
COUNTED = {
    "sparse": """
struct counted {
    template <class X, class W> static auto times(const X &x, const W &w) -> decltype(x * w) {
        products++;
        return x * w;
    }
};
struct config : config2 { typedef counted product; };
""",
    "dense": """
template <class X, class W> struct counted : nnet::product::Product {
    static auto product(X x, W w) -> decltype(x * w) {
        products++;
        return x * w;
    }
};
struct config : config2 { template <class X, class W> using product = counted<X, W>; };
""",
}


@needs_compiler
def test_the_generated_code_does_an_eighth_of_the_products(tmp_path: Path) -> None:
    program, sizes, counts = pruned(64, 48), {}, {}
    for kernel, config in COUNTED.items():
        target = Target(strategy="resource", reuse=8, kernel=kernel)  # type: ignore[arg-type]
        folder = tmp_path / kernel
        get("hls4ml").emit(program, target, folder)
        files = (folder / "firmware" / "weights").glob("*.h")
        text = "".join(path.read_text() for path in files)
        # Arrays of weights; hls4ml's layer has them a second time, for simulation.
        arrays = dict(re.findall(r"(?:_t|static const \S+) ([wc]2(?:_1)?)\[(\d+)\]", text))
        sizes[kernel] = {int(size) for size in arrays.values()}
        lines = (folder / "firmware" / "myproject.cpp").read_text().splitlines()
        call = next(line for line in lines if "<" in line and "config2>(" in line)
        call = call.replace("config2>", "config>").replace("layer2_out", "y")
        call = re.sub(r"\bn1_x\b", "x", call)
        source = COUNTING.replace("@CONFIG@", config).replace("@CALL@", call)
        source = source.replace("@N_IN@", "64").replace("@N_OUT@", "48")
        (folder / "count.cpp").write_text(source)
        includes = [f"-I{folder / name}" for name in (".", *DIALECTS["Vitis"].includes)]
        command = ["g++", "-std=c++11", "-DNDEBUG", "-w", *includes, "count.cpp", "-o", "count"]
        subprocess.run(command, cwd=folder, check=True)
        run = subprocess.run([folder / "count"], capture_output=True, text=True, check=True)
        counts[kernel] = int(run.stdout)
    nonzero = round(0.1 * 64 * 48)
    assert counts["dense"] == 64 * 48
    assert nonzero <= counts["sparse"] <= counts["dense"] / 8
    assert sizes == {"dense": {64 * 48}, "sparse": {counts["sparse"]}}
    all_arrays = re.findall(r"\[(\d+)\]", text if kernel == "sparse" else "")
    assert max(map(int, all_arrays), default=0) < 64 * 48 / 8


# -- models ---------------------------------------------------------------


class Sparse(nn.Module):
    """A convolution, a depthwise one and two linear layers, most weights zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(2, 12, 3, padding=1), nn.Conv2d(12, 12, 3, groups=12)
        self.hidden, self.head = nn.Linear(12 * 16, 40), nn.Linear(40, 5)
        with torch.no_grad():
            for layer in (self.conv, self.depthwise, self.hidden):
                layer.weight *= torch.rand_like(layer.weight) < 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.depthwise(torch.relu(self.conv(x))))
        return self.head(torch.relu(self.hidden(y.flatten(1))))


@needs_compiler
@pytest.mark.parametrize("io", ["parallel", "stream"])
def test_a_sparse_model_from_end_to_end(io: Io, tmp_path: Path) -> None:
    torch.manual_seed(0)
    target = Target(io=io, strategy="resource", reuse=8)
    data = torch.randn(40, 2, 6, 6)
    build = fxloom.compile(
        Sparse().eval(), data=data, recipe=Recipe([Quantize()]), target=target, out=tmp_path / "b"
    )
    assert fxloom.check(tmp_path / "b", samples=20).is_exact
    said = {layer.name: layer.kernel.partition(":")[0] for layer in build.report.layers}
    assert [said[name] for name in ("conv", "hidden", "head")] == ["sparse", "sparse", ""]
    assert "hidden: sparse: " in build.report.to_text()
