"""Vivado's report_utilization, as text: after synthesis or implementation, flat or hierarchical.

Both forms are tables in one frame of "+---+" lines; a hierarchical one (-hierarchical) has a row an
instance, indented by its depth, each with all that it contains. AMD UG906, "Report Utilization".
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fxloom.errors import FxloomError
from fxloom.measured import Level, Measured, Usage, total_usage
from fxloom.report_values import count, known, require_all, shown, whole_lines

_FIELD = re.compile(r"\| ([A-Z][A-Za-z ]+?) *: (.*)")
_LEVELS: tuple[tuple[str, Level], ...] = (
    (r"Synthesized|Optimized", "synthesis"),
    (r"(Fully )?(Placed|Routed)|Physopt post(Place|Route)", "implementation"),
)
_SITES = {
    "lut": ("CLB LUTs", "Slice LUTs"),
    "ff": ("CLB Registers", "Slice Registers", "Registers"),
    "dsp": ("DSPs", "DSP Slices", "DSP48 Slices"),
    "tiles": ("Block RAM Tile",),
    "ramb36": ("RAMB36/FIFO",),
    "ramb18": ("RAMB18",),
    "uram": ("URAM",),
}
_COLUMNS = {
    "lut": ("Total LUTs",),
    "ff": ("FFs",),
    "dsp": ("DSP Blocks", "DSP48 Blocks"),
    "ramb36": ("RAMB36",),
    "ramb18": ("RAMB18",),
    "uram": ("URAM",),
}


class _Instance(NamedTuple):
    """A row of a hierarchical report."""

    depth: int
    name: str
    module: str
    usage: Usage


def read_utilization(text: str, source: str) -> Measured:
    """The whole design, and its modules where the report is hierarchical. Raises FxloomError.

    Marks such as the star of "CLB LUTs*" (not yet final) are left out.
    """
    lines = whole_lines(text)
    matches = (_FIELD.fullmatch(line.rstrip()) for line in lines)
    fields = {found[1]: found[2] for found in matches if found is not None}
    require_all(
        fields, ("Tool Version", "Design", "Device", "Design State"), "a report_utilization"
    )
    tables = [table for table in _tables(lines) if len(table) > 1]
    instances: list[_Instance] = []
    for table in tables:
        if table[0][0].strip() == "Instance":
            instances += _instances(table)
    flat = _flat(tables)
    if flat is None and not instances:
        raise FxloomError("truncated, or not a report_utilization: it has no table of utilization")
    if flat is not None and instances and flat.resources() != instances[0].usage.resources():
        raise FxloomError("damaged: its two tables disagree about the whole design")
    top = instances[0].usage if flat is None else flat
    version = fields["Tool Version"].split()
    return Measured(
        tool="Vivado",
        level=_level(fields["Design State"].strip()),
        top=top,
        source=source,
        design=fields["Design"].strip(),
        version=version[1].removeprefix("v.") if version[0] == "Vivado" and version[1:] else None,
        part=fields["Device"].strip(),
        modules=_modules(instances),
        children=_children(instances),
    )


def _level(state: str) -> Level:
    for pattern, level in _LEVELS:
        if re.fullmatch(pattern, state):
            return level
    raise FxloomError(
        f"Design State: required Synthesized, Optimized, Placed or Routed, got {shown(state)}"
    )


def _tables(lines: Sequence[str]) -> Iterator[list[list[str]]]:
    """Cells of every table, header first. Raises FxloomError for one without its end."""
    rows: list[list[str]] = []
    borders = 0
    for line in lines:
        if re.fullmatch(r"\+[-+]+\+", line.strip()):
            borders += 1
            if borders == 3:
                yield rows
                rows, borders = [], 0
        elif borders and line.strip().startswith("|"):
            rows.append(line.strip().strip("|").split("|"))
            if len(rows[-1]) != len(rows[0]):
                raise FxloomError(f"truncated or damaged at {shown(line)}")
        elif borders:
            raise FxloomError("truncated: a table has no end")
    if borders:
        raise FxloomError("truncated: a table has no end")


def _flat(tables: Sequence[Sequence[Sequence[str]]]) -> Usage | None:
    """The whole design; None where the report is hierarchical only."""
    used: dict[str, str] = {}
    for header, *rows in tables:
        titles = [title.strip() for title in header]
        if titles[0] == "Site Type" and "Used" in titles:
            column = titles.index("Used")
            for row in rows:
                # Later tables tell the same sites apart by what they hold.
                used.setdefault(row[0].strip().rstrip("*"), row[column])
    if not used:
        return None
    found = {key: _pick(used, names, key) for key, names in _SITES.items()}
    require_all((key for key, value in found.items() if value is not None), _NEEDED, "whole")
    tiles = _halves(str(found["tiles"]))
    split = found["ramb36"], found["ramb18"]
    if None not in split and tiles != _blocks(*(known(value, "RAMB") for value in split)):
        raise FxloomError("damaged: Block RAM Tile is not RAMB36 and half of RAMB18")
    return Usage(
        lut=known(found["lut"], "LUTs"),
        ff=known(found["ff"], "registers"),
        dsp=known(found["dsp"], "DSPs"),
        bram18=tiles,
        uram=count(found["uram"], "URAM"),
    )


_NEEDED = ("lut", "ff", "dsp", "tiles")


def _instances(table: Sequence[Sequence[str]]) -> Iterator[_Instance]:
    titles = [title.strip() for title in table[0]]
    columns = {
        key: next((titles.index(name) for name in names if name in titles), None)
        for key, names in _COLUMNS.items()
    }
    have = [key for key, column in columns.items() if column is not None]
    require_all([*have, *titles], ("Module", "lut", "ff", "dsp", "ramb36", "ramb18"), "whole")
    for row in table[1:]:
        indented = row[0].removeprefix(" ").rstrip()
        name = indented.lstrip(" ")
        if name.startswith("("):
            continue  # what an instance has besides those that it contains
        cells = {
            key: None if column is None else known(row[column].partition("(")[0], key)
            for key, column in columns.items()
        }
        usage = Usage(
            lut=cells["lut"],
            ff=cells["ff"],
            dsp=cells["dsp"],
            bram18=_blocks(cells["ramb36"], cells["ramb18"]),
            uram=cells["uram"],
        )
        module = row[titles.index("Module")].strip()
        yield _Instance((len(indented) - len(name)) // 2, name, module, usage)


def _modules(instances: Sequence[_Instance]) -> dict[str, Usage]:
    """By module, once: Vivado gives instances of one module names of their own where they differ.

    Raises FxloomError where the first row is not the only one of its depth.
    """
    if [each.depth for each in instances].count(0) != min(1, len(instances)):
        raise FxloomError("damaged: required one instance that contains all others")
    found: dict[str, list[Usage]] = {}
    for each in instances[1:]:
        found.setdefault(each.module, []).append(each.usage)
    return {name: total_usage(usages) for name, usages in found.items()}


def _children(instances: Sequence[_Instance]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    above: list[str] = []
    for each in instances:
        if each.depth > len(above):
            raise FxloomError(f"damaged: {shown(each.name)} is indented too far")
        del above[each.depth :]
        if above:
            found[above[-1]] = (*found.get(above[-1], ()), each.module)
        above.append(each.module)
    return {name: tuple(dict.fromkeys(modules)) for name, modules in found.items()}


def _pick(used: Mapping[str, str], names: Sequence[str], key: str) -> str | None:
    values = [used[name] for name in names if name in used]
    if len(values) > 1:
        raise FxloomError(f"{key}: required one of {', '.join(names)}, got {len(values)}")
    return values[0] if values else None


def _blocks(ramb36: int | None, ramb18: int | None) -> int:
    """Halves of 18 Kb."""
    return 2 * (ramb36 or 0) + (ramb18 or 0)


def _halves(text: str) -> int:
    """Tiles, of which there are halves, in halves."""
    whole, point, half = text.strip().partition(".")
    if point and half not in ("0", "5"):
        raise FxloomError(
            f"Block RAM Tile: required whole or half tiles, got {shown(text.strip())}"
        )
    return 2 * known(whole, "Block RAM Tile") + (half == "5")
