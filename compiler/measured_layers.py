"""Which modules of a vendor's report are which layers of an hls4ml project.

Every function of the C++ is a template over its layer's configuration, so the tools' names of the
modules hold its number: dense_latency_ap_fixed_8_2_5_3_0_ap_fixed_16_6_5_3_0_config2_s is of the
second layer. A layer can have modules inside each other; the outermost one counts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxloom.measured import Measured, Usage, total_usage

_CONFIG = re.compile(r"(?:^|_)config(\d+)(?!\d)")
_INDEX = re.compile(r"n(\d+)(?:_|$)")

INPUT = "InputLayer"


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """What a layer of the user's model takes.

    missing: layers of the project that stand for it and have no module of their own: the tool put
    them into what is around them, so usage is less than the whole.
    """

    usage: Usage
    missing: tuple[str, ...] = ()


def project_usage(measured: Measured, layers: Sequence[Mapping[str, Any]]) -> dict[str, Usage]:
    """Usage by the names of the project's layers; those without a module are left out.

    layers: the records of layers.json.
    """
    modules: dict[int, list[str]] = {}
    for name in measured.modules:
        numbers = set(_CONFIG.findall(name))
        if len(numbers) == 1:
            modules.setdefault(int(numbers.pop()), []).append(name)
    found = {}
    for layer in layers:
        index = _INDEX.match(str(layer["name"]))
        names = [] if index is None else modules.get(int(index[1]), [])
        usage = _outermost(measured, names) if names else None
        if usage is not None and layer["class"] != INPUT:
            found[str(layer["name"])] = usage
    return found


def layer_usage(measured: Measured, layers: Sequence[Mapping[str, Any]]) -> dict[str, LayerUsage]:
    """Usage by the names of the user's layers; those without any module are left out."""
    found = project_usage(measured, layers)
    members: dict[str, list[str]] = {}
    for layer in layers:
        if layer["class"] != INPUT:
            members.setdefault(str(layer["origin"]), []).append(str(layer["name"]))
    return {
        origin: LayerUsage(
            total_usage(found[name] for name in names if name in found),
            tuple(name for name in names if name not in found),
        )
        for origin, names in members.items()
        if any(name in found for name in names)
    }


def _outermost(measured: Measured, names: Sequence[str]) -> Usage | None:
    """What the modules of a layer take together; None where that cannot be told."""
    if not measured.children:
        around = [name for name in names if _holds(measured, name, names)]
        return measured.modules[around[0]] if around else None
    inside = _below(measured, names)
    roots = [name for name in names if name not in inside]
    outside = [
        child
        for parent, children in measured.children.items()
        if parent not in names
        for child in children
    ]
    # A report of the hierarchy may end above a module that has a report of its own.
    return total_usage(
        measured.modules[name] for name in roots for _ in range(max(1, outside.count(name)))
    )


def _holds(measured: Measured, name: str, others: Sequence[str]) -> bool:
    return all(measured.modules[name].covers(measured.modules[other]) for other in others)


def _below(measured: Measured, names: Sequence[str]) -> set[str]:
    """Every module inside one of these."""
    found: set[str] = set()
    waiting = [child for name in names for child in measured.children.get(name, ())]
    while waiting:
        child = waiting.pop()
        if child not in found:
            found.add(child)
            waiting.extend(measured.children.get(child, ()))
    return found
