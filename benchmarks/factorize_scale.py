"""Factorization at the size of VGG-16: a quarter of the parameters, shared out by a budget.

A few random images say what the layers give; one thread, CPU time. The case runs in a process of
its own, so that its peak is its own.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from time import process_time
from typing import Any

from rich.table import Table

from benchmarks.alone import each_alone, peak_kb

BUDGET = 0.25
IMAGES = 8
GATES = {"vgg16": {"seconds": 120.0, "peak_gb": 4.0}}


def measure_all(names: Sequence[str] | None, quick: bool) -> Iterator[dict[str, Any]]:
    """One record a case. quick: half of the images."""
    yield from each_alone("factorize_scale", names or list(GATES), "4" if quick else str(IMAGES))


def measure_vgg16(images: int) -> dict[str, Any]:
    """Capture, then the pass."""
    import torch

    import fxloom
    from benchmarks.models import CASES, LARGE
    from fxloom.passes import Factorize

    torch.set_num_threads(1)
    fxloom.capture(CASES[0].model(), CASES[0].inputs(2))
    case = next(case for case in LARGE if case.name == "vgg16")
    model, x = case.model(), case.inputs(images)
    begin = process_time()
    graph = fxloom.capture(model, x[:2])
    captured = process_time() - begin
    summary: Any = Factorize(budget=BUDGET)(graph, fxloom.Data.of(x)).summary
    return {
        "case": "vgg16",
        "images": images,
        "seconds": process_time() - begin,
        "capture_s": captured,
        "peak_gb": peak_kb() / 2**20,
        "kept": summary["kept"],
        "ranks": {name: each["ranks"] for name, each in summary["layers"].items()},
    }


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Figures with their gates."""
    shown = Table(title=f"VGG-16 factorized to {BUDGET:.0%} of its parameters: one thread")
    for title in ("case", "images", "seconds", "memory", "parameters", "multiply-adds"):
        shown.add_column(title, justify="left" if title == "case" else "right")
    for record in records:
        gates = GATES[record["case"]]
        shown.add_row(
            record["case"],
            str(record["images"]),
            f"{record['seconds']:.1f} (<= {gates['seconds']:g})",
            f"{record['peak_gb']:.2f} GB peak (<= {gates['peak_gb']:g})",
            *(f"{record['kept'][key]:.2%}" for key in ("parameters", "macs")),
        )
    return shown


if __name__ == "__main__":
    print(json.dumps(measure_vgg16(int(sys.argv[2]))))
