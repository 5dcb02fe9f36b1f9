"""Writes a checked ModelGraph as a project for a vendor's tool.

hls4ml's writers, with everything replaced that is slow, random or tied to a place: weights are
written in one piece and exactly, and there is no Stamp, no absolute path, no YAML, no Python
bridge. This module imports hls4ml; import it where it is needed only.
"""

import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from fxloom.backends.hls4ml.graph import silenced
from fxloom.backends.hls4ml.plan import Plan
from fxloom.backends.hls4ml.weights import Weights
from fxloom.errors import FxloomError
from fxloom.target import Target

with silenced():
    import hls4ml
    from hls4ml.writer.catapult_writer import CatapultWriter
    from hls4ml.writer.oneapi_writer import OneAPIWriter
    from hls4ml.writer.quartus_writer import QuartusWriter
    from hls4ml.writer.vitis_writer import VitisWriter

TEMPLATES = Path(hls4ml.__file__).parent / "templates"
KERNELS = "fxloom_kernels.h"
INCLUDED = (
    "fxloom_choosing.h",
    "fxloom_sparse.h",
    "fxloom_circulant.h",
    "fxloom_codebook.h",
    "fxloom_huffman.h",
    "fxloom_engines.h",
    "fxloom_tables.h",
)
"""Included by KERNELS."""
QUEUE = "fxloom_queue.h"

SCRIPTS = {
    "Vitis": ("vitis/build_prj.tcl", "vitis/build_opt.tcl", "vivado/vivado_synth.tcl"),
    "Vivado": ("vivado/build_prj.tcl", "vivado/vivado_synth.tcl"),
}
"""hls4ml's own Tcl files, taken unchanged."""

UNCERTAINTY = {"Vitis": "27%", "Vivado": "12.5%"}
"""The part of the clock period that hls4ml keeps free for these."""


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
    if held.memory:
        # Where it becomes a memory, as wide as the format; elsewhere a compiler would take long
        # for thousands of constructor calls.
        body = (
            "#if defined(__SYNTHESIS__) || defined(FXLOOM_LITERALS)\n"
            f"typedef {type_name} {held.name}_word_t;\n"
            "#else\n"
            f"typedef {builtin} {held.name}_word_t;\n"
            "#endif\n"
            f"static const {held.name}_word_t {held.name}[{count}] = {integers};\n"
        )
    elif held.builtin:
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


def _edited(name: str, text: str, *changes: tuple[str, str]) -> str:
    """Text of a file of hls4ml with changes (pattern, replacement), each of which must apply."""
    for pattern, replacement in changes:
        # Only backslashes mean anything in a replacement.
        text, count = re.subn(pattern, replacement.replace("\\", r"\\"), text, flags=re.MULTILINE)
        if not count:
            raise FxloomError(f"hls4ml's {name} is not as expected: nothing matches {pattern}")
    return text


class _Shared:
    """What the writers have in common: weights from the plan."""

    def __init__(self, plan: Plan, target: Target) -> None:
        super().__init__()
        self._target = target
        self._rolled = plan.dataflow
        self._held = {held.name: held for layer in plan.layers for held in layer.weights.values()}

    def _write_weight(self, var: Any, firmware: Path) -> None:
        text = _weight_text(self._held[var.name], var.type.name)
        (firmware / "weights" / f"{var.name}.h").write_text(text, encoding="ascii")


class _AmdWriter(_Shared, VitisWriter):  # type: ignore[misc]
    def print_array_to_cpp(
        self, var: Any, odir: str, namespace: str | None = None, write_txt_file: bool = True
    ) -> None:
        self._write_weight(var, Path(odir) / "firmware")

    def write_build_script(self, model: Any) -> None:
        out, target = Path(model.config.get_output_dir()), self._target
        for source in SCRIPTS[target.backend]:
            shutil.copyfile(TEMPLATES / source, out / Path(source).name)
        fields = {
            "PROJECT": model.config.get_project_name(),
            "BACKEND": target.backend.lower(),
            "PART": target.device.full_name,
            "CLOCK_NS": target.clock_ns,
            "UNCERTAINTY": UNCERTAINTY[target.backend],
        }
        tcl = template("project.tcl")
        for key, value in fields.items():
            tcl = tcl.replace(f"@{key}@", str(value))
        (out / "project.tcl").write_text(tcl, encoding="ascii")

    def write_hls(self, model: Any, is_multigraph: bool = False) -> None:
        steps: tuple[Callable[[Any], None], ...] = (
            self.write_project_dir,
            self.write_project_cpp,
            self.write_project_header,
            self.write_weights,
            self.write_defines,
            self.write_parameters,
            self.write_build_script,
            self.write_nnet_utils,
            *((self.write_nnet_utils_overrides,) if self._target.backend == "Vitis" else ()),
            self.write_generated_code,
        )
        for step in steps:
            step(model)


class _QuartusWriter(_Shared, QuartusWriter):  # type: ignore[misc]
    def _edit(self, path: Path, *changes: tuple[str, str]) -> None:
        if self._rolled:
            # A component with loops takes as long as they do.
            changes += ((r"^hls_component_ii\(\d+\)\n", ""),)
        path.write_text(_edited(path.name, path.read_text(), *changes), encoding="ascii")

    def print_array_to_cpp(self, var: Any, layer: Any, odir: str) -> None:
        self._write_weight(var, Path(odir) / "firmware")

    def write_hls(self, model: Any) -> None:
        out = Path(model.config.get_output_dir())
        self.write_project_dir(model)
        self.write_project_cpp(model)
        # The calls name arrays as all other tools have them.
        ports = (model.get_input_variables(), model.get_output_variables())
        names = [f"   auto &{v.member_name} = {v.name};" for group in ports for v in group]
        declared = "   hls_register output_data outputs;"
        top = out / "firmware" / model.config.get_project_name()
        self._edit(top.with_suffix(".cpp"), (f"^{declared}$", "\n".join([declared, *names])))
        self.write_project_header(model)
        self._edit(top.with_suffix(".h"))
        self.write_weights(model)
        self.write_defines(model)
        self.write_parameters(model)
        self.write_nnet_utils(model)
        device = ("^DEVICE   := .*$", f"DEVICE   := {self._target.device.full_name}")
        text = (TEMPLATES / "quartus" / "Makefile").read_text()
        (out / "Makefile").write_text(_edited("Makefile", text, device), encoding="ascii")


class _CatapultWriter(_Shared, CatapultWriter):  # type: ignore[misc]
    def print_array_to_cpp(self, var: Any, odir: str, write_txt_file: bool = True) -> None:
        self._write_weight(var, Path(odir) / "firmware")

    def write_nnet_utils(self, model: Any) -> None:
        firmware = Path(model.config.get_output_dir()) / "firmware"
        # Of Siemens' packages what is compiled, not manuals and tests.
        packages = ("ac_types", "ac_math", "ac_simutils")
        for folder in ("nnet_utils", *(f"{package}/include" for package in packages)):
            source = TEMPLATES / "catapult" / folder
            shutil.copytree(source, firmware / folder, copy_function=shutil.copyfile)
        for package in packages:
            licence = TEMPLATES / "catapult" / package / "LICENSE"
            if licence.is_file():
                shutil.copyfile(licence, firmware / package / "LICENSE")

    def write_hls(self, model: Any) -> None:
        out, target = Path(model.config.get_output_dir()), self._target
        self.write_output_dir(model)
        self.write_project_cpp(model)
        # Weights are part of the program.
        loading = r"^#ifndef __SYNTHESIS__\n    static bool loaded_weights(?s:.*?)^#endif\n\n"
        top = out / "firmware" / f"{model.config.get_project_name()}.cpp"
        top.write_text(_edited(top.name, top.read_text(), (loading, "")), encoding="ascii")
        self.write_project_header(model)
        self.write_weights(model)
        self.write_defines(model)
        self.write_parameters(model)
        self.write_nnet_utils(model)
        self.write_generated_code(model)
        tcl = _edited(
            "build_prj.tcl",
            (TEMPLATES / "catapult" / "build_prj.tcl").read_text(),
            ("CATAPULT_DIR", model.config.get_project_dir()),
            (
                "^#hls-fpga-machine-learning insert techlibs$",
                f"setup_xilinx_part {{{target.device.full_name}}}",
            ),
            (
                "^#hls-fpga-machine-learning insert invoke_args$",
                'flow package option set /SCVerify/INVOKE_ARGS "$sfd/tb_data"',
            ),
            ("^set hls_clock_period 5$", f"set hls_clock_period {target.clock_ns}"),
        )
        (out / "build_prj.tcl").write_text(tcl, encoding="ascii")


class _OneApiWriter(_Shared, OneAPIWriter):  # type: ignore[misc]
    def print_array_to_cpp(self, var: Any, layer: Any, odir: str) -> None:
        self._write_weight(var, Path(odir) / "src" / "firmware")

    def write_hls(self, model: Any) -> None:
        out, target = Path(model.config.get_output_dir()), self._target
        self.write_project_dir(model)
        self.write_project_cpp(model)
        self.write_project_header(model)
        self.write_weights(model)
        self.write_defines(model)
        self.write_parameters(model)
        self.write_nnet_utils(model)
        handler = "exception_handler.hpp"
        shutil.copyfile(TEMPLATES / "oneapi" / handler, out / "src" / handler)
        (out / "src" / QUEUE).write_text(template(QUEUE), encoding="ascii")
        flags = r"set(USER_FPGA_FLAGS -Wno-unused-label;${USER_FPGA_FLAGS})"
        clock = f"set(USER_FPGA_FLAGS -Xsclock={target.clock_ns}ns; ${{USER_FPGA_FLAGS}})"
        latency = "set(USER_FPGA_FLAGS -Xsoptimize=latency; ${USER_FPGA_FLAGS})"
        cmake = _edited(
            "CMakeLists.txt",
            (TEMPLATES / "oneapi" / "CMakeLists.txt").read_text(),
            # The library is hls4ml's bridge to Python, which is not written.
            (r"^.*\bLIB(RARY_(TARGET|FILES|NAME|COMPILE_FLAGS|LINK_FLAGS)|_STAMP)\b.*\n", ""),
            (r"^#+\n### FPGA Emulator library\n#+\n", ""),
            (r"^    set\(FPGA_DEVICE .*$", f'    set(FPGA_DEVICE "{target.device.full_name}")'),
            (f"^{re.escape(flags)}$", "\n".join([flags, clock, latency])),
        )
        (out / "CMakeLists.txt").write_text(cmake, encoding="ascii")


_WRITERS: dict[str, type[Any]] = {
    "Vitis": _AmdWriter,
    "Vivado": _AmdWriter,
    "Quartus": _QuartusWriter,
    "Catapult": _CatapultWriter,
    "oneAPI": _OneApiWriter,
}


def write_project(graph: Any, plan: Plan, target: Target, out: Path) -> None:
    """Write hls4ml's part of the project, and our kernels. Raises FxloomError."""
    try:
        _WRITERS[target.backend](plan, target).write_hls(graph)
    except OSError:
        raise
    except FxloomError:
        raise
    except Exception as error:
        raise FxloomError(f"hls4ml could not write the project to {out}: {error}") from error
    headers = {name: name for name in (KERNELS, *INCLUDED)}
    headers["fxloom_types.h"] = plan.dialect.types
    if not plan.dialect.algorithmic_c:
        headers |= {name: name for name in ("fxloom_streams.h", "fxloom_products.h")}
    folder = out / plan.dialect.source / "firmware" / "nnet_utils"
    for name, source in headers.items():
        (folder / name).write_text(template(source), encoding="ascii")
