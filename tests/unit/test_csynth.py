"""What is estimated of C synthesis against other people's syntheses, row by row."""

import csv
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxloom.coefficients import fit
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint
from fxloom.ops import MatMul
from fxloom.program import ProgramBuilder
from fxloom.report import LayerReport
from fxloom.target import Target

ROOT = Path(__file__).parents[2]
TABLES = ROOT.parent / "shared" / "calibration"
pytestmark = pytest.mark.skipif(not TABLES.exists(), reason="needs ../shared/calibration")
NAMES = ("latency_lut", "latency_ff", "resource_lut", "resource_ff")


@cache
def script() -> Any:
    pytest.importorskip("scipy")
    return import_module("benchmarks.fit_csynth")


@cache
def fitted(name: str) -> Any:
    return script().fit(script().all_rows(TABLES)[name])


@pytest.mark.parametrize("name", [*NAMES, "logic_lut"])
def test_committed_coefficients_are_the_fitted_ones(name: str) -> None:
    found = tomllib.loads(script().toml(name, fitted(name)))[name]
    committed = fit(name)
    assert found["terms"] == pytest.approx(dict(committed.terms), rel=0.01, abs=1e-3)
    for key in ("low", "high", "median_error", "covered"):
        assert getattr(committed, key) == pytest.approx(found[key], abs=0.02), key
    assert (committed.rows, committed.datasets) == (found["rows"], found["datasets"])


@pytest.mark.parametrize("name", NAMES)
def test_sets_that_were_left_out_are_read_well(name: str) -> None:
    """Half of the errors at most 25%, and 80 to 97% of the rows in the 90% interval."""
    found = fitted(name)
    assert found.median_error <= 0.25
    assert 0.80 <= found.covered <= 0.97


def resource_rows() -> Iterator[dict[str, str]]:
    with (TABLES / "dense_csynth.csv").open(newline="") as stream:
        yield from (row for row in csv.DictReader(stream) if row["strategy"] == "resource")


def layer(row: dict[str, str]) -> LayerReport:
    """The estimate of such a layer, with types as hls4ml has them by default."""
    n_in, n_out, width, reuse = (int(row[key]) for key in ("d_in", "d_out", "prec", "rf"))
    return _layer(n_in, n_out, width)(reuse)


@cache
def _layer(n_in: int, n_out: int, width: int) -> Any:
    builder = ProgramBuilder()
    x = builder.input("x", (n_in,), FixedPoint(16, 6))
    # Large and small weights, none a power of two.
    pattern = np.resize([(1 << (width - 1)) - 1, -3 if width > 2 else 1, 0], n_in * n_out)
    w = builder.constant("w", pattern.reshape(n_in, n_out), FixedPoint(width, width))
    builder.output(builder.emit(MatMul(), [x, w], "fc"), "y")
    program = builder.build()

    def estimated(reuse: int) -> LayerReport:
        settings = {"fc": {"strategy": "resource", "reuse": reuse, "kernel": "dense"}}
        return estimate(program, Target(part="xcu250", layers=settings)).layers[0]  # type: ignore[arg-type]

    return estimated


def test_interval_and_latency_of_the_resource_strategy() -> None:
    compared = within = 0
    for row in resource_rows():
        if row["rf"] == "1":
            continue
        found = layer(row)
        assert found.interval.value == int(row["IntervalMin_hls"]), row
        assert found.latency.value is not None
        within += abs(found.latency.value - int(row["BestLatency_hls"])) <= 1
        compared += 1
    assert compared == 871
    assert within >= 0.98 * compared


def test_one_cycle_is_left_to_a_rule_of_its_own() -> None:
    """Wrong on 1 of 35: 96 outputs of 4-bit weights."""
    rows = [row for row in resource_rows() if row["rf"] == "1"]
    right = 0
    for row in rows:
        found = layer(row)
        measured = int(row["BestLatency_hls"]), int(row["IntervalMin_hls"])
        right += (found.latency.value, found.interval.value) == measured
    assert (right, len(rows)) == (34, 35)


def test_dsp_blocks_of_the_resource_strategy() -> None:
    for row in resource_rows():
        if row["rf"] == "1" or row["prec"] in ("2", "6"):
            continue  # two bits are powers of two; six are in between
        assert layer(row).csynth.dsp.value == int(row["DSP_hls"]), row


def test_memory_of_the_resource_strategy_is_at_most_one_block_off() -> None:
    rows = [row for row in resource_rows() if row["rf"] != "1"]
    off = [(layer(row).csynth.bram18.value or 0) - int(row["BRAM_18K_hls"]) for row in rows]
    assert sum(each == 0 for each in off) == 744
    assert sum(abs(each) <= 1 for each in off) == 869
