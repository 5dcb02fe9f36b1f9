"""Names of modules from names of nodes, so that reports say what the exporter called them."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from keyword import iskeyword
from typing import Any

from torch import nn

_TAKEN = frozenset(dir(nn.Module()))


def node_name(proto: Any) -> str:
    """The name of a NodeProto, with the modules that it comes from where torch wrote them down."""
    for each in proto.metadata_props:
        if each.key == "pkg.torch.onnx.name_scopes":
            scopes = re.findall(r"'([^']*)'", each.value)[:-1]  # the last is the operator of torch
            return "/".join([*scopes, proto.op_type])
    return str(proto.name)


def module_names(nodes: Sequence[tuple[str, str]]) -> list[str]:
    """A path for each (name, operator): unique, and none the parent of another.

    "/layer1/layer1.0/conv1/Conv", as torch names a layer's only node, becomes "layer1.0.conv1".
    """
    full = [_path(name, kind) for name, kind in nodes]
    short = [_without_kind(path, kind) for path, (_, kind) in zip(full, nodes, strict=True)]
    below, alike = Counter(parent for path in full for parent in _parents(path)), Counter(short)
    names = _Names()
    return [
        names.free(one if alike[one] == 1 and below[one] <= 1 else other)
        for one, other in zip(short, full, strict=True)
    ]


def identifiers(names: Sequence[str]) -> tuple[str, ...]:
    """Names of inputs as Python writes names: unique, and with letters, digits and _ alone."""
    found: list[str] = []
    for name in names:
        cleaned = re.sub(r"\W", "_", name, flags=re.ASCII).lstrip("_") or "input"
        if cleaned[0].isdigit() or iskeyword(cleaned) or cleaned == "self":
            cleaned = f"input_{cleaned}"
        number = 0
        candidate = cleaned
        while candidate in found:
            number += 1
            candidate = f"{cleaned}_{number}"
        found.append(candidate)
    return tuple(found)


def _path(name: str, kind: str) -> str:
    scopes: list[str] = []
    for scope in filter(None, name.split("/")):
        if scopes and scope.startswith(f"{scopes[-1]}."):
            scopes.pop()
        scopes.append(scope)
    parts = [part for scope in scopes for part in scope.split(".") if part]
    return ".".join(_clean(part) for part in parts) or _clean(kind)


def _clean(part: str) -> str:
    cleaned = re.sub(r"\W", "_", part, flags=re.ASCII)
    return f"{cleaned}_" if cleaned in _TAKEN else cleaned


def _without_kind(path: str, kind: str) -> str:
    scope, _, last = path.rpartition(".")
    return scope if scope and re.fullmatch(rf"{re.escape(kind)}(_\d+)?", last) else path


def _parents(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


class _Names:
    """Paths that are in use, and those above them."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._above: set[str] = set()
        self._last: Counter[str] = Counter()

    def free(self, path: str) -> str:
        """`path`, numbered where it is taken, would be the parent of another or its child."""
        candidate = path
        while (
            candidate in self._taken
            or candidate in self._above
            or any(parent in self._taken for parent in _parents(candidate))
        ):
            self._last[path] += 1
            candidate = f"{path}_{self._last[path]}"
        self._taken.add(candidate)
        self._above.update(_parents(candidate))
        return candidate
