"""Block-circulant weights: the circulant kernel and the simulator's dense expansion give the same
integers, and one value a class is all that is stored."""

import re
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import fxloom
from fxloom import ops
from fxloom.backends import get
from fxloom.backends.hls4ml.plan import make_plan
from fxloom.circulant_layout import find_block, stored_values
from fxloom.errors import TargetError
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.passes import Circulant, Quantize
from fxloom.program import Program, ProgramBuilder
from fxloom.recipe import Recipe
from fxloom.target import LayerTable, Target
from tests.conformance.packing import pack
from tests.conformance.test_sparse import REUSE, differences, product_program, unoptimized

__all__ = ["unoptimized"]  # of the fixture's name pytest must know

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

Io = Literal["parallel", "stream"]
Ints = np.ndarray[Any, Any]

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


def circulant(shape: tuple[int, ...], block: int, kind: FixedPoint, rng: Any) -> Ints:
    """Mantissas of the shape [..., channels, outputs] that are block-circulant."""
    *taps, channels, n_out = shape
    rows, columns = -(-channels // block), -(-n_out // block)
    values = rng.integers(kind.lo, kind.hi, (*taps, rows, columns, block), endpoint=True)
    channel, output = np.arange(channels)[:, None], np.arange(n_out)
    found: Ints = values[..., channel // block, output // block, (output - channel) % block]
    return found


def circulant_program(head: str, number: int) -> Program:
    """A layer with block-circulant weights."""
    shape, size, op, block = HEADS[head]

    def weights(kind: FixedPoint, rng: np.random.Generator) -> Ints:
        data = circulant(size, block, kind, rng)
        if number % 5 != 4:
            return data
        signs = np.where((data < 0) & kind.signed, -1, 1)
        return signs * np.where(data % 3 == 0, 2, 4)  # powers of two

    return product_program(head, shape, op, number, weights)


def corpus(part: int) -> tuple[Program, dict[str, LayerTable]]:
    """A third of all pairs of a layer and a reuse factor, every layer in each."""
    pairs = [(head, reuse) for reuse in REUSE for head in HEADS]
    chosen = [(n, *pair) for n, pair in enumerate(pairs) if (n + n // len(HEADS)) % 3 == part]
    layers: dict[str, LayerTable] = {
        f"p{place}.*": {"reuse": reuse} for place, (_, _, reuse) in enumerate(chosen)
    }
    return pack([circulant_program(head, number) for number, head, _ in chosen]), layers


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
    assert [given.kernel for given in found] == ["circulant"] * (len(REUSE) * len(HEADS) // 3)
    assert differences(program, target, tmp_path) == {}


@needs_compiler
def test_circulant_kernels_of_ac_types(tmp_path: Path) -> None:
    programs = [circulant_program(head, number) for number, head in enumerate(HEADS)]
    layers: dict[str, LayerTable] = {
        f"p{place}.*": {"reuse": REUSE[place % len(REUSE)]} for place in range(len(programs))
    }
    target = Target(part="10ax115", backend="Quartus", kernel="circulant", layers=layers)
    assert differences(pack(programs), target, tmp_path) == {}


def test_every_way_to_a_product_is_in_the_corpus() -> None:
    for part in range(2):
        program, layers = corpus(part)
        plan = make_plan(program, Target(kernel="circulant", layers=layers))
        text = "\n".join(layer.kernel.declarations for layer in plan.layers if layer.kernel)
        for line in ("wired = true", "wired = false", "any_product", "shifted_product<"):
            assert text.count(line) >= 4, line
        blocks = {int(found) for found in re.findall(r" block = (\d+);", text)}
        assert blocks >= {2, 3, 4, 5, 7, 8, 16}


class Blocks(nn.Module):
    """A convolution and two linear layers behind its flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8 * 9, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(torch.relu(self.conv(x)).flatten(1))))


@needs_compiler
def test_a_circulant_model_from_end_to_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    build = fxloom.compile(
        Blocks().eval(),
        data=torch.randn(40, 4, 3, 3),
        recipe=Recipe([Circulant(exclude=("head",)), Quantize()]),
        target=Target(io="stream", strategy="resource", reuse=4),
        out=tmp_path / "b",
    )
    assert fxloom.check(tmp_path / "b", samples=20).is_exact
    said = {layer.name: layer.kernel.partition(":")[0] for layer in build.report.layers}
    assert [said[name] for name in ("conv", "hidden", "head")] == ["circulant", "circulant", ""]
    assert "hidden: circulant: 576 values for 2,304 weights" in build.report.to_text()


# -- what is stored and multiplied -----------------------------------------------------


def layer_of(n_in: int, n_out: int, block: int) -> Program:
    """A linear layer of 8-bit weights."""
    b, byte = ProgramBuilder(), FixedPoint(8, 3)
    w = circulant((n_in, n_out), block, byte, np.random.default_rng(0))
    y = b.emit(ops.MatMul(), [b.input("x", (n_in,), byte), b.constant("w", w, byte)], "fc")
    b.output(b.emit(ops.Requantize(byte, Rounding.RND, Overflow.SAT), [y], "fc"), "y")
    return b.build()


@pytest.mark.parametrize(("n_in", "n_out", "block"), [(64, 64, 4), (64, 300, 8), (300, 100, 8)])
def test_memory_is_k_times_smaller_with_about_as_many_multipliers(
    n_in: int, n_out: int, block: int
) -> None:
    program = layer_of(n_in, n_out, block)
    for reuse in (8, 16, 32):
        dense = Target(strategy="resource", reuse=reuse, kernel="dense")
        auto = Target(strategy="resource", reuse=reuse)
        before, after = (estimate(program, target).layers[0] for target in (dense, auto))
        layer = make_plan(program, auto).layers[1]
        assert layer.allotment is not None
        assert layer.allotment.kernel == "circulant"
        assert after.kernel.startswith("circulant: ")
        # What the report counts is what the project holds: one value a class and padding.
        held = layer.weights["weight"].mantissas.size
        assert after.stored_bits == held * 8 == layer.allotment.bits
        count = stored_values(n_in, n_out, 1, block)
        assert count <= held < count + layer.allotment.lanes
        assert n_in * n_out / block <= count < 1.08 * n_in * n_out / block
        assert before.stored_bits == 8 * n_in * n_out
        assert after.csynth.dsp.value == layer.allotment.lanes * block
        assert after.csynth.dsp.value <= 1.05 * (before.csynth.dsp.value or 0)


def test_no_array_of_the_project_has_the_size_of_the_matrix(tmp_path: Path) -> None:
    program = layer_of(64, 96, 8)
    for reuse in (1, 16):  # constants, and a memory
        folder = tmp_path / str(reuse)
        target = Target(strategy="resource", reuse=reuse, kernel="circulant")
        get("hls4ml").emit(program, target, folder)
        texts = [path.read_text() for path in folder.rglob("firmware/**/*.[ch]*")]
        arrays = [int(size) for text in texts for size in re.findall(r"\[(\d+)\]", text)]
        assert max(arrays) == 64 * 96 // 8


# -- refusals ---------------------------------------------------------------


def test_matrices_that_are_not_circulant_are_refused_by_name() -> None:
    b, byte = ProgramBuilder(), FixedPoint(8, 3)
    rng = np.random.default_rng(0)
    plain = b.constant("w", rng.integers(-9, 9, (6, 4)), byte)
    y = b.emit(ops.MatMul(), [b.input("x", (6,), byte), plain], "fc")
    grouped = b.constant("v", np.ones((1, 1, 2, 4), np.int64), byte)
    op = ops.Conv((1, 1), ((0, 0), (0, 0)), (1, 1), 2)
    z = b.emit(op, [b.input("image", (3, 3, 4), byte), grouped], "conv")
    for value in (y, z):
        b.output(value, value.name)
    message = (
        r'fc: kernel = "circulant" requires a block-circulant matrix.* got one of 6 x 4 that is so '
        r"for no k from 2 to 128\. Give such a layer another kernel in layers.*\n"
        r'conv: kernel = "circulant" requires a convolution without groups, got 2 groups'
    )
    with pytest.raises(TargetError, match=message):
        make_plan(b.build(), Target(kernel="circulant"))


def test_nothing_is_stored_with_the_latency_strategy_anyway() -> None:
    program = layer_of(32, 32, 4)
    for target, why in (
        (Target(reuse=4), "the Latency strategy stores no weights"),
        (Target(strategy="resource"), "without reuse no weights are stored"),
    ):
        given = make_plan(program, target).layers[1].allotment
        assert given is not None
        assert (given.kernel, given.why.endswith(why)) == ("dense", True)
    assert find_block(program.constants["w"].data) == 4
