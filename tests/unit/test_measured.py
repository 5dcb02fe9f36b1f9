"""Estimate beside measurement: which modules are which layers, what is compared, rows for fits."""

import csv
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fxloom.backends.hls4ml.plan import describe, make_plan
from fxloom.errors import FxloomError
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.measured import Measured, Usage, total_usage
from fxloom.measured_layers import LayerUsage, layer_usage, project_usage
from fxloom.measured_report import Compared, Comparison, compare_measured
from fxloom.measured_rows import COLUMNS, measured_rows, rows_to_csv
from fxloom.ops import Add, Conv, MatMul, Max, Requantize
from fxloom.program import Program, ProgramBuilder
from fxloom.report import RESOURCES, Figure, Report
from fxloom.target import Target

ROOT = Path(__file__).parents[2]
TABLE = ROOT.parent / "shared" / "calibration" / "mlp_layers_csynth.csv"
INT8 = FixedPoint(8, 8)
TARGET = Target(part="xc7z020", clock_ns=5.0)


def network() -> Program:
    """n1_x, n2_fc (Dense), n3_act (max), n4_act (requantize), n5_conv (Conv2D)."""
    builder = ProgramBuilder()
    x = builder.input("x", (2, 2, 2), INT8)
    kernel = np.array([[[[11, 0, 4], [3, -45, 11]]]])
    w = builder.constant("conv.weight", kernel, INT8)
    y = builder.emit(Conv(), [x, w], "conv")
    y = builder.emit(Requantize(INT8, Rounding.RND, Overflow.SAT), [y], "conv")
    zero = builder.constant("zero", np.array([0]), FixedPoint(1, 1, False))
    y = builder.emit(Max(), [y, zero], "act")
    y = builder.emit(Requantize(FixedPoint(7, 7, False), Rounding.RND, Overflow.SAT), [y], "act")
    builder.output(y, "y")
    return builder.build()


def dense() -> Program:
    """n1_x, then n2_fc as hls4ml's Dense."""
    builder = ProgramBuilder()
    x = builder.input("x", (2,), INT8)
    w = builder.constant("fc.weight", np.array([[11, 0, 4], [11, 11, -45]]), INT8)
    b = builder.constant("fc.bias", np.array([1, 2, 3]), INT8)
    y = builder.emit(MatMul(), [x, w], "fc")
    y = builder.emit(Add(), [y, b], "fc")
    builder.output(y, "y")
    return builder.build()


def run(modules: Mapping[str, Usage], **more: object) -> Measured:
    top = Usage(1000, 500, 3, 0, 0, latency_cycles=(5, 5), interval_cycles=(1, 1))
    measured = Measured("Vitis HLS", "csynth", top, "report", modules=modules)
    return replace(measured, **more)  # type: ignore[arg-type]


def project(program: Program) -> list[dict[str, object]]:
    return list(describe(make_plan(program, TARGET)))


def record(name: str, origin: str, kind: str = "FxloomKernel") -> dict[str, object]:
    return {"name": name, "origin": origin, "class": kind}


def lut(count: int) -> Usage:
    return Usage(count, 0, 0, 0, 0)


def test_the_number_of_the_configuration_tells_the_layer() -> None:
    modules = {
        "dense_latency_ap_fixed_8_3_5_3_0_ap_fixed_19_5_5_3_0_config2_s": lut(2),
        "dense_latency_ap_fixed_ap_fixed_config12_0_0_0": lut(12),
        "relu_config3": lut(3),
        "myproject_requantize_config1_s_4": lut(1),
        "place_config4_config5_s": lut(99),
        "reconfig4_s": lut(99),
        "fifo_w16_d64_A": lut(99),
    }
    layers = [record(f"n{number}_x", "x") for number in (2, 3, 4, 12, 11)]
    layers += [record("n1", "x"), record("n14_in", "x", "InputLayer")]
    found = project_usage(run({**modules, "config14": lut(9)}), layers)
    assert found == {"n1": lut(1), "n2_x": lut(2), "n3_x": lut(3), "n12_x": lut(12)}


def test_the_outermost_module_of_a_layer_counts() -> None:
    modules = {
        "conv_2d_cl_config3_s": lut(50),
        "dense_latency_config3_mult_s": lut(30),
        "shift_line_buffer_config3_s": lut(10),
    }
    layers = [record("n3_conv", "conv")]
    assert project_usage(run(modules), layers) == {"n3_conv": lut(50)}
    tree = {
        "top": ("conv_2d_cl_config3_s", "other"),
        "conv_2d_cl_config3_s": ("middle",),
        "middle": ("dense_latency_config3_mult_s", "shift_line_buffer_config3_s"),
    }
    assert project_usage(run(modules, children=tree), layers) == {"n3_conv": lut(50)}
    beside = {"top": (*modules, "dense_latency_config3_mult_s")}
    assert project_usage(run(modules, children=beside), layers) == {"n3_conv": lut(120)}


def test_modules_of_which_none_holds_the_others_are_not_guessed_at() -> None:
    modules = {"a_config3_s": Usage(50, 1, 0, 0, 0), "b_config3_s": Usage(30, 9, 0, 0, 0)}
    assert project_usage(run(modules), [record("n3_conv", "conv")]) == {}


def test_a_layer_is_the_sum_of_its_modules_and_says_what_is_not_in_it() -> None:
    layers = [record("n3_a", "a"), record("n4_a", "a"), record("n5_a", "a"), record("n6_b", "b")]
    one = Usage(5, 6, 7, 8, 9, None, (1, 2), (3, 4), 2.5)
    modules = {"f_config3_s": one, "g_config4_s": replace(one, uram=None)}
    assert layer_usage(run(modules), layers) == {
        "a": LayerUsage(Usage(10, 12, 14, 16, None), ("n5_a",))
    }
    assert total_usage([one]) == one


def beside(report: Report, measured: Measured, program: Program) -> Comparison:
    return compare_measured(report, [measured], project(program), "myproject")


def compared(comparison: Comparison, layer: str | None, figure: str) -> Compared:
    (found,) = [
        each for each in comparison.runs[0].figures if (each.layer, each.figure) == (layer, figure)
    ]
    return found


def estimated(program: Program, **figures: Figure) -> Report:
    """An estimate whose first layer has these figures, whatever the rules are."""
    report = estimate(program, TARGET)
    first = report.layers[0]
    resources = {key: figure for key, figure in figures.items() if key in RESOURCES}
    times = {key: figure for key, figure in figures.items() if key not in RESOURCES}
    first = replace(first, csynth=replace(first.csynth, **resources), **times)
    return replace(report, layers=(first, *report.layers[1:]))


def test_measured_values_lie_in_the_interval_or_not() -> None:
    program = dense()
    report = estimated(
        program,
        dsp=Figure(3, "DSP", "rule", "a rule"),
        lut=Figure(100, "LUT", "fitted", "a fit", 80, 140),
        ff=Figure(None, "FF", "unknown", "no rule"),
        latency=Figure(2, "cycles", "fitted", "a fit", 1, 3),
    )
    for dsp, lut, latency, within in ((3, 80, (3, 9), True), (2, 141, (4, 9), False)):
        usage = Usage(lut, 30, dsp, latency_cycles=latency)
        found = compare_measured(
            report, [run({"f_config2_s": usage})], project(program), "myproject"
        )
        assert [compared(found, "fc", name).within for name in ("DSP", "LUT", "cycles")] == [
            within,
            within,
            within,
        ]
        assert compared(found, "fc", "cycles").measured == latency
        assert compared(found, "fc", "FF").within is None
    assert compared(found, "fc", "DSP").deviation_percent == pytest.approx(50)
    assert compared(found, "fc", "cycles").deviation_percent == pytest.approx(100 * (2 / 9 - 1))
    assert compared(found, None, "DSP").measured == (3, 3)
    simulated = run({}, level="simulation", top=Usage(latency_cycles=(5, 6)))
    (cycles,) = beside(report, simulated, program).runs[0].figures
    assert (cycles.figure, cycles.estimate) == ("cycles", report.total.latency)
    lines = {" ".join(line.split()) for line in found.to_text().splitlines()}
    assert lines >= {
        "fc LUT 100 (80 to 140) 141 -29.1% no",
        "FF ? 30",
        "cycles 2 (1 to 3) 4 to 9 -77.8% no",
    }


def test_an_estimate_of_a_part_is_not_judged() -> None:
    program = dense()
    report = estimated(program, dsp=Figure(3, "DSP", "rule", "a rule | unknown: at least"))
    found = beside(report, run({"f_config2_s": lut(9)}), program)
    assert compared(found, "fc", "DSP").within is None
    assert ("DSP", "3", "or", "more", "0") in map(
        tuple, map(str.split, found.to_text().split("\n"))
    )


def test_a_layer_measured_in_part_is_shown_and_not_judged() -> None:
    program = network()
    report = estimate(program, TARGET)
    modules = {"f_config2_s": Usage(40, 30, 3, 0, 0), "requantize_config5_s": lut(8)}
    layers = project(program)
    assert [layer["name"] for layer in layers if layer["origin"] == "act"] == ["n3_act", "n4_act"]
    modules["requantize_config4_s"] = lut(8)
    found = beside(report, run(modules), program)
    part = compared(found, "act", "DSP")
    assert (part.at_least, part.within, part.measured) == (True, None, (0, 0))
    text = found.to_text()
    assert "0 or more" in text
    assert "act: n3_act without a module in the report: measured in part" in text


def test_figures_of_another_level_are_never_beside_an_estimate() -> None:
    program = dense()
    report = estimate(program, TARGET)
    usage = Usage(40, 30, 3, 0, 0, alm=20, latency_cycles=(3, 3))
    for level in ("synthesis", "implementation"):
        measured = run({"f_config2_s": usage}, level=level, top=usage)
        found = beside(report, measured, program)
        for each in found.runs[0].figures:
            own = each.figure in ("cycles", "ALM") or level == "implementation"
            assert (each.estimate is None) == own
        if level == "synthesis":
            assert compared(found, "fc", "LUT").estimate == report.layers[0].synthesis.lut
        else:
            assert "nothing is estimated at this level" in found.to_text()


@pytest.mark.parametrize(
    ("part", "fits"),
    [
        ("xc7z020clg400-1", True),
        ("7z020clg400-1", True),
        ("XC7Z020-CLG484-2", True),
        ("xc7z010clg400-1", False),
        ("xczu9eg-ffvb1156-2-e", False),
    ],
)
def test_another_part_or_clock_is_refused(part: str, fits: bool) -> None:
    program = dense()
    report = estimate(program, TARGET)
    if fits:
        beside(report, run({}, part=part, clock_ns=5.0), program)
    else:
        with pytest.raises(FxloomError, match=f"report: is of part {part}, the estimate of xc7z0"):
            beside(report, run({}, part=part), program)
    with pytest.raises(FxloomError, match=r"report: is of a clock of 4 ns, the estimate of 5 ns"):
        beside(report, run({}, clock_ns=4.0), program)


def test_a_report_of_a_module_is_no_report_of_the_whole() -> None:
    program = dense()
    report = estimate(program, TARGET)
    beside(report, run({}, design="myproject"), program)
    with pytest.raises(FxloomError, match=r"is of 'dense_config2_s', which is not the whole"):
        beside(report, run({}, design="dense_config2_s"), program)


def test_what_could_not_be_compared_is_said() -> None:
    program = network()
    report = estimate(program, TARGET)
    found = beside(report, run({"fifo": lut(1)}), program)
    text = found.to_text()
    assert "no module of the report belongs to a layer of this project" in text
    assert "report does not say for which part: it was not compared" in text
    found = beside(report, run({"f_config2_s": lut(1)}), program)
    assert "no module in the report: act" in found.to_text()


def test_json_has_the_same_figures() -> None:
    program = dense()
    report = estimated(program, dsp=Figure(3, "DSP", "rule", "a rule"))
    usage = Usage(40, 30, 3, 0, 0, latency_cycles=(3, 4))
    found = beside(report, run({"f_config2_s": usage}), program)
    document = json.loads(found.to_json())
    assert (document["format"], document["part"]) == ("fxloom-measured", "xc7z020")
    figures = document["runs"][0]["figures"]
    assert len(figures) == len(found.runs[0].figures)
    assert figures[2] == {
        "layer": "fc",
        "figure": "DSP",
        "estimate": {
            "value": 3,
            "unit": "DSP",
            "provenance": "rule",
            "source": "a rule",
            "low": None,
            "high": None,
        },
        "measured": [3, 3],
        "at_least": False,
        "deviation_percent": 0.0,
        "within": True,
    }


def test_rows_describe_weights_as_the_rules_need_them() -> None:
    usage = Usage(40, 30, 3, 0, 0, latency_cycles=(3, 4), interval_cycles=(1, 2), achieved_ns=3.5)
    program = dense()
    (row,) = measured_rows(program, TARGET, run({"f_config2_s": usage}, version="2023.2"))
    assert row == {
        "dataset": program.digest()[:12],
        "config": "DSP Vitis HLS 2023.2 xc7z020 5 ns",
        "layer": "fc",
        "op": "dense",
        "n_in": 2,
        "n_out": 3,
        "rf": 1,
        "strategy": "latency",
        "n_zeros": 1,
        "in_t": "ap_fixed<8,8>",
        "out_t": "ap_fixed<14,14>",
        "w_t": "ap_fixed<8,8>",
        "b_t": "ap_fixed<8,8>",
        "accum_t": "ap_fixed<14,14>",
        "w_n": 6,
        "w_nonzero": 5,
        "w_pow2": 1,
        "w_distinct_abs": 3,
        "csd_digits": 3 + 1 + 3 + 3 + 4,
        "hls_lat_best": 3,
        "hls_ii_min": 1,
        "hls_BRAM_18K": 0,
        "hls_DSP": 3,
        "hls_FF": 30,
        "hls_LUT": 40,
        "hls_est_clk": 3.5,
        "hard_distinct_per_input": 1 + 2,
    }
    (read,) = csv.DictReader(rows_to_csv([row]).splitlines())
    assert read == {key: str(value) for key, value in row.items()}


def test_rows_of_convolutions_and_of_kernels_without_weights() -> None:
    modules = {f"f_config{number}_s": lut(number) for number in (2, 3)}
    conv, act = measured_rows(network(), TARGET, run(modules))
    assert (conv["op"], conv["n_in"], conv["n_out"]) == ("conv2d", 2, 3)
    assert (act["op"], act["n_in"], act["hls_LUT"]) == ("max", 12, 3)
    assert "w_n" not in act
    assert rows_to_csv([act]).splitlines()[0] == ",".join(COLUMNS)


def test_rows_need_c_synthesis_and_modules() -> None:
    with pytest.raises(FxloomError, match=r"rows for fits are of C synthesis, this .* synthesis"):
        measured_rows(dense(), TARGET, run({}, level="synthesis"))
    with pytest.raises(FxloomError, match="has no module of a layer of this project"):
        measured_rows(dense(), TARGET, run({"fifo": lut(1)}))


def test_rows_can_be_fitted(tmp_path: Path) -> None:
    location = importlib.util.spec_from_file_location(
        "fit_csynth", ROOT / "benchmarks" / "fit_csynth.py"
    )
    assert location is not None
    assert location.loader is not None
    script = importlib.util.module_from_spec(location)
    location.loader.exec_module(script)
    rows = []
    for number, scale in enumerate((2.0, 2.2, 2.0, 1.8)):
        measured = run({"f_config2_s": Usage(round(100 * scale * 5 * (14 + 7)), 0, 3, 0, 0)})
        (row,) = measured_rows(dense(), TARGET, measured)
        rows.append(row | {"dataset": f"network {number}"})
    (tmp_path / "rows.csv").write_text(rows_to_csv(rows))
    found = script.all_rows(None, [tmp_path / "rows.csv"])
    assert {name: len(each) for name, each in found.items() if each} == {"latency_lut": 4}
    fitted = script.fit(found["latency_lut"])
    assert fitted.terms == {"adder_bits": pytest.approx(200, rel=0.01), "product_bits": 0}


@pytest.mark.skipif(not TABLE.exists(), reason="needs ../shared/calibration")
def test_columns_are_those_that_the_fits_read() -> None:
    with TABLE.open(newline="") as stream:
        assert next(csv.reader(stream)) == list(COLUMNS)
