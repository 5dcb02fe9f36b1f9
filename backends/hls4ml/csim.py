"""C simulation: compile a project's driver once, run it in a child process.

Executables live in a cache outside the project, under a key of everything that determines them:
source text, compiler version, flags. A crash of the simulation cannot take Python with it.
"""

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fxloom.backends.hls4ml.headers import PREFIX, binary, precompiled
from fxloom.backends.hls4ml.testbench import PORTS
from fxloom.backends.hls4ml.writer import template
from fxloom.children import wait
from fxloom.errors import FxloomError, ToolError
from fxloom.fixed_point import Int64Array

COMPILER = "g++"
# NDEBUG: the ap_fixed headers abort on some exact format pairs without it. O1: measured on an MLP
# and a residual CNN, O0 runs 20 times slower, O2 and O3 compile longer and run no faster.
FLAGS = ("-std=c++14", "-O1", "-DNDEBUG", "-w")
DEBUG_FLAGS = ("-O0", "-g")
COMPILE_TIMEOUT_S = 1800.0
# Kernels keep their products in local arrays: a million weights overflow the usual 8 MB of stack.
UNLIMITED_STACK = ("sh", "-c", 'ulimit -s "$(ulimit -H -s)"; exec "$0" "$@"')
DRIVER = "driver.cpp"
STREAMS = "driver_streams.h"
HEADERS = "headers"

Progress = Callable[[int, int], None]


def cache_directory() -> Path:
    """Where executables are kept: $XDG_CACHE_HOME/fxloom/csim, or ~/.cache/fxloom/csim."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fxloom" / "csim"


def find_compiler() -> str:
    """Path of g++; ToolError that says how to get it where it is missing."""
    path = shutil.which(COMPILER)
    if path is None:
        raise ToolError(
            f"{COMPILER} is not installed; the C simulation needs it (the project itself does "
            "not). Debian and Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; "
            "macOS: xcode-select --install"
        )
    return path


def _compiler_version(compiler: str) -> str:
    result = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return result.stdout.split("\n", 1)[0]


def _key(project: Path, sources: Sequence[str], facts: Sequence[str]) -> str:
    """Digest of all source text below a project and of whatever else determines a program."""
    digest = hashlib.sha256("\0".join([*sources, *facts]).encode())
    paths = sorted(path for path in (project / "firmware").rglob("*") if path.is_file())
    for path in [*paths, project / PORTS]:
        digest.update(f"\0{path.relative_to(project).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def build_driver(
    directory: Path,
    top: str,
    includes: Sequence[str],
    cache: Path | None = None,
    debug: bool = False,
) -> Path:
    """Path of the executable for a project, compiled now unless the cache has it.

    top: the name of the top function and its file; includes: folders below the project; debug: for
    gdb. Raises ToolError.
    """
    if not (directory / "firmware" / f"{top}.cpp").is_file() or not (directory / PORTS).is_file():
        raise FxloomError(f"{directory}: no fxloom project with firmware/{top}.cpp and {PORTS}")
    compiler = find_compiler()
    flags = (*FLAGS, *DEBUG_FLAGS) if debug else FLAGS
    folders = [(directory / folder).resolve() for folder in includes]
    begins = PREFIX if any((folder / "ap_fixed.h").is_file() for folder in folders) else ""
    text = begins + template(STREAMS) + template(DRIVER)
    key = _key(directory, [text], [_compiler_version(compiler), *flags, top])
    folder = (cache or cache_directory()) / key
    executable = folder / "driver"
    if executable.is_file():
        return executable
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(
            f"the C simulation cannot keep its executable: {error}. Set XDG_CACHE_HOME to a "
            "directory that can be written"
        ) from None
    source = folder / f"{os.getpid()}.{threading.get_ident()}.cpp"
    partial = source.with_suffix(".part")
    log = folder / "compile.log"
    settings = [compiler, *flags, *(f"-I{folder}" for folder in folders)]
    command = [
        *settings,
        f'-DFXLOOM_TOP="firmware/{top}.cpp"',
        f"-I{directory.resolve()}",
        str(source),
        "-o",
        str(partial),
    ]
    # What a compiler has read is the machine's, wherever the executables of a project are kept.
    use = bool(begins) and not debug
    header = precompiled(settings, cache_directory() / HEADERS) if use else None
    try:
        source.write_text(text, encoding="ascii")
        code = _compile([*command, "-include", str(header)], log) if header else None
        if code != 0:
            # Errors are the project's where it does not compile without that header either.
            code = _compile(command, log)
            if code == 0 and header is not None:
                binary(header).unlink(missing_ok=True)
        if code != 0:
            raise ToolError(
                f"the C++ of {directory} does not compile: {_last_error(log)}",
                shlex.join(command),
                code,
                str(log),
            )
        # Two processes may compile at once; the last rename wins, and both files are the same.
        if debug:
            shutil.copyfile(source, folder / DRIVER)
        os.replace(partial, executable)
    finally:
        for path in (source, partial):
            path.unlink(missing_ok=True)
    return executable


def _compile(command: Sequence[str], log: Path) -> int:
    with open(log, "wb") as output:
        return wait(command, output, COMPILE_TIMEOUT_S, None, log)


def _last_error(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return next((line for line in lines if "error" in line), lines[-1] if lines else "no output")


def debugger_command(executable: Path, elements: int) -> str:
    """What runs the inputs of the last run that kept them under gdb. elements: of one sample."""
    inputs, outputs = executable.with_name("inputs"), executable.with_name("outputs")
    count = inputs.stat().st_size // (8 * elements)
    return shlex.join(["gdb", "--args", *map(str, (executable, inputs, outputs, count))])


def run_driver(
    executable: Path,
    inputs: npt.NDArray[np.int64],
    output_length: int,
    progress: Progress | None = None,
    timeout_s: float | None = None,
    keep: bool = False,
) -> Int64Array:
    """Run samples through a compiled project.

    keep: leave its inputs and outputs beside the executable, see debugger_command.

    inputs: [N, input elements] mantissas. Returns [N, output_length]. progress(done, total) is
    called about once a second and at the end. Raises ToolError where the child process fails.
    """
    count = len(inputs)
    if progress is not None:
        progress(0, count)
    with tempfile.TemporaryDirectory(prefix="fxloom-csim-") as temporary:
        folder = Path(temporary)
        source, target, log = folder / "in", folder / "out", folder / "log"
        if keep:
            source, target = executable.with_name("inputs"), executable.with_name("outputs")
        try:
            source.write_bytes(np.ascontiguousarray(inputs, "<i8").data)
        except OSError as fault:
            raise ToolError(
                f"the C simulation needs {inputs.nbytes} bytes in {source.parent} for its inputs: "
                f"{fault.strerror}. Free some space, or set TMPDIR to another directory"
            ) from None

        def report(line: str) -> None:
            if progress is not None:
                with contextlib.suppress(ValueError):
                    progress(int(line), count)

        command = [*UNLIMITED_STACK, str(executable), str(source), str(target), str(count)]
        with open(log, "wb") as errors:
            code = wait(command, errors, timeout_s, report, None)
        size = target.stat().st_size if target.is_file() else 0
        if code != 0 or size != 8 * count * output_length:
            said = log.read_text(errors="replace").strip()
            kept = executable.with_name("run.log")
            kept.write_text(said)
            raise ToolError(
                f"the C simulation failed{': ' + said.splitlines()[0] if said else ''}",
                shlex.join(command),
                code,
                str(kept),
            )
        result: Int64Array = np.fromfile(target, "<i8").astype(np.int64)
    if progress is not None:
        progress(count, count)
    return result.reshape(count, output_length)
