"""Builds: made, and compared with their C simulation."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fxloom.commands import console
from fxloom.errors import FxloomError
from fxloom.processes import is_follower
from fxloom.tables import check_table

if TYPE_CHECKING:
    from fxloom.recipe import Recipe


COMPILE_EXAMPLES = """
Examples:

  fxloom compile net.py:make --data net.py:data

  fxloom compile net.py:make --data digits.npz --recipe recipe.toml --target xczu9eg -o build/

  fxloom compile jets.keras --data jets.npz

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


def compile_(
    model: Annotated[
        str,
        typer.Argument(
            help="FILE.py:FUNCTION, a function that returns the torch.nn.Module, a .pt2 file of "
            "torch.export.save, or a file of Keras or QKeras: .keras, .h5, or MODEL.json with its "
            "weights beside it or named, MODEL.json:WEIGHTS.h5."
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
    with console.progress() as tell:
        tell("load")
        import torch

        from fxloom.compilation import compile
        from fxloom.data import Data
        from fxloom.errors import CaptureError
        from fxloom.examples import declared_inputs
        from fxloom.model_file import load_model
        from fxloom.recipe import Recipe
        from fxloom.target import Target

        # The cheap faults first: nobody should wait for data to learn of a typing error.
        passes = None if recipe is None else Recipe.load(recipe)
        require_use(teacher, passes)
        if target is not None:
            Target.load(target)
        loaded = load_model(model)
        taught_by = None if teacher is None else load_model(teacher)
        samples = None if data is None else Data.load(data)
        if samples is None and not shapes and declared_inputs(loaded) is None:
            raise CaptureError(
                "required example inputs: give --data, or --shape such as --shape 1,28,28"
            )
        try:
            zeros = tuple(torch.zeros(2, *each) for each in shapes)
        except RuntimeError:
            raise FxloomError(f"--shape {' '.join(shape or [])}: too large for memory") from None
        examples = zeros if shapes else None
        name = Path(model).name
        build = compile(loaded, examples, passes, target, samples, out, tell, name, taught_by)
    if passes is not None and is_follower(passes.passes):
        return
    typer.echo(build.report.to_text(console.width()))
    typer.echo(f"build:   {out}\nproject: {build.project.directory}")
    if build.weights is not None:
        typer.echo(f"weights: {build.weights}, {build.weights.stat().st_size:,} bytes")
    if build.target.backend == "oneAPI":  # g++ cannot run such a project
        typer.echo(f"next:    fxloom report {shlex.quote(out)} --html report.html")
    else:
        typer.echo(f"next:    fxloom check {shlex.quote(out)}")


def require_use(teacher: str | None, recipe: "Recipe | None") -> None:
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
    with console.progress() as tell:
        tell("load")
        from fxloom.checking import check
        from fxloom.compilation import open_build

        opened = open_build(build)
        tell("C simulation (the first one compiles the C++)")
        result = check(
            opened, samples, lambda kind, done, total: tell(f"{kind}: {done}/{total}"), gdb
        )
    console.show(check_table(result))
    if gdb:
        typer.echo(f"to step through the last of these inputs:\n{opened.project.debugger()}")
    if result.first is not None:
        typer.echo(f"first difference: {result.first}")
        raise typer.Exit(console.MISMATCH)
    typer.echo("simulator and C simulation agree on every integer")
