"""Large models: time and peak memory of capture, quantization, lowering and one simulated image.

Each model runs in a process of its own, so that its peak is its own. One thread, CPU time; what
torch imports on its first export is not counted (a tiny model is captured before).
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from benchmarks.alone import each_alone, peak_kb

IMAGES = 64
GATES = {
    "resnet50": {"capture_s": 3.0, "quantize_and_lower_s": 60.0, "peak_gb": 4.0},
    "vgg16": {"peak_gb": 4.0},
}


def measure_all(names: Sequence[str] | None, quick: bool) -> Iterator[dict[str, Any]]:
    """One record a model. quick: ResNet-50 only."""
    yield from each_alone("scale", names or (["resnet50"] if quick else ["resnet50", "vgg16"]))


def measure(name: str) -> dict[str, Any]:
    """All steps on one model, in this process."""

    import torch

    import fxloom
    from benchmarks.models import CASES, LARGE
    from fxloom.passes import Quantize

    torch.set_num_threads(1)
    tiny = CASES[0]
    fxloom.capture(tiny.model(), tiny.inputs(2))
    case = next(case for case in LARGE if case.name == name)
    model, x = case.model(), case.inputs(IMAGES)
    figures: dict[str, Any] = {"case": name}
    figures["parameters"] = sum(tensor.numel() for tensor in model.parameters())
    begin = time.process_time()
    graph = fxloom.capture(model, x[:2])
    figures["capture_s"] = time.process_time() - begin
    begin = time.process_time()
    quantized = fxloom.Recipe([Quantize()]).run(graph, data=fxloom.Data.of(x)).graph
    figures["quantize_s"] = time.process_time() - begin
    begin = time.process_time()
    program = fxloom.lower(quantized)
    figures["lower_s"] = time.process_time() - begin
    figures["quantize_and_lower_s"] = figures["quantize_s"] + figures["lower_s"]
    begin = time.process_time()
    fxloom.simulate(program, x[:1].numpy())
    figures["first_image_s"] = time.process_time() - begin
    figures["peak_gb"] = peak_kb() / 2**20
    return figures


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Figures with their gates."""
    columns = ("capture_s", "quantize_s", "lower_s", "quantize_and_lower_s", "first_image_s")
    shown = Table(title=f"fxloom on large models, {IMAGES} images: one thread, CPU time, own peak")
    shown.add_column("case")
    for name in ("parameters", *columns, "peak_gb"):
        shown.add_column(name.replace("_", " "), justify="right")
    for record in records:
        cells = [f"{record['parameters'] / 1e6:.1f} M"]
        for name in (*columns, "peak_gb"):
            gate = GATES[record["case"]].get(name)
            cells.append(f"{record[name]:.2f}" + ("" if gate is None else f" (<= {gate:g})"))
        shown.add_row(record["case"], *cells)
    return shown


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
