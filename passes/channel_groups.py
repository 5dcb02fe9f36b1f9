"""Groups of layers that lose channels together, found in a captured graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch import fx
from torch.fx.node import Node

from fxloom.graph import arguments, origin, output_nodes
from fxloom.passes import channel_moves  # noqa: F401 - it fills the table of rules
from fxloom.passes.channel_rules import apply
from fxloom.passes.channel_ties import FIXED, Channels, Ids, sizes_of

aten = torch.ops.aten

PRODUCERS = (aten.linear.default, aten.convolution.default, aten.embedding.default)


@dataclass(frozen=True, eq=False)
class Layer:
    """What makes channels out of a stored tensor.

    weight: its get_attr node; axis: of the weight that lists the channels; ids: their numbers.
    """

    name: str
    node: Node
    weight: Node
    axis: int
    ids: Ids


@dataclass(frozen=True, eq=False)
class Group:
    """Layers that share channels. units: the roots of what may be removed, in their order."""

    layers: tuple[Layer, ...]
    units: Ids

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its layers, in order."""
        return tuple(dict.fromkeys(layer.name for layer in self.layers))


@dataclass(frozen=True, eq=False)
class Dependencies:
    """All that is known of the channels of a graph.

    left: why layers that cannot lose channels cannot. occupied: sets of units of which one must
    stay, since they are all that a dimension has.
    """

    channels: Channels
    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    left: Mapping[str, str]
    occupied: tuple[frozenset[int], ...]

    def kept(
        self, ids: Ids, removed: Iterable[int]
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Which entries of a dimension stay where these units go."""
        return ~np.isin(self.channels.ties.roots(ids), list(removed))


def dependencies(module: fx.GraphModule) -> Dependencies:
    """The groups of layers of a captured graph that lose channels together."""
    c = _channels(module)
    layers = tuple(_layers(c))
    graph: nx.Graph = nx.Graph()
    left: dict[str, str] = {}
    occupied = _occupied(c)
    for unit in _alone(occupied):
        c.ties.pin(np.array([unit]), "its channels can only go all together")
    for layer in layers:
        roots = c.ties.roots(layer.ids)
        if not roots.any():
            left.setdefault(layer.name, c.ties.reason(layer.ids))
        graph.add_edges_from((layer, int(root)) for root in np.unique(roots[roots != FIXED]))
    places = {layer: place for place, layer in enumerate(layers)}
    groups = []
    for component in nx.connected_components(graph):
        members = sorted((n for n in component if isinstance(n, Layer)), key=places.__getitem__)
        listed = np.concatenate([c.ties.roots(layer.ids) for layer in members])
        units = np.array(list(dict.fromkeys(listed[listed != FIXED].tolist())), dtype=np.int64)
        groups.append(Group(tuple(members), units))
    groups.sort(key=lambda group: places[group.layers[0]])
    free = {name for group in groups for name in group.names}
    left = {name: reason for name, reason in left.items() if name not in free}
    return Dependencies(c, layers, tuple(groups), left, occupied)


def _channels(module: fx.GraphModule) -> Channels:
    """The numbers of all values. A choice that leaves nothing to remove is made another way."""
    taken: dict[tuple[Node, int], int] = {}
    while True:
        c = Channels(module, taken)
        _propagate(c)
        stays = {FIXED, *_alone(_occupied(c))}
        for choice in c.choices:
            roots = c.ties.roots(choice.ids).tolist()
            if choice.taken + 1 < choice.count and stays.issuperset(roots):
                taken[choice.node, choice.part] = choice.taken + 1
                break
        else:
            return c


def _propagate(c: Channels) -> None:
    for node in c.module.graph.nodes:
        if node.op == "placeholder":
            c.computed.add(node)
            c.values[node] = tuple(np.full(n, FIXED, np.int64) for n in sizes_of(node))
        elif node.op == "get_attr":
            c.values[node] = c.of_tensor(node)
        elif node.op == "call_function":
            if any(source in c.computed for source in node.all_input_nodes):
                c.computed.add(node)
            c.values[node] = apply(c, node)
    for node in output_nodes(c.module):
        for ids in c.values[node]:
            c.ties.pin(ids, "an output of the model has these channels")


def _layers(c: Channels) -> Iterable[Layer]:
    for node in c.values:
        if node.target not in PRODUCERS:
            continue
        weight = arguments(node)[0 if node.target is aten.embedding.default else 1]
        if weight.op != "get_attr":
            continue
        axis = 0
        if node.target is aten.embedding.default:
            axis = 1
        elif node.target is aten.convolution.default and arguments(node)[6]:
            axis = 1 if arguments(node)[8] == 1 or c.ways[node] == 1 else 0
        yield Layer(origin(node), node, weight, axis, c.values[weight][axis])


def _occupied(c: Channels) -> tuple[frozenset[int], ...]:
    found: dict[frozenset[int], None] = {}
    for value in (*c.values.values(), *c.tensors.values()):
        for ids in value:
            roots = frozenset(c.ties.roots(ids).tolist())
            if roots and FIXED not in roots:
                found[roots] = None
    return tuple(found)


def _alone(occupied: Iterable[frozenset[int]]) -> set[int]:
    """Units that are all that some dimension has: they cannot go."""
    return {unit for units in occupied if len(units) == 1 for unit in units}
