"""Legalize: write operations as the primitives that have an exact meaning in integers.

An average is a sum and a division: the sum is exact, the division gets a node of its own so that
its rounding has a place (a power of two only moves the binary point). One file per family; what a
rewrite may meet is what ``fxloom.support`` lets through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch.fx import GraphModule

from fxloom.editing import copy_graph, finish
from fxloom.errors import UnsupportedLayer
from fxloom.graph import describe, origin, refresh_shapes

# Importing a family registers its rewrites.
from fxloom.passes.legalize import attention as attention
from fxloom.passes.legalize import averages as averages
from fxloom.passes.legalize import choices as choices
from fxloom.passes.legalize import divisions as divisions
from fxloom.passes.legalize import gathers as gathers
from fxloom.passes.legalize import images as images
from fxloom.passes.legalize import norms as norms
from fxloom.passes.legalize import pads as pads
from fxloom.passes.legalize import transposed as transposed
from fxloom.passes.legalize.core import REWRITES
from fxloom.passes.legalize.given import write_once
from fxloom.passes.legalize.given_tables import tabulate
from fxloom.passes.legalize.scales import move
from fxloom.quantized_ops import brings_formats
from fxloom.recipe import PassResult
from fxloom.support import refusal

if TYPE_CHECKING:
    from fxloom.data import Data

__all__ = ["REWRITES", "Legalize", "remarks_on"]

_REMARKS = "legalized"


def remarks_on(graph: GraphModule) -> list[str]:
    """What people should know of how a graph was legalized."""
    return list(graph.meta.get(_REMARKS, ()))


@dataclass(frozen=True)
class Legalize:
    """Rewrite averages, divisions and other compound operations into exact primitives."""

    name: ClassVar[str] = "legalize"

    def __call__(self, graph: GraphModule, data: Data | None = None) -> PassResult:
        result = copy_graph(graph)
        rewritten: list[str] = []
        problems: list[str] = []
        pending = list(result.graph.nodes)
        while pending:
            node = pending.pop(0)
            rewrite = REWRITES.get(node.target)
            if rewrite is None:
                continue
            reason = refusal(node)
            if reason is not None:
                problems.append(f"{describe(node)}: {reason}")
                continue
            before = node.prev
            with result.graph.inserting_before(node):
                replacement = rewrite(result, node)
            if replacement is None:
                continue
            replacement.meta |= {key: node.meta[key] for key in ("val", "batch_axis")}
            node.replace_all_uses_with(replacement)
            rewritten.append(origin(node))
            # What was inserted may have to be rewritten itself.
            fresh = []
            while (before := before.next) is not node:
                fresh.append(before)
            pending[:0] = fresh
        if problems:
            raise UnsupportedLayer(problems)
        remarks: list[str] = []
        if brings_formats(result):
            moved, remarks = move(finish(result))
            rewritten += [*moved, *write_once(result), *tabulate(result)]
        if not rewritten:
            return PassResult(graph, False, {"rewritten": []})
        finish(result)
        refresh_shapes(result)
        if remarks:
            result.meta[_REMARKS] = [*remarks_on(result), *remarks]
        summary: dict[str, object] = {"rewritten": list(dict.fromkeys(rewritten))}
        return PassResult(result, True, summary | ({"remarks": remarks} if remarks else {}))
