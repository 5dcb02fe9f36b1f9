"""Pruning at the size of VGG-16: the global threshold alone, and capture and pruning end to end.

The threshold beside NumPy's partition of all magnitudes, in turn, on the same weights: one thread,
CPU time, median; memory is how much the peak of the process grows. Each case runs in a process of
its own, so that its peak is its own.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from statistics import median
from time import process_time
from typing import Any

from rich.table import Table

from benchmarks.alone import each_alone, peak_kb, timed

SPARSITY = 0.6
GATES = {
    "threshold": {"seconds": 0.28, "grown_mb": 16.0},
    "vgg16": {"seconds": 60.0, "peak_gb": 4.0},
}


def measure_all(names: Sequence[str] | None, quick: bool) -> Iterator[dict[str, Any]]:
    """One record a case."""
    yield from each_alone("prune_scale", names or list(GATES), "1" if quick else "5")


def measure_threshold(rounds: int) -> dict[str, Any]:
    """The k-th smallest magnitude of the weights of VGG-16's layers."""
    import numpy as np
    import torch

    from benchmarks.models import LARGE
    from fxloom.passes.thresholds import threshold

    torch.set_num_threads(1)
    model = next(case for case in LARGE if case.name == "vgg16").model()
    weights = [p.detach() for p in model.parameters() if p.dim() > 1]
    total = sum(w.numel() for w in weights)
    count = round(SPARSITY * total)
    threshold([torch.randn(1000)], 10)  # NumPy's generator is loaded at its first use
    before = peak_kb()
    ours = [timed(lambda: threshold(weights, count)) for _ in range(rounds)]
    grown = (peak_kb() - before) / 2**10
    others = [
        timed(
            lambda: np.partition(
                np.abs(np.concatenate([w.reshape(-1).numpy() for w in weights])), count - 1
            )[count - 1]
        )
        for _ in range(rounds)
    ]
    assert ours[0][0].value == float(others[0][0])
    seconds, partition = (median(s for _, s in each) for each in (ours, others))
    return {
        "case": "threshold",
        "weights": total,
        "seconds": seconds,
        "partition_s": partition,
        "partition_over_ours": partition / seconds,
        "grown_mb": grown,
        "partition_grown_mb": (peak_kb() - before) / 2**10,
    }


def measure_vgg16(rounds: int) -> dict[str, Any]:
    """Capture and one pass, by magnitude over all layers."""
    import torch

    import fxloom
    from benchmarks.models import LARGE
    from fxloom.passes import Prune

    torch.set_num_threads(1)
    case = next(case for case in LARGE if case.name == "vgg16")
    model, x = case.model(), case.inputs(2)
    begin = process_time()
    graph = fxloom.capture(model, x)
    captured = process_time() - begin
    summary: Any = fxloom.Recipe([Prune(sparsity=SPARSITY)]).run(graph).steps[0].summary
    seconds = process_time() - begin
    layers = summary["layers"].values()
    weights = sum(each["weights"] for each in layers)
    assert sum(each["kept"] for each in layers) == weights - round(SPARSITY * weights)
    return {
        "case": "vgg16",
        "weights": weights,
        "seconds": seconds,
        "capture_s": captured,
        "peak_gb": peak_kb() / 2**20,
    }


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Figures with their gates."""
    shown = Table(title=f"Pruning of {SPARSITY:.0%} of the weights of VGG-16: one thread")
    shown.add_column("case")
    for title in ("weights", "seconds", "memory", "beside it"):
        shown.add_column(title, justify="right")
    for record in records:
        gates = GATES[record["case"]]
        if record["case"] == "threshold":
            memory = f"+{record['grown_mb']:.1f} MB (<= {gates['grown_mb']:g})"
            beside = (
                f"np.partition {record['partition_s']:.2f} s, "
                f"{record['partition_over_ours']:.0f}x, +{record['partition_grown_mb']:.0f} MB"
            )
        else:
            memory = f"{record['peak_gb']:.2f} GB peak (<= {gates['peak_gb']:g})"
            beside = f"capture {record['capture_s']:.2f} s"
        shown.add_row(
            record["case"],
            f"{record['weights'] / 1e6:.1f} M",
            f"{record['seconds']:.2f} (<= {gates['seconds']:g})",
            memory,
            beside,
        )
    return shown


if __name__ == "__main__":
    case, rounds = sys.argv[1], int(sys.argv[2])
    found = measure_threshold(rounds) if case == "threshold" else measure_vgg16(rounds)
    print(json.dumps(found))
