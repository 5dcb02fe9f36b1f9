"""Estimates beside syntheses of hls4ml's own small test models, to show and not to judge by.

    python -m benchmarks.baselines ../shared/calibration

Their weights are random and not known, so ours are other random ones; data, weights and sums are
hls4ml's default of 16 bits, activations are our tables instead of hls4ml's.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import fxloom
from fxloom.passes import Quantize
from fxloom.report import Report
from fxloom.target import Target

MODELS = {
    "dense_io_parallel": (nn.Sequential(nn.Linear(1, 2), nn.ELU()), (1,), Target()),
    "dense_io_stream": (nn.Sequential(nn.Linear(1, 2), nn.ELU()), (1,), Target(io="stream")),
    "conv2d_io_parallel": (
        nn.Conv2d(3, 32, 4, stride=4),
        (3, 28, 28),
        Target(strategy="resource", reuse=2, part="xcu250"),
    ),
    "depthwise2d_io_stream": (
        nn.Conv2d(3, 3, 3, groups=3),
        (3, 32, 32),
        Target(io="stream", part="xcu250"),
    ),
}
KEYS = {"LUT": "lut", "FF": "ff", "DSP": "dsp", "BRAM_18K": "bram18"}


def measured(folder: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Model, tool, and what it reported."""
    with (folder / "hls4ml_baselines.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["backend"] not in ("Vitis", "Vivado"):
                continue
            name = row["test"].removeprefix("test_keras_api_test_").split(f"-{row['backend']}")[0]
            figures = {
                key.removeprefix("CSynthesisReport."): value
                for key, value in row.items()
                if key.startswith("CSynthesisReport.")
            }
            yield (
                name.removesuffix(f"_{row['backend']}"),
                f"{row['backend']} {row['tool']}",
                figures,
            )


def estimated(model: nn.Module, shape: tuple[int, ...], target: Target) -> Report:
    """The same architecture with random weights, 16 bits wide."""
    torch.manual_seed(0)
    x = torch.randn(16, *shape)
    graph = fxloom.capture(model.eval(), x[:2])
    step = Quantize(weights=16, activations=16, inputs=16, weight_rounding="nearest")
    program = fxloom.lower(fxloom.Recipe([step]).run(graph, data=fxloom.Data.of(x)).graph)
    return fxloom.estimate(program, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    rows = list(measured(parser.parse_args().folder))
    for name, (model, shape, target) in MODELS.items():
        total = estimated(model, shape, target).total
        figures = {unit: getattr(total.csynth, key) for unit, key in KEYS.items()}
        cells = [f"{unit} {figure}" for unit, figure in figures.items()]
        print(f"{name}: {', '.join(cells)}, cycles {total.latency}, interval {total.interval}")
        for of, tool, found in rows:
            if of == name:
                seen = [f"{unit} {found[unit]}" for unit in KEYS]
                cycles = f"cycles {found['WorstLatency']}, interval {found['IntervalMax']}"
                print(f"    {tool}: {', '.join(seen)}, {cycles}")


if __name__ == "__main__":
    main()
