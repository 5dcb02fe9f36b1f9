"""The command line. The only module that prints.

Results go to standard output, everything else to standard error. Exit codes: 0 good, 1 `check`
found a difference, 2 the input's fault, 70 a fault of fxloom's own, 128 + n stopped by signal n.
"""

import errno
import io
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text
from typer.core import TyperGroup

from fxloom.errors import FxloomError
from fxloom.processes import is_follower
from fxloom.signals import terminate_as_interrupt
from fxloom.tables import (
    check_table,
    demo_table,
    estimate_table,
    list_backends,
    list_ops,
    list_passes,
    list_targets,
)

if TYPE_CHECKING:
    from fxloom.recipe import Recipe

MISMATCH, INPUT_FAULT, OWN_FAULT = 1, 2, 70

EXAMPLES = """
Examples, for a file net.py in which make() returns the model and data() returns x, y:

  fxloom compile net.py:make --data net.py:data -o build/

  fxloom check build/

  fxloom report build/ --html report.html
"""

COMPILE_EXAMPLES = """
Examples:

  fxloom compile net.py:make --data net.py:data

  fxloom compile net.py:make --data digits.npz --recipe recipe.toml --target xczu9eg -o build/

  fxloom compile small.py:make --teacher large.pt2 --data net.py:data --recipe distill.toml

A recipe is a list of passes (`fxloom list passes` shows their keys):

  [[pass]]

  name = "quantize"

  weights = 8

  activations = 8

A target (`fxloom list targets` shows the parts) is a part's name, or a file with

  part = "xczu9eg"

  clock_ns = 5.0
"""


class _Commands(TyperGroup):
    """All commands, with one place that turns exceptions into messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with _faults_reported():
            return super().invoke(ctx)


app = typer.Typer(
    name="fxloom",
    cls=_Commands,
    help="Compile PyTorch models to bit-exact FPGA projects.\n" + EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The console script `fxloom`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a report has more than ASCII, names may as well
        sys.stdout.reconfigure(errors="replace")
    try:
        with terminate_as_interrupt():
            app()
    except KeyboardInterrupt as stop:  # before or after a command
        raise SystemExit(_interrupted(stop)) from None
    finally:
        # All is done, and whoever presses Ctrl-C while torch unloads should see no traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _faults_reported() -> Iterator[None]:
    try:
        yield
    except FxloomError as fault:
        notes = "".join(f"\n({note})" for note in getattr(fault, "__notes__", []))
        _complain(f"{fault}{notes}")
        raise typer.Exit(INPUT_FAULT) from None
    except KeyboardInterrupt as stop:
        raise typer.Exit(_interrupted(stop)) from None
    except (typer.Exit, typer.Abort, typer.TyperException):
        raise
    except OSError as fault:
        if fault.errno == errno.EPIPE:  # `fxloom list ops | head`
            _close_output()
            raise typer.Exit(128 + signal.SIGPIPE) from None
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):  # `fxloom report build/ > log`
            _close_output()
            _complain(f"the disk is full: {fault}. What was to be printed or kept is incomplete")
            raise typer.Exit(INPUT_FAULT) from None
        _own_fault()
    except MemoryError as fault:
        _complain(f"out of memory: {fault or 'required more than is free'}. Give fewer samples")
        raise typer.Exit(INPUT_FAULT) from None
    except Exception:
        _own_fault()


def _own_fault() -> NoReturn:
    traceback.print_exc()
    _complain("this is a fault of fxloom, not of its input: please report it with the text above")
    raise typer.Exit(OWN_FAULT)


def _interrupted(stop: KeyboardInterrupt) -> int:
    name = str(stop) or "SIGINT"
    _complain(f"stopped by {name}; nothing half-written is left")
    return 128 + getattr(signal, name, signal.SIGINT)


def _complain(text: str) -> None:
    """An error message, without colours unless a person reads it."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text("error: ", style="bold red") + Text(text))


def _close_output() -> None:
    """Nobody reads any more: keep the interpreter from flushing into a closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A function that is told what begins: a spinner for people, lines for files."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield lambda text: console.print(Text(f"{text} ..."))
        return
    with Status("", console=console) as status:
        yield lambda text: status.update(Text(text))


def _print(*renderables: Any) -> None:
    """To standard output; not cut to a width unless a person reads it."""
    wide = None if sys.stdout.isatty() else 240
    console = Console(highlight=False, width=wide)
    for each in renderables:
        console.print(each)


def _version(wanted: bool) -> None:
    if wanted:
        import fxloom

        typer.echo(f"fxloom {fxloom.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command("compile", epilog=COMPILE_EXAMPLES)
def compile_(
    model: Annotated[
        str,
        typer.Argument(
            help="FILE.py:FUNCTION, a function that returns the torch.nn.Module, or a .pt2 file of "
            "torch.export.save."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="An .npz with x_train (and y_train, x_test, y_test), or FILE.py:FUNCTION that "
            "returns (x, y), (x_train, y_train, x_test, y_test) or torch data sets."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="TOML file of passes. Default: quantize to 8 bits.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="A part's name, or a TOML file. Default: xc7z020 at 5 ns.")
    ] = None,
    out: Annotated[
        str, typer.Option("--out", "-o", help="The build directory; an earlier build is replaced.")
    ] = "build",
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Shape of one sample, as 1,28,28, where there is no data. One an input."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="What a pass distill learns from, as MODEL. Default: the model before all passes."
        ),
    ] = None,
) -> None:
    """Compile a model into an FPGA project with its exact program and a report."""
    shapes = [_shape(text) for text in shape or []]
    if shapes and data is not None:
        raise FxloomError("--shape: --data has the shapes already; give one of the two")
    with _progress() as tell:
        tell("load")
        import torch

        from fxloom.compilation import compile
        from fxloom.data import Data
        from fxloom.errors import CaptureError
        from fxloom.model_file import load_model
        from fxloom.recipe import Recipe
        from fxloom.target import Target

        # The cheap faults first: nobody should wait for data to learn of a typing error.
        passes = None if recipe is None else Recipe.load(recipe)
        _require_use(teacher, passes)
        if target is not None:
            Target.load(target)
        loaded = load_model(model)
        taught_by = None if teacher is None else load_model(teacher)
        samples = None if data is None else Data.load(data)
        if samples is None and not shapes:
            raise CaptureError(
                "required example inputs: give --data, or --shape such as --shape 1,28,28"
            )
        try:
            zeros = tuple(torch.zeros(2, *each) for each in shapes)
        except RuntimeError:
            raise FxloomError(f"--shape {' '.join(shape or [])}: too large for memory") from None
        examples = zeros if samples is None else None
        name = Path(model).name
        build = compile(loaded, examples, passes, target, samples, out, tell, name, taught_by)
    if passes is not None and is_follower(passes.passes):
        return
    typer.echo(build.report.to_text(_width()))
    typer.echo(f"build:   {out}\nproject: {build.project.directory}")
    if build.weights is not None:
        typer.echo(f"weights: {build.weights}, {build.weights.stat().st_size:,} bytes")
    if build.target.backend == "oneAPI":  # g++ cannot run such a project
        typer.echo(f"next:    fxloom report {shlex.quote(out)} --html report.html")
    else:
        typer.echo(f"next:    fxloom check {shlex.quote(out)}")


def _require_use(teacher: str | None, recipe: "Recipe | None") -> None:
    """Refuse a teacher that nobody learns from, before it is loaded."""
    if teacher is not None and recipe is None:
        raise FxloomError("--teacher: required a recipe with distill; add --recipe")
    if recipe is not None:
        recipe.require_use(teacher)


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise FxloomError(f"--shape {text}: required positive sizes, such as 1,28,28")
    return sizes


@app.command("check", epilog="Example:\n\n  fxloom check build/ --samples 1000")
def check_(
    build: Annotated[str, typer.Argument(help="A build directory.")],
    samples: Annotated[
        int, typer.Option(help="Random inputs within the calibrated range, and as many beyond it.")
    ] = 100,
    gdb: Annotated[
        bool,
        typer.Option(
            "--gdb", help="Compile without optimisation, and print how to step through it."
        ),
    ] = False,
) -> None:
    """Compare the simulator with the C simulation, integer by integer (needs g++).

    Exits with 1 at a difference and names the first.
    """
    if samples < 0:
        raise FxloomError(f"--samples {samples}: required 0 or more")
    with _progress() as tell:
        tell("load")
        from fxloom.checking import check
        from fxloom.compilation import open_build

        opened = open_build(build)
        tell("C simulation (the first one compiles the C++)")
        result = check(
            opened, samples, lambda kind, done, total: tell(f"{kind}: {done}/{total}"), gdb
        )
    _print(check_table(result))
    if gdb:
        typer.echo(f"to step through the last of these inputs:\n{opened.project.debugger()}")
    if result.first is not None:
        typer.echo(f"first difference: {result.first}")
        raise typer.Exit(MISMATCH)
    typer.echo("simulator and C simulation agree on every integer")


REPORT_EXAMPLES = """
Examples:

  fxloom report build/ --html report.html

  fxloom report build/ --measured build/ --html report.html

The second finds what the vendor's tool wrote into the project (build_prj.tcl leaves reports in
hls/myproject_prj, vivado_synth.tcl hls/vivado_synth.rpt) and puts it beside the estimate.
"""


@app.command("report", epilog=REPORT_EXAMPLES)
def report_(
    build: Annotated[str, typer.Argument(help="A build directory.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.")] = None,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            help="A report of Vivado, Vitis HLS, Quartus or Intel HLS, or a folder with some below "
            "it: print estimate and measurement side by side. As often as there are reports."
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="With --measured: write the layers measured by C synthesis as rows."),
    ] = None,
) -> None:
    """Show what a build costs and how exact it is, layer by layer."""
    if measured:
        return _report_measured(build, measured, json, csv, html)
    if csv is not None:
        raise FxloomError("--csv: required reports to make rows of; add --measured")
    from fxloom.manifest import read_manifest
    from fxloom.report import Report

    read_manifest(build, verify_files=True)
    report = Report.load(Path(build) / "report.json")
    if html is not None:
        _write(html, report.to_html())
    if json:
        typer.echo(report.to_json(), nl=False)
    elif html is None:
        typer.echo(report.to_text(_width()), nl=False)


def _report_measured(
    build: str, paths: list[Path], json: bool, csv: Path | None, html: Path | None
) -> None:
    from fxloom.compilation import open_build
    from fxloom.measured_report import compare_measured
    from fxloom.measured_rows import measured_rows, rows_to_csv
    from fxloom.vendor_reports import read_reports

    opened = open_build(build)
    project = opened.project
    runs = read_reports(paths, top=project.project)
    found = compare_measured(opened.report, runs, project.layers, project.project)
    if csv is not None:
        synthesised = [run for run in runs if run.level == "csynth"]
        if not synthesised:
            raise FxloomError("--csv: required a report of C synthesis among --measured")
        _write(csv, rows_to_csv(measured_rows(opened.program, opened.target, synthesised[0])))
    if html is not None:
        _write(html, opened.report.to_html(found))
    if json or html is None:
        typer.echo(found.to_json() if json else found.to_text(), nl=False)


WEIGHTS_EXAMPLES = """
Examples:

  fxloom weights build/

  fxloom weights build/ --out plain.safetensors

A file of fxloom.save_weights, or a build whose recipe has code_weights. In Python:

  model.load_state_dict(fxloom.load_weights("weights.safetensors"))

--out writes every tensor as it is decoded, under its own name, for whatever reads safetensors.
"""


@app.command("weights", epilog=WEIGHTS_EXAMPLES)
def weights_(
    file: Annotated[
        Path, typer.Argument(help="A file of coded weights, or a build directory that has one.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the tensors, decoded, to this safetensors file."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what coded weights take, tensor by tensor, or decode them into a plain file.

    Every tensor is decoded and compared with its checksum; nothing in the file is executed.
    """
    from fxloom.weight_storage import storage_of_file

    path = _weights_of_build(file) if file.is_dir() else file
    found = storage_of_file(path)
    if json:
        typer.echo(found.to_json(), nl=False)
    else:
        typer.echo(found.to_text(_width()), nl=False)
    if out is not None:
        from fxloom.weights import save_plain

        save_plain(path, out)
        if not json:
            typer.echo(f"decoded: {out}")


def _weights_of_build(build: Path) -> Path:
    from fxloom.compilation import WEIGHTS
    from fxloom.manifest import read_manifest

    manifest = read_manifest(build, verify_files=True)
    if WEIGHTS not in (entry["path"] for entry in manifest["files"]):
        raise FxloomError(
            f"{build}: required a build with {WEIGHTS}, got one without: put a pass code_weights "
            "at the end of its recipe and compile again"
        )
    return build / WEIGHTS


VERIFY_EXAMPLES = """
Examples:

  fxloom verify-estimate build/

  fxloom verify-estimate build/program.fxloom --layer 'fc*' --json

LUTs are those of one position of a product, after logic synthesis, without DSP blocks and
registers. Debian and Ubuntu: apt-get install yosys iverilog
"""


@app.command("verify-estimate", epilog=VERIFY_EXAMPLES)
def verify_estimate_(
    build: Annotated[str, typer.Argument(help="A build directory, or a program.fxloom.")],
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Only layers of this name, or pattern. May be given more than once."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="A part's name, or a TOML file. Default: the build's, else xc7z020."),
    ] = None,
    most_adders: Annotated[int, typer.Option(help="Skip products with more adders.")] = 5000,
    samples: Annotated[
        int, typer.Option(help="Random inputs of each simulation, besides extreme ones.")
    ] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds that a run of a tool may take.")] = 1800.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare estimated LUTs of products with constant weights with logic synthesis.

    Every one is written as Verilog, simulated against the Program (exact, or exit 1), and
    synthesised. Exits with 1 as well where a figure is outside its interval. Needs yosys and
    Icarus Verilog.
    """
    for name, count in (("most-adders", most_adders), ("samples", samples)):
        if count < 1:
            raise FxloomError(f"--{name} {count}: required 1 or more")
    if not 0 < timeout <= 1e6:
        raise FxloomError(f"--timeout {timeout}: required more than 0 and at most 1,000,000")
    with _progress() as tell:
        from fxloom.synthesis import require_tools

        require_tools()  # before the work, not after it
        tell("load")
        from fxloom.compilation import open_build
        from fxloom.program_file import load_program
        from fxloom.target import Target
        from fxloom.verification import verify_estimate

        if Path(build).is_dir():
            opened = open_build(build)
            program, goal = opened.program, opened.target
        else:
            program, goal = load_program(build), Target()
        goal = goal if target is None else Target.load(target)
        result = verify_estimate(program, goal, layer or (), most_adders, samples, timeout, tell)
    if json:
        typer.echo(result.to_json(), nl=False)
    else:
        _print(estimate_table(result))
        for line in result.remarks():
            typer.echo(line)
    if not result.passed:
        raise typer.Exit(MISMATCH)


TRACE_EXAMPLES = """
Examples:

  fxloom trace net.py:make --data net.py:data

  fxloom trace net.py:make --data net.py:data --recipe recipe.toml --png trace.png

How to read it: `inherited` came in with a layer's inputs, all other causes enter in that layer.
So look for the first large figure that is not inherited: weights and rounding need more bits
there, saturation a wider range, tables more table_bits:

  layers = { "fc1" = { activations = 10 } }
"""


@app.command("trace", epilog=TRACE_EXAMPLES)
def trace_(
    model: Annotated[str, typer.Argument(help="As for compile: FILE.py:FUNCTION, or a .pt2 file.")],
    data: Annotated[
        str,
        typer.Option(
            help="As for compile. Its training samples calibrate, its test samples are traced (the "
            "training samples without those); with labels accuracy is followed too."
        ),
    ],
    recipe: Annotated[
        str | None, typer.Option(help="TOML file of passes. Default: quantize to 8 bits.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="As for compile.")] = None,
    samples: Annotated[
        int, typer.Option(help="How many samples are traced, spread over the data.")
    ] = 256,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with table and plot (needs matplotlib).")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Write the plot to this file (needs matplotlib).")
    ] = None,
) -> None:
    """Show, layer by layer, where the error of the quantized model comes from.

    Every rounded value is compared with the float model: the range of its format against the range
    used, the share of values beyond it, and the error, split by cause.
    """
    if samples < 1:
        raise FxloomError(f"--samples {samples}: required 1 or more")
    if html is not None or png is not None:
        from fxloom.plots import require_matplotlib

        require_matplotlib()  # before the work, not after it
    with _progress() as tell:
        tell("load")
        from fxloom.data import Data
        from fxloom.model_file import load_model
        from fxloom.recipe import Recipe
        from fxloom.tracing import trace

        passes = None if recipe is None else Recipe.load(recipe)
        _require_use(teacher, passes)
        loaded = load_model(model)
        taught_by = None if teacher is None else load_model(teacher)
        found = trace(loaded, Data.load(data), passes, None, samples, tell, taught_by)
        if json is not None:
            _write(json, found.to_json())
        if html is not None:
            _write(html, found.to_html())
        if png is not None:
            found.save_png(png)
    typer.echo(found.to_text(), nl=False)


EVALUATE_EXAMPLES = """
Examples:

  fxloom evaluate net.py:make --data net.py:data --recipe recipe.toml

  fxloom evaluate net.py:make --data net.py:data --recipe small.toml --recipe tiny.toml --png c.png

  fxloom evaluate net.py:make --data net.py:data --recipe r.toml --target xczu9eg --json all.json

How to read it: every pass has a row against the one above it, so its factors say what that pass
did; the last row is the whole recipe against the original in 32-bit floats. Bits are counted twice:

  as they are   zeros too, so that pruning alone saves nothing

  coded         as the pass code_weights stores them, with codebooks, run lengths and code tables

Float models are judged as torch computes them, quantized ones by their integers. Cycles are
estimates; --measure adds the CPU time of this machine, another one every time.
"""


@app.command("evaluate", epilog=EVALUATE_EXAMPLES)
def evaluate_(
    model: Annotated[str, typer.Argument(help="As for compile: FILE.py:FUNCTION, or a .pt2 file.")],
    data: Annotated[
        str,
        typer.Option(
            help="As for compile. The test samples are judged (the training samples without "
            "those): by labels of classes or numbers, and by the original's outputs."
        ),
    ],
    recipe: Annotated[
        list[str],
        typer.Option(help="TOML file of passes. Given more than once, recipes are compared."),
    ],
    target: Annotated[
        str | None,
        typer.Option(help="What cycles are of: a part's name, or a TOML file. Default: xc7z020."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Judge at most so many, spread over the data. Default: all.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="The output that the labels are for, where there are several: output_0."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure CPU time on this machine as well.")
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option(help="Write all figures to this file; - prints them instead of the tables."),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(help="Write the plot, accuracy over compression rate (needs matplotlib)."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="As for compile, of the recipes that distill.")
    ] = None,
) -> None:
    """Show what every pass of a recipe saves, and what it costs in accuracy; writes no build.

    Compression rate, space saving, speed-up in multiply-adds and cycles, and accuracy before and
    after: pass by pass and in total, for one recipe or to compare several.
    """
    if samples is not None and samples < 1:
        raise FxloomError(f"--samples {samples}: required 1 or more")
    for file in (json, png):  # before the work, not after it
        if file is not None and not file.parent.is_dir():
            raise FxloomError(f"{file}: required a folder that exists, got {file.parent}")
    if png is not None:
        from fxloom.plots import require_matplotlib

        require_matplotlib()
    with _progress() as tell:
        tell("load")
        from fxloom.data import Data
        from fxloom.evaluation import evaluate_recipes
        from fxloom.model_file import load_model
        from fxloom.recipe import Recipe
        from fxloom.target import Target

        # The cheap faults first: nobody should wait for data to learn of a typing error.
        recipes = {name: Recipe.load(file) for name, file in _names(recipe).items()}
        if not any(each.takes_teacher for each in recipes.values()):
            _require_use(teacher, next(iter(recipes.values())))
        if target is not None:
            Target.load(target)
        found = evaluate_recipes(
            load_model(model),
            Data.load(data),
            recipes,
            target,
            samples=samples,
            output=output,
            measure=measure,
            progress=tell,
            name=Path(model).name,
            teacher=None if teacher is None else load_model(teacher),
        )
    if any(is_follower(each.passes) for each in recipes.values()):
        return
    shown = found if len(recipes) > 1 else found.evaluations[0]
    if png is not None:
        found.save_png(png)
    if json is not None and str(json) != "-":
        _write(json, shown.to_json())
    typer.echo(shown.to_json() if str(json) == "-" else shown.to_text(_width()), nl=False)


def _names(files: list[str]) -> dict[str, str]:
    """Files of recipes by what they are called: without folder and ending, if that tells them
    apart."""
    short = [Path(file).stem for file in files]
    names = short if len(set(short)) == len(files) else files
    if len(set(names)) < len(files):
        twice = next(name for name in names if names.count(name) > 1)
        raise FxloomError(f"--recipe {twice}: required each recipe once, got it twice")
    return dict(zip(names, files, strict=True))


def _width() -> int | None:
    """Columns of the terminal; None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise FxloomError(f"{path}: cannot be written: {fault.strerror}") from None


class What(StrEnum):
    """What can be listed."""

    OPS = "ops"
    PASSES = "passes"
    BACKENDS = "backends"
    TARGETS = "targets"


@app.command("list", epilog="Example:\n\n  fxloom list passes")
def list_(what: Annotated[What, typer.Argument(help="What to list.")]) -> None:
    """List what fxloom knows: ops, passes, backends or targets."""
    tables = {
        What.OPS: list_ops,
        What.PASSES: list_passes,
        What.BACKENDS: list_backends,
        What.TARGETS: list_targets,
    }
    _print(*tables[what]())


@app.command("demo", epilog="Example:\n\n  fxloom demo --out digits/")
def demo_(
    out: Annotated[str, typer.Option(help="Where the two builds go.")] = "fxloom-demo",
    seed: Annotated[int, typer.Option(help="Seed of split, weights and training.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Train a tenth as long.")] = False,
) -> None:
    """Train two small networks on handwritten digits, compile both, compare every integer."""
    with _progress() as tell:
        tell("load")
        from fxloom.demo import run_demo

        results = list(run_demo(out, seed, quick, tell))
    _print(demo_table(results))
    for result in results:
        if result.mismatches is None:
            typer.echo(f"{result.name}: no C simulation: {result.reason}")
    if any(result.mismatches for result in results):
        raise typer.Exit(MISMATCH)


if __name__ == "__main__":
    main()
