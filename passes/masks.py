"""Masks by numbers that leave nothing: the softmax behind them gets the mask in their place.

A score of -1000 has no weight beside scores of a few units, but one format for both would leave
those hardly any bits. What is below -1e4 is a mask whatever the scores are, and capture knows it;
what is above is one if calibration shows that nothing is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf, isnan

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.batch_axis import result_axis
from fxloom.composite_ops import MASKED_SOFTMAX
from fxloom.editing import finish, tensor_node
from fxloom.forms_masks import Masked, taken_apart
from fxloom.graph import arguments, constant, infer, insert_like, origin
from fxloom.passes.calibration import Batch, Range, observe
from fxloom.support.core import is_constant

aten = torch.ops.aten

NOTHING = 32.0
"""exp(-32) < 2**-46 is zero in every table of exponentials, and as much for each of 2**14 positions
is together less than 2**-32: a softmax has at most 24 fraction bits."""


def hide(
    module: fx.GraphModule, batches: Callable[[], Iterable[Batch]]
) -> dict[str, dict[str, float]]:
    """Rewrite a legalized graph of the caller's; returns by layer the numbers that became masks.

    mask: the largest such number. reach: how far from zero scores may come, twice as far as any
    did, so that no format chosen for them holds more. Both scaled as the softmax sees them.
    """
    found = list(_candidates(module))
    ranges = {each.scores: Range() for each in found}
    if found:
        observe(module, batches(), {scores: [span] for scores, span in ranges.items()})
    masks: dict[str, dict[str, float]] = {}
    for each in found:
        span = ranges[each.scores]
        reach = 2 * max(abs(span.low), abs(span.high)) * abs(each.scale)
        result = each.hidden(module, reach)
        if result is None:
            continue
        masked, mask = result
        _fold_conditions(module)
        if not _empties_a_row(module, masked):
            each.softmax.replace_all_uses_with(masked)
            masks[origin(each.softmax)] = {"mask": mask, "reach": reach}
    finish(module)  # without what was tried in vain
    return masks


def _candidates(module: fx.GraphModule) -> Iterator[_Chosen | _Added]:
    for node in module.graph.find_nodes(op="call_function", target=aten.softmax.int):
        if (chosen := _chosen(module, node)) is not None:
            yield chosen
    for node in module.graph.find_nodes(op="call_function", target=MASKED_SOFTMAX):
        if (added := _added(module, node)) is not None:
            yield added


# Choices and what they add ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    """Scores that a condition replaces by a number, or adds one to."""

    softmax: Node
    scores: Node
    scale: float
    parts: Masked

    def hidden(self, module: fx.GraphModule, reach: float) -> tuple[Node, float] | None:
        """A masked softmax and the largest number that it hides in place of, scaled; None where
        scores from -reach to reach leave that some weight.

        A replaced score is compared with the lowest; a lowered one may be the highest.
        """
        number = self.parts.number
        if number is not None and not isnan(number) and number + NOTHING > -reach:
            return None
        if self.parts.fall - NOTHING < 2 * reach:
            return None
        node, before = self.softmax, self.softmax.prev
        with module.graph.inserting_before(node):
            masked = insert_like(module.graph, node, MASKED_SOFTMAX, self.parts.arguments())
        _complete(module, before, node)
        replaced = -inf if number is None or isnan(number) else number
        return masked, max(replaced, -self.parts.fall)


def _chosen(module: fx.GraphModule, node: Node) -> _Chosen | None:
    if arguments(node)[2] not in (None, arguments(node)[0].meta["val"].dtype):
        return None
    before = node.prev
    with module.graph.inserting_before(node):
        parts = taken_apart(module.graph, node, -NOTHING)
    _complete(module, before, node)
    return _Chosen(node, parts.source, parts.scale, parts) if parts.keeps else None


def _complete(module: fx.GraphModule, before: Node, behind: Node) -> None:
    """Shapes and batch axes of what was inserted between two nodes."""
    while (before := before.next) is not behind:
        if "batch_axis" not in before.meta:
            before.meta["val"] = infer(module, before)
            before.meta["batch_axis"] = result_axis(before)


def _fold_conditions(module: fx.GraphModule) -> None:
    """Conditions of constants as the constants they are."""
    for node in list(module.graph.nodes):
        sources = node.all_input_nodes
        is_call = node.op == "call_function" and sources
        if not is_call or not all(source.op == "get_attr" for source in sources):
            continue
        if node.meta["val"].dtype != torch.bool:
            continue
        args, kwargs = fx.node.map_arg(
            (arguments(node), node.kwargs), lambda n: constant(module, n.target).detach()
        )
        assert callable(node.target)
        values = node.target(*args, **kwargs)
        node.replace_all_uses_with(tensor_node(module, node, f"{origin(node)}.kept", values))


def _empties_a_row(module: fx.GraphModule, masked: Node) -> bool:
    """Whether a constant mask leaves nothing in some row: there the numbers are compared with one
    another, and are scores."""
    scores, kept, dim, _ = arguments(masked)
    if not is_constant(kept):
        return False
    values = constant(module, kept.target)
    along = dim - scores.meta["val"].dim()  # from the end: a constant may have fewer axes
    rows = values.any(along) if values.dim() >= -along else values
    return not bool(rows.all())


# Constants ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Added:
    """Scores to which a constant is added, as legalize leaves attention masks."""

    softmax: Node
    scores: Node
    scale: float
    added: Tensor
    kept: Tensor | None

    def hidden(self, module: fx.GraphModule, reach: float) -> tuple[Node, float] | None:
        """As above; hidden is of every row what is far below its largest number."""
        _, _, dim, scale = arguments(self.softmax)
        added = self.added.to(torch.float64) * scale
        along = dim - self.scores.meta["val"].dim()  # from the end: a constant may have fewer axes
        if added.dim() < -along or added.shape[along] == 1:
            return None
        seen = added if self.kept is None else torch.where(self.kept, added, -inf)
        keep = seen >= seen.amax(along, keepdim=True) - 2 * reach - NOTHING
        hides = (seen > -inf) & ~keep
        if not bool(hides.any()):
            return None
        node, before, name = self.softmax, self.softmax.prev, origin(self.softmax)
        mask = float(seen[hides].max())
        kept = tensor_node(module, node, f"{name}.kept", keep)
        rest = torch.where(keep, self.added, 0)
        scores = self.scores
        with module.graph.inserting_before(node):
            if bool(rest.any()):
                left = tensor_node(module, node, f"{name}.added", rest)
                scores = insert_like(module.graph, node, aten.add.Tensor, (scores, left))
            masked = insert_like(module.graph, node, MASKED_SOFTMAX, (scores, kept, dim, scale))
        _complete(module, before, node)
        return masked, mask


def _added(module: fx.GraphModule, node: Node) -> _Added | None:
    total, mask, _, scale = arguments(node)
    if total.target is not aten.add.Tensor or not (mask is None or is_constant(mask)):
        return None
    scores, added = arguments(total)[:2]
    if not isinstance(scores, Node) or not is_constant(added) or is_constant(scores):
        return None
    if scores.meta["val"].shape != total.meta["val"].shape:
        return None
    kept = None if mask is None else constant(module, mask.target).detach()
    return _Added(node, scores, scale, constant(module, added.target).detach(), kept)
