"""Take the models of examples/models.py through all of fxloom: python examples/run.py [NAME ...]

For each: captured, quantized to 8 bits on 64 random samples, lowered, simulated, written as an
hls4ml project, and compared with the C simulation of that project where g++ can compile it within
five minutes and 8 GB. Convolutional networks are written for streams, the others as one function.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import fxloom
from fxloom.backends.hls4ml import csim
from fxloom.errors import ToolError

sys.path.insert(0, str(Path(__file__).resolve().parent))
import models

STREAMED = ("lenet5", "svhn_cnn", "resnet8", "mobilenet", "ds_cnn", "unet")


def run(name: str, samples: int) -> list[str]:
    """One row of the table."""
    x = models.inputs(name, max(samples, 64))
    model = models.model(name)
    start = time.perf_counter()
    graph = fxloom.capture(model, x[:2])
    captured = time.perf_counter()
    quantize = fxloom.passes.Quantize(samples=64)
    program = fxloom.lower(quantize(graph, fxloom.Data(x_train=x)).graph)
    lowered = time.perf_counter()
    inputs = x[:samples].numpy() * np.linspace(0.5, 2, samples).reshape(-1, *(1,) * (x.dim() - 1))
    wanted = fxloom.simulate(program, inputs, raw=True)
    target = fxloom.Target(io="stream" if name in STREAMED else "parallel", part="xcu250")
    with tempfile.TemporaryDirectory() as folder:
        emitted = time.perf_counter()
        build = fxloom.backends.get("hls4ml").emit(
            program, target, Path(folder) / "project", cache=Path(folder) / "cache"
        )
        written = time.perf_counter()
        try:
            got = build.run(inputs, raw=True)
            result = f"{int((got != wanted).sum())} of {wanted.size} differ"
        except ToolError as error:
            result = str(error).splitlines()[0][:60]
        compiled = time.perf_counter() - written
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return [
        name,
        f"{sum(p.numel() for p in model.parameters()):,}",
        str(len(program.instrs)),
        target.io,
        f"{captured - start:.1f}",
        f"{lowered - captured:.1f}",
        f"{written - emitted:.1f}",
        f"{compiled:.0f}",
        f"{peak:.1f}",
        result,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(models.MODELS))
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    unknown = set(options.names) - set(models.MODELS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(models.MODELS)}")
    csim.COMPILE_TIMEOUT_S = 300
    table = Table(box=None, pad_edge=False)
    for column in (
        *("model", "parameters", "instructions", "io_", "capture s", "quantize, lower s"),
        *("write s", "C++ s", "largest GB so far", "C simulation"),
    ):
        table.add_column(column)
    console = Console(width=140)
    for name in options.names or models.MODELS:
        table.add_row(*run(name, options.samples))
        console.print(table)


if __name__ == "__main__":
    main()
