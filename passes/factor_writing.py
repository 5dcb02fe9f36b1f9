"""Chains of smaller layers written into a graph, in the place of the layer that they factor.

Part number k of the layer "fc1" is the layer "fc1.factor<k>", with the weights
"fc1.weight_factor<k>": reports have a row for each, and patterns such as "fc1*" or "fc1.factor*"
reach them in the passes and targets that come later. The layer's own name is gone, so that a
pattern that meant the whole of it is refused and not applied to one part. Parts of what has a role
in a recurrence have a role each, so that all steps keep one format for each. A tensor of weights
stays one thing however many layers read it: all of them read the same factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.batch_rules import position_of
from fxloom.editing import tensor_node
from fxloom.facts import has_facts
from fxloom.graph import BATCH, arguments, constant, origin
from fxloom.passes.factors import Chain, Part, positions_of_row
from fxloom.passes.legalize.core import insert
from fxloom.passes.prunable import EMBEDDING, Prunable

aten = torch.ops.aten

MOST_AXES = 2
"""Of a kernel."""
ENDINGS = tuple(f"factor{number}" for number in range(16))
"""Of the names of parts. A chain may be longer; no train of cores that saves anything is."""
EPS = 1e-5
MOMENTUM = 0.1
"""Of batch norms, as torch.nn has them."""


def obstacles(module: fx.GraphModule, each: Prunable, norms: bool = False) -> Iterator[str]:
    """What stands against a chain in the place of the layers that read a tensor of weights.

    norms: whether batch norms are to be between its parts.
    """
    readers = readers_of(module, each)
    if not readers or each.reading(module) != set(readers):
        yield "its weights are read in other ways as well"
        return
    if each.transposed:
        yield "it is a transposed convolution"
    if each.values.dim() > 2 + MOST_AXES:
        yield f"its kernel has {each.values.dim() - 2} axes, and at most {MOST_AXES} are known"
    is_convolution = readers[0].target is aten.convolution.default
    if is_convolution and len({str(arguments(reader)[3:6]) for reader in readers}) > 1:
        yield "its weights are read with different strides, paddings or dilations"
    if has_facts(module, each.names):
        yield "its weights were pruned or shared: factors have none of that. Factor it before"
    if not each.kept:
        yield "all of its weights are zero"
    if norms and len(readers) > 1:
        yield "its weights are read several times, and a batch norm has one set of statistics"


def readers_of(module: fx.GraphModule, each: Prunable) -> list[Node]:
    """The layers that a chain takes the place of, in the order of the graph: those that multiply
    by a tensor, or embeddings where none does."""
    if each.readers:
        return list(each.readers)
    reading = each.reading(module)
    return [node for node in module.graph.nodes if node in reading and node.target is EMBEDDING]


@dataclass(frozen=True)
class Written:
    """What took the place of a layer. parts: names of the layers; norms: batch norms between."""

    parts: tuple[str, ...]
    norms: tuple[Node, ...] = ()


def write_chain(
    module: fx.GraphModule, readers: Sequence[Node], chain: Chain, *, norms: bool = False
) -> Written:
    """Put a chain in the place of a layer wherever it is called.

    module: edited in place, so a copy; `finish` then removes what nobody reads any more. readers:
    of a tensor without `obstacles`, as `readers_of` has them. chain: its weights become parameters,
    in the type of those that they replace; each reader keeps its bias, behind the last part. An
    embedding [rows, features] is the linear layer [features, rows] whose input is 1 at the row that
    is wanted: the first part, [rank, rows], becomes an embedding [rows, rank]. norms: whether there
    are batch norms between the parts, which change nothing; `measure_norms` gives them their
    statistics.
    """
    is_embedding = readers[0].target is EMBEDDING
    assert not (is_embedding and chain[0].view)
    old = arguments(readers[0])[0 if is_embedding else 1]
    dtype = constant(module, old.target).dtype
    weights = []
    for number, part in enumerate(chain):
        # Tensors of their own: parts may be views of one array, or of what they replace.
        tensor = part.weight.detach().T if is_embedding and not number else part.weight.detach()
        tensor = tensor.to(dtype).clone(memory_format=torch.contiguous_format)
        weights.append(tensor_node(module, readers[0], f"{old.target}_factor{number}", tensor))
    names: dict[str, None] = {}
    written: list[Node] = []
    taken = {origin(node) for node in module.graph.nodes if node.op == "call_function"}
    for reader in readers:
        writer = _Writer(module, reader, taken)
        with module.graph.inserting_before(reader):
            result = writer.chain(chain, weights, norms)
        assert result.meta["val"].shape == reader.meta["val"].shape, origin(reader)
        reader.replace_all_uses_with(result)
        module.graph.erase_node(reader)
        taken.update(writer.names)
        names |= dict.fromkeys(writer.names)
        written += writer.norms
    return Written(tuple(names), tuple(written))


class _Writer:
    """Inserts the parts of a chain in front of one layer, at the graph's insertion point.

    taken: names of layers.
    """

    def __init__(self, module: fx.GraphModule, layer: Node, taken: set[str]) -> None:
        self.module, self.layer, self._taken = module, layer, taken
        self.names: list[str] = []
        self.norms: list[Node] = []
        self._meta: dict[str, object] = {}  # of what is inserted

    def chain(self, chain: Chain, weights: Sequence[Node], norms: bool) -> Node:
        """The result of the parts one after another, of the shape that the layer has."""
        is_embedding = self.layer.target is EMBEDDING
        value, bias = arguments(self.layer)[0], None if is_embedding else arguments(self.layer)[2]
        sizes = self.layer.meta["val"].shape[:-1]
        lead = [-1 if size and size % BATCH == 0 else size for size in sizes]
        for number, (part, weight) in enumerate(zip(chain, weights, strict=True)):
            is_last = number == len(chain) - 1
            self.names.append(self._begin(f"factor{number}", is_last))
            added = bias if is_last and positions_of_row(part) == 1 else None
            if is_embedding and number == 0:
                value = self._add(EMBEDDING, weight, *arguments(self.layer)[1:])
            elif part.is_linear:
                value = self._linear(value, lead, part, weight, added)
            else:
                value = self._convolution(value, part, weight, added)
            last = value
            if norms and not is_last:
                name = self._begin(f"norm{number}", False)
                value = self._norm(value, name, -1 if part.is_linear else 1)
            if part.view:
                value = self._shaped(value, lead, positions_of_row(part) * part.weight.shape[0])
        if bias is not added:
            last.meta["exact"] = True  # the sum is rounded
            value = self._add(aten.add.Tensor, value, bias)
        assert isinstance(value, Node)
        return value

    def _begin(self, role: str, is_last: bool) -> str:
        """The name of what is inserted from here on."""
        wanted = candidate = f"{origin(self.layer)}.{role}"
        tied, count = self.layer.meta.get("tied"), 0
        while candidate in self._taken and not tied:
            count += 1
            candidate = f"{wanted}_{count}"
        self._meta = {"origin": candidate}
        if tied:  # one name and one role for all steps
            exact = is_last and self.layer.meta.get("exact", False)
            self._meta |= {"tied": f"{tied}.{role}", "exact": exact}
        return candidate

    def _add(self, target: Any, *args: Any) -> Node:
        node = insert(self.module, self.layer, target, *args)
        node.meta |= self._meta
        return node

    def _convolution(self, value: Node, part: Part, weight: Node, bias: Node | None) -> Node:
        axes = part.weight.dim() - 2
        attributes = [list(each) for each in (part.stride, part.padding, part.dilation)]
        assert all(len(each) == axes for each in attributes)
        rest = (False, [0] * axes, part.groups)
        return self._add(aten.convolution.default, value, weight, bias, *attributes, *rest)

    def _linear(
        self, value: Node, lead: list[int], part: Part, weight: Node, bias: Node | None
    ) -> Node:
        """A linear layer, on its input in another order where it reads that. lead: the axes that
        it leaves alone."""
        if part.view:
            view, order = merged(part.view, part.order)
            value = self._shaped(value, lead, *view)
            if order != tuple(range(len(order))):
                dims = [*range(len(lead)), *(len(lead) + axis for axis in order)]
                value = self._add(aten.permute.default, value, dims)
        rows, n_in = positions_of_row(part), part.weight.shape[1]
        value = self._shaped(value, lead, *([rows] if rows > 1 else []), n_in)
        return self._add(aten.linear.default, value, weight, bias)

    def _shaped(self, value: Node, lead: list[int], *sizes: int) -> Node:
        """The value with the axes behind the first ones in other sizes."""
        if tuple(value.meta["val"].shape[len(lead) :]) == sizes:
            return value
        return self._add(aten.reshape.default, value, [*lead, *sizes])

    def _norm(self, value: Node, name: str, axis: int) -> Node:
        """A batch norm that changes nothing. axis: where the channels are."""
        rank, channels = value.meta["val"].dim(), value.meta["val"].shape[axis]
        batch = position_of(value.meta["batch_axis"])
        dims = list(dict.fromkeys([batch or 0, axis % rank, *range(rank)]))
        if is_moved := dims != list(range(rank)):
            value = self._add(aten.permute.default, value, dims)
        like = {"dtype": value.meta["val"].dtype}
        tensors = {
            "weight": torch.full((channels,), sqrt(1 + EPS), **like),
            "bias": torch.zeros(channels, **like),
            "running_mean": torch.zeros(channels, **like),
            "running_var": torch.ones(channels, **like),
        }
        held = [
            tensor_node(
                self.module, self.layer, f"{name}.{key}", each, trained=key in ("weight", "bias")
            )
            for key, each in tensors.items()
        ]
        value = self._add(aten.batch_norm.default, value, *held, False, MOMENTUM, EPS, False)
        self.norms.append(value)
        if is_moved:
            value = self._add(aten.permute.default, value, [dims.index(n) for n in range(rank)])
        return value


def merged(view: Sequence[int], order: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same reordering of an axis with as few parts as it takes: those that stay side by side
    are one, and those of length 1 none."""
    runs: list[list[int]] = []
    kept = [axis for axis, size in enumerate(view) if size != 1]
    for axis in (axis for axis in order if axis in kept):
        place = kept.index(axis)
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    starts = sorted(run[0] for run in runs)
    found = tuple(starts.index(run[0]) for run in runs)
    sizes = {run[0]: prod(view[kept[place]] for place in run) for run in runs}
    return tuple(sizes[start] for start in starts), found
