"""Rules of the estimator: against their definitions, hls4ml's own code and others' syntheses."""

import csv
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxloom.allotment import closest_reuse
from fxloom.costs import DENSE_CYCLES, adder_tree_depth
from fxloom.errors import TargetError
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.multipliers import csd_digits, hard_multiplications, latency_dsp
from fxloom.ops import Add, Conv, Divide, MatMul, Max, Mul, Pool, Requantize, Shift
from fxloom.program import Program, ProgramBuilder
from fxloom.report import LayerReport
from fxloom.target import LayerTable, Target

ROOT = Path(__file__).parents[2]
TABLE = ROOT.parent / "shared" / "calibration" / "mlp_layers_csynth.csv"
needs_table = pytest.mark.skipif(not TABLE.exists(), reason="needs ../shared/calibration")

INT8 = FixedPoint(8, 8)


def naf(number: int) -> list[int]:
    """Digits of the non-adjacent form, lowest first, by its textbook algorithm."""
    digits = []
    while number:
        digit = 2 - number % 4 if number % 2 else 0
        digits.append(digit)
        number = (number - digit) // 2
    return digits


@given(st.lists(st.integers(-(2**60), 2**60), min_size=1, max_size=20))
def test_csd_digits_count_the_non_adjacent_form(numbers: list[int]) -> None:
    counted = csd_digits(np.array(numbers))
    assert counted.tolist() == [sum(1 for digit in naf(n) if digit) for n in numbers]


def test_constants_of_few_digits_need_no_multiplier() -> None:
    easy = [0, 1, -1, 2, 3, 5, 6, 7, 9, 15, 31, -33, 63, 65, 96, 127]
    assert csd_digits(np.array(easy)).max() == 2
    hard = [11, 13, 19, 21, 23, 25, -11, 45, 105]
    assert csd_digits(np.array(hard)).min() == 3


@given(st.data())
def test_hard_multiplications_are_distinct_signed_integers_per_input(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    largest = data.draw(st.sampled_from([11, 127, 10**6]))  # both ways of counting
    weights = st.integers(-largest, largest)
    flat = data.draw(st.lists(weights, min_size=rows * columns, max_size=rows * columns))
    matrix = np.array(flat).reshape(rows, columns)
    naive = sum(
        len({w for w in row if sum(1 for digit in naf(w) if digit) >= 3})
        for row in matrix.astype(int).tolist()
    )
    assert hard_multiplications(matrix) == naive


def test_multiplications_are_shared_between_equal_weights_but_not_opposite_ones() -> None:
    assert hard_multiplications(np.array([[11, 11, 11, 2]])) == 1
    assert hard_multiplications(np.array([[11, -11, 0, 0]])) == 2
    assert hard_multiplications(np.array([[11], [11]])) == 2


@needs_table
def test_dsp_rule_reproduces_every_dense_layer_of_the_table() -> None:
    compared = 0
    with TABLE.open(newline="") as stream:
        for row in csv.DictReader(stream):
            if row["op"] != "dense" or not row["config"].startswith("DSP"):
                continue
            size = int(row["n_in"]) * int(row["n_out"])
            hard, zeros = int(row["hard_distinct_per_input"]), int(row["n_zeros"])
            assert latency_dsp(hard, size, zeros, int(row["rf"])) == int(row["hls_DSP"]), row
            compared += 1
    assert compared == 27


@needs_table
def test_committed_latency_constant_is_the_fitted_one() -> None:
    location = importlib.util.spec_from_file_location(
        "fit_latency", ROOT / "benchmarks" / "fit_latency.py"
    )
    assert location is not None
    assert location.loader is not None
    script = importlib.util.module_from_spec(location)
    location.loader.exec_module(script)
    constant, low, high = script.fit(script.residuals(TABLE))
    assert DENSE_CYCLES[0] == constant
    assert DENSE_CYCLES[1] <= low
    assert DENSE_CYCLES[2] >= high


@pytest.mark.parametrize(("n_in", "n_out"), [(16, 64), (10, 5), (27, 8), (64, 10), (7, 1)])
def test_reuse_factors_are_legalised_as_hls4ml_does(n_in: int, n_out: int) -> None:
    backends = pytest.importorskip("hls4ml.backends")
    vitis = backends.get_backend("Vitis")
    valid = vitis.get_valid_reuse_factors(n_in, n_out)
    for wanted in range(1, n_in * n_out + 5):
        expected = vitis.get_closest_reuse_factor(valid, wanted)
        assert closest_reuse(n_in, n_out, wanted) == expected, wanted


def test_adder_tree_depth_counts_the_bias() -> None:
    assert [adder_tree_depth(n) for n in (1, 2, 3, 4, 7, 8, 64)] == [1, 2, 2, 3, 3, 4, 7]


def dense(weights: np.ndarray[tuple[int, int], np.dtype[np.int64]], width: int = 8) -> Program:
    builder = ProgramBuilder()
    x = builder.input("x", (weights.shape[0],), INT8)
    w = builder.constant("fc.weight", weights, FixedPoint(width, width))
    b = builder.constant("fc.bias", np.arange(weights.shape[1]) + 1, INT8)
    y = builder.emit(MatMul(), [x, w], "fc")
    y = builder.emit(Add(), [y, b], "fc")
    zero = builder.constant("zero", np.array([0]), FixedPoint(1, 1, False))
    y = builder.emit(Max(), [y, zero], "act")
    y = builder.emit(Requantize(INT8, Rounding.RND, Overflow.SAT), [y], "act")
    builder.output(y, "y")
    return builder.build()


def layers(program: Program, target: Target | None = None) -> dict[str, LayerReport]:
    report = estimate(program, target or Target())
    return {layer.name: layer for layer in report.layers}


def test_weights_bits_and_multiply_adds_are_counted() -> None:
    found = layers(dense(np.array([[11, 0, 3], [11, 11, -45]])))
    fc, act = found["fc"], found["act"]
    assert (fc.weight_count, fc.nonzero, fc.stored_bits, fc.macs) == (9, 8, 72, 6)
    assert (fc.csynth.dsp.value, fc.csynth.dsp.provenance) == (3, "rule")
    assert fc.weights == ("fixed<8,8>", "fixed<8,8>")
    assert fc.accumulator == fc.result == "fixed<14,14>"
    assert (act.weight_count, act.stored_bits, act.macs, act.csynth.dsp.value) == (0, 0, 0, 0)
    assert act.result == "fixed<8,8>"


def test_the_bias_of_a_single_output_is_stored_as_well() -> None:
    fc = layers(dense(np.array([[11], [5]])))["fc"]
    assert (fc.weight_count, fc.nonzero, fc.stored_bits) == (3, 3, 24)


def test_totals_are_sums_and_shares_of_the_part() -> None:
    generator = np.random.default_rng(0)
    program = dense(generator.integers(-128, 128, (16, 8)))
    report = estimate(program, Target(part="xc7z020"))
    dsp = sum(layer.csynth.dsp.value or 0 for layer in report.layers)
    assert report.total.csynth.dsp.value == dsp > 0
    assert report.total.csynth_percent.dsp.value == round(100 * dsp / 220, 1)
    assert report.total.stored_bits == (16 * 8 + 8) * 8
    latency = report.total.latency
    assert latency.provenance == "fitted"
    assert latency.low is not None
    assert latency.value is not None
    assert latency.high is not None
    assert latency.low < latency.value <= latency.high


def test_reuse_limits_the_multipliers_of_the_latency_strategy() -> None:
    weights = np.random.default_rng(0).integers(-128, 128, (16, 8))
    hard = hard_multiplications(weights)
    found = layers(dense(weights), Target(reuse=4))["fc"]
    zeros = int((weights == 0).sum())
    assert found.csynth.dsp.value == latency_dsp(hard, 128, zeros, 4) < hard


@pytest.mark.parametrize(("width", "low", "value"), [(8, None, 8), (6, 0, 8), (4, None, 0)])
def test_resource_strategy_divides_by_the_reuse_factor(
    width: int, low: int | None, value: int
) -> None:
    weights = np.random.default_rng(0).integers(-8, 8, (16, 8))
    target = Target(layers={"fc": {"strategy": "resource", "reuse": 17}})
    found = layers(dense(weights, width), target)["fc"]
    assert (found.csynth.dsp.value, found.csynth.dsp.low) == (value, low)  # reuse 17 becomes 16
    assert (found.latency.value, found.latency.low) == (17, 16)


def test_a_pattern_that_names_no_layer_is_refused() -> None:
    with pytest.raises(TargetError, match=r"no layer is named conv\*. Layers: fc, act"):
        estimate(dense(np.array([[1]])), Target(layers={"conv*": {"reuse": 2}}))


def test_shares_of_a_part_that_the_backend_is_not_for_are_refused() -> None:
    program = dense(np.array([[1]]))
    with pytest.raises(TargetError, match="Vitis is for parts of AMD, agfb014 is made by Intel"):
        estimate(program, Target(part="agfb014"))
    assert estimate(program, Target(part="agfb014", backend="oneAPI")).verdict.state == "not known"


def image_program(groups: int) -> Program:
    builder = ProgramBuilder()
    x = builder.input("x", (6, 6, 4), INT8)
    kernel = np.random.default_rng(1).integers(-128, 128, (3, 3, 4 // groups, 8))
    w = builder.constant("conv.weight", kernel, INT8)
    y = builder.emit(Conv(padding=((1, 1), (1, 1)), groups=groups), [x, w], "conv")
    y = builder.emit(Pool("sum", (3, 3), (3, 3)), [y], "pool")
    nine = builder.constant("nine", np.array([9]), FixedPoint(4, 4, False))
    y = builder.emit(Divide(INT8, Rounding.RND, Overflow.SAT), [y, nine], "pool")
    builder.output(y, "y")
    return builder.build()


def test_convolution_counts_the_kernel_matrix_once_and_work_for_every_pixel() -> None:
    program = image_program(groups=1)
    kernel = program.constants["conv.weight"].data
    conv = layers(program)["conv"]
    assert conv.csynth.dsp.value == hard_multiplications(kernel.reshape(36, 8))
    assert conv.macs == 36 * 36 * 8
    assert conv.latency.value is not None
    assert 36 <= conv.latency.value <= 36 + 10


def test_grouped_convolution_shares_no_input_between_groups() -> None:
    program = image_program(groups=4)
    kernel = program.constants["conv.weight"].data
    conv = layers(program)["conv"]
    rows = [
        kernel[i, j, 0, 2 * g : 2 * g + 2] for i in range(3) for j in range(3) for g in range(4)
    ]
    assert conv.csynth.dsp.value == hard_multiplications(np.array(rows))
    assert conv.macs == 36 * 9 * 8


def test_what_was_never_synthesised_has_wide_bounds_and_says_so() -> None:
    pool = estimate(image_program(1), Target()).layers[1]
    lut = pool.csynth.lut
    assert lut.low is not None
    assert lut.value is not None
    assert lut.high is not None
    assert 2 * lut.low < lut.value < lut.high / 1.5
    assert "not yet compared with a synthesis" in lut.source


def test_shared_constants_count_once_and_constant_factors_like_weights() -> None:
    builder = ProgramBuilder()
    x = builder.input("x", (4,), INT8)
    w = builder.constant("tied", np.diag([11, 1, 1, 1]), INT8)
    y = builder.emit(MatMul(), [x, w], "first")
    y = builder.emit(Requantize(INT8), [y], "first")
    y = builder.emit(MatMul(), [y, w], "second")
    slope = builder.constant("slope", np.array([11]), INT8)
    y = builder.emit(Mul(), [y, slope], "scale")
    y = builder.emit(Shift(2), [y], "scale")
    builder.output(y, "y")
    found = layers(builder.build())
    assert (found["first"].weight_count, found["second"].weight_count) == (16, 0)
    assert (found["second"].csynth.dsp.value, found["second"].macs) == (1, 16)
    assert (found["scale"].csynth.dsp.value, found["scale"].macs, found["scale"].weight_count) == (
        4,
        4,
        0,
    )


def test_nanoseconds_are_those_of_the_schedule() -> None:
    total = estimate(image_program(1), Target(io="stream", clock_ns=2.5)).total
    assert total.latency.value is not None
    assert total.interval.value is not None
    assert total.latency_ns.value == 2.5 * total.latency.value
    assert total.interval_ns.value == 2.5 * total.interval.value


@given(st.integers(1, 12), st.integers(2, 12), st.integers(2, 20))
def test_a_division_lies_in_its_interval(source: int, divisor: int, quotient: int) -> None:
    """Also where the quotient has more bits than what is divided."""
    builder = ProgramBuilder()
    x = builder.input("x", (3,), FixedPoint(source, source, False))
    by = builder.constant("by", np.array([2**divisor - 1]), FixedPoint(divisor, divisor, False))
    builder.output(builder.emit(Divide(FixedPoint(quotient, 2)), [x, by], "mean"), "y")
    lut = layers(builder.build())["mean"].csynth.lut
    assert lut.low is not None
    assert lut.value is not None
    assert lut.high is not None
    assert lut.low <= lut.value <= lut.high


@pytest.mark.parametrize("strategy", ["latency", "resource"])
@pytest.mark.parametrize(
    ("data", "width", "low", "blocks"),
    [(4, 8, 0, 1), (8, 8, None, 1), (16, 18, None, 1), (24, 24, 1, 2), (40, 8, 1, 2)],
)
def test_products_that_were_not_synthesised_have_bounds_of_dsp_blocks(
    data: int, width: int, low: int | None, blocks: int, strategy: Literal["latency", "resource"]
) -> None:
    """In multiples of the rule's blocks, which it has for 8 to 16 bits."""
    builder = ProgramBuilder()
    x = builder.input("x", (8,), FixedPoint(data, data))
    weights = 11 + 8 * np.arange(32).reshape(8, 4) % 101
    w = builder.constant("w", weights, FixedPoint(width, width))
    builder.output(builder.emit(MatMul(), [x, w], "fc"), "y")
    reuse = 8 if strategy == "resource" else 1
    found = layers(builder.build(), Target(strategy=strategy, reuse=reuse, kernel="dense"))["fc"]
    count = 4 if strategy == "resource" else hard_multiplications(weights)
    assert found.csynth.dsp.value == blocks * count
    assert found.csynth.dsp.low == (None if low is None else low * count)


def test_the_interval_of_the_whole_is_as_uncertain_as_any_layer_that_may_be_the_slowest() -> None:
    builder = ProgramBuilder()
    y = builder.input("x", (64,), INT8)
    rng = np.random.default_rng(0)
    for name, outputs in (("first", 64), ("second", 16)):
        w = builder.constant(name, rng.integers(-128, 128, (y.shape[0], outputs)), INT8)
        y = builder.emit(MatMul(), [y, w], name)
        y = builder.emit(Requantize(INT8), [y], name)
    builder.output(y, "y")
    each: dict[str, LayerTable] = {"first": {"reuse": 4}, "second": {"reuse": 8}}
    report = estimate(builder.build(), Target(layers=each))
    intervals = [layer.interval for layer in report.layers]
    whole = report.total.interval
    assert whole.value == max(figure.value or 0 for figure in intervals)
    assert whole.high == max(figure.high or 0 for figure in intervals)


def test_a_stream_has_the_multipliers_of_a_pack() -> None:
    builder = ProgramBuilder()
    x = builder.input("x", (16, 16, 4), INT8)
    c = builder.constant("c", np.array([11, 13, 2, 77]), INT8)
    builder.output(builder.emit(Mul(), [x, c], "scale"), "y")
    program = builder.build()
    assert layers(program, Target(io="stream"))["scale"].csynth.dsp.value == 3
    assert layers(program)["scale"].csynth.dsp.value == 3 * 256
    # What is in DSP blocks is not in LUTs as well: 2 is a shift.
    assert layers(program)["scale"].csynth.lut.value == 0


@pytest.mark.parametrize("io", ["parallel", "stream"])
def test_products_of_computed_matrices_are_formed_a_row_a_cycle(
    io: Literal["parallel", "stream"],
) -> None:
    builder = ProgramBuilder()
    left, right = builder.input("a", (32, 8), INT8), builder.input("b", (8, 16), INT8)
    builder.output(builder.emit(MatMul(), [left, right], "scores"), "y")
    found = layers(builder.build(), Target(io=io))["scores"]
    assert found.csynth.dsp.value == 8 * 16
    assert (found.interval.value or 0) >= 32


def test_cycles_of_streamed_layers_have_intervals_as_the_whole_has() -> None:
    report = estimate(image_program(1), Target(io="stream"))
    for layer in report.layers:
        assert layer.latency.low is not None
        assert layer.latency.value is not None
        assert layer.latency.high is not None
        assert layer.latency.low <= layer.latency.value <= layer.latency.high
    last = report.total.latency
    assert max(each.latency.high or 0 for each in report.layers) <= (last.high or 0)


def test_a_layer_without_sums_may_have_registers_all_the_same() -> None:
    found = layers(dense(np.array([[11, -45]])))["fc"].csynth.ff
    assert (found.value, found.low) == (0, 0)
    assert found.high is not None
    assert found.high >= 2 * 8
