"""Writes a checked ModelGraph as a project for Vitis HLS or Vivado HLS.

hls4ml's writer, with everything replaced that is slow, random or tied to a place: weights are
written in one piece and exactly, and there is no Stamp, no absolute path, no YAML, no Python
bridge. This module imports hls4ml; import it where it is needed only.
"""

import shutil
from collections.abc import Callable
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from fxloom.backends.hls4ml.graph import silenced
from fxloom.backends.hls4ml.plan import Plan, Weights
from fxloom.errors import FxloomError

with silenced():
    import hls4ml
    from hls4ml.writer.vitis_writer import VitisWriter

KERNELS = "fxloom_kernels.h"
INCLUDED = ("fxloom_choosing.h", "fxloom_tables.h")
"""Included by KERNELS."""

SCRIPTS = {
    "Vitis": ("vitis/build_prj.tcl", "vitis/build_opt.tcl", "vivado/vivado_synth.tcl"),
    "Vivado": ("vivado/build_prj.tcl", "vivado/vivado_synth.tcl"),
}
"""hls4ml's own Tcl files, taken unchanged."""


def template(name: str) -> str:
    """Text of a file of fxloom.hw_templates."""
    return files("fxloom.hw_templates").joinpath(name).read_text(encoding="utf-8")


def _builtin(mantissas: Any) -> str:
    """The narrowest C integer type that holds the mantissas."""
    lo, hi = int(mantissas.min()), int(mantissas.max())
    for bits, name in ((8, "signed char"), (16, "short"), (32, "int")):
        if -(1 << (bits - 1)) <= lo and hi < 1 << (bits - 1):
            return name
    return "long long"


def _wrapped(words: list[str]) -> str:
    """Comma-separated, sixteen to a line: compilers and editors dislike endless lines."""
    lines = [", ".join(words[start : start + 16]) for start in range(0, len(words), 16)]
    return "{\n" + ",\n".join(lines) + "}"


def _decimals(held: Weights) -> list[str]:
    """Decimal literals that a compiler reads back as exactly these values."""
    words = [repr(value) for value in held.values.reshape(-1).tolist()]
    scale = Fraction(2) ** -held.kind.fraction
    flat = held.mantissas.reshape(-1)
    # Shortest literals are exact because the values are doubles; a sample is proven anyway.
    for position in np.unique(np.linspace(0, flat.size - 1, 16).astype(int)).tolist():
        if Fraction(float(words[position])) != int(flat[position]) * scale:
            raise FxloomError(f"weight {held.name}[{position}] cannot be written exactly")
    return words


def _weight_text(held: Weights, type_name: str) -> str:
    count = held.mantissas.size
    integers = _wrapped([str(m) for m in held.mantissas.reshape(-1).tolist()])
    builtin = _builtin(held.mantissas)
    if held.builtin:
        body = f"static const {builtin} {held.name}[{count}] = {integers};\n"
    else:
        # Thousands of constructor calls take a compiler long, and rounding decimals at start-up
        # would be one more thing to trust: simulation sets the mantissas themselves. With
        # FXLOOM_LITERALS it takes what synthesis takes, so that a test can compare the two.
        name = held.name
        body = (
            "#if !defined(__SYNTHESIS__) && !defined(FXLOOM_LITERALS)\n"
            f"static const {builtin} {name}_mantissas[{count}] = {integers};\n"
            f"{type_name} {name}[{count}];\n"
            f"static const fxloom::set_weights {name}_set({name}, {name}_mantissas, {count});\n"
            "#else\n"
            f"{type_name} {name}[{count}] = {_wrapped(_decimals(held))};\n"
            "#endif\n"
        )
    guard = f"FXLOOM_{held.name.upper()}_H_"
    shape = " x ".join(str(n) for n in held.mantissas.shape)
    return (
        f"// shape {shape}, format {held.kind}\n#ifndef {guard}\n#define {guard}\n"
        f'#include "../nnet_utils/{KERNELS}"\n{body}#endif\n'
    )


class FxloomWriter(VitisWriter):  # type: ignore[misc]
    """hls4ml's writer without what is slow, random or tied to a place."""

    def __init__(self, plan: Plan, backend: str) -> None:
        super().__init__()
        self._backend = backend
        self._held = {held.name: held for layer in plan.layers for held in layer.weights.values()}

    def print_array_to_cpp(
        self, var: Any, odir: str, namespace: str | None = None, write_txt_file: bool = True
    ) -> None:
        """Write one weight header from the plan's integers."""
        text = _weight_text(self._held[var.name], var.type.name)
        (Path(odir) / "firmware" / "weights" / f"{var.name}.h").write_text(text, encoding="ascii")

    def write_build_script(self, model: Any) -> None:
        """The Tcl files of the backend."""
        root = Path(hls4ml.__file__).parent / "templates"
        out = Path(model.config.get_output_dir())
        for source in SCRIPTS[self._backend]:
            shutil.copyfile(root / source, out / Path(source).name)

    def write_hls(self, model: Any, is_multigraph: bool = False) -> None:
        """All files that hls4ml knows of, and our kernels."""
        steps: tuple[Callable[[Any], None], ...] = (
            self.write_project_dir,
            self.write_project_cpp,
            self.write_project_header,
            self.write_weights,
            self.write_defines,
            self.write_parameters,
            self.write_build_script,
            self.write_nnet_utils,
            *((self.write_nnet_utils_overrides,) if self._backend == "Vitis" else ()),
            self.write_generated_code,
        )
        for step in steps:
            step(model)
        out = Path(model.config.get_output_dir())
        for name in (KERNELS, *INCLUDED):
            path = out / "firmware" / "nnet_utils" / name
            path.write_text(template(name), encoding="ascii")


def write_project(graph: Any, plan: Plan, backend: str, out: Path) -> None:
    """Write hls4ml's part of the project. Raises FxloomError."""
    try:
        FxloomWriter(plan, backend).write_hls(graph)
    except OSError:
        raise
    except FxloomError:
        raise
    except Exception as error:
        raise FxloomError(f"hls4ml could not write the project to {out}: {error}") from error
