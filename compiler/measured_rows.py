"""Measured layers as rows that a fit can read, a row a layer of the project.

The columns are those of the per-layer syntheses of MLPs that the rules were found on; what a layer
does not have stays empty. Weights are described by what the rules need of them, so that a row can
be given away without its network.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

from fxloom.backends.hls4ml.dialect import DIALECTS, ValueType
from fxloom.backends.hls4ml.plan import Layer, describe, make_plan
from fxloom.errors import FxloomError
from fxloom.fixed_point import IntArray
from fxloom.matrices import KERNEL, Matrix, matrix_of
from fxloom.measured import Measured, Usage
from fxloom.measured_layers import INPUT, project_usage
from fxloom.multipliers import csd_digits, hard_multiplications
from fxloom.program import Program
from fxloom.target import Target

COLUMNS = (
    "dataset",
    "config",
    "layer",
    "op",
    "n_in",
    "n_out",
    "rf",
    "strategy",
    "n_zeros",
    "in_t",
    "out_t",
    "w_t",
    "b_t",
    "accum_t",
    "w_n",
    "w_nonzero",
    "w_pow2",
    "w_distinct_abs",
    "csd_digits",
    "hls_lat_best",
    "hls_ii_min",
    "hls_BRAM_18K",
    "hls_DSP",
    "hls_FF",
    "hls_LUT",
    "hls_est_clk",
    "hard_distinct_per_input",
)

Row = dict[str, str | int | float]


def measured_rows(program: Program, target: Target, measured: Measured) -> list[Row]:
    """A row for every layer of the project that the report has a module of.

    dataset: the program; config: DSP or LUT, where its multipliers were found, then tool, part and
    clock; layer: the user's name of it. Raises FxloomError where the report is not of C synthesis,
    or has no module of any layer.
    """
    if measured.level != "csynth":
        raise FxloomError(
            f"{measured.source}: rows for fits are of C synthesis, this report is of "
            f"{measured.level}"
        )
    plan = make_plan(program, target)
    usages = project_usage(measured, list(describe(plan)))
    if not usages:
        raise FxloomError(
            f"{measured.source}: has no module of a layer of this project, so there are no rows. "
            "Name the folder syn/report, which has a report of every module"
        )
    sources = {name: each for each in plan.layers for name, _ in each.results}
    run = f"{measured.tool} {measured.version or ''} {target.device.name} {target.clock_ns:g} ns"
    return [
        {
            "dataset": program.digest()[:12],
            "config": f"{'DSP' if usages[layer.name].dsp else 'LUT'} {' '.join(run.split())}",
            **_described(program, target, layer, sources),
            **_measured(usages[layer.name]),
        }
        for layer in plan.layers
        if layer.kind != INPUT and layer.name in usages
    ]


def rows_to_csv(rows: list[Row]) -> str:
    """The rows under COLUMNS."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _described(program: Program, target: Target, layer: Layer, sources: Mapping[str, Layer]) -> Row:
    dialect = DIALECTS[target.backend]
    row: Row = {
        "layer": layer.origin,
        "op": "_".join(layer.ops),
        "out_t": dialect.fixed(layer.type),
    }
    if layer.inputs:
        source = sources[layer.inputs[0]]
        row |= {"n_in": prod(source.shape), "in_t": dialect.fixed(source.type)}
    if layer.accum is not None:
        row["accum_t"] = dialect.fixed(layer.accum)
    for key, column in (("weight", "w_t"), ("bias", "b_t")):
        if layer.accum is not None and key in layer.weights:
            row[column] = dialect.fixed(ValueType(layer.weights[key].kind))
    if layer.allotment is not None:
        row |= {"rf": layer.allotment.reuse, "strategy": layer.allotment.strategy}
    matrix = _matrix(program, target, layer)
    if matrix is not None:
        own = "" if layer.allotment is None or layer.allotment.is_dense else layer.allotment.kernel
        kind = own or layer.kind.lower()
        row |= dict(_weights(matrix))
        if layer.kind != KERNEL or own:
            row["op"] = kind
    return row


def _matrix(program: Program, target: Target, layer: Layer) -> Matrix | None:
    """That which a layer multiplies by; the first of its values is the product."""
    products = [each for each in program.instrs if each.result.name == layer.values[0]]
    return matrix_of(program, products[0], target) if products else None


def _weights(matrix: Matrix) -> Iterator[tuple[str, int]]:
    weights: IntArray = matrix.weights
    magnitudes = np.abs(weights[weights != 0].astype(np.int64))
    n_in, n_out = matrix.shape
    yield "n_in", n_in
    yield "n_out", n_out
    yield "n_zeros", weights.size - magnitudes.size
    yield "w_n", weights.size
    yield "w_nonzero", magnitudes.size
    yield "w_pow2", int(np.count_nonzero(magnitudes & (magnitudes - 1) == 0))
    yield "w_distinct_abs", np.unique(magnitudes).size
    yield "csd_digits", int(csd_digits(magnitudes).sum())
    yield "hard_distinct_per_input", hard_multiplications(weights)


def _measured(usage: Usage) -> Row:
    found = {
        "hls_lat_best": None if usage.latency_cycles is None else usage.latency_cycles[0],
        "hls_ii_min": None if usage.interval_cycles is None else usage.interval_cycles[0],
        "hls_BRAM_18K": usage.bram18,
        "hls_DSP": usage.dsp,
        "hls_FF": usage.ff,
        "hls_LUT": usage.lut,
        "hls_est_clk": usage.achieved_ns,
    }
    return {key: value for key, value in found.items() if value is not None}
