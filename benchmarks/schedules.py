"""Schedules of streamed networks: cycles, packs that FIFOs hold, CPU time, and what stops for ever.

    OMP_NUM_THREADS=1 python -m benchmarks.schedules [NAME ...]

Each network is quantized to 8 bits by the ranges of a few random images, which makes no difference
to a schedule. Then every pipeline is made as deep as 0, its upper bound or twice that, at random,
20 times: how often minimal depths and those that are written are a deadlock.
"""

import random
import sys
import time
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

import fxloom
from benchmarks.models import LARGE
from examples import models
from fxloom.dataflow import Dataflow
from fxloom.passes import Quantize
from fxloom.program import Program
from fxloom.schedule import simulate
from fxloom.stream_schedule import StreamSchedule

NAMES = ("lenet5", "svhn_cnn", "resnet8", "mobilenet", "ds_cnn", "unet", "resnet50")
TARGET = fxloom.Target(part="xcu250", io="stream")
RUNS = 20


def program_of(name: str) -> Program:
    """One of the examples, or ResNet-50 at 224 x 224."""
    case = next((case for case in LARGE if case.name == name), None)
    model = models.model(name) if case is None else case.model()
    x = models.inputs(name, 4) if case is None else case.inputs(4)
    quantize = Quantize(samples=4, method="minmax", bias_correction=False)
    return fxloom.lower(quantize(fxloom.capture(model, x[:2]), fxloom.Data(x_train=x)).graph)


def deadlocks(schedule: StreamSchedule, kind: str) -> int:
    """How many of RUNS networks with deeper or shallower pipelines stop for ever."""
    rng, stuck = random.Random(0), 0
    most = {actor.name: actor.latency for actor in schedule.most.actors}
    depths = {name: getattr(depth, kind) for name, depth in schedule.depths.items()}
    for _ in range(RUNS):
        graph = Dataflow(
            [
                replace(actor, latency=rng.choice([0, 1, 2]) * most[actor.name])
                for actor in schedule.likely.actors
            ]
        )
        stuck += bool(simulate(graph, depths).stuck)
    return stuck


def row(name: str) -> list[str]:
    """The figures of one network."""
    program = program_of(name)
    StreamSchedule(program, TARGET)  # what is slow the first time
    begin = time.process_time()
    schedule = StreamSchedule(program, TARGET)
    figures = schedule.latency, schedule.interval
    dated = time.process_time()
    depths = schedule.depths
    ended = time.process_time()
    held = [sum(getattr(d, k) for d in depths.values()) for k in ("tokens", "minimal", "written")]
    stuck = [deadlocks(schedule, kind) for kind in ("minimal", "written")]
    return [
        name,
        str(len(schedule.layers)),
        *map(str, figures),
        schedule.limiting.origin,
        *(f"{packs:,}" for packs in held),
        *(f"{count} of {RUNS}" for count in stuck),
        f"{dated - begin:.2f} s",
        f"{ended - dated:.2f} s",
    ]


def main() -> None:
    """Print a row for every network."""
    torch.set_num_threads(1)
    table = Table()
    for title in (
        *("network", "processes", "latency, cycles", "interval, cycles", "slowest"),
        *("FIFOs, packs: tensors", "minimal", "written", "stuck: minimal", "written"),
        *("schedule", "depths"),
    ):
        table.add_column(title)
    for name in sys.argv[1:] or NAMES:
        table.add_row(*row(name))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
