"""Huffman-coded ROMs: the compiled decoder gives the simulator's integers, and no array in the
project has as many elements as there are weights."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fxloom import ops
from fxloom.backends import get
from fxloom.backends.hls4ml import csim
from fxloom.backends.hls4ml.dialect import DIALECTS
from fxloom.backends.hls4ml.plan import make_plan
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.huffman_decoder import decoded
from fxloom.huffman_layout import HuffmanLayout, lay_out_codes
from fxloom.matrices import matrix_of
from fxloom.program import Program, ProgramBuilder
from fxloom.target import LayerTable, Target
from tests.conformance.packing import pack
from tests.conformance.test_sparse import HEADS, PATTERNS, differences, sparse_program

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

REUSE = (1, 2, 3, 5, 8, 16, 64, 10**9)


@pytest.fixture(autouse=True)
def unoptimized(monkeypatch: pytest.MonkeyPatch) -> None:
    """These projects are large, and run only a few samples."""
    monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-O0"))


def corpus(part: int, each: int = 1) -> tuple[Program, dict[str, LayerTable]]:
    """Every layer, with patterns of zeros in turn, reuse factors in turn; or every so manieth."""
    pairs = [
        (head, PATTERNS[(place + shift) % len(PATTERNS)])
        for place, head in enumerate(HEADS)
        for shift in ((0, 3) if place % 4 == part else (1,))
    ][::each]
    programs = [sparse_program(*pair, 2 * place + part) for place, pair in enumerate(pairs)]
    layers: dict[str, LayerTable] = {
        f"p{place}.*": {"kernel": "huffman", "reuse": REUSE[(3 * place + part) % len(REUSE)]}
        for place in range(len(programs))
    }
    return pack(programs), layers


@needs_compiler
@pytest.mark.parametrize(
    "target",
    [Target(), Target(backend="Vivado", io="stream"), Target(part="xc7z020", backend="Catapult")],
    ids=["Vitis parallel", "Vivado stream", "Catapult"],
)
def test_decoded_weights_give_the_simulators_integers(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target.backend == "Vivado":  # what synthesis reads: ROMs of ap_uint
        monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-DFXLOOM_LITERALS"))
    program, layers = corpus(target.io == "stream", 4 if target.backend == "Catapult" else 1)
    chosen = Target(part=target.part, backend=target.backend, io=target.io, layers=layers)
    found = [layer.allotment for layer in make_plan(program, chosen).layers if layer.allotment]
    assert {given.kernel for given in found} == {"huffman"}
    assert len(found) == len(layers)
    assert differences(program, chosen, tmp_path) == {}


# -- must hold: what is in the project -----------------------------------------------------------


def shared(kept: float) -> tuple[Program, HuffmanLayout]:
    """A dense layer of 16 different weights, with a bias, and how it is laid out."""
    rng = np.random.default_rng(3)
    b = ProgramBuilder()
    x = b.input("x", (64,), FixedPoint(8, 3))
    codebook = rng.permutation(np.arange(-120, 120, 15))
    weights = codebook[(rng.random((64, 48)) ** 2 * 16).astype(int)]
    weights[rng.random((64, 48)) >= kept] = 0
    y = b.emit(ops.MatMul(), [x, b.constant("w", weights, FixedPoint(8, 1))], "fc")
    bias = b.constant("b", rng.integers(-100, 100, 48), FixedPoint(8, 2))
    y = b.emit(ops.Add(), [y, bias], "fc")
    b.output(b.emit(ops.Requantize(FixedPoint(8, 4), Rounding.RND, Overflow.SAT), [y], "fc"), "y")
    program = b.build()
    matrix = matrix_of(program, program.instrs[0], TARGET)
    assert matrix is not None
    layout = lay_out_codes(matrix, 32)
    assert layout is not None
    return program, layout


TARGET = Target(strategy="resource", reuse=32, kernel="huffman")

STEPS = """
#include "firmware/myproject.cpp"
#include <cstdio>

int main() {
    typedef config2::source source;
    int x[config2::n_in];
    for (int k = 0; k < config2::n_in; k++) x[k] = k;
    for (int lane = 0; lane < config2::lanes; lane++) {
        source::state_t state;
        for (int step = 0; step < config2::reuse; step++) {
            config2::a_t place;
            config2::w_t weight;
            source::next(x, c2_1, c2_2, state, lane, step, place, weight);
            std::printf("%d %d\\n", weight.to_int(), place.to_int());
        }
    }
}
"""


@needs_compiler
def test_the_decoder_steps_as_its_model_does(tmp_path: Path) -> None:
    """Behind the end of a lane's codes as well, where nothing is added up."""
    program, layout = shared(0.1)
    get("hls4ml").emit(program, TARGET, tmp_path)
    (tmp_path / "steps.cpp").write_text(STEPS)
    includes = [f"-I{tmp_path / name}" for name in (".", *DIALECTS["Vitis"].includes)]
    command = ["g++", "-std=c++11", "-DNDEBUG", "-w", *includes, "steps.cpp", "-o", "steps"]
    subprocess.run(command, cwd=tmp_path, check=True)
    run = subprocess.run([tmp_path / "steps"], capture_output=True, text=True, check=True)
    expected = [
        f"{weight} {place}"
        for lane, words in enumerate(layout.rom())
        for weight, place in decoded(layout, lane, words)
    ]
    assert run.stdout.splitlines() == expected
    assert len(expected) == layout.lanes * layout.steps


@pytest.mark.parametrize("kept", [0.1, 1.0])
def test_no_array_in_the_project_has_the_size_of_the_weights(kept: float, tmp_path: Path) -> None:
    program, layout = shared(kept)
    get("hls4ml").emit(program, TARGET, tmp_path)
    firmware = tmp_path / "firmware"
    sources = [*firmware.glob("*.cpp"), *firmware.glob("*.h"), *(firmware / "weights").glob("*.h")]
    text = "\n".join(path.read_text() for path in sources)
    arrays = {name: int(size) for name, size in re.findall(r"(\w+)\[(\d+)\] = \{", text)}
    roms = {name: size for name, size in arrays.items() if name.startswith("rom2_")}
    assert list(roms.values()) == [n for n in layout.words.tolist() if n]
    (width,) = re.findall(r"typedef fxloom::uint_t<(\d+)> rom2_t;", text)
    assert sum(roms.values()) * int(width) == layout.rom_bits
    stored = layout.indices.size
    assert stored > 200
    assert max(arrays.values()) <= max(2 * stored // 32 + 48, 100) < stored
    report = estimate(program, TARGET).layers[0]
    assert report.stored_bits == layout.rom_bits + layout.table_bits + 48 * 8
    assert report.interval.value == layout.steps
