"""Widths by layer or channel against the same number of bits for every weight.

    OMP_NUM_THREADS=1 python -m benchmarks.mixed_precision --png docs/mixed_precision.png

Networks, data and seeds of benchmarks/quantization.py; activations have 8 bits throughout. Both
sides of every pair store as many weight bits; uniform widths are also given a binary point for each
channel, as mixed ones have it, and the better of the two counts. Differences are paired by seed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

import fxloom
from benchmarks.quantization import TASKS, data_of, trained
from fxloom.passes import MixedPrecision, Quantize

BITS = (2, 2.5, 3, 3.5, 4, 5, 6, 8)
NETWORKS = ("digits mlp", "digits cnn")


def figures(name: str, seed: int, step: Any) -> tuple[float, float]:
    """Points of accuracy lost, and the divergence of the scores, both on the test samples."""
    model, data = trained(name, seed), data_of(name, seed)
    x, y = np.asarray(data.x_test), np.asarray(data.y_test)
    graph = fxloom.capture(model, torch.from_numpy(x[:2]))
    program = fxloom.lower(step(graph, data).graph)
    fixed = torch.from_numpy(np.asarray(fxloom.simulate(program, x))).double()
    with torch.no_grad():
        exact = model(torch.from_numpy(x)).double()
    p, q = exact.log_softmax(1), fixed.log_softmax(1)
    right = [float((scores.argmax(1).numpy() == y).mean()) for scores in (exact, fixed)]
    return 100 * (right[0] - right[1]), float((p.exp() * (p - q)).sum(1).mean())


def measure(name: str, bits: float, seeds: int, options: dict[str, Any]) -> dict[str, Any]:
    """One record: mixed and, where the number of bits is whole, both uniform ones."""
    steps: dict[str, Any] = {
        "mixed": MixedPrecision(weight_bits=bits, quantize={"activations": 8}, **options)
    }
    if bits == int(bits):
        steps["uniform"] = Quantize(weights=int(bits), activations=8)
        steps["uniform by channel"] = Quantize(weights=int(bits), activations=8, per_channel=True)
    found = {
        kind: [figures(name, seed, step) for seed in range(seeds)] for kind, step in steps.items()
    }
    record: dict[str, Any] = {"network": name, "bits": bits}
    for place, quantity in enumerate(("lost", "divergence")):
        columns = {kind: [pair[place] for pair in pairs] for kind, pairs in found.items()}
        record[quantity] = {kind: _with_error(values) for kind, values in columns.items()}
        for kind in columns:
            if kind != "mixed":
                gains = [a - b for a, b in zip(columns[kind], columns["mixed"], strict=True)]
                record[quantity][f"gain over {kind}"] = _with_error(gains)
    return record


def _with_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and two standard errors."""
    return mean(values), 2 * stdev(values) / len(values) ** 0.5


def plot(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy lost and divergence over the bits of a weight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2, squeeze=False)
    titles = {"lost": "points of accuracy lost", "divergence": "divergence of the scores"}
    styles = {"mixed": "o-", "uniform": "s--", "uniform by channel": "^:"}
    for column, name in enumerate(NETWORKS):
        for row, (quantity, title) in enumerate(titles.items()):
            axis = axes[row][column]
            for kind, style in styles.items():
                points = [
                    (r["bits"], *r[quantity][kind])
                    for r in records
                    if r["network"] == name and kind in r[quantity]
                ]
                if points:
                    x, y, errors = zip(*points, strict=True)
                    axis.errorbar(x, y, errors, fmt=style, capsize=3, label=kind)
            axis.set(title=name, xlabel="bits of a weight, mean", ylabel=title)
            if quantity == "divergence":
                axis.set_yscale("log")
            axis.grid(alpha=0.3)
            axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", choices=list(TASKS))
    parser.add_argument("--bits", type=float, action="append")
    parser.add_argument("--method", choices=["sensitivity", "hessian"], default="sensitivity")
    parser.add_argument("--granularity", choices=["channel", "layer"], default="channel")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keys = {"method": options.method, "granularity": options.granularity}
    records = []
    for name in [options.only] if options.only else NETWORKS:
        for bits in options.bits or BITS:
            record = measure(name, bits, options.seeds, keys)
            records.append(record)
            print(f"{name}, {bits:g} bits")
            for quantity, digits in (("lost", 2), ("divergence", 5)):
                for kind, (middle, error) in record[quantity].items():
                    print(f"  {quantity:10} {kind:28} {middle:8.{digits}f} +- {error:.{digits}f}")
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    if options.png is not None:
        plot(records, options.png)


if __name__ == "__main__":
    main()
