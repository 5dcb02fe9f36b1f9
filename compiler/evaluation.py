"""Evaluation of a recipe: what every pass saves, and what it costs in accuracy.

    capture -> judge the original -> each pass of the recipe -> judge what it gave

A float graph is judged as torch computes it, a quantized one by the integers of its program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time

from torch import Tensor
from torch.fx import GraphModule

from fxloom.accuracy import arrays_of, float_outputs
from fxloom.compilation import require_fitting, require_layers
from fxloom.data import Data
from fxloom.errors import DataError, FxloomError, RecipeError, TargetError
from fxloom.evaluation_figures import (
    cycles,
    file_bytes,
    known_to,
    no_cycles,
    numbers_of,
    quantized_for_estimate,
    stored,
    work,
)
from fxloom.evaluation_quality import Judge, Run, size_of
from fxloom.evaluation_report import ORIGINAL, Evaluation, Evaluations, Stage
from fxloom.examples import examples_of
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.model_file import opened
from fxloom.passes.code_weights import CodeWeights
from fxloom.program import Program
from fxloom.recipe import Figures, Recipe, Step, count_parameters
from fxloom.samples import Inputs
from fxloom.target import Target
from fxloom.threads import one_thread

ROUNDS = 7
"""Of measurements, all models in turn; the median counts."""
LEAST_SECONDS = 0.02
"""A measurement is repeated until it takes that long."""

Progress = Callable[[str], None]


def evaluate(
    model: object,
    data: object,
    recipe: Recipe | str | Path,
    target: Target | str | Path | None = None,
    *,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    samples: int | None = None,
    output: str | None = None,
    measure: bool = False,
    progress: Progress | None = None,
    name: str | None = None,
    teacher: object = None,
) -> Evaluation:
    """Run a recipe and say of every pass what it saves and what it costs; nothing is written.

    data, recipe, target, example_inputs: as for `compile`. Judged are the test samples, the
    training samples without those; samples: at most so many, evenly spread. output: the one that
    labels are for, where there are several: output_0, output_1 and so on. measure: also the CPU
    time on this machine, which is another one every time. progress: told what begins. name: what
    the model is called; by default its class. teacher: as for `compile`. Raises an FxloomError for
    whatever is wrong with one of these.
    """
    called = Path(recipe).stem if isinstance(recipe, str | Path) else "recipe"
    return evaluate_recipes(
        model,
        data,
        {called: recipe},
        target,
        example_inputs=example_inputs,
        samples=samples,
        output=output,
        measure=measure,
        progress=progress,
        name=name,
        teacher=teacher,
    ).evaluations[0]


def evaluate_recipes(
    model: object,
    data: object,
    recipes: Mapping[str, Recipe | str | Path],
    target: Target | str | Path | None = None,
    *,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    samples: int | None = None,
    output: str | None = None,
    measure: bool = False,
    progress: Progress | None = None,
    name: str | None = None,
    teacher: object = None,
) -> Evaluations:
    """The same for several recipes, by their names, each beginning at the original."""
    tell = progress or (lambda text: None)
    found = Data.of(data)
    if found is None:
        raise DataError("evaluate: required data, got none")
    if samples is not None and not (isinstance(samples, int) and samples >= 1):
        raise DataError(f"samples: required a number of at least 1, got {samples!r}")
    if not isinstance(recipes, Mapping):
        raise RecipeError(
            f"evaluate: required recipes by their names, a dict, got {type(recipes).__name__}"
        )
    if not recipes:
        raise RecipeError("evaluate: required at least one recipe, got none")
    passes = {
        called: recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
        for called, recipe in recipes.items()
    }
    if not any(steps.takes_teacher for steps in passes.values()):
        next(iter(passes.values())).require_use(teacher)
    goal = target if isinstance(target, Target) else Target.load(target) if target else Target()
    with one_thread():
        tell("capture")
        model = opened(model)
        if example_inputs is None:
            example_inputs = examples_of(model, found)
        graph = capture(model, example_inputs)
        require_fitting(graph, found)
        for steps in passes.values():
            require_layers(goal, graph, steps, "" if isinstance(target, Target) else f"{target}: ")
        tell("original")
        first = _Meter(Judge(graph, found, samples, output), found, goal, measure, graph)
        first.add(graph)
        results = []
        for called, steps in passes.items():
            prefix = f"{called}: " if len(passes) > 1 else ""
            told = partial(_prefixed, tell, prefix)
            label = name or type(model).__name__
            taught_by = teacher if steps.takes_teacher else None
            results.append(_evaluated(first.another(), steps, called, label, told, taught_by))
    return Evaluations(tuple(results))


def _prefixed(tell: Progress, prefix: str, text: str) -> None:
    tell(prefix + text)


@dataclass(frozen=True)
class _Meter:
    """Measures the graphs that a recipe makes.

    original: measured once for all recipes. runs: how outputs are computed; kept, with the graphs,
    only where they are timed at the end. faults: what is wrong with the target for each stage.
    """

    judge: Judge
    data: Data
    target: Target
    measure: bool
    original: GraphModule
    stages: list[Stage] = field(default_factory=list)
    declared_bits: list[int] = field(default_factory=list)
    faults: list[TargetError | None] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def another(self) -> _Meter:
        """For the next recipe, which begins at the same original."""
        return replace(
            self,
            stages=list(self.stages),
            declared_bits=list(self.declared_bits),
            faults=list(self.faults),
            runs=list(self.runs),
        )

    def add(self, graph: GraphModule) -> Figures:
        """Measure a graph; returned is what the recipe keeps of it."""
        numbers = numbers_of(graph)
        program = lower(graph) if numbers == "integers" else None
        run = partial(float_outputs, graph) if program is None else _simulated(program)
        sizes, (macs, nonzero_macs) = stored(graph, program), work(graph)
        fault = None
        try:
            built = program or quantized_for_estimate(graph, self.data)
            try:
                latency, interval = cycles(built, self.target)
            except TargetError as reason:  # it may speak of layers that another stage has
                fault = reason
                latency, interval = cycles(built, known_to(self.target, built))
        except FxloomError as reason:
            latency = interval = no_cycles(reason)
        self.stages.append(
            Stage(
                name=ORIGINAL,
                numbers=numbers,
                modified=True,
                parameters=sizes.parameters,
                nonzero=sizes.nonzero,
                plain_bits=sizes.plain_bits,
                coded_bits=sizes.coded_bits,
                table_bits=sizes.table_bits,
                macs=macs,
                nonzero_macs=nonzero_macs,
                latency=latency,
                interval=interval,
                quality=self.judge(run),
            )
        )
        self.declared_bits.append(sizes.declared_bits)
        self.faults.append(fault)
        if self.measure:
            self.runs.append(run)
        return {"parameters": sizes.parameters, "nonzero": sizes.nonzero}

    def timed(self) -> list[Stage]:
        """The stages with the CPU time that a batch takes each of them, measured in turn."""
        batch = self.judge.batches[0]
        once = [_time_of(run, batch, 1) for run in self.runs]
        repeats = [max(1, round(LEAST_SECONDS / max(each, 1e-6))) for each in once]
        rounds = [
            [_time_of(run, batch, n) for run, n in zip(self.runs, repeats, strict=True)]
            for _ in range(ROUNDS)
        ]
        seconds = [median(each) for each in zip(*rounds, strict=True)]
        timed = zip(self.stages, seconds, strict=True)
        return [replace(stage, seconds=each) for stage, each in timed]


def _simulated(program: Program) -> Run:
    from fxloom.backends.simulator import Simulator

    simulator = Simulator(program)
    return lambda x: simulator.run(arrays_of(x))


def _evaluated(
    meter: _Meter, recipe: Recipe, called: str, model: str, tell: Progress, teacher: object
) -> Evaluation:
    def figures(graph: GraphModule) -> Figures:
        if graph is meter.original:
            return count_parameters(graph)
        tell("judge what it gave")
        return meter.add(graph)

    result = recipe.run(
        meter.original, meter.data, lambda text: tell(f"pass {text}"), figures, teacher
    )
    if fault := meter.faults[-1]:
        raise fault
    notes = list(meter.judge.notes)
    measured = meter.stages
    if meter.measure:
        tell("measure")
        measured = meter.timed()
        notes.append(
            f"measured: CPU time of {size_of(meter.judge.batches[0])} samples on this machine, one "
            f"thread, median of {ROUNDS} rounds in turn; floats by torch, integers by fxloom's "
            "simulator, which is not the hardware"
        )
    tell("file of weights")
    coders = [step for step in recipe.passes if isinstance(step, CodeWeights)]
    target = meter.target
    return Evaluation(
        model=model,
        recipe=called,
        split=meter.judge.split,
        samples=meter.judge.count,
        target=f"{target.device.name} at {target.clock_ns:g} ns, io_{target.io}",
        stages=_named(measured, meter.declared_bits, result.steps),
        file_bytes=file_bytes(result.graph, coders[-1] if coders else None),
        notes=tuple(notes),
    )


def _named(
    measured: Sequence[Stage], declared_bits: Sequence[int], steps: Sequence[Step]
) -> tuple[Stage, ...]:
    """The original and a stage for every pass; one that changed nothing has the figures of the
    stage before, and `code_weights` the bits that it found."""
    found, place = [measured[0]], 0
    for number, step in enumerate(steps, 1):
        place += step.modified
        stage = replace(measured[place], name=f"{number} {step.name}", modified=step.modified)
        if step.name == CodeWeights.name:
            bits = step.summary["huffman_bits"]
            assert isinstance(bits, int)
            stage = replace(stage, coded_bits=bits + declared_bits[place])
        found.append(stage)
    return tuple(found)


def _time_of(run: Run, batch: Inputs, repeats: int) -> float:
    begin = process_time()
    for _ in range(repeats):
        run(batch)
    return (process_time() - begin) / repeats
