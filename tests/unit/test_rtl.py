"""Verilog of adder graphs, and what is read from the tools' logs."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxloom import rtl, synthesis
from fxloom.adder_graph import adder_graph
from fxloom.errors import ToolError
from fxloom.ops import Conv, MatMul
from fxloom.unrolled import UnrolledProduct

needs_simulator = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="iverilog is not installed"
)


def simulated(matrix: Any, lo: Any, hi: Any, folder: Path, wrong: int = 0) -> Any:
    """The first difference from x @ matrix, to the last integer of which wrong is added."""
    rng, count = np.random.default_rng(0), len(matrix)
    low, high = np.broadcast_to(lo, count), np.broadcast_to(hi, count)
    x = np.concatenate([rng.integers(low, high + 1, (30, count)), [low, high]])
    graph, expected = adder_graph(matrix, lo, hi), x @ matrix
    expected[-1, -1] += wrong
    rtl.write(folder, graph, "a test", x, expected)
    return synthesis.simulate(folder, graph, expected.tolist(), 60)


def random_matrix(shape: tuple[int, int], top: int, zeros: float) -> Any:
    rng = np.random.default_rng(1)
    matrix = rng.integers(-top, top + 1, shape)
    matrix[rng.random(shape) < zeros] = 0
    return matrix


@needs_simulator
@pytest.mark.parametrize(
    ("matrix", "lo", "hi"),
    [
        (random_matrix((6, 5), 127, 0.2), -128, 127),
        (random_matrix((5, 6), 60, 0.3), np.array([0, 0, -3, 5, -1]), np.array([1, 9, 3, 8, 0])),
        (random_matrix((3, 3), 2**30, 0.0), -(2**20), 2**20),
        (np.array([[-1, -2, 0, 1, 8]]), -5, 11),  # negations, a wire, shifts, no product at all
        (np.array([[1], [4], [-16]]), 0, 3),  # a concatenation, and a difference from it
        (np.array([[1, -1], [3, 5]]), np.array([0, 0]), np.array([0, 7])),  # an input always 0
    ],
)
def test_verilog_gives_the_integers_of_the_product(
    matrix: Any, lo: Any, hi: Any, tmp_path: Path
) -> None:
    assert simulated(matrix, lo, hi, tmp_path) is None


def test_a_title_is_one_line_of_plain_text(tmp_path: Path) -> None:
    graph, x = adder_graph(np.array([[3]]), 0, 1), np.array([[1]])
    rtl.write(tmp_path, graph, "größe\n`define y 1", x, 3 * x)
    first = (tmp_path / rtl.PRODUCT).read_text(encoding="ascii").splitlines()[0]
    assert first == r"// gr\xf6\xdfe\n`define y 1"


@needs_simulator
def test_the_first_difference_is_named(tmp_path: Path) -> None:
    matrix = random_matrix((3, 4), 9, 0.0)
    difference = simulated(matrix, -4, 3, tmp_path, wrong=1)
    assert (difference.sample, difference.output) == (31, 3)
    assert difference.value == 3 * matrix[:, 3].sum()
    assert str(difference).endswith(f"Program {difference.value + 1}")


@needs_simulator
def test_a_simulation_of_fewer_samples_is_refused(tmp_path: Path) -> None:
    matrix, x = np.array([[3]]), np.array([[1], [2]])
    graph = adder_graph(matrix, 0, 3)
    rtl.write(tmp_path, graph, "a test", x, x * 3)
    with pytest.raises(ToolError, match="ended before its 3 samples were compared"):
        synthesis.simulate(tmp_path, graph, [[3], [6], [9]], 60)


@needs_simulator
def test_what_a_tool_complains_of_is_in_the_error(tmp_path: Path) -> None:
    matrix, x = np.array([[3]]), np.array([[1]])
    graph = adder_graph(matrix, 0, 3)
    rtl.write(tmp_path, graph, "a test", x, x * 3)
    (tmp_path / rtl.PRODUCT).write_text("module nothing")
    with pytest.raises(ToolError, match=r"iverilog failed: .*\n  command: iverilog"):
        synthesis.simulate(tmp_path, graph, [[3]], 60)


def test_packing_and_unpacking_are_inverse() -> None:
    packing = rtl.Packing.of(np.array([-8, 0, 5, 0, -1]), np.array([3, 9, 5, 0, 0]))
    assert packing.width.tolist() == [4, 4, 3, 1, 1]
    values = [[-8, 9, 5, 0, -1], [3, 0, 5, 0, 0]]
    words = list(packing.pack(np.array(values)))
    assert [packing.unpack(int(word, 16)) for word in words] == values


LOG = """
-- Executing script file `synthesis.ys' --
3. Printing statistics.

=== $paramod\\fxloom_adder ===
   Number of cells:                  3
     LUT2                            3

=== fxloom_product ===
   Number of cells:                  2
     $paramod\\fxloom_adder           2

=== design hierarchy ===
   Number of cells:                 10
     CARRY4                          2
     INV                             1
     LUT2                            6
     LUT3                            1

FXLOOM SYNTHESIS COMPLETE

End of script.
"""


def test_luts_are_those_of_the_whole_hierarchy() -> None:
    assert synthesis.luts_of(LOG) == 7


def test_a_log_that_was_cut_off_is_rejected() -> None:
    cut = LOG[: LOG.index("     LUT3")]
    with pytest.raises(ToolError, match=r"ends with 'LUT2 +6'\. It was cut off"):
        synthesis.luts_of(cut.rstrip().replace("     LUT2                            6", "LUT2 6"))
    # A command that is only echoed is no marker.
    with pytest.raises(ToolError, match="cut off"):
        synthesis.luts_of(cut + "-- Running `stat; log FXLOOM SYNTHESIS COMPLETE' --\n")


def test_a_log_without_statistics_or_with_dsp_blocks_is_rejected() -> None:
    with pytest.raises(ToolError, match="number of cells"):
        synthesis.luts_of("FXLOOM SYNTHESIS COMPLETE\n")
    with pytest.raises(ToolError, match="no DSP block"):
        synthesis.luts_of(LOG.replace("     INV   ", "     DSP48E2"))


def test_missing_tools_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis.shutil, "which", lambda name: None if name == "yosys" else name)
    with pytest.raises(ToolError, match=r"not on PATH: yosys;.*apt-get install yosys$"):
        synthesis.require_tools()


def test_a_tool_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"stopped after 0\.2 s.*\n.*sleep 60") as raised:
        synthesis._run(["sleep", "60"], tmp_path, 0.2)
    assert "--timeout" in str(raised.value)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_matrix_of_a_convolution_is_what_the_operation_computes(groups: int) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(-7, 8, (3, 2, 4 // groups, 8))
    product = UnrolledProduct("conv", "w", Conv(groups=groups), data, -8, 7, 9)
    x = product.inputs(20)
    assert product.shape == product.matrix.shape == (24, 8)
    assert np.array_equal(product.evaluate(x), x @ product.matrix)
    assert product.least_adders == np.count_nonzero(product.matrix) - 8


def test_inputs_reach_both_ends_of_every_output() -> None:
    data = random_matrix((5, 3), 9, 0.2)
    product = UnrolledProduct("fc", "w", MatMul(), data, -3, 4, 1)
    found = product.evaluate(product.inputs(4))
    graph = adder_graph(data, -3, 4)
    assert np.array_equal(found.min(axis=0), graph.lo[graph.outputs] << graph.output_shift)
    assert np.array_equal(found.max(axis=0), graph.hi[graph.outputs] << graph.output_shift)
