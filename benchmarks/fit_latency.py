"""Fit the one constant by which estimation.py guesses cycles of a dense layer (Latency strategy).

    python benchmarks/fit_latency.py ../shared/calibration/mlp_layers_csynth.csv

The table is not part of the project (its source states no licence); what is committed is the
constant and its interval. Model: cycles = depth of a binary adder tree over the inputs and the
bias + constant. The constant is the median residual; the interval are the extremes of the
residuals that each row has when it is left out of the fit.
"""

import argparse
import csv
from pathlib import Path
from statistics import median

from fxloom.costs import DENSE_CYCLES, adder_tree_depth


def residuals(table: Path) -> list[int]:
    """Measured cycles minus tree depth, for dense layers with reuse 1 and DSP multipliers."""
    with table.open(newline="", encoding="utf-8") as stream:
        rows = [
            row
            for row in csv.DictReader(stream)
            if row["op"] == "dense" and row["rf"] == "1" and row["config"].startswith("DSP")
        ]
    return [int(row["hls_lat_best"]) - adder_tree_depth(int(row["n_in"])) for row in rows]


def fit(found: list[int]) -> tuple[float, float, float]:
    """The constant, and the interval of left-out rows around it."""
    left_out = [
        value - median(found[:index] + found[index + 1 :]) for index, value in enumerate(found)
    ]
    return median(found), min(left_out), max(left_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    found = residuals(parser.parse_args().table)
    constant, low, high = fit(found)
    print(f"{len(found)} rows, residuals {sorted(found)}")
    print(f"fitted:    constant {constant:g}, left-out errors {low:g} to {high:g}")
    print(f"committed: constant {DENSE_CYCLES[0]}, errors {DENSE_CYCLES[1]} to {DENSE_CYCLES[2]}")


if __name__ == "__main__":
    main()
