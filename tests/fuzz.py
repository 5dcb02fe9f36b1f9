"""Random models through the whole compiler: `make fuzz N=1000`.

Every model is captured (which compares it with PyTorch), legalized (which must not change what it
computes) and quantized several times with widths and modes of all kinds; then the quantized graph,
the reference simulator and the fast path must agree on every integer, on inputs to four times
beyond the calibrated range. One in CSIM models goes through compiled C++ as well, many to a
project. A failing model is shrunk and left as a file that runs by itself.

    python -m tests.fuzz 1000 [--seed S] [--csim 0] [--folder DIR]
"""

import argparse
import collections
import copy
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from fxloom.backends import get
from fxloom.backends.hls4ml import csim
from fxloom.backends.simulator import quantize_inputs, reference, simulate
from fxloom.data import Data
from fxloom.encodings import Encoding
from fxloom.errors import FxloomError, UnsupportedLayer
from fxloom.exact import exact_forward
from fxloom.frontend import capture
from fxloom.graph import output_nodes
from fxloom.lowering import lower
from fxloom.passes import FoldBatchnorm, Legalize, Quantize
from fxloom.program import Program
from fxloom.target import Target
from tests.conformance.packing import pack
from tests.random_models import RandomModel, random_models
from tests.strategies import overflows, roundings

SAMPLES = 24
TABLE = 4
"""Quantizations of every model."""
PACK = 25
"""Programs in a C++ project."""


@st.composite
def quantizations(draw: DrawFn) -> Quantize:
    """Any widths, modes and methods."""
    encoding = draw(st.sampled_from([Encoding.FIXED, Encoding.FIXED, *Encoding]))
    return Quantize(
        weights=draw(st.integers(2, 5) if encoding != "fixed" else st.integers(1, 12)),
        weight_format=encoding,
        weight_rounding=draw(st.sampled_from(["auto", "nearest"])),
        equalize=draw(st.sampled_from([None, True, False])),
        activations=draw(st.integers(1, 14)),
        inputs=draw(st.one_of(st.none(), st.integers(1, 14))),
        outputs=draw(st.integers(2, 18)),
        table_bits=draw(st.integers(2, 9)),
        method=draw(st.sampled_from(["mse", "minmax", "percentile", "kl"])),
        rounding=draw(roundings),
        overflow=draw(overflows),
        bias_correction=draw(st.booleans()),
        per_channel=draw(st.booleans()),
    )


@dataclass
class Tally:
    """What happened so far."""

    models: int = 0
    accepted: int = 0
    programs: int = 0
    integers: int = 0
    refusals: collections.Counter[str] = field(default_factory=collections.Counter)
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)

    def refuse(self, refusal: FxloomError) -> None:
        """Count why, without the layers' names."""
        lines = refusal.problems if isinstance(refusal, UnsupportedLayer) else [str(refusal)]
        for line in lines:
            layer, _, reason = line.partition(": ")
            self.refusals[f"{layer.partition('(')[2].rstrip(')')}: {reason[:90]}"] += 1


class Wrong(AssertionError):
    """Two ways to compute a model disagree."""


def _several(result: Any) -> list[np.ndarray[Any, Any]]:
    parts = result if isinstance(result, tuple | list) else [result]
    return [p.detach().numpy() if isinstance(p, torch.Tensor) else np.asarray(p) for p in parts]


def check_model(model: RandomModel, steps: list[Quantize], tally: Tally) -> list[Program]:
    """Programs of a model, all readers compared; [] where it is refused by name."""
    module, inputs = model.build()
    x = inputs(SAMPLES)
    tally.models += 1
    try:
        graph = capture(module, tuple(t[:3] for t in x))
    except FxloomError as refusal:
        tally.refuse(refusal)
        return []
    tally.accepted += 1
    tally.kinds.update(model.kinds)
    _same_when_legal(graph, x, module)
    data = Data(x_train=x if len(x) > 1 else x[0])
    programs = []
    for step in steps:
        try:
            quantized = step(graph, data).graph
            program = lower(quantized)
        except FxloomError as refusal:  # formats that no 63 bits hold, softmax beyond 24 bits
            tally.refuse(refusal)
            continue
        programs.append(program)
        tally.programs += 1
        beyond = [t * torch.linspace(0.5, 4, SAMPLES).reshape(-1, *(1,) * (t.dim() - 1)) for t in x]
        tally.integers += _same_integers(quantized, program, beyond)
    return programs


def _same_when_legal(graph: Any, x: tuple[torch.Tensor, ...], module: torch.nn.Module) -> None:
    """Folding and legalizing rewrite; what is computed stays."""
    legal = Legalize()(FoldBatchnorm()(graph).graph).graph
    with torch.no_grad():
        wanted, got = _several(graph(*x)), _several(legal(*x))
        noises = _noises(module, x, wanted)
    for node, a, b, noise in zip(output_nodes(graph), wanted, got, noises, strict=True):
        if a.dtype != np.float32:
            continue  # an index or a comparison may tip over at equal values
        # Float32 noise of values around one may be all that is left of a difference of them, and
        # a norm makes more of it.
        scale = max(float(np.abs(a).max()), 0.1)
        if not np.allclose(a, b, rtol=1e-3, atol=1e-3 * scale + 4 * noise):
            raise Wrong(f"legalize changes output {node.name} by {np.abs(a - b).max()} of {scale}")


def _noises(
    module: torch.nn.Module, x: tuple[torch.Tensor, ...], outputs: list[np.ndarray[Any, Any]]
) -> list[float]:
    """How far each output is from itself in float64: a norm of nearly equal values magnifies."""
    doubled = tuple(t.double() if t.is_floating_point() else t for t in x)
    try:
        exact = _several(copy.deepcopy(module).double()(*doubled))
    except RuntimeError:  # a constant of the source is float32
        return [0.0] * len(outputs)
    pairs = zip(outputs, exact, strict=True)
    return [float(np.abs(a - b).max()) if a.dtype == np.float32 else 0.0 for a, b in pairs]


def _same_integers(quantized: Any, program: Program, x: list[torch.Tensor]) -> int:
    arrays = [t.numpy() for t in x]
    fast = _several(simulate(program, arrays, raw=True))
    slow = reference(program, quantize_inputs(program, arrays))
    count = 0
    for port, a, definition in zip(program.outputs, fast, slow, strict=True):
        b = definition.transpose(0, *(axis + 1 for axis in port.axes))
        count += a.size
        if a.shape != b.shape or (a != b).any():
            raise Wrong(f"fast path and definition differ in {int((a != b).sum())} of {a.size}")
    exact = _several(exact_forward(quantized, *x))
    values = _several(simulate(program, arrays))
    for port, a, b in zip(program.outputs, values, exact, strict=True):
        if a.shape != b.shape or (a != b).any():
            raise Wrong(f"graph and program differ in {port.name}: {int((a != b).sum())}")
    return count


def check_hardware(programs: list[Program], seed: int, io: str, backend: str) -> int:
    """Programs packed into one project, through compiled C++; integers compared."""
    from tests.conformance.packing import corner_inputs

    packed = pack(programs)
    inputs = corner_inputs(packed, SAMPLES, seed)
    with tempfile.TemporaryDirectory() as folder:
        target = Target(io=io, backend=backend, strategy="resource" if seed % 2 else "latency")
        build = get("hls4ml").emit(
            packed, target, Path(folder) / "project", cache=Path(folder) / "cache"
        )
        got = build.run_mantissas(inputs)
    count = 0
    for port, a, b in zip(packed.outputs, reference(packed, inputs), got, strict=True):
        count += a.size
        if (a != b).any():
            raise Wrong(f"C simulation (io_{io}, {backend}) and definition differ in {port.name}")
    return count


def main() -> int:
    """Run; returns the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, help="models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csim", type=int, default=0, help="models that go through g++ as well")
    parser.add_argument("--folder", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    csim.FLAGS = (*csim.FLAGS, "-O0")
    tally, kept, failing = Tally(), [], []
    began = time.perf_counter()

    @seeded(options.seed)
    @settings(
        max_examples=options.count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(random_models(), st.lists(quantizations(), min_size=TABLE, max_size=TABLE))
    def run(model: RandomModel, steps: list[Quantize]) -> None:
        try:
            programs = check_model(model, steps, tally)
        except Exception:
            failing[:] = [(model.source, steps, traceback.format_exc())]
            raise
        if programs and len(kept) < options.csim * (tally.models / options.count):
            kept.append(programs[0])
        if tally.models % 100 == 0:
            print(_state(tally, began), flush=True)

    failures = 0
    try:
        run()
    except KeyboardInterrupt:
        print("interrupted: what was drawn so far counts")
    except Exception:
        failures += 1
        source, steps, trace = failing[0]
        print(_save(options.folder, f"seed{options.seed}", source, steps, trace))
    compared = 0
    for number, first in enumerate(range(0, len(kept), PACK)):
        io, backend = ("parallel", "stream")[number % 2], ("Vitis", "Vivado")[number // 2 % 2]
        try:
            compared += check_hardware(kept[first : first + PACK], number, io, backend)
        except Exception:
            failures += 1
            print(traceback.format_exc())
        print(f"C++: {min(first + PACK, len(kept))} models, {compared} integers", flush=True)
    print(_state(tally, began))
    print("of each kind:", dict(tally.kinds.most_common()))
    print("refused:")
    for reason, count in tally.refusals.most_common(40):
        print(f"  {count:5}  {reason}")
    return failures


def _state(tally: Tally, began: float) -> str:
    return (
        f"{tally.models} models drawn, {tally.accepted} accepted, {tally.programs} programs, "
        f"{tally.integers} integers, {time.perf_counter() - began:.0f} s"
    )


def _save(folder: Path, name: str, source: str, steps: list[Quantize], trace: str) -> str:
    """Leave the model as a file that `fxloom compile` takes, with what failed in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    notes = "".join(f"# {line}\n" for line in [*map(repr, steps), *trace.splitlines()])
    path.write_text(f"{source}\n\n{notes}", encoding="utf-8")
    return f"FAILED, shrunk to {path}:\n{source}\n{trace}"


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
