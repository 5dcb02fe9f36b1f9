"""hls4ml backend: a Program as a project for a vendor's HLS tool, and its C simulation.

Importing this package is cheap; hls4ml is imported by the first emit.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fxloom.backends.hls4ml.build import LAYERS, Hls4mlBuild, load_build
from fxloom.backends.hls4ml.dialect import DIALECTS
from fxloom.backends.hls4ml.kernels import UNSUPPORTED
from fxloom.backends.hls4ml.plan import describe, make_plan
from fxloom.backends.simulator import Tensors, quantize_inputs
from fxloom.errors import DataError, FxloomError, TargetError
from fxloom.kernels import KERNELS
from fxloom.program import Program
from fxloom.target import Target

__all__ = ["BACKEND", "Hls4mlBackend", "Hls4mlBuild", "load_build"]

PROJECT = "myproject"
"""hls4ml's customary name for the top function; build_prj.tcl reads it from project.tcl."""


class Hls4mlBackend:
    """Projects for Vitis, Vivado, Quartus, Catapult and oneAPI; C simulation but for oneAPI."""

    name = "hls4ml"

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Operations that this backend declares it cannot do, with the reason."""
        return UNSUPPORTED

    def check_target(self, target: Target) -> None:
        """Raise TargetError where this backend cannot do what a target asks for."""
        check_target(target)

    def emit(
        self,
        program: Program,
        target: Target,
        out: str | os.PathLike[str],
        *,
        samples: Tensors | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> Hls4mlBuild:
        """Write a complete project into a directory, absent or empty.

        samples: real inputs [N, ...] in the user's layout for the testbench; without them it gets
        32 deterministic ones. cache: where the C simulation keeps executables.
        Raises TargetError for what the backend cannot do, DataError for bad samples,
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
        from fxloom.backends.hls4ml.writer import write_project

        inputs = default_samples(program) if samples is None else quantize_inputs(program, samples)
        if not len(inputs[0]):
            raise DataError("the testbench needs at least one sample")
        with silenced():
            graph = build_graph(plan, target, PROJECT, str(directory))
            write_project(graph, plan, target, directory)
        write_testbench(program, plan, PROJECT, directory, inputs)
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


def check_target(target: Target) -> None:
    """Raise TargetError, with all reasons, where a target asks for what is not there."""
    dialect, part = DIALECTS[target.backend], target.device
    problems = []
    if part.vendor != dialect.vendor:
        vendors = {name: Target(part=name).device.vendor for name in Target.names()}
        known = [name for name, vendor in vendors.items() if vendor == dialect.vendor]
        problems.append(
            f"part: {target.backend} is for parts of {dialect.vendor} ({', '.join(known)}), "
            f"{part.name} is made by {part.vendor}"
        )
    if dialect.algorithmic_c:
        if target.io != "parallel":
            problems.append(
                f"io: required 'parallel' for {target.backend}, got {target.io!r}: the kernels "
                "have streams for Vitis and Vivado only"
            )
        wanted: list[dict[str, object]] = [
            {"strategy": target.strategy, "reuse": target.reuse, "kernel": target.kernel}
        ]
        wanted += [{**wanted[0], **table} for table in target.layers.values()]
        if any(
            (w["strategy"], w["reuse"]) != ("latency", 1) and w["kernel"] not in KERNELS
            for w in wanted
        ):
            others = " or ".join(f'"{name}"' for name in KERNELS)
            problems.append(
                f"strategy and reuse: required 'latency' and 1 for {target.backend}: its layers "
                f"are kernels of fxloom, which are unrolled, but for kernel = {others}"
            )
    if problems:
        raise TargetError("the hls4ml backend cannot do this target: " + "; ".join(problems))


BACKEND = Hls4mlBackend()
