"""Neurons scaled so that each fills the range of its layer's format, and no value is changed.

Where only functions with f(s * x) = s * f(x), s > 0, lie between a layer and the layers that read
it, an output channel may be divided by any s if the readers' weights are multiplied by it (Nagel et
al. 2019, arXiv 1906.04721, section 4.1). There s balances the ranges of weights; here it makes the
best clipping point of every neuron the same number, a power of two: activations share one binary
point, while weights that are fitted afterwards make good for theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import release_tensor, tensor_node
from fxloom.facts import sharing
from fxloom.graph import BATCH, arguments, constant
from fxloom.moves import GATHER
from fxloom.passes.calibration import Batch, observe
from fxloom.passes.chains import LAYERS, Chain

aten = torch.ops.aten

HOMOGENEOUS = (
    *(aten.relu.default, aten.leaky_relu.default, aten.prelu.default, aten.abs.default),
    *(aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool2d.default),
    *(aten.sum.dim_IntList, aten.amax.default, aten.reshape.default, aten.permute.default),
    *(aten.mul.Tensor, aten.div.Tensor, aten.constant_pad_nd.default, aten.clone.default, GATHER),
)
"""Of one computed argument; a number that is multiplied must be positive, and pads zero."""

BINS = 256
"""Of a neuron's histogram between zero and its largest magnitude."""


MOST_ABOVE = 2.0
"""How far the largest weight of a neuron may be above that of the median one, scaled."""


@dataclass(frozen=True)
class Place:
    """Where the outputs of a layer are in a value: channels[i] at index i of an axis."""

    axis: int
    channels: Tensor


@dataclass(frozen=True, eq=False)
class Link:
    """A layer, where its outputs are in the value that is rounded, and in what its readers read."""

    layer: Node
    chain: Chain
    rounded: Place
    readers: Mapping[Node, Place]


def find_links(module: fx.GraphModule, chains: Iterable[Chain]) -> list[Link]:
    """All layers of a legalized float graph whose outputs may be scaled."""
    links = []
    for chain in chains:
        layer = chain.nodes[0]
        if layer.target not in LAYERS or not _is_own(module, layer):
            continue
        readers = readers_of(module, layer)
        if not readers or layer in readers:
            continue
        marks = _marks(module, layer)
        rounded = _place(marks[chain.end], range(1, chain.end.meta["val"].dim()))
        places = {reader: _read_place(reader, marks[arguments(reader)[0]]) for reader in readers}
        if rounded is not None and all(place is not None for place in places.values()):
            known = {reader: place for reader, place in places.items() if place is not None}
            links.append(Link(layer, chain, rounded, known))
    return links


def _is_own(module: fx.GraphModule, layer: Node) -> bool:
    """Whether no other layer reads its tensors, no other step of a recurrence is it, and no number
    of it is several of its weights."""
    constants = [node for node in arguments(layer)[1:3] if isinstance(node, Node)]
    alone = all(node.op == "get_attr" and len(node.users) == 1 for node in constants)
    alone = alone and sharing(module).keys().isdisjoint(str(node.target) for node in constants)
    return alone and not layer.meta.get("tied") and layer.meta["batch_axis"] == 0


def readers_of(module: fx.GraphModule, source: Node) -> list[Node]:
    """The layers that read a value as it is or through what scales along with it, [] where
    something else does, or a layer whose weights others read as well."""
    found: list[Node] = []
    pending, seen = list(source.users), {source}
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.target in LAYERS and arguments(node)[0] in seen and _is_own(module, node):
            found.append(node)
        elif node.op == "output" or not _is_homogeneous(node):
            return []
        else:
            pending += node.users
    return found


def _is_homogeneous(node: Node) -> bool:
    if node.target not in HOMOGENEOUS:
        return False
    if node.target is aten.constant_pad_nd.default:
        return arguments(node)[2] == 0  # type: ignore[no-any-return]
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        number = arguments(node)[1]
        return isinstance(number, int | float) and number > 0
    return True


def _marks(module: fx.GraphModule, layer: Node) -> dict[Node, tuple[Tensor, Tensor]]:
    """What becomes of each output's number, from 1, and of ones: their quotient tells it again."""
    shape = [1 if size == BATCH else size for size in layer.meta["val"].shape]
    axis = 1 if layer.target is aten.convolution.default else len(shape) - 1
    along = [1] * len(shape)
    along[axis] = -1
    numbers = torch.arange(1, shape[axis] + 1, dtype=torch.float64).reshape(along).expand(shape)
    found = {layer: (numbers, torch.ones_like(numbers))}
    for node in module.graph.nodes:
        if node not in found and node.target in HOMOGENEOUS and node.all_input_nodes[0] in found:

            def run(place: int, node: Node = node) -> Any:
                def value(argument: Node) -> Tensor:
                    if argument in found:
                        return found[argument][place]
                    return constant(module, argument.target).double()

                assert callable(node.target)
                args, kwargs = fx.node.map_arg((arguments(node), node.kwargs), value)
                return node.target(*args, **kwargs)

            found[node] = run(0), run(1)
    return found


def _place(marks: tuple[Tensor, Tensor], axes: Iterable[int]) -> Place | None:
    """The axis along which outputs lie, at every index of it one, if there is such an axis."""
    numbers, ones = marks
    there = ones != 0
    quotient = torch.where(there, numbers / torch.where(there, ones, 1.0), 0.0)
    for axis in axes:
        others = [dim for dim in range(numbers.dim()) if dim != axis]
        highest = quotient.amax(others)
        lowest = torch.where(there, quotient, torch.inf).amin(others)
        if bool(((highest - lowest).abs() < 1e-6).all()):
            return Place(axis, highest.round().long() - 1)
    return None


def _read_place(reader: Node, marks: tuple[Tensor, Tensor]) -> Place | None:
    rank = marks[0].dim()
    return _place(marks, [1 if reader.target is aten.convolution.default else rank - 1])


@dataclass
class Magnitudes:
    """How large the outputs of a layer get, output by output: first the largest, then how many."""

    place: Place
    count: int
    largest: Tensor = field(init=False)
    bins: Tensor | None = None

    def __post_init__(self) -> None:
        self.largest = torch.zeros(self.count, dtype=torch.float64)

    def see(self, x: Tensor) -> None:
        """Take in a tensor."""
        axis, channels = self.place.axis, self.place.channels
        rows = x.detach().abs().movedim(axis, 0).flatten(1).double()
        if self.bins is None:
            self.largest.scatter_reduce_(0, channels, rows.amax(1), "amax")
            return
        scale = torch.where(self.largest > 0, BINS / self.largest, 0.0)[channels]
        index = (rows * scale[:, None]).long().clamp_(max=BINS - 1)
        index += BINS * channels[:, None]
        self.bins += torch.bincount(index.flatten(), minlength=self.bins.numel())

    def begin_counting(self) -> None:
        """From now on what is seen is counted, by its magnitude."""
        self.bins = torch.zeros(self.count * BINS, dtype=torch.int64)

    def clipping(self, levels: int) -> Tensor:
        """Where to clip each output for the least squared error with that many steps to it."""
        assert self.bins is not None
        counts = self.bins.reshape(self.count, BINS).double()
        counts[:, 0] = 0  # zeros, mostly: they stay what they are
        middles = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        clips = torch.arange(8, BINS + 1, dtype=torch.float64) / BINS
        over = (middles[None] - clips[:, None]).clamp(min=0).square()
        within = (middles[None] <= clips[:, None]) * (clips[:, None] / levels).square() / 12
        best = (counts @ (over + within).T).argmin(1)
        return clips[best] * self.largest


def equalize(
    module: fx.GraphModule, levels: Mapping[Chain, int], batches: Callable[[], Iterable[Batch]]
) -> dict[str, float]:
    """Scale a legalized float graph in place. levels: for the chains that may be scaled, how many
    values above zero their formats will have. Returns the ratio of largest scale to least for every
    layer that was scaled."""
    links = find_links(module, levels)
    if not links:
        return {}
    seen = {
        link: Magnitudes(link.rounded, int(arguments(link.layer)[1].meta["val"].shape[0]))
        for link in links
    }
    watched = {link.chain.end: [seen[link]] for link in links}
    observe(module, batches(), watched)
    for magnitudes in seen.values():
        magnitudes.begin_counting()
    observe(module, batches(), watched)
    spread = {}
    for link in links:
        scale = seen[link].clipping(levels[link.chain])
        scale = _bounded(scale, constant(module, arguments(link.layer)[1].target).detach())
        if not bool(scale.any()):
            continue
        spread[str(arguments(link.layer)[1].target)] = float(scale.max() / scale.min())
        _apply(module, link, scale)
    module.recompile()
    return spread


def _bounded(scale: Tensor, weights: Tensor) -> Tensor:
    """Scales that make no neuron's weights much larger than the others': one format holds them.

    So neurons that are hardly ever active, or never, are scaled by what their weights allow.
    """
    rows = weights.flatten(1).abs().amax(1).double()
    alive = (scale > 0) & (rows > 0)
    if not bool(alive.any()):
        return torch.zeros_like(scale)
    most = MOST_ABOVE * (rows[alive] / scale[alive]).median()
    scale = torch.maximum(scale, rows / most)
    return torch.where(scale > 0, scale, scale[alive].median())


def _apply(module: fx.GraphModule, link: Link, scale: Tensor) -> None:
    for position in (1, 2):
        node = arguments(link.layer)[position]
        if isinstance(node, Node):
            values = constant(module, node.target).detach()
            _replace(module, link.layer, position, values / _leading(scale, values))
    for reader, place in link.readers.items():
        values = constant(module, arguments(reader)[1].target).detach()
        columns = torch.where(place.channels >= 0, scale[place.channels.clamp(min=0)], 1.0)
        if reader.target is aten.convolution.default:
            groups = arguments(reader)[8]
            # [groups, inputs of a group] for the outputs of each group
            columns = columns.reshape(groups, 1, -1).expand(-1, len(values) // groups, -1)
            columns = columns.reshape(len(values), -1, *(1,) * (values.dim() - 2))
        _replace(module, reader, 1, values * columns)


def _leading(scale: Tensor, values: Tensor) -> Tensor:
    return scale.reshape(-1, *(1,) * (values.dim() - 1))


def _replace(module: fx.GraphModule, layer: Node, position: int, values: Tensor) -> None:
    node = arguments(layer)[position]
    dtype = node.meta["val"].dtype
    fresh = tensor_node(module, layer, release_tensor(module, node), values.to(dtype))
    layer.update_arg(position, fresh)
    module.graph.erase_node(node)
