"""Layers of a float graph pruned one after the other, each on what the pruned ones before it give.

What a layer gives is compared with what it gave before anything was pruned, so that errors of
earlier layers are made good where that is possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fxloom.errors import DataError
from fxloom.graph import arguments, constant
from fxloom.passes.calibration import Batch
from fxloom.passes.fitting import MOST_INPUTS, drawn_rows
from fxloom.passes.prunable import EMBEDDING, Prunable
from fxloom.passes.replay import Replay
from fxloom.passes.second_order import Moments, Problem, refit

MOST_KEPT = 2**26
"""Values of all samples that are kept for a layer, 0.25 GB; larger ones are computed once more."""


@dataclass
class Spread:
    """As Moments, of inputs that are taken as independent: where a covariance has no room.

    Sums over rows x [1, rows, inputs] and y [1, rows, outputs], in float64.
    """

    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def see(self, x: Tensor, y: Tensor) -> None:
        """Add rows."""
        self.count += x.shape[1]
        for name, value in (("x", x), ("xx", x.square()), ("y", y), ("yy", y.square())):
            total = value.sum(1, dtype=torch.float64)
            self.sums[name] = self.sums[name] + total if name in self.sums else total

    def mean(self, name: str) -> Tensor:
        """The mean of "x" or "y" [1, channels]."""
        return self.sums[name] / self.count

    def variance(self, centred: bool) -> Tensor:
        """Of the inputs [1, inputs]; around their means, or else around zero."""
        return self.sums["xx"] / self.count - (self.mean("x").square() if centred else 0)


@dataclass(frozen=True, eq=False)
class Layer:
    """What data say of the weights of one layer.

    problem: what they are judged by, in the order in which they are stored; None where they have
    too many inputs. weights: [groups, outputs, inputs], those to start from. inputs, outputs: means
    [groups, inputs] and [groups, outputs], outputs without bias. power: the mean of each input's
    square, [groups, inputs], around its mean where a bias takes care of that. variance: of all
    outputs together. bias: name of the bias that may be moved, if there is one. offset: what it is
    in the float model.
    """

    prunable: Prunable
    problem: Problem | None
    weights: Tensor
    inputs: Tensor
    outputs: Tensor
    power: Tensor
    variance: float
    bias: str | None
    offset: Tensor | None

    def loss(self, weights: Tensor) -> float:
        """Squared error of the outputs relative to their variance; of independent inputs where
        nothing else is known."""
        if self.problem is not None:
            error = self.problem.errors(weights).sum()
        else:
            error = ((weights - self.weights).square() * self.power[:, None]).sum()
        return float(error) / self.variance


def walk(
    module: fx.GraphModule,
    floats: fx.GraphModule,
    prunables: Sequence[Prunable],
    batches: Sequence[Batch],
) -> Iterator[Layer]:
    """Every layer when its turn comes; what is written to `module` meanwhile, later ones see.

    module: with the inputs. floats: with the same nodes and the outputs that are wanted.
    """
    owner = {reader: each for each in prunables for reader in each.readers}
    readers = [node for node in module.graph.nodes if node in owner]
    twins = {node.name: node for node in floats.graph.nodes}
    sources = {node: arguments(node)[0] for node in readers}
    samples = sum(len(batch[0]) for batch in batches)

    def keeps(kept: set[Node]) -> Callable[[Node], bool]:
        return lambda node: node in kept and prod(_sample(node)) * samples <= MOST_KEPT

    given = Replay(module, batches, sources, keeps(set(sources.values())))
    wanted = Replay(
        floats,
        batches,
        {twins[node.name]: twins[node.name] for node in readers},
        keeps({twins[source.name] for source in sources.values()}),
    )
    seen: dict[Prunable, Moments | Spread] = {}
    for node in readers:
        prunable, twin = owner[node], twins[node.name]
        is_wide = prunable.inputs > MOST_INPUTS
        sums = seen.setdefault(prunable, Spread() if is_wide else Moments())
        offset = _bias_values(floats, twin)
        pairs = drawn_rows(node, given.values(node), wanted.values(twin), len(batches))
        for x, y in pairs:
            if prunable.columns is not None:
                x = x[:, :, prunable.columns]
            sums.see(x, y if offset is None else y - offset.reshape(len(y), 1, -1))
        if node is prunable.readers[-1]:
            yield _layer(module, floats, prunable, seen.pop(prunable))


def _layer(
    module: fx.GraphModule, floats: fx.GraphModule, prunable: Prunable, sums: Moments | Spread
) -> Layer:
    if not all(bool(torch.isfinite(total).all()) for total in sums.sums.values()):
        raise DataError(
            f"{prunable.name}: the float model gives NaN or infinity on the data. Check its "
            "weights and the data"
        )
    bias = own_bias(module, prunable)
    centred = bias is not None
    weights = prunable.rows(constant(floats, prunable.names[0]).detach()).to(torch.float64)
    problem = None
    if isinstance(sums, Moments):
        problem = refit(weights, sums, centred=centred)
        power = sums.covariance("x", centred).diagonal(dim1=1, dim2=2)
        factor = weights @ sums.covariance("x")
        variance = float((factor * weights).sum())
    else:
        power = sums.variance(centred)
        variance = float((sums.sums["yy"] / sums.count - sums.mean("y").square()).sum())
    tiny = torch.finfo(torch.float64).tiny
    return Layer(
        prunable, problem, weights, sums.mean("x"), sums.mean("y"), power.clamp(min=0),
        max(variance, tiny), bias, None if bias is None else constant(floats, bias).detach(),
    )  # fmt: skip


def write(module: fx.GraphModule, layer: Layer, weights: Tensor) -> None:
    """Give a layer other weights, and the bias that makes the means of its outputs what they were.

    weights: [groups, outputs, inputs], in the order in which they are stored.
    """
    prunable = layer.prunable
    prunable.write(module, prunable.from_rows(weights).to(prunable.values.dtype))
    if layer.bias is None or layer.offset is None:
        return
    shift = layer.outputs - (weights @ layer.inputs[:, :, None])[:, :, 0]
    bias = layer.offset.to(torch.float64) + shift.flatten()
    replace_tensor(module, layer.bias, bias.to(layer.offset.dtype))


def bias_of(module: fx.GraphModule, reader: Node) -> Tensor | None:
    """The bias of a layer, if it has one; embeddings have none."""
    bias = None if reader.target is EMBEDDING else arguments(reader)[2]
    return None if bias is None else constant(module, bias.target).detach()


def own_bias(module: fx.GraphModule, prunable: Prunable) -> str | None:
    """The bias of a layer, where it has one that nothing else reads."""
    if len(prunable.readers) != 1 or len(prunable.layers) != 1:
        return None
    bias = arguments(prunable.readers[0])[2]
    if not isinstance(bias, Node) or bias.op != "get_attr":
        return None
    key = constant(module, bias.target).data_ptr()
    same = [
        node
        for node in module.graph.find_nodes(op="get_attr")
        if constant(module, node.target).data_ptr() == key
    ]
    return str(bias.target) if len(same) == 1 and len(bias.users) == 1 else None


def replace_tensor(module: fx.GraphModule, name: str, values: Tensor) -> None:
    """Put other values in the place of a tensor without touching the old one."""
    old = constant(module, name)
    *path, leaf = name.split(".")
    fresh = nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values
    setattr(module.get_submodule(".".join(path)), leaf, fresh)


def _bias_values(module: fx.GraphModule, layer: Node) -> Tensor | None:
    bias = arguments(layer)[2]
    if not isinstance(bias, Node) or bias.op != "get_attr":
        return None
    return constant(module, bias.target).detach()


def _sample(node: Node) -> tuple[int, ...]:
    """The shape of one sample."""
    axis = node.meta.get("batch_axis")
    shape = node.meta["val"].shape
    return tuple(n for dim, n in enumerate(shape) if dim != axis)
