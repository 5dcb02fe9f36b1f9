"""Names of parameters and buffers that torch.fx can spell.

fx writes `self.class.weight` into the code it generates, and keeps attributes such as `graph` for
itself, so a model with such names cannot become a GraphModule. They get an underscore at the end,
inside the graph only: messages and reports name layers after the module stack, which keeps the
user's names.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from keyword import iskeyword
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature

_OWN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


def spell(names: Iterable[str]) -> dict[str, str]:
    """Qualified names to names that are attributes fx can write; most of them to themselves."""
    siblings: dict[tuple[str, ...], set[str]] = {}
    paths = {name: tuple(name.split(".")) for name in sorted(names)}
    for path in paths.values():
        for depth, segment in enumerate(path):
            siblings.setdefault(path[:depth], set()).add(segment)
    spelled: dict[tuple[str, ...], str] = {}
    for path in paths.values():
        for depth, segment in enumerate(path):
            if path[: depth + 1] not in spelled:
                spelled[path[: depth + 1]] = _spelled(path[:depth], segment, siblings)
    return {
        name: ".".join(spelled[path[: depth + 1]] for depth in range(len(path)))
        for name, path in paths.items()
    }


def _spelled(
    prefix: tuple[str, ...], segment: str, siblings: dict[tuple[str, ...], set[str]]
) -> str:
    if not _clashes(segment, prefix):
        return segment
    spelled = re.sub(r"\W", "_", unicodedata.normalize("NFKC", segment)) + "_"
    while _clashes(spelled, prefix) or spelled in siblings[prefix]:
        spelled += "_"
    siblings[prefix].add(spelled)
    return spelled


def _clashes(segment: str, prefix: tuple[str, ...]) -> bool:
    """Whether fx cannot write a segment as source, or keeps it for itself."""
    if iskeyword(segment) or (not prefix and segment in _OWN):
        return True
    if segment.isidentifier():  # source is read in normal form
        return unicodedata.normalize("NFKC", segment) != segment
    return not segment.isprintable() or bool({'"', "\\"} & set(segment))


def spelled_program(program: ExportedProgram) -> ExportedProgram:
    """The program with names of state that fx can write; itself where all are."""
    signature = program.graph_signature
    specs = [*signature.input_specs, *signature.output_specs]
    names = spell(
        {spec.target for spec in specs if spec.target} | {*program.state_dict, *program.constants}
    )
    if all(name == spelled for name, spelled in names.items()):
        return program

    def renamed(spec: Any) -> Any:
        return replace(spec, target=names[spec.target]) if spec.target else spec

    return program._update(
        program.graph_module,
        ExportGraphSignature(
            [renamed(spec) for spec in signature.input_specs],
            [renamed(spec) for spec in signature.output_specs],
        ),
        state_dict={names[name]: tensor for name, tensor in program.state_dict.items()},
        constants={names[name]: value for name, value in program.constants.items()},
    )
