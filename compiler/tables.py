"""The tables that the command line shows, built here and printed there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from enum import EnumType
from inspect import getdoc
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fxloom.report import RESOURCES, Totals, percent

if TYPE_CHECKING:
    from fxloom.checking import CheckResult
    from fxloom.demo import DemoResult
    from fxloom.verification import EstimateCheck


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The first column to the left, all others that hold numbers to the right."""
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        cells = [row[number].replace(",", "").replace("%", "") for row in rows]
        is_number = all(cell[:1].isdigit() for cell in cells if cell) and any(cells)
        table.add_column(name, justify="right" if number and is_number else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def check_table(result: CheckResult) -> Table:
    """What was compared: one row a kind of inputs."""
    rows = [
        [each.inputs, *(f"{n:,}" for n in (each.samples, each.values, each.distinct)),
         f"{each.mismatches:,}"]
        for each in result.comparisons
    ]  # fmt: skip
    return _table(["inputs", "samples", "integers", "distinct", "mismatches"], rows)


def estimate_table(result: EstimateCheck) -> Table:
    """Products, and their LUTs as estimated and as synthesised."""
    rows = []
    for each in result.products:
        error, done = each.error, not each.skipped
        rows.append(
            [result.title(each), f"{each.inputs} x {each.outputs}", f"{each.positions:,}",
             f"{each.adders:,}", str(each.samples) if done else "",
             str(each.estimate or "?"), "" if each.luts is None else f"{each.luts:,}",
             "" if error is None else f"{error:+.1f}%", each.verdict]
        )  # fmt: skip
    columns = ["layer", "product", "positions", "adders", "samples", "LUT estimated", "LUT yosys"]
    return _table([*columns, "error", "verdict"], rows)


def demo_table(results: Sequence[DemoResult]) -> Table:
    """The networks of the demo side by side."""
    columns = ["", *(result.name for result in results)]
    reports = [result.build.report for result in results]
    accuracies = [report.accuracy for report in reports]
    totals = [report.total for report in reports]
    rows = [
        ["float accuracy", *(_percent(a.float_accuracy if a else None) for a in accuracies)],
        ["fixed accuracy", *(_percent(a.fixed_accuracy if a else None) for a in accuracies)],
        ["simulator / C simulation", *map(_mismatches, results)],
        ["weights before, bits", *(f"{report.float_bits or 0:,}" for report in reports)],
        ["weights after, bits", *(f"{total.stored_bits:,}" for total in totals)],
        ["multiply-adds", *(f"{total.macs:,}" for total in totals)],
        *([f"{unit} of {reports[0].part}, C synthesis", *(_share(total, key) for total in totals)]
          for key, unit in RESOURCES.items() if key != "uram"),
        ["cycles, estimated", *(str(total.latency) for total in totals)],
        ["project", *(str(result.build.project.directory) for result in results)],
    ]  # fmt: skip
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.2f}%"


def _share(total: Totals, key: str) -> str:
    """What is taken, and how much of the part that is; the report has the intervals."""
    taken, share = (replace(getattr(row, key), low=None, high=None) for row in
                    (total.csynth, total.csynth_percent))  # fmt: skip
    return f"{taken} = {percent(share)}"


def _mismatches(result: DemoResult) -> str:
    if result.mismatches is None:
        return "not run"
    return f"{result.mismatches} mismatches, {result.images} images"


def list_ops() -> list[RenderableType]:
    """ATen ops and program ops, and who can do them."""
    from fxloom import backends
    from fxloom.ops import OPS

    found = {name: backends.get(name).unsupported for name in backends.names()}
    rows = [
        [op, "yes", *(f"no: {gaps[op]}" if op in gaps else "yes" for gaps in found.values())]
        for op in sorted(OPS)
    ]
    return [
        _table(["ATen op", "how"], [list(pair) for pair in aten_ops()]),
        Text(),
        Text(f"rewritten into these when captured: {', '.join(respelled_ops())}"),
        Text(),
        _table(["program op", "simulator", *found], rows),
    ]


def aten_ops() -> list[tuple[str, str]]:
    """The ops of a captured graph, sorted, each with what becomes of it."""
    from fxloom.graph import op_name
    from fxloom.lowering import LOWERINGS
    from fxloom.passes.legalize import REWRITES
    from fxloom.passes.written import INSERTS
    from fxloom.support import CHECKS

    def how(op: object) -> str:
        if op in REWRITES:
            return "rewritten into others"
        if op in INSERTS:
            return "computed by tables"
        return "an operation of the program" if op in LOWERINGS else "folded, or rewritten"

    return [(op_name(op), how(op)) for op in sorted(CHECKS, key=op_name)]


def respelled_ops() -> list[str]:
    """Other ops that capture writes as those of aten_ops; sorted."""
    from fxloom.forms_recurrent import CELLS, RECURRENT
    from fxloom.graph import op_name
    from fxloom.normalize import normalize  # noqa: F401 - it fills the table
    from fxloom.rewriting import RULES
    from fxloom.support import CHECKS

    others = [op for op in dict.fromkeys((*RULES, *RECURRENT, *CELLS)) if op not in CHECKS]
    names = {op_name(op) for op in others}
    return sorted(name for name in names if name.startswith("aten.") and "3d" not in name)


def list_layers() -> list[RenderableType]:
    """Layers of Keras and QKeras, operations between layers, operators of ONNX and QONNX."""
    from fxloom.keras.model import BUILDERS  # it fills the table
    from fxloom.onnx.model import BUILDERS as OPERATORS

    titles = {"keras": "Keras", "qkeras": "QKeras", "keras.ops": "operations"}
    titles |= {"": "ONNX", "qonnx": "QONNX"}
    rows = [
        [title, builder.__module__.rpartition(".")[2].replace("_", " "), name]
        for package, title in titles.items()
        for (whose, name), builder in sorted({**BUILDERS, **OPERATORS}.items())
        if whose == package
    ]
    families: dict[tuple[str, str], list[str]] = {}
    for title, family, name in rows:
        families.setdefault((title, family), []).append(name)
    return [
        _table(
            ["of", "family", "layers"],
            [[title, family, ", ".join(names)] for (title, family), names in families.items()],
        ),
        Text(),
        Text("and Functional and Sequential models, nested and shared ones too"),
    ]


def list_passes() -> list[RenderableType]:
    """Every pass with its keys, types and defaults."""
    from fxloom import passes

    found: list[RenderableType] = []
    for name in passes.names():
        cls = passes.get(name)
        hints = get_type_hints(cls)
        rows = []
        for key in fields(cls):
            factory = key.default_factory
            default = key.default if factory is MISSING else factory()
            shown = "required" if default is MISSING else "" if default is None else str(default)
            kind = hints[key.name]
            if isinstance(kind, EnumType):
                modes = " | ".join(kind)
            elif get_origin(kind) is Literal:
                modes = " | ".join(get_args(kind))
            else:
                modes = str(key.type)
            rows.append([f"  {key.name}", modes, shown])
        found += [Text(name, style="bold"), Text(f"  {(getdoc(cls) or '').splitlines()[0]}")]
        if rows:
            found.append(_table(["  key", "type", "default"], rows))
        found.append(Text())
    return found


def list_backends() -> list[RenderableType]:
    """The backends in a line each."""
    from fxloom import backends

    rows = [["simulator", "NumPy, exact, in this process"]]
    for name in backends.names():
        doc = type(backends.get(name)).__doc__ or ""
        rows.append([name, doc.splitlines()[0]])
    return [_table(["backend", "what it is"], rows)]


def list_targets() -> list[RenderableType]:
    """The known parts with what they offer."""
    from fxloom.target import Target

    rows = []
    for name in Target.names():
        part = Target(part=name).device
        numbers = (part.lut, part.ff, part.dsp, part.bram18, part.uram)
        rows.append([name, part.vendor, part.full_name, *(f"{n:,}" for n in numbers)])
    return [_table(["part", "vendor", "full name", "LUT", "FF", "DSP", "BRAM18", "URAM"], rows)]
