"""A quantized graph run layer by layer over all calibration samples, in little memory.

Correcting a layer needs its results for all samples before the next layer can run. Between layers
only rounded values are kept, as the narrow integers that they are; what lies between those is
computed batch by batch, and once more where it is needed once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.fixed_point import FixedPoint
from fxloom.graph import arguments, constant
from fxloom.passes.calibration import Batch
from fxloom.quantized_ops import DIVIDE, REQUANTIZE

Correct = Callable[[Node, Iterator[Tensor]], Tensor]
"""Sees a layer's value for every batch and returns what to add to it, of a shape that broadcasts.
It must take all of them."""

FARTHEST = 60
"""Distance of the binary point up to which float32 holds rounded values and their mantissas."""


class Replay:
    """One run over the batches. layers: the nodes to be corrected."""

    def __init__(
        self, module: fx.GraphModule, batches: Sequence[Batch], layers: Iterable[Node]
    ) -> None:
        self._module, self._batches, self._layers = module, batches, set(layers)
        self._inputs = list(module.graph.find_nodes(op="placeholder"))
        self._constants: set[Node] = set()
        self._kept: dict[Node, list[Any]] = {}
        self._added: dict[Node, Tensor] = {}
        needed = _ancestors(self._layers)
        order = [node for node in module.graph.nodes if node in needed]
        for node in order:
            if node.op != "placeholder" and self._constants.issuperset(node.all_input_nodes):
                self._constants.add(node)
        places = {node: place for place, node in enumerate(order)}
        self._steps = {
            node: sorted(self._since_kept(node), key=places.__getitem__)
            for node in order
            if self._is_kept(node) or node in self._layers
        }

    def run(self, correct: Correct) -> None:
        """Show the values of every layer to correct, those before it being corrected already."""
        last = {
            source: node
            for node, steps in self._steps.items()
            for step in steps
            for source in step.all_input_nodes
        }
        for node in self._steps:
            if node in self._layers:
                self._added[node] = correct(node, self._values(node))
            else:
                self._kept[node] = [_packed(node, value) for value in self._values(node)]
            for source in [each for each in self._kept if last[each] is node]:
                del self._kept[source]

    def _is_kept(self, node: Node) -> bool:
        return node.op == "call_function" and (
            node in self._constants or node.target in (REQUANTIZE, DIVIDE)
        )

    def _since_kept(self, end: Node) -> set[Node]:
        """The node and all that it is computed from, back to what is kept."""
        found, pending = {end}, [end]
        while pending:
            sources = [node for node in pending.pop().all_input_nodes if not self._is_kept(node)]
            pending += [node for node in sources if node not in found]
            found.update(sources)
        return found

    def _values(self, node: Node) -> Iterator[Any]:
        """The node's value for every batch; one value where it depends on constants only."""
        for index in range(1 if node in self._constants else len(self._batches)):
            yield self._value(node, index)

    @torch.inference_mode()
    def _value(self, end: Node, index: int) -> Any:
        values: dict[Node, Any] = {}

        def argument(node: Node) -> Any:
            if node in values:
                return values[node]
            return _unpacked(node, self._kept[node][0 if node in self._constants else index])

        for node in self._steps[end]:
            if node.op == "placeholder":
                values[node] = self._batches[index][self._inputs.index(node)]
            elif node.op == "get_attr":
                values[node] = constant(self._module, node.target)
            else:
                assert callable(node.target)
                args, kwargs = fx.node.map_arg((arguments(node), node.kwargs), argument)
                values[node] = node.target(*args, **kwargs)
                if node in self._added:
                    values[node].add_(self._added[node])
        return values[end]


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
    if node.target not in (REQUANTIZE, DIVIDE):
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
    another one once the bias is corrected."""
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
