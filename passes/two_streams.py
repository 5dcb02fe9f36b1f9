"""A graph run as it is and, beside it, with other layers in some places, node by node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.graph import constant
from fxloom.passes.calibration import Batch
from fxloom.passes.factor_subjects import read_by

Pair = tuple[Any, Any]
"""A value as it was, and as it is; the same object where nothing before it was replaced."""


class TwoStreams:
    """Runs over all batches at once; what no later node reads is let go.

    `step` is called once for every node, in the order of the graph.
    """

    def __init__(self, module: fx.GraphModule, batches: Sequence[Batch]) -> None:
        self._module, self._batches = module, batches
        self._inputs = list(module.graph.find_nodes(op="placeholder"))
        self._values: dict[Node, list[Pair]] = {}
        self._last: dict[Node, list[Node]] = {}
        seen: set[Node] = set()
        for node in reversed(module.graph.nodes):
            done = [each for each in (*node.all_input_nodes, node) if each not in seen]
            seen.update(done)
            self._last[node] = done

    def pairs(self, layer: Node) -> Iterator[tuple[Tensor, Tensor]]:
        """Of every batch what a layer reads now, and what it gave; before its step."""
        for index in range(len(self._batches)):
            _, now = self._argument(read_by(layer), index)
            yield now, self._pair(layer, index, lambda x: x)[0]

    def step(self, node: Node, replaced: Callable[[Tensor], Tensor] | None = None) -> None:
        """Compute a node. replaced: what is in the place of a layer, of its input."""
        if node.op in ("call_function", "placeholder"):
            self._values[node] = [
                self._pair(node, index, replaced) for index in range(len(self._batches))
            ]
        for each in self._last[node]:
            self._values.pop(each, None)

    def _pair(self, node: Node, index: int, replaced: Callable[[Tensor], Tensor] | None) -> Pair:
        if node.op == "placeholder":
            value = self._batches[index][self._inputs.index(node)]
            return value, value
        assert callable(node.target)
        call = node.target
        sources = {each: self._argument(each, index) for each in node.all_input_nodes}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: sources[n][0])
        was = call(*args, **kwargs)
        if replaced is not None:
            return was, replaced(sources[read_by(node)][1])
        if all(before is after for before, after in sources.values()):
            return was, was
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: sources[n][1])
        return was, call(*args, **kwargs)

    def _argument(self, node: Node, index: int) -> Pair:
        if node.op == "get_attr":
            value = constant(self._module, node.target)
            return value, value
        return self._values[node][index]
