"""Weight sharing at the size of VGG-16: k-means on its largest layer, and Deep Compression: prune,
share, quantize, code.

k-means beside the least error that there is, by the same dynamic programme on far finer bins and
far more points. One thread, CPU time, median. Each case runs in a process of its own, so that its
peak is its own.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from statistics import median
from time import process_time
from typing import Any

from rich.table import Table

from benchmarks.alone import each_alone, peak_kb, timed

WEIGHTS = 4096 * 25088
CLUSTERS = 256
FINER = 16
"""How much finer the bins of the optimum are, and how many more points it is found on."""
SPARSITY = 0.92
IMAGES = 8
"""That calibrate."""
GATES = {
    "kmeans": {"seconds": 0.72, "error_over_optimum": 1.01},
    "vgg16": {"seconds": 90.0, "peak_gb": 4.0},
}


def measure_all(names: Sequence[str] | None, quick: bool) -> Iterator[dict[str, Any]]:
    """One record a case."""
    yield from each_alone("share_scale", names or list(GATES), "1" if quick else "5")


def measure_kmeans(rounds: int) -> dict[str, Any]:
    """A codebook for the weights of VGG-16's largest layer, normally distributed."""
    import torch

    from fxloom.passes import kmeans

    torch.set_num_threads(1)
    values = torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(0)).mul_(0.01)

    def error(centroids: Any, numbers: Any) -> float:
        parts = zip(values.split(1 << 20), numbers.split(1 << 20), strict=True)
        return sum(float((x.double() - centroids[n.long()]).square().sum()) for x, n in parts)

    kmeans.cluster(values[:100_000], CLUSTERS)
    found = [timed(lambda: kmeans.cluster(values, CLUSTERS)) for _ in range(rounds)]
    ours = error(*found[0][0])
    kmeans.BINS, kmeans.WORK = kmeans.BINS * FINER, kmeans.WORK * FINER
    optimum = error(*kmeans.cluster(values, CLUSTERS))
    return {
        "case": "kmeans",
        "weights": WEIGHTS,
        "seconds": median(seconds for _, seconds in found),
        "error_over_optimum": ours / optimum,
    }


def measure_vgg16(rounds: int) -> dict[str, Any]:
    """Capture, then the passes: as many weights and bits as Deep Compression has."""
    import torch

    import fxloom
    from benchmarks.models import CASES, LARGE
    from fxloom.passes import CodeWeights, Prune, Quantize, ShareWeights

    torch.set_num_threads(1)
    fxloom.capture(CASES[0].model(), CASES[0].inputs(2))
    case = next(case for case in LARGE if case.name == "vgg16")
    model, x = case.model(), case.inputs(IMAGES)
    linear = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    steps = [
        Prune(sparsity=SPARSITY, scope="layer"),
        ShareWeights(bits=8, centroid_bits=8, layers={name: {"bits": 5} for name in linear}),
        Quantize(weights=8),
        CodeWeights(),
    ]
    begin = process_time()
    graph = fxloom.capture(model, x[:2])
    taken = {"capture": process_time() - begin}
    begin = process_time()
    data = fxloom.Data.of(x)
    for step in steps:
        start = process_time()
        run = fxloom.Recipe([step]).run(graph, data)
        graph = run.graph
        taken[step.name] = process_time() - start
    seconds = process_time() - begin
    return {
        "case": "vgg16",
        "weights": sum(p.numel() for p in model.parameters() if p.dim() > 1),
        "seconds": seconds,
        "steps_s": taken,
        "peak_gb": peak_kb() / 2**20,
        "stored": run.steps[0].summary["remarks"],
    }


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Figures with their gates."""
    shown = Table(title="Shared weights at the size of VGG-16: one thread")
    shown.add_column("case")
    for title in ("weights", "seconds", "error over optimum", "memory", "steps"):
        shown.add_column(title, justify="right")
    for record in records:
        gates = GATES[record["case"]]
        ratio, peak = record.get("error_over_optimum"), record.get("peak_gb")
        shown.add_row(
            record["case"],
            f"{record['weights'] / 1e6:.1f} M",
            f"{record['seconds']:.2f} (<= {gates['seconds']:g})",
            "" if ratio is None else f"{ratio:.4f} (<= {gates['error_over_optimum']:g})",
            "" if peak is None else f"{peak:.2f} GB peak (<= {gates['peak_gb']:g})",
            ", ".join(f"{name} {s:.1f} s" for name, s in record.get("steps_s", {}).items()),
        )
    return shown


if __name__ == "__main__":
    case, rounds = sys.argv[1], int(sys.argv[2])
    found = measure_kmeans(rounds) if case == "kmeans" else measure_vgg16(rounds)
    print(json.dumps(found))
