"""How long estimates take: ResNet-50, and a sweep of reuse factors and widths on the jet tagger.

    python -m benchmarks.estimating [--resnet]

The sweep asks for 10,000 targets and widths of an MLP 16-64-32-32-5; gates: 10 s, and 1 s for a
program of ResNet-50's size (which has to be quantized and lowered first: some minutes).
"""

import argparse
import itertools
import time
from collections.abc import Iterator

import fxloom
from benchmarks.models import Case, mlp, resnet50
from fxloom.passes import Quantize
from fxloom.program import Program
from fxloom.target import Target

WIDTHS = range(2, 12)
REUSES = (1, 2, 4, 5, 8, 10, 16, 20, 32, 64)
"""Of each of the first three layers."""


def program_of(case: Case, weights: int) -> Program:
    """Quantized in one width."""
    inputs = case.inputs(16)
    graph = fxloom.capture(case.model(), inputs[:2])
    step = Quantize(weights=weights, activations=8, weight_rounding="nearest")
    return fxloom.lower(fxloom.Recipe([step]).run(graph, data=fxloom.Data.of(inputs)).graph)


def targets(names: list[str]) -> Iterator[Target]:
    """The last layer gets what the one before has."""
    for reuses in itertools.product(REUSES, repeat=3):
        layers = {
            name: {"strategy": "resource", "reuse": reuse}
            for name, reuse in zip(names, (*reuses, reuses[-1]), strict=True)
        }
        yield Target(part="xcvu9p", layers=layers)  # type: ignore[arg-type]


def sweep() -> tuple[int, float, float]:
    """Points, CPU seconds of the estimates, and of making their targets."""
    case = Case("MLP", mlp, (16,), 0, 0, 0.0, None)
    programs = [program_of(case, width) for width in WIDTHS]
    names = list(dict.fromkeys(i.origin for i in programs[0].instrs if i.op.name == "matmul"))
    begun = time.process_time()
    wanted = list(targets(names))
    made = time.process_time()
    points = 0
    for program in programs:
        for target in wanted:
            fxloom.estimate(program, target)
            points += 1
    return points, time.process_time() - made, made - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resnet", action="store_true", help="ResNet-50 as well")
    given = parser.parse_args()
    points, seconds, making = sweep()
    print(f"jet tagger: {points:,} points in {seconds:.2f} s (gate 10 s), targets {making:.2f} s")
    if not given.resnet:
        return
    program = program_of(Case("ResNet-50", resnet50, (3, 224, 224), 0, 0, 0.0, None), 8)
    streamed = Target(part="xcu250", io="stream", strategy="resource", reuse=64)
    for target in (Target(part="xcu250"), streamed):
        begun = time.process_time()
        report = fxloom.estimate(program, target)
        seconds = time.process_time() - begun
        print(f"ResNet-50, {target.io}, {target.strategy}: {seconds:.2f} s (gate 1 s)")
        print("\n".join(report.overflows()))


if __name__ == "__main__":
    main()
