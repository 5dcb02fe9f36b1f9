"""What fxloom knows, and what it does on its own."""

from enum import StrEnum
from typing import Annotated

import typer

from fxloom.commands import console
from fxloom.tables import (
    demo_table,
    list_backends,
    list_layers,
    list_ops,
    list_passes,
    list_targets,
)


class What(StrEnum):
    """What can be listed."""

    OPS = "ops"
    LAYERS = "layers"
    PASSES = "passes"
    BACKENDS = "backends"
    TARGETS = "targets"


def list_(what: Annotated[What, typer.Argument(help="What to list.")]) -> None:
    """List what fxloom knows: ops, layers of Keras and ONNX, passes, backends or targets."""
    tables = {
        What.OPS: list_ops,
        What.LAYERS: list_layers,
        What.PASSES: list_passes,
        What.BACKENDS: list_backends,
        What.TARGETS: list_targets,
    }
    console.show(*tables[what]())


def demo_(
    out: Annotated[str, typer.Option(help="Where the two builds go.")] = "fxloom-demo",
    seed: Annotated[int, typer.Option(help="Seed of split, weights and training.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Train a tenth as long.")] = False,
) -> None:
    """Train two small networks on handwritten digits, compile both, compare every integer."""
    with console.progress() as tell:
        tell("load")
        from fxloom.demo import run_demo

        results = list(run_demo(out, seed, quick, tell))
    console.show(demo_table(results))
    for result in results:
        if result.mismatches is None:
            typer.echo(f"{result.name}: no C simulation: {result.reason}")
    if any(result.mismatches for result in results):
        raise typer.Exit(console.MISMATCH)
