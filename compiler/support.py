"""Which ATen ops can be compiled, and by what: read from the tables of passes and lowering."""

from typing import Any

from torch.fx.node import Node

from fxloom.graph import aten, op_name


def compiled_ops() -> dict[Any, str]:
    """ATen op (of a captured graph) -> "lowered", "legalized" or "folded"."""
    from fxloom.lowering import LOWERINGS
    from fxloom.passes.legalize import REWRITES

    found: dict[Any, str] = {aten.batch_norm.default: "folded"}
    found |= {op: "lowered" for op in LOWERINGS if op_name(op).startswith("aten.")}
    return found | dict.fromkeys(REWRITES, "legalized")


def compiled_names() -> dict[str, str]:
    """The same by name, "aten.relu", in alphabetical order."""
    return dict(sorted((op_name(op), how) for op, how in compiled_ops().items()))


def supported(node: Node) -> str | None:
    """Why a node of a captured graph cannot be compiled, or None."""
    if node.target in compiled_ops():
        return None
    return "cannot be compiled yet. Replace it by supported operations"


def supported_note() -> str:
    """All of them in a line, to stand once below a list of problems."""
    names = ", ".join(name.removeprefix("aten.") for name in compiled_names())
    return f"supported: {names}"
