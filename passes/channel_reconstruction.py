"""Channels chosen by what the next layer's output loses without them, and that layer fitted again.

ThiNet (Luo et al. 2017, arXiv 1707.06342): the channels go whose contributions to the next layer
add up to the least, found greedily; then the weights of that layer on what is left are fitted to
its old output by least squares (He et al. 2017, arXiv 1707.06168, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node
from torch.nn import functional

from fxloom.facts import kept_weights, sharing
from fxloom.graph import arguments, constant, describe, origin
from fxloom.passes.channel_criteria import (
    READERS,
    Criterion,
    Places,
    Scores,
    batches,
    reading_axis,
)
from fxloom.passes.channel_groups import Dependencies, Group
from fxloom.passes.channel_ties import Ids, sizes_of, storage_key

if TYPE_CHECKING:
    from fxloom.data import Data

aten = torch.ops.aten

MOST_INPUTS = 6144
"""Of a layer whose inputs' products are kept: 0.3 GB in float64. Larger ones take no part."""
ROWS = 16
"""Places of an output that are taken from every sample, at most."""
RIDGE = 0.01
"""Share of the mean variance that pulls towards the old weights, where data say little."""


@dataclass(eq=False)
class Reader:
    """A stored weight that reads channels, and the products of what it reads.

    products: [inputs, inputs], sums over all rows; sums: [inputs]; count: of rows.
    """

    nodes: list[Node]
    weight: Tensor
    products: Tensor
    sums: Tensor
    count: int = 0

    def see(self, rows: Tensor) -> None:
        """Take in [rows, inputs]."""
        rows = rows.double()
        self.products.addmm_(rows.T, rows)
        self.sums += rows.sum(0)
        self.count += len(rows)

    @property
    def means(self) -> Tensor:
        """Of the inputs; zero where no bias of each layer could make up for them."""
        has_bias = all(arguments(node)[2] is not None for node in self.nodes)
        return self.sums / max(self.count, 1) if has_bias else torch.zeros_like(self.sums)

    @property
    def covariance(self) -> Tensor:
        """Of the inputs, around `means`."""
        return self.products / max(self.count, 1) - torch.outer(self.means, self.means)

    @property
    def width(self) -> int:
        """Inputs of one channel: the places of a kernel."""
        return int(self.weight[0, 0].numel())


class Reconstruction:
    """What the layers of a graph read, on some samples."""

    def __init__(
        self, found: Dependencies, groups: Iterable[Group], data: Data, samples: int
    ) -> None:
        self._found = found
        units = [int(unit) for group in groups for unit in group.units]
        module = found.channels.module
        self._readers: dict[Any, Reader] = {}
        self.skipped: dict[str, str] = {}
        for node in module.graph.nodes:
            if node.target not in READERS or arguments(node)[0] not in found.channels.computed:
                continue
            if not found.kept(self._read(node), units).all():
                self._add(module, node)
        generator = torch.Generator().manual_seed(0)
        each = {node: reader for reader in self._readers.values() for node in reader.nodes}
        with torch.no_grad():
            for inputs, _ in batches(module, data, samples):
                _Watched(module, each, generator).run(*inputs)

    def _read(self, node: Node) -> Ids:
        """The numbers of the channels that a layer reads."""
        return self._found.channels.values[arguments(node)[0]][reading_axis(node)]

    def _add(self, module: fx.GraphModule, node: Node) -> None:
        weight_node = arguments(node)[1]
        grouped = node.target is aten.convolution.default and (
            arguments(node)[6] or arguments(node)[8] > 1
        )
        if weight_node.op != "get_attr" or grouped:
            self.skipped[origin(node)] = f"{describe(node)} is grouped, transposed or computed"
            return
        weight = constant(module, weight_node.target).detach()
        count = weight[0].numel()
        if count > MOST_INPUTS:
            self.skipped[origin(node)] = f"{describe(node)} has {count} inputs, over {MOST_INPUTS}"
            return
        key = storage_key(str(weight_node.target), weight)
        if key not in self._readers:
            products = torch.zeros(count, count, dtype=torch.float64)
            self._readers[key] = Reader([], weight, products, products[0].clone())
        self._readers[key].nodes.append(node)

    def criterion(self) -> Criterion:
        """How late a unit goes, where the one that is missed least goes next."""
        return self._order

    def _order(self, group: Group) -> Scores | None:
        places = Places(self._found, group)
        count = len(group.units)
        products = torch.zeros(count, count, dtype=torch.float64)
        is_read = False
        for reader in self._readers.values():
            node = reader.nodes[0]
            where = places.of(self._read(node))
            if (where < 0).all():
                continue
            is_read = True
            weight = reader.weight.flatten(1).double()
            contributions = reader.covariance * (weight.T @ weight)
            scale = contributions.trace()
            index = torch.from_numpy(np.repeat(where, reader.width))
            index[index < 0] = count
            rows = torch.zeros(count + 1, len(index), dtype=torch.float64)
            rows.index_add_(0, index, contributions)
            both = torch.zeros(count + 1, count + 1, dtype=torch.float64)
            both.index_add_(1, index, rows)
            products += both[:count, :count] / scale.clamp(min=torch.finfo(torch.float64).tiny)
        return _greedy(products.numpy()) if is_read else None

    def fitted(self, smaller: fx.GraphModule, removed: Set[int]) -> list[str]:
        """Fit the layers of a smaller graph that read less than before, in place. Their names."""
        c = self._found.channels
        names = []
        counterparts = dict(zip(c.module.graph.nodes, smaller.graph.nodes, strict=True))
        for reader in self._readers.values():
            node = reader.nodes[0]
            stays = self._found.kept(self._read(node), removed)
            if stays.all():
                continue
            if not self._is_own(reader):
                self.skipped[origin(node)] = f"{describe(node)} has weights that others read too"
                continue
            if kept_weights(c.module, str(arguments(node)[1].target)) is not None:
                self.skipped[origin(node)] = f"{describe(node)} has zeros that must stay"
                continue
            if str(arguments(node)[1].target) in sharing(c.module):
                self.skipped[origin(node)] = f"{describe(node)} has weights that are shared"
                continue
            inputs = torch.from_numpy(np.flatnonzero(np.repeat(stays, reader.width)))
            weight, shift = _least_squares(reader, inputs)
            outputs = self._found.kept(c.values[arguments(node)[1]][0], removed)
            rows = torch.from_numpy(np.flatnonzero(outputs))
            held = str(arguments(counterparts[node])[1].target)
            old = constant(smaller, held)
            self._replace(smaller, held, old, weight[rows].reshape(old.shape).to(old.dtype))
            for bias in _biases(counterparts[each] for each in reader.nodes):
                old = constant(smaller, bias)
                shifted = old.detach().double() + shift[rows]
                self._replace(smaller, bias, old, shifted.to(old.dtype))
            names += [origin(each) for each in reader.nodes]
        return names

    def _is_own(self, reader: Reader) -> bool:
        """Whether nothing but these layers reads their tensors."""
        nodes = {node for node in self._found.channels.module.graph.nodes if node.op == "get_attr"}
        module = self._found.channels.module
        for held in {str(arguments(reader.nodes[0])[1].target), *_biases(reader.nodes)}:
            key = storage_key(held, constant(module, held))
            users = {
                user
                for node in nodes
                if storage_key(str(node.target), constant(module, node.target)) == key
                for user in node.users
            }
            if not users <= set(reader.nodes):
                return False
        return True

    def _replace(self, module: fx.GraphModule, name: str, old: Tensor, new: Tensor) -> None:
        """Under all names of the tensor."""
        is_trained = isinstance(old, nn.Parameter)
        made = nn.Parameter(new, old.requires_grad) if is_trained else new
        key = storage_key(name, old)
        for node in module.graph.find_nodes(op="get_attr"):
            target = str(node.target)
            tensor = constant(module, target)
            if tensor is not made and storage_key(target, tensor) == key:
                *path, leaf = target.split(".")
                setattr(module.get_submodule(".".join(path)), leaf, made)


def _biases(nodes: Iterable[Node]) -> list[str]:
    """The names of the biases of some layers, each once."""
    held = (arguments(node)[2] for node in nodes)
    return list(dict.fromkeys(str(bias.target) for bias in held if bias is not None))


class _Watched(fx.Interpreter):
    """Runs a graph and shows readers what they read."""

    def __init__(
        self, module: fx.GraphModule, readers: dict[Node, Reader], generator: torch.Generator
    ) -> None:
        super().__init__(module)
        self._readers, self._generator = readers, generator

    def run_node(self, n: Node) -> Any:
        if n in self._readers:
            args, _ = self.fetch_args_kwargs_from_env(n)
            for rows in _rows(n, args, self._generator):
                self._readers[n].see(rows)
        return super().run_node(n)


def _rows(node: Node, args: Any, generator: torch.Generator) -> Iterator[Tensor]:
    """[rows, inputs]: what some outputs of a layer are sums over."""
    x = args[0]
    if node.target is aten.linear.default:
        rows = x.reshape(-1, x.shape[-1])
        places = math.prod(sizes_of(arguments(node)[0])[:-1])
        count = ROWS * (len(rows) // places)
        yield rows[torch.randperm(len(rows), generator=generator)[:count]]
        return
    stride, padding, dilation = args[3:6]
    kernel = list(args[1].shape[2:])
    if x.dim() == 3:
        x, kernel = x[:, :, None], [1, *kernel]
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    for image in x.split(1):  # the columns of a large image are many times its size
        (columns,) = functional.unfold(image, tuple(kernel), dilation, padding, stride)
        chosen = torch.randperm(columns.shape[1], generator=generator)[:ROWS]
        yield columns[:, chosen].T


def _greedy(products: np.ndarray[Any, np.dtype[np.float64]]) -> Scores:
    """The turn in which each channel goes. products: of the channels' contributions."""
    alone = products.diagonal().copy()
    with_gone = np.zeros(len(products))
    turn = np.zeros(len(products))
    is_left = np.ones(len(products), dtype=bool)
    for number in range(len(products)):
        cost = np.where(is_left, alone + 2 * with_gone, np.inf)
        gone = int(cost.argmin())
        turn[gone] = number
        is_left[gone] = False
        with_gone += products[gone]
    return turn


def _least_squares(reader: Reader, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weights on some inputs, and what to add to the bias, closest to the old output."""
    weight = reader.weight.flatten(1).double()
    products, means = reader.covariance, reader.means
    kept = products[inputs][:, inputs]
    ridge = RIDGE * kept.diagonal().mean() + torch.finfo(torch.float64).tiny
    wanted = weight @ products[:, inputs] + ridge * weight[:, inputs]
    system = kept + ridge * torch.eye(len(inputs), dtype=torch.float64)
    fitted = torch.linalg.solve(system, wanted.T).T
    return fitted, weight @ means - fitted @ means[inputs]
