"""An emitted project: where it lies, what is called how, and its C simulation."""

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fxloom.backends.hls4ml.dialect import DIALECTS
from fxloom.backends.simulator import Tensors, present_outputs, quantize_inputs
from fxloom.errors import FxloomError, TargetError, ToolError
from fxloom.fixed_point import Int64Array
from fxloom.program import Output, Program
from fxloom.target import Target

LAYERS = "layers.json"


@dataclass(frozen=True)
class Hls4mlBuild:
    """A project in a directory, the program it computes and the target it was made for.

    layers: one record a layer of the C++ (name, array, type, shape, origin, values, ops, class);
    where it multiplies by a matrix also strategy, reuse, note, kernel, lanes and why: what it got
    of what was asked; where it fills FIFOs between layers, fifos: how many packs each array holds.
    """

    directory: Path
    program: Program
    target: Target
    project: str
    layers: tuple[Mapping[str, Any], ...]
    cache: Path | None = None

    def origin_of(self, name: str) -> str:
        """The user's layer that a C++ layer or array name stands for; KeyError if there is none."""
        for layer in self.layers:
            if name in (layer["name"], layer["array"]):
                return str(layer["origin"])
        raise KeyError(name)

    def run(
        self,
        x: Tensors,
        raw: bool = False,
        *,
        progress: Callable[[int, int], None] | None = None,
        timeout_s: float | None = None,
        debug: bool = False,
    ) -> npt.NDArray[np.generic] | tuple[npt.NDArray[np.generic], ...]:
        """C simulation of real inputs [N, ...] in the user's layout.

        Returns float64 values, int64 mantissas where raw; a tuple where there are several outputs.
        progress(done, total) is called now and then. debug: compiled for gdb (-O0 -g), with driver,
        inputs and outputs left in the cache. Raises DataError for inputs that do not fit, ToolError
        where g++ is missing, a child process fails, or a stream is read while empty or not emptied;
        and for oneAPI, whose projects no compiler but the vendor's can run.
        """
        mantissas = self.run_mantissas(
            quantize_inputs(self.program, x), progress=progress, timeout_s=timeout_s, debug=debug
        )
        return present_outputs(self.program, mantissas, raw)

    def debugger(self) -> str:
        """The command that runs the inputs of the last `run(debug=True)` under gdb."""
        from fxloom.backends.hls4ml.csim import debugger_command

        elements = sum(port.value.size for port in self.program.inputs)
        return debugger_command(self._driver(debug=True), elements)

    def _driver(self, debug: bool) -> Path:
        from fxloom.backends.hls4ml.csim import build_driver

        includes = DIALECTS[self.target.backend].includes
        if not includes:
            raise ToolError(
                f"no C simulation of projects for {self.target.backend}: they need the vendor's "
                "compiler (icpx). With that, CMake's target fpga_emu is the project's testbench; "
                "call it with the path of tb_data"
            )
        return build_driver(self.directory, self.project, includes, self.cache, debug)

    def trace(self, x: Tensors) -> dict[str, Int64Array]:
        """Mantissas [N, ...] of every value that has an array of its own in the C++, by name.

        For finding the first layer that differs from the simulator. Compiles a second project in
        which all of them are outputs; what is fused into a layer has no array. Raises as run does.
        """
        from fxloom.backends.hls4ml import BACKEND

        seen = dict.fromkeys(layer["values"][-1] for layer in self.layers)
        ports = [self.program.value(name) for name in seen]
        outputs = tuple(Output(v.name, v.name, tuple(range(len(v.shape)))) for v in ports)
        tapped = replace(self.program, outputs=outputs)
        inputs = quantize_inputs(self.program, x)
        with tempfile.TemporaryDirectory(prefix="fxloom-trace-") as folder:
            build = BACKEND.emit(tapped, self.target, folder, cache=self.cache)
            return dict(zip(seen, build.run_mantissas(inputs), strict=True))

    def edited(self) -> dict[str, str | None]:
        """Source files that are not as they are emitted, with the layer whose constants they hold.

        By path in the project, in the order of the layers; files that no layer owns come last.
        """
        from fxloom.backends.hls4ml import BACKEND

        with tempfile.TemporaryDirectory(prefix="fxloom-emit-") as folder:
            BACKEND.emit(self.program, self.target, folder)
            fresh, mine = (_sources(root) for root in (Path(folder), self.directory))
        names = [name for name in sorted({*fresh, *mine}) if fresh.get(name) != mine.get(name)]
        count = len(self.layers)
        owners = {name: self._owner(name) for name in names}
        return {
            name: None if place == count else str(self.layers[place]["origin"])
            for name, place in sorted(owners.items(), key=lambda item: item[1])
        }

    def _owner(self, name: str) -> int:
        """Position of the layer that a file of constants belongs to, by the index in its name; the
        number of layers for all other files."""
        found = re.fullmatch(r"firmware/weights/[a-z]+(\d+)(_\d+)?\.h", name)
        if found is None:
            return len(self.layers)
        start = f"n{found[1]}"
        places = [
            place
            for place, layer in enumerate(self.layers)
            if layer["name"] == start or str(layer["name"]).startswith(f"{start}_")
        ]
        return places[0] if places else len(self.layers)

    def run_mantissas(
        self,
        inputs: Sequence[Int64Array],
        *,
        progress: Callable[[int, int], None] | None = None,
        timeout_s: float | None = None,
        debug: bool = False,
    ) -> list[Int64Array]:
        """C simulation of input mantissas (channels-last); one array an output."""
        from fxloom.backends.hls4ml.csim import run_driver
        from fxloom.backends.hls4ml.testbench import flat_samples

        values = [self.program.value(port.value) for port in self.program.outputs]
        driver = self._driver(debug)
        sizes = [value.size for value in values]
        flat = run_driver(driver, flat_samples(inputs), sum(sizes), progress, timeout_s, debug)
        parts = np.split(flat, np.cumsum(sizes)[:-1], axis=1)
        return [part.reshape(-1, *value.shape) for part, value in zip(parts, values, strict=True)]


def _sources(directory: Path) -> dict[str, bytes]:
    paths = (path for path in (directory / "firmware").rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def load_build(
    directory: Path | str, program: Program, *, cache: Path | None = None
) -> Hls4mlBuild:
    """An emitted project again. Needs its layers.json, firmware/ and fxloom_ports.h.

    program: what was emitted; FxloomError where the directory was made from another one.
    """
    directory = Path(directory)
    try:
        record = json.loads((directory / LAYERS).read_text(encoding="utf-8"))
        project, digest, layers = record["project"], record["program"], record["layers"]
        target = Target.parse(record["target"], LAYERS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TargetError) as error:
        raise FxloomError(f"{directory}: no emitted hls4ml project: {error}") from None
    if digest != program.digest():
        raise FxloomError(
            f"{directory}: it was made from another program ({str(digest)[:12]}, not "
            f"{program.digest()[:12]}). Emit it again."
        )
    return Hls4mlBuild(directory, program, target, str(project), tuple(layers), cache)
