"""Fit what C synthesis reports of layers: LUTs and flip-flops, by strategy.

    python -m benchmarks.fit_csynth ../shared/calibration            the tables of coefficients.toml
    python -m benchmarks.fit_csynth ../shared/calibration --residuals    docs/residuals_csynth.csv
    python -m benchmarks.fit_csynth --measured rows.csv    from rows of `fxloom report --csv` alone

With both, measured rows are sets of their own beside the others; a set is a network.

Sources: mlp_layers_csynth.csv (three MLPs; facts read from a repository without a licence, so that
only coefficients are committed) and dense_csynth.csv (one-layer networks on a U250). A fit
minimises the absolute logarithms of value / measured, so that a factor two too small weighs as much
as one too large. Each set (a network, or the layers with one number of outputs) is left out in turn
and read by the fit on the others; the 5% and 95% quantiles of those errors are the interval. Its
coverage is checked without the set as well: interval and fit are both made from the others.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from fxloom import features
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.multipliers import multiplier_limit
from fxloom.requantize_cost import conversion_luts

Table = list[dict[str, str]]


class Row(NamedTuple):
    """A synthesised layer: its features and what it took. group: the set it belongs to."""

    group: str
    name: str
    features: dict[str, float]
    measured: float


class Fitted(NamedTuple):
    """What a table of the file holds, and the rows with the errors they had when left out."""

    terms: dict[str, float]
    low: float
    high: float
    median_error: float
    covered: float
    rows: list[Row]
    errors: np.ndarray


SOURCES = {
    "latency_lut": "dense, Latency: an adder a weight and LUTs for products that no DSP block "
    "forms; 8-bit data and weights, 16-bit sums, 5 ns",
    "latency_ff": "dense, Latency: registers of sums, more where nothing is reused; 8-bit data and "
    "weights, 16-bit sums, 5 ns, pipelines of 1 to 9 cycles; of 27 layers on a U250 that took 0 or "
    "1 cycle it was 8 to 12 times less",
    "resource_lut": "dense, Resource: choosing of inputs and sums; 16-bit data and sums, 2- to "
    "14-bit weights, 32 to 256 inputs and outputs, reuse from 2 times the inputs up, U250, 5 ns",
    "resource_ff": "dense, Resource: sums and the weights in use; 16-bit data and sums, 2- to "
    "14-bit weights, 32 to 256 inputs and outputs, reuse from 2 times the inputs up, U250, 5 ns",
    "logic_lut": "as of ReLU layers that round and saturate 16 bits into 8",
}


def width(kind: str) -> int:
    """Bits of an ap_fixed type."""
    found = re.search(r"<(\d+)", kind)
    assert found is not None
    return int(found[1])


def latency_rows(table: Table) -> dict[str, list[Row]]:
    """Dense layers with multipliers in DSP blocks and in LUTs, which `config` begins with."""
    luts, registers = [], []
    for row in table:
        if row["op"] != "dense" or row["strategy"] != "latency":
            continue
        n_in, n_out, reuse = (int(row[key]) for key in ("n_in", "n_out", "rf"))
        nonzero, sums = int(row["w_nonzero"]), width(row["accum_t"])
        limit = multiplier_limit(n_in * n_out, n_in * n_out - nonzero, reuse)
        products = min(int(row["hard_distinct_per_input"]), limit)
        in_luts = products if row["config"].startswith("LUT") else 0
        name = f"{row['config']} {n_in}x{n_out}"
        bits = width(row["in_t"]) * width(row["w_t"])
        found = features.latency_lut(nonzero, sums, in_luts, bits)
        luts.append(Row(row["dataset"], name, found, float(row["hls_LUT"])))
        found = features.latency_ff(nonzero, n_out, sums, reuse)
        registers.append(Row(row["dataset"], name, found, float(row["hls_FF"])))
    return {"latency_lut": luts, "latency_ff": registers}


def resource_rows(networks: Table, table: Table) -> dict[str, list[Row]]:
    """One-layer networks, whose data and sums have hls4ml's default ap_fixed<16,6>, and layers."""
    luts, registers = [], []
    for row in table:
        if (row["op"], row["strategy"]) != ("dense", "resource") or row["rf"] == "1":
            continue
        n_in, n_out, reuse = (int(row[key]) for key in ("n_in", "n_out", "rf"))
        bits, data, sums = (width(row[key]) for key in ("w_t", "in_t", "accum_t"))
        name = f"{n_in}x{n_out} {bits} bits, reuse {reuse}"
        found = features.resource_lut(n_in, n_out, reuse, data, sums)
        luts.append(Row(row["dataset"], name, found, float(row["hls_LUT"])))
        found = features.resource_ff(n_in, n_out, reuse, bits, sums)
        registers.append(Row(row["dataset"], name, found, float(row["hls_FF"])))
    for row in networks:
        n_in, n_out, bits, reuse = (int(row[key]) for key in ("d_in", "d_out", "prec", "rf"))
        if row["strategy"] != "resource" or reuse == 1:
            continue
        group, name = f"{n_out} outputs", f"{n_in}x{n_out} {bits} bits, reuse {reuse}"
        found = features.resource_lut(n_in, n_out, reuse, 16, 16)
        luts.append(Row(group, name, found, float(row["LUT_hls"])))
        found = features.resource_ff(n_in, n_out, reuse, bits, 16)
        registers.append(Row(group, name, found, float(row["FF_hls"])))
    return {"resource_lut": luts, "resource_ff": registers}


def logic_rows(table: Table) -> dict[str, list[Row]]:
    """ReLU layers that round and saturate, against the LUTs that their logic is counted as."""
    rows = []
    for row in table:
        if row["op"] != "relu":
            continue
        to = re.fullmatch(r"ap_ufixed<(\d+),(-?\d+),AP_RND_CONV,AP_SAT>", row["out_t"])
        of = re.fullmatch(r"ap_fixed<(\d+),(-?\d+)>", row["in_t"])
        assert to is not None
        assert of is not None
        source, result = (
            FixedPoint(int(of[1]), int(of[2])),
            FixedPoint(int(to[1]), int(to[2]), False),
        )
        parts = conversion_luts(source, result, Rounding.RND_CONV, Overflow.SAT)
        luts = int(row["n_in"]) * (source.width / 2 + sum(part.likely for part in parts))
        name = f"{row['config']} {row['n_in']} elements"
        rows.append(Row(row["dataset"], name, {"luts": luts}, float(row["hls_LUT"])))
    return {"logic_lut": rows}


def _table(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def terms_of(rows: list[Row]) -> np.ndarray:
    """Coefficients, none negative, with the least sum of |log(value / measured)|."""
    x = np.array([list(row.features.values()) for row in rows], float)
    y = np.array([row.measured for row in rows])
    used = x.max(0) > 0
    scale = np.where(used, np.abs(x).mean(0), 1.0)
    # A smooth stand-in for the absolute value, ever closer to it.
    start = np.full(x.shape[1], np.median(y) / used.sum())
    for softness in (1e-1, 1e-2, 1e-3):

        def loss(logs: np.ndarray, eps: float = softness) -> float:
            value = x / scale @ np.exp(logs)
            return float(np.sqrt(np.log(value / y) ** 2 + eps**2).sum())

        found = minimize(loss, np.log(start), method="Nelder-Mead", options=OPTIONS)
        start = np.exp(found.x)
    return np.where(used, start / scale, 0.0)


FEWEST_SETS = 3
"""One to leave out, one more for the coverage without it, and one to fit."""
OPTIONS = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-6, "fatol": 1e-9, "adaptive": True}


def left_out(rows: list[Row]) -> np.ndarray:
    """log(value / measured) of every row by the fit on the other sets."""
    errors = np.zeros(len(rows))
    for group in sorted({row.group for row in rows}):
        terms = terms_of([row for row in rows if row.group != group])
        for place, row in enumerate(rows):
            if row.group == group:
                value = float(np.dot(list(row.features.values()), terms))
                errors[place] = np.log(value / row.measured)
    return errors


def bounds(errors: np.ndarray) -> tuple[float, float]:
    """Factors on a value between which 90% of the measured numbers lay.

    The quantiles are those of conformal prediction: a new row is among n + 1, so that few rows make
    them wider (Vovk, Gammerman, Shafer 2005).
    """
    most = min(np.ceil(0.95 * (len(errors) + 1)) / len(errors), 1.0)
    low, high = (np.quantile(errors, level, method="inverted_cdf") for level in (1 - most, most))
    return float(np.exp(-high)), float(np.exp(-low))


def fit(rows: list[Row]) -> Fitted:
    """The fit on all rows, its errors on sets left out, and what its intervals cover."""
    errors, inside = left_out(rows), 0
    for group in sorted({row.group for row in rows}):
        low, high = bounds(left_out([row for row in rows if row.group != group]))
        for row, error in zip(rows, errors, strict=True):
            if row.group == group:
                inside += low <= np.exp(-error) <= high
    names = rows[0].features
    terms = {n: float(f"{t:.4g}") for n, t in zip(names, terms_of(rows), strict=True)}
    low, high = bounds(errors)
    relative = float(np.median(np.abs(np.exp(errors) - 1)))
    return Fitted(terms, low, high, relative, inside / len(rows), rows, errors)


def all_rows(folder: Path | None, measured: Sequence[Path] = ()) -> dict[str, list[Row]]:
    """Rows of every fit. folder: of other people's syntheses; measured: files of one's own."""
    names = "mlp_layers_csynth.csv", "dense_csynth.csv"
    layers, networks = ([] if folder is None else _table(folder / name) for name in names)
    layers += [row for path in measured for row in _table(path)]
    found = latency_rows(layers) | resource_rows(networks, layers) | logic_rows(layers)
    # Errors are ratios, and of nothing there is none.
    return {name: [row for row in rows if row.measured > 0] for name, rows in found.items()}


def toml(name: str, found: Fitted) -> str:
    """The table of coefficients.toml."""
    terms = ", ".join(f"{key} = {value}" for key, value in found.terms.items())
    return "\n".join(
        [
            f"[{name}]",
            f"terms = {{ {terms} }}",
            f"low = {found.low:.3f}",
            f"high = {found.high:.3f}",
            f"rows = {len(found.rows)}",
            f"datasets = {len({row.group for row in found.rows})}",
            f"median_error = {found.median_error:.3f}",
            f"covered = {found.covered:.3f}",
            f'source = "{SOURCES[name]}"',
            'script = "benchmarks/fit_csynth.py"',
            "",
        ]
    )


def residuals(name: str, found: Fitted) -> str:
    """The error of every row when its set is left out, as lines of a table; no measured number."""
    shares = 100 * (np.exp(found.errors) - 1)
    return "\n".join(
        f"{name},{row.group},{row.name.replace(',', ';')},{share:+.1f}"
        for row, share in zip(found.rows, shares, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--measured", type=Path, nargs="+", default=[], help="rows of one's own")
    parser.add_argument("--residuals", action="store_true", help="every row, as CSV")
    given = parser.parse_args()
    if given.residuals:
        print("fit,set,layer,error in percent when the set is left out")
    show: Callable[[str, Fitted], str] = residuals if given.residuals else toml
    for name, rows in all_rows(given.folder, given.measured).items():
        sets = len({row.group for row in rows})
        if sets < FEWEST_SETS:
            fault = f"{name}: required layers of {FEWEST_SETS} networks or more, got {sets}"
            print(fault, file=sys.stderr)
        else:
            print(show(name, fit(rows)))


if __name__ == "__main__":
    main()
