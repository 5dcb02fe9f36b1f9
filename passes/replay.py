"""A graph run layer by layer over all calibration samples, in little memory.

Fitting a layer needs what all samples bring to it before the next layer can run. Between layers
only few values are kept, rounded ones as the narrow integers that they are; what lies between those
is computed batch by batch, and once more where it is needed once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.fixed_point import FixedPoint
from fxloom.graph import arguments, constant
from fxloom.passes.calibration import Batch
from fxloom.quantized_ops import DIVIDE, REQUANTIZE

FARTHEST = 60
"""Distance of the binary point up to which float32 holds rounded values and their mantissas."""


class Replay:
    """One run over the batches, as far as was asked for.

    asked: from a layer to the node whose values are wanted when its turn comes, in any order of the
    graph. keeps: whether the values of a node are kept until they are needed no more.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        batches: Sequence[Batch],
        asked: Mapping[Node, Node],
        keeps: Callable[[Node], bool],
    ) -> None:
        self._module, self._batches, self._asked, self._keeps = module, batches, asked, keeps
        self._inputs = list(module.graph.find_nodes(op="placeholder"))
        self._constants: set[Node] = set()
        self._kept: dict[Node, list[Any]] = {}
        needed = _ancestors([*asked, *asked.values()])
        order = [node for node in module.graph.nodes if node in needed]
        for node in order:
            if node.op != "placeholder" and self._constants.issuperset(node.all_input_nodes):
                self._constants.add(node)
        places = {node: place for place, node in enumerate(order)}
        self._turns = [node for node in order if self._is_kept(node) or node in asked]
        self._steps: dict[tuple[Node, bool], list[Node]] = {}
        last: dict[Node, int] = {}
        for turn, node in enumerate(self._turns):
            for is_asked in (False, True):
                if node not in asked if is_asked else not self._is_kept(node):
                    continue
                end = asked[node] if is_asked else node
                is_there = end is not node and self._is_kept(end)
                found = set() if is_there else self._since_kept(end)
                self._steps[node, is_asked] = sorted(found, key=places.__getitem__)
                for step in found:
                    last |= dict.fromkeys(step.all_input_nodes, turn)
                last[end] = max(turn, last.get(end, 0))
        self._dropped: list[list[Node]] = [[] for _ in self._turns]
        for node, turn in last.items():
            if self._is_kept(node):
                self._dropped[turn].append(node)
        self._turn = 0

    def values(self, layer: Node) -> Iterator[Any]:
        """What was asked for with a layer, for every batch; layers come in the graph's order."""
        self._advance(layer)
        end = self._asked[layer]
        if end in self._kept:
            for kept in self._kept[end]:
                yield _unpacked(end, kept)
            return
        for index in range(self._count(end)):
            yield self._value(end, self._steps[layer, True], index)

    def refresh(self, layer: Node) -> None:
        """Take the constants that a layer reads anew; they are computed from tensors alone."""
        for node in layer.all_input_nodes:
            if node in self._constants and node in self._kept:
                self._steps[node, False] = [*node.all_input_nodes, node]
                self._keep(node)

    def _advance(self, layer: Node) -> None:
        while self._turns[self._turn] is not layer:
            node = self._turns[self._turn]
            if self._is_kept(node):
                self._keep(node)
            for source in self._dropped[self._turn]:
                self._kept.pop(source, None)
            self._turn += 1

    def _keep(self, node: Node) -> None:
        steps = self._steps[node, False]
        self._kept[node] = [
            _packed(node, self._value(node, steps, index)) for index in range(self._count(node))
        ]

    def _count(self, node: Node) -> int:
        return 1 if node in self._constants else len(self._batches)

    def _is_kept(self, node: Node) -> bool:
        return node.op == "call_function" and (node in self._constants or self._keeps(node))

    def _since_kept(self, end: Node) -> set[Node]:
        """The node and all that it is computed from, back to what is kept."""
        found, pending = {end}, [end]
        while pending:
            sources = [node for node in pending.pop().all_input_nodes if not self._is_kept(node)]
            pending += [node for node in sources if node not in found]
            found.update(sources)
        return found

    @torch.inference_mode()
    def _value(self, end: Node, steps: Sequence[Node], index: int) -> Any:
        values: dict[Node, Any] = {}

        def argument(node: Node) -> Any:
            if node in values:
                return values[node]
            return _unpacked(node, self._kept[node][0 if node in self._constants else index])

        for node in steps:
            if node.op == "placeholder":
                values[node] = self._batches[index][self._inputs.index(node)]
            elif node.op == "get_attr":
                values[node] = constant(self._module, node.target)
            else:
                assert callable(node.target)
                args, kwargs = fx.node.map_arg((arguments(node), node.kwargs), argument)
                values[node] = node.target(*args, **kwargs)
        return values[end]


def is_rounded(node: Node) -> bool:
    """Whether a node's values are few bits wide."""
    return node.target in (REQUANTIZE, DIVIDE)


def _ancestors(nodes: Iterable[Node]) -> set[Node]:
    """The nodes and everything they are computed from."""
    found, pending = set(nodes), list(nodes)
    while pending:
        sources = pending.pop().all_input_nodes
        pending += [node for node in sources if node not in found]
        found.update(sources)
    return found


def _packing(node: Node) -> tuple[torch.dtype, int] | None:
    """The integers that hold a rounded value, and its fraction bits; None where none are needed."""
    if not is_rounded(node):
        return None
    to = FixedPoint(*arguments(node)[-5:-2])
    indices = not node.meta["val"].is_floating_point()
    if indices or abs(to.fraction) > FARTHEST:
        return None
    for dtype in (torch.uint8, torch.int8, torch.int16):
        limits = torch.iinfo(dtype)
        if limits.min <= to.lo and to.hi <= limits.max:
            return dtype, to.fraction
    return None


def _packed(node: Node, value: Any) -> tuple[Any, int | None]:
    """A value as it is kept, and the fraction bits it was packed with: the format of a bias may be
    another one once the layer is fitted."""
    packing = _packing(node)
    if packing is None:
        return value, None
    dtype, fraction = packing
    return (value * 2.0**fraction).to(dtype), fraction


def _unpacked(node: Node, kept: tuple[Any, int | None]) -> Any:
    value, fraction = kept
    if fraction is None:
        return value
    return value.to(node.meta["val"].dtype).mul_(2.0**-fraction)
