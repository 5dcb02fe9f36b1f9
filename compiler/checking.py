"""The simulator against the C simulation of the generated C++, integer by integer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fxloom.compilation import Compilation, open_build
from fxloom.program import Input, Program

SEED = 0
BEYOND = 4.0
"""How many times the calibrated range the wildest inputs reach."""

Values = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first integer that differs. index: in the output as the user sees it, without batch.

    layer: the first layer of the user's model whose values differ for this sample. Where none
    differs in a project made anew, edited has the files that are not as they were made, and layer
    is that of the first, or the one that computes the output.
    """

    inputs: str
    sample: int
    output: str
    index: tuple[int, ...]
    layer: str
    simulated: int
    hardware: int
    edited: tuple[str, ...] = ()

    def __str__(self) -> str:
        edited = ", ".join(self.edited)
        where = (
            f"its project was edited: {edited} (layer {self.layer}). Compile it again"
            if edited
            else f"the first layer that differs is {self.layer}"
        )
        return (
            f"{self.inputs} sample {self.sample}, output {self.output}{list(self.index)}: "
            f"simulator {self.simulated}, C simulation {self.hardware}; {where}"
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One kind of inputs. values: integers compared; distinct: different ones among them."""

    inputs: str
    samples: int
    values: int
    distinct: int
    mismatches: int


@dataclass(frozen=True, slots=True)
class CheckResult:
    """All comparisons, and the first difference if there is one."""

    comparisons: tuple[Comparison, ...]
    first: Divergence | None

    @property
    def is_exact(self) -> bool:
        """Whether every integer was the same."""
        return self.first is None


def check(
    build: Compilation | str | Path,
    samples: int = 100,
    progress: Callable[[str, int, int], None] | None = None,
    debug: bool = False,
) -> CheckResult:
    """Compare the simulator with the C simulation.

    On the samples kept in the build, on `samples` random inputs within the calibrated range and
    as many beyond it, and on its corners. The same build gives the same inputs. progress: kind of
    inputs, samples done, samples in all. debug: compile for gdb, and stop at the first inputs that
    differ: the build's `debugger` runs them again. Raises FxloomError for a damaged
    build, ToolError where g++ is missing or fails.
    """
    opened = build if isinstance(build, Compilation) else open_build(build)
    comparisons = []
    first: Divergence | None = None
    for kind, x in _inputs(opened, samples):
        comparison, divergence = compare(opened, kind, x, progress, debug)
        comparisons.append(comparison)
        first = first or divergence
        if debug and first is not None:
            break
    return CheckResult(tuple(comparisons), first)


def compare(
    build: Compilation,
    kind: str,
    x: Any,
    progress: Callable[[str, int, int], None] | None = None,
    debug: bool = False,
) -> tuple[Comparison, Divergence | None]:
    """One set of real inputs [N, ...] in the user's layout. kind: what to call it."""

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress(kind, done, total)

    simulated = _tuple(build.simulate(x, raw=True))
    hardware = _tuple(build.run(x, raw=True, progress=step, debug=debug))
    mismatches, first = 0, None
    for port, want, got in zip(build.program.outputs, simulated, hardware, strict=True):
        differing = np.argwhere(want != got)
        mismatches += len(differing)
        if len(differing) and (first is None or differing[0][0] < first.sample):
            sample, *index = (int(n) for n in differing[0])
            layer = first_divergent_layer(build, _only(x, sample))
            edited = build.project.edited() if layer is None else {}
            layer = layer or next(filter(None, edited.values()), _layer(build.program, port.value))
            pair = int(want[tuple(differing[0])]), int(got[tuple(differing[0])])
            first = Divergence(kind, sample, port.name, tuple(index), layer, *pair, tuple(edited))
    values = sum(array.size for array in simulated)
    distinct = len(np.unique(np.concatenate([array.reshape(-1) for array in simulated])))
    return Comparison(kind, len(simulated[0]), values, distinct, mismatches), first


def first_divergent_layer(build: Compilation, x: Any) -> str | None:
    """The first layer, in program order, whose values differ for real inputs [N, ...].

    None where all values that exist in the hardware agree. Compiles a second project, in which
    they all are outputs.
    """
    from fxloom.backends.simulator import quantize_inputs, trace_all

    hardware = build.project.trace(x)
    simulated = trace_all(build.program, quantize_inputs(build.program, x))
    for instr in build.program.instrs:
        name = instr.result.name
        if name in hardware and not np.array_equal(simulated[name], hardware[name]):
            return instr.origin
    return None


def _only(x: Any, sample: int) -> Any:
    """One sample of what `compare` takes."""
    if isinstance(x, np.ndarray):
        return x[sample : sample + 1]
    return [array[sample : sample + 1] for array in x]


def _tuple(result: Values | tuple[Values, ...]) -> tuple[Values, ...]:
    return result if isinstance(result, tuple) else (result,)


def _layer(program: Program, value: str) -> str:
    return next((i.origin for i in program.instrs if i.result.name == value), value)


def _inputs(build: Compilation, samples: int) -> list[tuple[str, Any]]:
    """Kinds of inputs, and the inputs."""
    generator = np.random.default_rng(SEED)
    ports = build.program.inputs
    kinds: list[tuple[str, list[npt.NDArray[Any]]]] = []
    if build.samples:
        kinds.append(("saved", list(build.samples)))
    kinds.append(("corners", [_corners(port) for port in ports]))
    if samples:
        within = [_random(port, samples, 1.0, generator) for port in ports]
        beyond = [_random(port, samples, BEYOND, generator) for port in ports]
        kinds += [("random", within), ("beyond range", beyond)]
    return [(kind, arrays[0] if len(arrays) == 1 else arrays) for kind, arrays in kinds]


def _corners(port: Input) -> npt.NDArray[np.float64]:
    """Samples that are all lowest, all highest, all zero, and all far below and above."""
    kind = port.value.type
    far = BEYOND * (kind.hi - kind.lo)
    levels = np.array([kind.lo, kind.hi, 0, -far, far]) * kind.step
    shape = _user_shape(port)
    return np.broadcast_to(levels.reshape(-1, *(1,) * len(shape)), (len(levels), *shape)).copy()


def _random(
    port: Input, count: int, factor: float, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Uniform over the range, `factor` times as far from its middle, in quarters of a step."""
    kind = port.value.type
    middle, half = (kind.hi + kind.lo) / 2, (kind.hi - kind.lo + 1) / 2
    drawn = generator.uniform(-1.0, 1.0, (count, *_user_shape(port)))
    # Quarters of a step: ties, and values on either side of them, really occur.
    return np.round((middle + factor * half * drawn) * 4) / 4 * kind.step


def _user_shape(port: Input) -> tuple[int, ...]:
    from fxloom.backends.simulator import user_shape

    return user_shape(port)
