"""What passes do to a model: where errors come from, what is saved and what it costs."""

from pathlib import Path
from typing import Annotated

import typer

from fxloom.commands import console
from fxloom.commands.building import require_use
from fxloom.errors import FxloomError
from fxloom.processes import is_follower

TRACE_EXAMPLES = """
Examples:

  fxloom trace net.py:make --data net.py:data

  fxloom trace net.py:make --data net.py:data --recipe recipe.toml --png trace.png

How to read it: `inherited` came in with a layer's inputs, all other causes enter in that layer.
So look for the first large figure that is not inherited: weights and rounding need more bits
there, saturation a wider range, tables more table_bits:

  layers = { "fc1" = { activations = 10 } }
"""


def trace_(
    model: Annotated[str, typer.Argument(help="As for compile: FILE.py:FUNCTION, or a file.")],
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
    with console.progress() as tell:
        tell("load")
        from fxloom.data import Data
        from fxloom.model_file import load_model
        from fxloom.recipe import Recipe
        from fxloom.tracing import trace

        passes = None if recipe is None else Recipe.load(recipe)
        require_use(teacher, passes)
        loaded = load_model(model)
        taught_by = None if teacher is None else load_model(teacher)
        found = trace(loaded, Data.load(data), passes, None, samples, tell, taught_by)
        if json is not None:
            console.write(json, found.to_json())
        if html is not None:
            console.write(html, found.to_html())
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


def evaluate_(
    model: Annotated[str, typer.Argument(help="As for compile: FILE.py:FUNCTION, or a file.")],
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
    with console.progress() as tell:
        tell("load")
        from fxloom.data import Data
        from fxloom.evaluation import evaluate_recipes
        from fxloom.model_file import load_model
        from fxloom.recipe import Recipe
        from fxloom.target import Target

        # The cheap faults first: nobody should wait for data to learn of a typing error.
        recipes = {name: Recipe.load(file) for name, file in _names(recipe).items()}
        if not any(each.takes_teacher for each in recipes.values()):
            require_use(teacher, next(iter(recipes.values())))
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
        console.write(json, shown.to_json())
    typer.echo(shown.to_json() if str(json) == "-" else shown.to_text(console.width()), nl=False)


def _names(files: list[str]) -> dict[str, str]:
    """Files of recipes by what they are called: without folder and ending, if that tells them
    apart."""
    short = [Path(file).stem for file in files]
    names = short if len(set(short)) == len(files) else files
    if len(set(names)) < len(files):
        twice = next(name for name in names if names.count(name) > 1)
        raise FxloomError(f"--recipe {twice}: required each recipe once, got it twice")
    return dict(zip(names, files, strict=True))
