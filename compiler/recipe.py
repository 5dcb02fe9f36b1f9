"""Ordered passes: what one is, how TOML spells a list of them, and how the list runs.

A pass is a frozen dataclass whose fields are its recipe keys. It returns a new graph and leaves
its input as it was, so a recipe is data: it can be compared, written down and read back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from fxloom.errors import FxloomError, RecipeError
from fxloom.settings import build, parse_toml, read_text, toml_line, unknown

if TYPE_CHECKING:  # torch takes seconds to import, and reading a recipe does not need it
    from torch.fx import GraphModule

    from fxloom.data import Data

Figures = dict[str, int]

_TELL: ContextVar[Callable[[str], None] | None] = ContextVar("tell", default=None)

_TEACHER: ContextVar[object] = ContextVar("teacher", default=None)


def progress_of_pass() -> Callable[[str], None] | None:
    """What a pass that takes long may tell how far it is; None where nobody listens."""
    return _TELL.get()


def teacher_of_recipe() -> object:
    """What a pass that distills learns from where it names nothing itself: what `Recipe.run` was
    given, else the graph with which it began; None outside a recipe."""
    return _TEACHER.get()


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass returns.

    graph: the rewritten graph; the input itself only where modified is False. summary: what the
    pass did, for the report: names to numbers, text, and lists and tables of them. found: of a pass
    that searches, the pass with what it found, which does the same without a search.
    """

    graph: GraphModule
    modified: bool
    summary: dict[str, object]
    found: Pass | None = None


@runtime_checkable
class Pass(Protocol):
    """A graph rewrite: a frozen dataclass whose fields are its keys in a recipe.

    Its input keeps its nodes and the values of its tensors. A pass that cannot work without data
    also has an attribute `needs_data`, true for it; one that learns from a teacher that it need not
    name itself `takes_teacher`; one that writes several layers in the place of one has `endings`,
    of which each and a dot are behind that one's name in the name of such a layer.
    """

    name: ClassVar[str]

    def __call__(self, graph: GraphModule, data: Data | None = None) -> PassResult: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One pass that ran: its summary, and figures of the graph before and after it."""

    name: str
    modified: bool
    summary: dict[str, object]
    before: Figures
    after: Figures


@dataclass(frozen=True, slots=True)
class RecipeResult:
    """The final graph and one step per pass.

    seconds: wall time of each step; kept apart from the steps, since those are written to files
    that must be the same on every machine. found: the recipe with what its passes found in place of
    those that searched; the recipe itself where none did.
    """

    graph: GraphModule
    steps: tuple[Step, ...]
    seconds: tuple[float, ...]
    found: Recipe


def count_parameters(graph: GraphModule) -> Figures:
    """How many parameters the graph has and how many are not zero; tied ones count once."""
    distinct = {
        (p.data_ptr(), p.storage_offset(), tuple(p.shape), p.stride()) if p.numel() else name: p
        for name, p in graph.named_parameters()
    }
    return {
        "parameters": sum(p.numel() for p in distinct.values()),
        "nonzero": sum(int(p.count_nonzero()) for p in distinct.values()),
    }


@dataclass(frozen=True)
class Recipe:
    """Passes in the order in which they run. At least one."""

    passes: Sequence[Pass]

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))
        if not self.passes:
            raise RecipeError("no passes: a recipe needs at least one [[pass]] table")
        for number, step in enumerate(self.passes, 1):
            if isinstance(step, type) or not isinstance(step, Pass):
                raise RecipeError(f"pass {number}: required a pass, got {step!r}")

    @classmethod
    def load(cls, path: str | Path, registry: Mapping[str, str] | None = None) -> Recipe:
        """The recipe of a TOML file. Raises RecipeError listing all that is wrong in it."""
        if not isinstance(path, str | PathLike):
            raise RecipeError(
                f"recipe: required a Recipe, which Recipe([...]) makes of passes, or a TOML file, "
                f"got {_short(path)}"
            )
        return cls.parse(read_text(path, RecipeError), str(path), registry)

    @classmethod
    def parse(
        cls, text: str, source: str = "recipe", registry: Mapping[str, str] | None = None
    ) -> Recipe:
        """The recipe of a TOML text; `source` begins each message."""
        document = parse_toml(text, source, RecipeError)
        problems = [unknown(key, ["pass"], "table") for key in document if key != "pass"]
        tables = document.get("pass", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            problems.append("pass: required [[pass]] tables (two brackets), one for each pass")
            tables = []
        elif not tables:
            problems.append("no passes: a recipe needs at least one [[pass]] table")
        passes: list[Pass] = []
        for number, table in enumerate(tables, 1):
            step, wrong = _read_pass(number, table, registry)
            problems += wrong
            if step is not None:
                passes.append(step)
        if problems:
            raise RecipeError("\n".join(f"{source}: {problem}" for problem in problems))
        return cls(passes)

    def to_toml(self) -> str:
        """The recipe with every key of every pass; `parse` reads it back as an equal recipe.

        TOML has no null, so a key whose value is None is left out; None must be its default.
        """
        return "\n".join(_write_pass(number, step) for number, step in enumerate(self.passes, 1))

    def require_data(self, data: Data | None) -> None:
        """Raise RecipeError where a pass cannot work without data and there is none."""
        for number, step in enumerate(self.passes, 1):
            if data is None and getattr(step, "needs_data", False):
                raise RecipeError(
                    f"pass {number} ({step.name}): required data, got none. "
                    "Give data= (--data on the command line): an .npz or file.py:factory"
                )

    @property
    def takes_teacher(self) -> bool:
        """Whether a pass learns from the teacher that `run` is given."""
        return any(getattr(step, "takes_teacher", False) for step in self.passes)

    def require_use(self, teacher: object) -> None:
        """Raise RecipeError where there is a teacher and no pass that learns from it."""
        if teacher is not None and not self.takes_teacher:
            raise RecipeError(
                "teacher: required a pass that learns from it and names no other: distill without "
                f"the key teacher; the recipe has {', '.join(step.name for step in self.passes)}"
            )

    def run(
        self,
        graph: GraphModule,
        data: object = None,
        progress: Callable[[str], None] | None = None,
        figures: Callable[[GraphModule], Figures] = count_parameters,
        teacher: object = None,
    ) -> RecipeResult:
        """The graph after all passes, each result checked before the next pass sees it.

        data: whatever Data.of takes. progress: told what begins, as "2/3 quantize". figures: what
        is counted before and after every pass. teacher: of passes that distill and name none; by
        default `graph`. Raises RecipeError where data is missing, or nobody asks for the teacher,
        DataError for what is no data; errors of a pass carry a note with its place.
        """
        from fxloom.data import Data

        samples = Data.of(data)
        self.require_data(samples)
        self.require_use(teacher)
        steps, seconds, found = [], [], []
        first = graph
        after = figures(graph)
        for number, step in enumerate(self.passes, 1):
            place = f"{number}/{len(self.passes)} {step.name}"
            if progress is not None:
                progress(place)
            begin, before = perf_counter(), after
            told = _TELL.set(_prefixed(progress, place))
            taught = _TEACHER.set(first if teacher is None else teacher)
            try:
                result = _apply(step, graph, samples)
            except FxloomError as fault:
                fault.add_note(f"in pass {number} ({step.name}) of the recipe")
                raise
            finally:
                _TELL.reset(told)
                _TEACHER.reset(taught)
            graph = result.graph
            after = figures(graph) if result.modified else before
            steps.append(Step(step.name, result.modified, result.summary, before, after))
            seconds.append(perf_counter() - begin)
            found.append(result.found or step)
        return RecipeResult(graph, tuple(steps), tuple(seconds), Recipe(found))


def _prefixed(progress: Callable[[str], None] | None, place: str) -> Callable[[str], None] | None:
    return None if progress is None else lambda text: progress(f"{place}: {text}")


def _apply(step: Pass, graph: GraphModule, data: Data | None) -> PassResult:
    result = step(graph, data)
    if not isinstance(result, PassResult):
        raise RecipeError(f"required a PassResult, got {type(result).__name__}")
    if not result.modified:
        return result
    if result.graph is graph:
        raise RecipeError("changed its input; a pass must return a new graph")
    # Here, because the graph module is heavy and reading a recipe must not load it.
    from fxloom.facts import check
    from fxloom.graph import lint_origins, refresh_shapes

    result.graph.graph.lint()
    result.graph.recompile()
    refresh_shapes(result.graph)
    lint_origins(result.graph.graph)
    if gone := check(graph, result.graph):
        return replace(result, summary={**result.summary, **gone})
    return result


def _read_pass(
    number: int, table: Mapping[str, Any], registry: Mapping[str, str] | None
) -> tuple[Pass | None, list[str]]:
    from fxloom import passes

    known = passes.REGISTRY if registry is None else registry
    name = table.get("name")
    if name is None:
        return None, [f"pass {number}: name: required, but missing. Known: {', '.join(known)}"]
    if not isinstance(name, str):
        return None, [f"pass {number}: name: required text, got {name!r}"]
    try:
        cls = passes.get(name, known)
    except RecipeError as fault:
        return None, [f"pass {number}: {fault}"]
    keys = {key: value for key, value in table.items() if key != "name"}
    step, problems = build(cls, keys, further=["name"])
    return step, [f"pass {number} ({name}): {problem}" for problem in problems]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"an object of type {type(value).__name__}"


def _write_pass(number: int, step: Pass) -> str:
    lines = ["[[pass]]\n", toml_line("name", step.name)]
    for field in fields(step):  # type: ignore[arg-type]
        value = getattr(step, field.name)
        if not field.init or (value is None and field.default is None):
            continue
        try:
            lines.append(toml_line(field.name, value))
        except TypeError:
            advice = field.metadata.get("advice", "")
            raise RecipeError(
                f"pass {number} ({step.name}): {field.name}: "
                f"required what TOML can hold, got {_short(value)}{advice}"
            ) from None
    return "".join(lines)
