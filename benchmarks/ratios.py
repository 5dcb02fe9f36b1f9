"""The ratios: fxloom's simulation against torch's float32 inference and hls4ml's C simulation.

One thread, process CPU time, both sides in one process and in turn, median of the ratios. torch is
given its best: the fastest of both memory formats and several batch sizes.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxloom
from benchmarks.models import Case
from fxloom.backends.hls4ml import BACKEND
from fxloom.backends.simulator import Simulator, quantize_inputs
from fxloom.fixed_point import Rounding, to_values
from fxloom.passes import Quantize
from fxloom.program import Program

CALIBRATION = 64


def cpu_seconds(function: Callable[[], object]) -> float:
    """Process CPU time of one call."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def in_turn(first: Callable[[], object], second: Callable[[], object], rounds: int) -> float:
    """Median of first's time divided by second's: how many times as fast the second is."""
    first()
    second()
    ratios = []
    for _ in range(rounds):
        slow = cpu_seconds(first)
        ratios.append(slow / cpu_seconds(second))
    return statistics.median(ratios)


def quantized_graph(case: Case, model: nn.Module, rounding: str = "RND") -> torch.fx.GraphModule:
    """8-bit weights and activations, SAT."""
    graph = fxloom.capture(model, case.inputs(2))
    data = fxloom.Data.of(case.inputs(CALIBRATION))
    step = Quantize(weights=8, activations=8, rounding=Rounding(rounding))
    return fxloom.Recipe([step]).run(graph, data).graph


def torch_runs(model: nn.Module, x: Tensor, chunk: int) -> dict[str, Callable[[], object]]:
    """The ways in which torch may compute the batch."""

    def run(batch: Tensor, size: int) -> None:
        with torch.inference_mode():
            for start in range(0, len(batch), size):
                model(batch[start : start + size])

    layouts = {"contiguous": x}
    if x.dim() == 4:
        layouts["channels_last"] = x.to(memory_format=torch.channels_last)
    sizes = dict.fromkeys(min(size, len(x)) for size in (len(x), chunk, 64, 32, 8))
    return {
        f"{layout}, batch {size}": lambda batch=batch, size=size: run(batch, size)  # type: ignore[misc]
        for layout, batch in layouts.items()
        for size in sizes
    }


def against_torch(case: Case, model: nn.Module, program: Program, rounds: int) -> dict[str, Any]:
    """How many times as fast the simulation is as torch's best way."""
    x = case.inputs(case.batch)
    values = x.numpy()
    simulator = Simulator(program)
    runs = torch_runs(model, x, simulator.chunk)
    for run in runs.values():
        run()
    times = {
        name: min(cpu_seconds(run) for _ in range(max(2, rounds // 3)))
        for name, run in runs.items()
    }
    best = min(times, key=times.__getitem__)
    ratio = in_turn(runs[best], lambda: simulator.run(values), rounds)
    return {"torch_best": best, "simulate_over_torch": ratio}


def first_answer(graph: torch.fx.GraphModule, case: Case, rounds: int) -> float:
    """CPU seconds from the quantized graph to the first simulated sample."""
    x = case.inputs(1).numpy()
    fxloom.simulate(fxloom.lower(graph), x)  # imports
    return statistics.median(
        cpu_seconds(lambda: fxloom.simulate(fxloom.lower(graph), x)) for _ in range(rounds)
    )


def emit_seconds(graph: torch.fx.GraphModule, rounds: int) -> float:
    """CPU seconds from the quantized graph to a checked-in project, without C simulation."""

    def emit() -> None:
        with tempfile.TemporaryDirectory() as folder:
            BACKEND.emit(fxloom.lower(graph), fxloom.Target(), Path(folder) / "hls")

    emit()  # imports hls4ml
    return statistics.median(cpu_seconds(emit) for _ in range(rounds))


def against_stock(case: Case, program: Program, rounds: int) -> dict[str, Any]:
    """Samples a second of the simulation over those of stock hls4ml's C simulation.

    Both get inputs that the program's input type holds, because stock hls4ml would truncate and
    wrap others. In a round the simulation runs as often as takes about as long as stock's one run.
    """
    from benchmarks.stock import stock_graph

    (mantissas,) = quantize_inputs(program, case.inputs(case.batch).numpy())
    port = program.inputs[0]
    held = to_values(mantissas, port.value.type.fraction)
    few = np.ascontiguousarray(held[: case.stock])
    x = held.transpose(0, *(port.axes.index(axis) + 1 for axis in range(len(port.axes))))
    x = np.ascontiguousarray(x, dtype=np.float32)
    simulator = Simulator(program)
    with tempfile.TemporaryDirectory() as folder:
        graph = stock_graph(program, Path(folder) / "stock", stream=len(case.shape) == 3)
        ours = np.asarray(simulator.run(x[: case.stock])).reshape(-1)
        theirs = np.asarray(graph.predict(few)).reshape(-1)
        simulator.run(x)
        once = cpu_seconds(lambda: simulator.run(x))
        runs = max(round(cpu_seconds(lambda: graph.predict(few)) / once), 1)

        def simulate() -> None:
            for _ in range(runs):
                simulator.run(x)

        ratio = in_turn(lambda: graph.predict(few), simulate, rounds)
    return {
        "simulate_over_stock": ratio * runs * case.batch / case.stock,
        "stock_largest_difference": float(np.abs(ours - theirs).max()),
        "stock_output_step": program.value(program.outputs[0].value).type.step,
    }


def measure(case: Case, rounds: int, stock: bool) -> dict[str, Any]:
    """All figures of a case."""
    model = case.model()
    graph = quantized_graph(case, model)
    program = fxloom.lower(graph)
    figures: dict[str, Any] = {"case": case.name, "batch": case.batch}
    figures |= against_torch(case, model, program, rounds)
    truncating = fxloom.lower(quantized_graph(case, model, "TRN"))
    figures["trn"] = against_torch(case, model, truncating, rounds)
    figures["first_answer_s"] = first_answer(graph, case, min(rounds, 5))
    figures["project_s"] = emit_seconds(graph, min(rounds, 5))
    if stock:
        figures |= against_stock(case, program, min(rounds, 5))
    return figures
