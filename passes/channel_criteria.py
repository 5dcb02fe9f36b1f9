"""How much a unit of channels is worth: by its filters, its scales, or what data say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.errors import CaptureError, DataError, RecipeError
from fxloom.graph import arguments, as_samples, constant
from fxloom.passes.channel_groups import Dependencies, Group, Layer
from fxloom.passes.channel_ties import Ids, storage_key
from fxloom.passes.losses import loss_of
from fxloom.passes.training import as_declared

if TYPE_CHECKING:
    from fxloom.data import Data

aten = torch.ops.aten

Scores = NDArray[np.float64]
"""Of the units of a group, in its order; larger ones stay."""
Criterion = Callable[[Group], Scores | None]
"""None where it says nothing of a group."""

ROWS = 2**22
"""Numbers of a weight that are looked at together."""
BATCH_SIZE = 8
"""Samples whose slopes are added up before they are squared."""
READERS = (aten.linear.default, aten.convolution.default)


class Places:
    """Where the units of a group are along a dimension: `of(ids)` gives their places or -1."""

    def __init__(self, found: Dependencies, group: Group) -> None:
        self._ties = found.channels.ties
        self._places = {int(unit): place for place, unit in enumerate(group.units)}

    def of(self, ids: Ids) -> NDArray[np.int64]:
        """The place in the group's units of every entry; -1 where it belongs to none of them."""
        roots = self._ties.roots(ids)
        return np.array([self._places.get(int(root), -1) for root in roots], dtype=np.int64)


def weights_of(found: Dependencies, group: Group) -> Iterator[tuple[Layer, Tensor]]:
    """Every layer's weight with channels first, each stored tensor once."""
    seen = set()
    for layer in group.layers:
        weight = constant(found.channels.module, layer.weight.target).detach()
        key = (storage_key(str(layer.weight.target), weight), layer.axis)
        if key not in seen:
            seen.add(key)
            yield layer, weight.movedim(layer.axis, 0)


def by_norm(found: Dependencies, order: int) -> Criterion:
    """The norm of all filters of a unit taken together (Li et al. 2016, arXiv 1608.08710)."""

    def scores(group: Group) -> Scores:
        places = Places(found, group)
        totals = torch.zeros(len(group.units), dtype=torch.float64)
        for layer, weight in weights_of(found, group):
            where = torch.from_numpy(places.of(layer.ids))
            sums = _power_sums(weight, order)
            totals.index_add_(0, where[where >= 0], sums[where >= 0])
        return (totals ** (1 / order)).numpy()

    return scores


def _power_sums(weight: Tensor, order: int) -> Tensor:
    """The sum of |w|**order of every channel in float64, without a copy of the whole weight."""
    step = max(ROWS // max(weight[0].numel(), 1), 1)
    parts = [
        weight[start : start + step].flatten(1).to(torch.float64).abs().pow_(order).sum(1)
        for start in range(0, len(weight), step)
    ]
    return torch.cat(parts)


def by_batchnorm(found: Dependencies) -> Criterion:
    """The scales of batch norms (network slimming: Liu et al. 2017, arXiv 1708.06519)."""
    c = found.channels

    def scores(group: Group) -> Scores | None:
        places = Places(found, group)
        totals = np.zeros(len(group.units))
        seen = np.zeros(len(group.units), dtype=bool)
        for node in c.module.graph.nodes:
            scale = arguments(node)[1] if node.target is aten.batch_norm.default else None
            if not isinstance(scale, Node):
                continue
            where = places.of(c.values[scale][0])
            values = constant(c.module, scale.target).detach().abs().double().numpy()
            np.add.at(totals, where[where >= 0], values[where >= 0])
            seen[where[where >= 0]] = True
        return totals if seen.all() else None

    return scores


def by_geometric_median(found: Dependencies) -> Criterion:
    """The distance from all other filters (FPGM: He et al. 2019, arXiv 1811.00250): who is near
    their geometric median can be replaced by them."""

    def scores(group: Group) -> Scores:
        places = Places(found, group)
        count = len(group.units)
        squares = torch.zeros(count, count, dtype=torch.float64)
        for layer, weight in weights_of(found, group):
            for rows in _filters(weight, places.of(layer.ids), count):
                products = (rows @ rows.T).double()
                lengths = products.diagonal()
                squares += lengths[:, None] + lengths[None] - 2 * products
        return squares.clamp_(min=0).sqrt_().sum(1).numpy()

    return scores


def _filters(weight: Tensor, places: NDArray[np.int64], count: int) -> Iterator[Tensor]:
    """[units, inputs]: the first filter of every unit, the second one, and so on; zeros where a
    unit has fewer."""
    left = np.flatnonzero(places >= 0)
    while left.size:
        _, first = np.unique(places[left], return_index=True)
        taken = left[first]
        side_by_side = bool((np.diff(taken) == 1).all())
        chosen = slice(int(taken[0]), int(taken[-1]) + 1) if side_by_side else taken.tolist()
        rows = weight[chosen].flatten(1)
        if taken.size < count:
            some = torch.from_numpy(places[taken])
            rows = torch.zeros(count, rows.shape[1], dtype=rows.dtype).index_copy(0, some, rows)
        yield rows
        left = np.delete(left, first)


def batches(
    module: fx.GraphModule, data: Data, samples: int, size: int = BATCH_SIZE
) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
    """Training samples as the graph takes them, with their labels. size: of a batch, at most."""
    for x, labels in data.sampled("train", samples, size):
        try:
            inputs = as_samples(module, x)
        except CaptureError as fault:
            raise DataError(f"training data: {fault}") from None
        yield as_declared(module, inputs), labels


class _Gated(fx.Interpreter):
    """Runs a graph with what some layers read multiplied by gates, channel by channel."""

    def __init__(self, module: fx.GraphModule, gates: dict[Node, tuple[int, Tensor]]) -> None:
        super().__init__(module)
        self._gates = gates

    def run_node(self, n: Node) -> Any:
        if n not in self._gates:
            return super().run_node(n)
        axis, gate = self._gates[n]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x = args[0]
        along = [1] * x.dim()
        along[axis] = -1
        return self.call_function(n.target, (x * gate.reshape(along), *args[1:]), kwargs)


def reading_axis(node: Node) -> int:
    """The dimension of its input along which a layer reads channels."""
    return 1 if node.target is aten.convolution.default else node.args[0].meta["val"].dim() - 1  # type: ignore[union-attr]


def by_slope(found: Dependencies, data: Data, samples: int) -> Criterion:
    """How much the loss would change without a unit, to first order: the squared slope of a gate
    (Molchanov et al. 2019, arXiv 1906.10771, eq. 8), in front of all layers that read the unit.

    The loss is that of the labels where the data have some and the model one output; else it is a
    random combination of all outputs, whose slopes tell how far they would move.
    """
    c = found.channels
    module = c.module
    readers = [
        n for n in module.graph.nodes if n.target in READERS and arguments(n)[0] in c.computed
    ]
    slopes: dict[Node, list[Tensor]] = {node: [] for node in readers}
    generator = torch.Generator().manual_seed(0)
    for inputs, labels in batches(module, data, samples):
        with torch.enable_grad():
            gates = {n: (reading_axis(n), _ones(c.values[arguments(n)[0]][reading_axis(n)]))
                     for n in readers}  # fmt: skip
            outputs = _Gated(module, gates).run(*inputs)
            loss = _loss(outputs, labels, generator)
            found_slopes = torch.autograd.grad(
                loss, [gate for _, gate in gates.values()], materialize_grads=True
            )
        for node, slope in zip(readers, found_slopes, strict=True):
            slopes[node].append(slope.detach().double())

    def scores(group: Group) -> Scores | None:
        places = Places(found, group)
        totals = torch.zeros(len(next(iter(slopes.values()), [])), len(group.units))
        totals = totals.double()
        seen = np.zeros(len(group.units), dtype=bool)
        for node, each in slopes.items():
            where = places.of(c.values[arguments(node)[0]][reading_axis(node)])
            mine = torch.from_numpy(np.flatnonzero(where >= 0))
            if len(mine):
                totals.index_add_(1, torch.from_numpy(where)[mine], torch.stack(each)[:, mine])
                seen[where[where >= 0]] = True
        return totals.square().mean(0).numpy() if seen.all() else None

    return scores


def _ones(ids: Ids) -> Tensor:
    return torch.ones(ids.size, requires_grad=True)


def _loss(outputs: Any, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    several: Sequence[Tensor] = outputs if isinstance(outputs, tuple | list) else (outputs,)
    real = [y for y in several if y.is_floating_point()]
    if not real:
        raise RecipeError("prune_channels: taylor: required an output of real numbers, got none")
    if labels is not None and len(several) == 1:
        return loss_of("auto", real[0], labels)[1](real[0], labels)
    signs = [torch.randint(0, 2, y.shape, generator=generator).to(y.dtype) * 2 - 1 for y in real]
    return torch.stack([(y * s).sum() for y, s in zip(real, signs, strict=True)]).sum()
