"""All of fxloom in one call: from a model to a build directory, and back from there.

    capture -> recipe -> lower -> measure -> emit -> estimate -> one directory, whole or not at all

Nothing in a build directory depends on when or where it was made.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.fx import GraphModule

from fxloom import backends, passes
from fxloom.accuracy import measure, measure_layers
from fxloom.builddir import BuildDir
from fxloom.data import Data, SplitName
from fxloom.errors import CaptureError, DataError, FxloomError, TargetError, VerifyError
from fxloom.estimation import estimate
from fxloom.examples import declared_inputs, examples_of
from fxloom.fifo_memory import fifo_note
from fxloom.frontend import capture
from fxloom.graph import as_indices, check_inputs, origin, output_nodes
from fxloom.lowering import legalized, lower
from fxloom.made_from import MadeFrom
from fxloom.manifest import read_manifest
from fxloom.model_file import opened
from fxloom.passes.legalize import remarks_on
from fxloom.processes import is_follower, train_together, wait_for_all
from fxloom.program import Program
from fxloom.program_file import load_program, save_program
from fxloom.quantized_ops import brings_formats
from fxloom.recipe import Recipe, RecipeResult, count_parameters
from fxloom.report import PassReport, Report
from fxloom.report_graph import graph_of
from fxloom.stages import Stages, compresses
from fxloom.storage_table import StorageRow, storage_rows
from fxloom.stream_schedule import StreamSchedule, has_schedule
from fxloom.target import Target
from fxloom.threads import one_thread
from fxloom.weight_entries import Written
from fxloom.weight_file import write_weights
from fxloom.weight_storage import row_of_entry, rows_of_entries

PROGRAM = "program.fxloom"
RECIPE = "recipe.toml"
FOUND = "found.toml"
TARGET = "target.toml"
REPORT = "report.json"
WEIGHTS = "weights.safetensors"
PAGE = "report.html"
SAMPLES = "samples.safetensors"
PROJECT = "hls"
BACKEND = "hls4ml"

SAVED_SAMPLES = 32
"""How many of the user's samples go into the project's testbench and are kept for `check`."""

_TOOLS = ("fxloom", "torch", "numpy", "hls4ml")

Progress = Callable[[str], None]
Values = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Compilation:
    """What lies in a build directory. samples: the user's, in their layout, one array an input."""

    path: Path
    program: Program
    recipe: Recipe
    target: Target
    report: Report
    samples: tuple[npt.NDArray[np.float32], ...]
    project: backends.Build

    @property
    def weights(self) -> Path | None:
        """The file of coded weights, for `load_weights`; None without `code_weights`."""
        file = self.path / WEIGHTS
        return file if file.is_file() else None

    def simulate(self, x: Any, *, raw: bool = False) -> Values | tuple[Values, ...]:
        """What the hardware computes for real inputs [N, ...], bit for bit; no tool needed."""
        from fxloom.backends.simulator import simulate

        return simulate(self.program, x, raw=raw)

    def run(
        self,
        x: Any,
        raw: bool = False,
        *,
        progress: Callable[[int, int], None] | None = None,
        timeout_s: float | None = None,
        debug: bool = False,
    ) -> Values | tuple[Values, ...]:
        """The same by the C simulation of the generated C++. Raises ToolError without g++.

        debug: compiled for gdb.
        """
        return self.project.run(x, raw, progress=progress, timeout_s=timeout_s, debug=debug)


def compile(
    model: object,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    recipe: Recipe | str | Path | None = None,
    target: Target | str | Path | None = None,
    data: object = None,
    out: str | Path = "build",
    progress: Progress | None = None,
    name: str | None = None,
    teacher: object = None,
) -> Compilation:
    """Compile a model into a build directory, which appears whole or not at all.

    model: as for `capture`. example_inputs: what it is called with; by default the first samples of
    data, as int64 where the model does not take them as float32 and they are whole numbers, or what
    the model declares. recipe: passes, or a TOML file; by default Quantize(), which a model that
    brings formats for everything along needs no data for. target: a Target, a TOML file or a part's
    name. data: whatever
    Data.of takes. progress: told what begins. name: what the report calls the model; by default its
    file or class. teacher: of passes that distill and name none; by default the captured model.
    Where processes train together, the first one writes and the others open what it wrote.
    Raises an FxloomError for whatever is wrong with one of these; then nothing on disk has changed.
    """
    tell = progress or (lambda text: None)
    samples = Data.of(data)
    steps = _recipe(recipe)
    goal = target if isinstance(target, Target) else Target.load(target) if target else Target()
    source = "" if isinstance(target, Target) or not target else f"{target}: "
    backend = backends.get(BACKEND)
    backend.check_target(goal)  # what takes minutes comes later
    is_open = recipe is None and samples is None  # it depends on the model
    if not is_open:
        steps.require_data(samples)
    steps.require_use(teacher)
    steps.to_toml()  # what the build cannot hold is told now
    called = name or (Path(model).name if isinstance(model, str | Path) else type(model).__name__)
    model = opened(model)
    if example_inputs is None:
        example_inputs = declared_inputs(model) if samples is None else examples_of(model, samples)
    if example_inputs is None:
        raise FxloomError("compile: required example inputs or data, got neither")
    graph: GraphModule | None = None
    if is_open:
        with one_thread():
            graph = capture(model, example_inputs)
        if brings_formats(graph):  # perhaps all of them: lower knows
            steps = Recipe([passes.Legalize()])
        steps.require_data(samples)
    if is_follower(steps.passes):
        with one_thread():
            graph = capture(model, example_inputs)
            steps.run(graph, samples, teacher=teacher)
        wait_for_all()
        return open_build(out)
    manifest: dict[str, Any] = {}
    directory = BuildDir(out, manifest)
    with one_thread(), directory as folder:
        tell("capture")
        if graph is None:
            graph = capture(model, example_inputs)
        require_fitting(graph, samples)
        require_layers(goal, graph, steps, source)
        stages = Stages(steps, goal, samples) if compresses(steps) else None
        result = steps.run(
            graph,
            samples,
            lambda text: tell(f"pass {text}"),
            stages or count_parameters,
            teacher,
        )
        tell("lower")
        fixed = legalized(result.graph)
        program = lower(fixed)
        report = _estimated(program, goal, source)
        tell("compare with the float model")
        report = _with_measurements(report, program, graph, result, samples, stages)
        if fixed is not result.graph:  # no pass has said it
            report = replace(report, notes=(*report.notes, *remarks_on(fixed)))
        if has_schedule(goal):
            note = fifo_note(program, StreamSchedule(program, goal))
            report = replace(report, notes=(*report.notes, note))
        found = None if result.found == steps else result.found.to_toml()
        made_from = MadeFrom(
            model=called,
            parameters=count_parameters(graph)["parameters"],
            recipe=steps.to_toml(),
            target=goal.to_toml(),
            versions=tool_versions(),
            found=found,
        )
        rows, written = _coded(steps, result.graph)
        storage = rows or storage_rows(program)
        report = replace(report, made_from=made_from, graph=graph_of(program), storage=storage)
        tell("write the project")
        kept = _saved_samples(samples)
        backend.emit(program, goal, folder / PROJECT, samples=kept if kept else None)
        save_program(program, folder / PROGRAM, coded=bool(written))
        if written:
            write_weights(folder / WEIGHTS, written)
        _write(folder / RECIPE, steps.to_toml())
        if found is not None:
            _write(folder / FOUND, found)
        _write(folder / TARGET, goal.to_toml())
        _write(folder / REPORT, report.to_json())
        _write(folder / PAGE, report.to_html())
        if kept:
            names = [port.value.name for port in program.inputs]
            save_file(dict(zip(names, kept, strict=True)), folder / SAMPLES)
        manifest |= {
            "backend": BACKEND,
            "program": program.digest(),
            "versions": tool_versions(),
        }
        tell("put it in place")
    if train_together(steps.passes):
        wait_for_all()
    # `missing/../build` is a name for the new directory, but not one that opens it.
    path = directory.path if ".." in Path(out).parts else Path(out)
    project = backend.open(path / PROJECT, program)
    return Compilation(path, program, steps, goal, report, kept, project)


def open_build(path: str | Path) -> Compilation:
    """What `compile` wrote earlier, every file compared with its manifest.

    Raises FxloomError where the directory is not a build, is damaged or was edited.
    """
    folder = Path(path)
    manifest = read_manifest(folder, verify_files=True)
    try:
        program = load_program(folder / PROGRAM)
    except VerifyError as fault:
        raise FxloomError(f"{folder}: {fault}") from None
    if manifest.get("program") != program.digest():
        raise FxloomError(f"{folder}: its program is not the one that its manifest names")
    return Compilation(
        path=folder,
        program=program,
        recipe=Recipe.load(folder / RECIPE),
        target=Target.load(folder / TARGET),
        report=Report.load(folder / REPORT),
        samples=_load_samples(folder, program),
        project=backends.get(str(manifest.get("backend"))).open(folder / PROJECT, program),
    )


def tool_versions() -> dict[str, str]:
    """Versions of what determines the bytes of a build."""
    found = {"python": platform.python_version()}
    for name in _TOOLS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _coded(recipe: Recipe, graph: GraphModule) -> tuple[tuple[StorageRow, ...], list[Written]]:
    """What weights take and how they are stored; nothing where no pass of the recipe codes them."""
    coding = [step for step in recipe.passes if isinstance(step, passes.CodeWeights)]
    rows, found = [], []
    for written in coding[-1].coded(graph) if coding else ():
        rows.append(row_of_entry(written))
        found.append(replace(written, patterns={}))  # no second model in memory
    return rows_of_entries(rows), found


def require_fitting(graph: GraphModule, data: Data | None) -> None:
    """Raise DataError where the samples of a split are not what the model takes."""
    splits: tuple[SplitName, ...] = ("train", "test")
    for split in splits:
        if data is None or not data.has(split):
            continue
        try:
            check_inputs(graph, as_indices(graph, next(data.batches(split, 1))))
        except CaptureError as fault:
            raise DataError(f"x_{split}: {fault}") from None


def require_layers(target: Target, graph: GraphModule, recipe: Recipe, source: str) -> None:
    """Raise TargetError where no layer has a name that the target speaks of.

    Before the passes, which take long. Ours add no names of layers but those of outputs and of what
    they say in `endings`; of others nobody knows, and `estimate` looks again.
    """
    known = {location.partition(":")[2] for location in passes.REGISTRY.values()}
    if not all(type(step).__name__ in known for step in recipe.passes):
        return
    names = [origin(node) for node in graph.graph.nodes if node.op == "call_function"]
    count = len(output_nodes(graph))
    outputs = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
    endings = {ending for step in recipe.passes for ending in getattr(step, "endings", ())}
    added = [f"{name}.{ending}" for name in names for ending in endings]
    with _named(source):
        target.require_layers(dict.fromkeys(names), [*outputs, *added])


def _estimated(program: Program, target: Target, source: str) -> Report:
    with _named(source):
        return estimate(program, target)


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Faults of a target with the name of its file in front."""
    try:
        yield
    except TargetError as fault:
        raise TargetError(f"{source}{fault}") from None


def _recipe(recipe: Recipe | str | Path | None) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is not None:
        return Recipe.load(recipe)
    from fxloom.passes.quantize import Quantize

    return Recipe([Quantize()])


def _with_measurements(
    report: Report,
    program: Program,
    graph: GraphModule,
    result: RecipeResult,
    data: Data | None,
    stages: Stages | None,
) -> Report:
    layers = stages.layers([step.modified for step in result.steps]) if stages else repeat(())
    steps = tuple(
        PassReport(step.name, step.modified, _plain(step.summary), step.before, step.after, costs)
        for step, costs in zip(result.steps, layers, strict=False)
    )
    float_bits = 32 * count_parameters(graph)["parameters"]
    notes = [f"warning: {line}" for step in steps for line in step.summary.get("warnings", ())]
    if data is None:
        notes.append("no data: the error against the float model is not known")
    report = replace(report, passes=steps, float_bits=float_bits, notes=tuple(notes))
    if data is None:
        return report
    seen = measure_layers(result.graph, graph, program, data)
    judged = tuple(replace(each, float_error=seen.errors.get(each.name)) for each in report.layers)
    accuracy = measure(program, graph, data)
    return replace(report, layers=judged, accuracy=accuracy, histograms=seen.histograms)


def _plain(summary: Mapping[str, object]) -> dict[str, Any]:
    """A summary as JSON holds it, so that a report read back is equal."""
    plain: dict[str, Any] = json.loads(json.dumps(summary, default=str))
    return plain


def _saved_samples(data: Data | None) -> tuple[npt.NDArray[np.float32], ...]:
    if data is None:
        return ()
    x = next(data.batches("test" if data.has("test") else "train", SAVED_SAMPLES))
    tensors = x if isinstance(x, tuple) else (x,)
    return tuple(np.ascontiguousarray(tensor.numpy()) for tensor in tensors)


def _load_samples(folder: Path, program: Program) -> tuple[npt.NDArray[np.float32], ...]:
    file = folder / SAMPLES
    if not file.exists():
        return ()
    try:
        arrays = load_file(file)
        return tuple(arrays[port.value.name] for port in program.inputs)
    except (OSError, KeyError, SafetensorError) as fault:
        raise FxloomError(f"{file}: cannot be read: {fault}") from None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
