"""hls4ml backend: a Program as a project for Vitis HLS or Vivado HLS, and its C simulation.

Importing this package is cheap; hls4ml is imported by the first emit.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fxloom.backends.hls4ml.build import LAYERS, Hls4mlBuild, load_build
from fxloom.backends.hls4ml.kernels import UNSUPPORTED
from fxloom.backends.hls4ml.plan import describe, make_plan
from fxloom.backends.simulator import Tensors, quantize_inputs
from fxloom.errors import DataError, FxloomError, TargetError
from fxloom.program import Program

if TYPE_CHECKING:
    from fxloom.target import Target

__all__ = ["BACKEND", "Hls4mlBackend", "Hls4mlBuild", "load_build"]

PROJECT = "myproject"
"""hls4ml's customary name for the top function; build_prj.tcl reads it from project.tcl."""

UNCERTAINTY = {"Vitis": "27%", "Vivado": "12.5%"}
"""Every possible backend, and the part of the clock period that hls4ml keeps free for it."""


class Hls4mlBackend:
    """Emits projects for Vitis HLS and Vivado HLS: both io types, Latency and Resource."""

    name = "hls4ml"

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Operations that this backend declares it cannot do, with the reason."""
        return UNSUPPORTED

    def emit(
        self,
        program: Program,
        target: "Target",
        out: str | os.PathLike[str],
        *,
        samples: Tensors | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> Hls4mlBuild:
        """Write a complete project into a directory, absent or empty.

        samples: real inputs [N, ...] in the user's layout for the testbench; without them it gets
        32 deterministic ones. cache: where the C simulation keeps executables.
        Raises TargetError for what the backend cannot do yet, DataError for bad samples,
        FxloomError where hls4ml refuses or changes anything.
        """
        check_target(target)
        plan = make_plan(program, target)
        directory = Path(out)
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise FxloomError(f"{directory}: the output directory must be absent or empty")
        # Only now: hls4ml takes seconds to import.
        from fxloom.backends.hls4ml.graph import build_graph, silenced
        from fxloom.backends.hls4ml.testbench import default_samples, write_testbench
        from fxloom.backends.hls4ml.writer import template, write_project

        inputs = default_samples(program) if samples is None else quantize_inputs(program, samples)
        if not len(inputs[0]):
            raise DataError("the testbench needs at least one sample")
        with silenced():
            graph = build_graph(plan, target, PROJECT, str(directory))
            write_project(graph, plan, target.backend, directory)
        write_testbench(program, plan, PROJECT, directory, inputs)
        tcl = template("project.tcl")
        fields = {
            "PROJECT": PROJECT,
            "BACKEND": target.backend.lower(),
            "PART": target.device.full_name,
            "CLOCK_NS": target.clock_ns,
            "UNCERTAINTY": UNCERTAINTY[target.backend],
        }
        for key, value in fields.items():
            tcl = tcl.replace(f"@{key}@", str(value))
        (directory / "project.tcl").write_text(tcl, encoding="ascii")
        layers = tuple(describe(plan))
        record = {
            "project": PROJECT,
            "program": program.digest(),
            "target": target.to_toml(),
            "layers": layers,
        }
        (directory / LAYERS).write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return Hls4mlBuild(
            directory, program, target, PROJECT, layers, None if cache is None else Path(cache)
        )

    def open(self, directory: str | os.PathLike[str], program: Program) -> Hls4mlBuild:
        """An emitted project again; see load_build."""
        return load_build(Path(directory), program)


def check_target(target: "Target") -> None:
    """Raise TargetError, with all reasons, where a target asks for what is not there yet."""
    problems = []
    if target.backend not in UNCERTAINTY:
        problems.append(
            f"backend must be {' or '.join(map(repr, UNCERTAINTY))}, got {target.backend!r}"
        )
    if problems:
        raise TargetError("the hls4ml backend cannot do this target: " + "; ".join(problems))


BACKEND = Hls4mlBackend()
