"""What builds cost and store, and how far estimates can be trusted."""

from pathlib import Path
from typing import Annotated

import typer

from fxloom.commands import console
from fxloom.errors import FxloomError
from fxloom.tables import estimate_table

REPORT_EXAMPLES = """
Examples:

  fxloom report build/ --html report.html

  fxloom report build/ --measured build/ --html report.html

The second finds what the vendor's tool wrote into the project (build_prj.tcl leaves reports in
hls/myproject_prj, vivado_synth.tcl hls/vivado_synth.rpt) and puts it beside the estimate.
"""


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
        console.write(html, report.to_html())
    if json:
        typer.echo(report.to_json(), nl=False)
    elif html is None:
        typer.echo(report.to_text(console.width()), nl=False)


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
        console.write(
            csv, rows_to_csv(measured_rows(opened.program, opened.target, synthesised[0]))
        )
    if html is not None:
        console.write(html, opened.report.to_html(found))
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
        typer.echo(found.to_text(console.width()), nl=False)
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
    with console.progress() as tell:
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
        console.show(estimate_table(result))
        for line in result.remarks():
            typer.echo(line)
    if not result.passed:
        raise typer.Exit(console.MISMATCH)
