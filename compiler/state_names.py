"""Names of parameters and buffers that torch.fx can spell.

fx writes `self.class.weight` into the code it generates, and keeps attributes such as `graph` for
itself, so a model with such names cannot become a GraphModule. They get an underscore at the end,
inside the graph only: messages and reports name layers after the module stack, which keeps the
user's names.
"""

from collections.abc import Iterable
from keyword import iskeyword

from torch import fx, nn
from torch.export import ExportedProgram

_OWN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


def spell(names: Iterable[str]) -> dict[str, str]:
    """Qualified names to names that are attributes fx can write; most of them to themselves."""
    siblings: dict[tuple[str, ...], set[str]] = {}
    paths = {name: tuple(name.split(".")) for name in names}
    for path in paths.values():
        for depth, segment in enumerate(path):
            siblings.setdefault(path[:depth], set()).add(segment)
    return {
        name: ".".join(_spelled(path[:depth], path[depth], siblings) for depth in range(len(path)))
        for name, path in paths.items()
    }


def _spelled(
    prefix: tuple[str, ...], segment: str, siblings: dict[tuple[str, ...], set[str]]
) -> str:
    spelled = segment
    while iskeyword(spelled) or (not prefix and spelled in _OWN):
        spelled += "_"
        while spelled in siblings[prefix]:
            spelled += "_"
    return spelled


def spell_state(program: ExportedProgram) -> None:
    """Give the parameters, buffers and constants of an exported program names that fx can write.

    In place, on the program's own tables; the model keeps its names.
    """
    signature = program.graph_signature
    specs = [*signature.input_specs, *signature.output_specs]
    names = spell(
        {spec.target for spec in specs if spec.target} | {*program.state_dict, *program.constants}
    )
    if all(name == spelled for name, spelled in names.items()):
        return
    for spec in specs:
        if spec.target:
            spec.target = names[spec.target]
    for table in (program.state_dict, program.constants):
        for name, value in list(table.items()):
            del table[name]
            table[names[name]] = value
