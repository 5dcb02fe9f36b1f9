"""What narrower weights cost by the Hessian's trace (HAWQ-V2: Dong et al. 2020, arXiv 1911.03852).

The mean second derivative of a channel's weights, by Hutchinson's probes, times their squared
rounding error. The distance from the float model's own outputs has its minimum at the float
weights, so that no labels are needed and no eigenvalue is negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.fixed_point import FixedPoint
from fxloom.passes.calibration import candidates, squared_error
from fxloom.passes.distance import Distance, several
from fxloom.passes.sensitivity import Batches, Costs, Weights

PROBES = 8
"""Random directions for every batch."""


class Leaves(fx.Interpreter):
    """Runs a graph with other tensors for some of its own."""

    def __init__(self, module: fx.GraphModule, leaves: Mapping[Node, Tensor]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._leaves = leaves

    def run_node(self, n: Node) -> Any:
        """The node's value, or what stands for it."""
        return self._leaves[n] if n in self._leaves else super().run_node(n)


def traces(
    module: fx.GraphModule, weights: Sequence[Weights], batches: Batches, distance: Distance
) -> dict[str, Tensor]:
    """For every output channel of every layer, the trace of its weights' Hessian, per sample."""
    generator = torch.Generator().manual_seed(0)
    totals = {each.name: torch.zeros(each.channels, dtype=torch.float64) for each in weights}
    count = 0
    for batch in batches():
        with torch.enable_grad():
            leaves: dict[Node, Tensor] = {
                each.source: each.values.clone().requires_grad_() for each in weights
            }
            outputs = several(Leaves(module, leaves).run(*batch))
            loss = distance.between([y.detach() for y in outputs], outputs)
            values = [leaves[each.source] for each in weights]
            slopes = torch.autograd.grad(loss, values, create_graph=True, materialize_grads=True)
            for probe in range(PROBES):
                signs = [
                    torch.randint(0, 2, w.shape, generator=generator).to(w.dtype) * 2 - 1
                    for w in values
                ]
                along = sum(
                    ((g * v).sum() for g, v in zip(slopes, signs, strict=True)), torch.zeros(())
                )
                curved = torch.autograd.grad(
                    along, values, retain_graph=probe + 1 < PROBES, materialize_grads=True
                )
                for each, v, hv in zip(weights, signs, curved, strict=True):
                    totals[each.name] += (v * hv).flatten(1).sum(1).to(torch.float64) / PROBES
        count += len(batch[0])
    return {name: (total / max(count, 1)).clamp(min=0) for name, total in totals.items()}


def costs_by_trace(
    module: fx.GraphModule,
    weights: Sequence[Weights],
    widths: Sequence[int],
    batches: Batches,
    distance: Distance,
) -> list[Costs]:
    """Half the mean second derivative of a channel's weights times their squared error."""
    costs = Costs(module, weights, widths, batches, distance)
    found = traces(module, weights, batches, distance)
    for each in weights:
        errors = torch.tensor(
            [[_error(channel, width) for width in widths] for channel in each.values],
            dtype=torch.float64,
        )
        costs.tables[each.name] = (found[each.name][:, None] / each.inputs * errors / 2).numpy()
    return [costs]


def _error(values: Tensor, width: int) -> float:
    """Of weights that are rounded to nearest with the best binary point of a width."""
    if width == 0:
        return float(values.square().sum(dtype=torch.float64))
    low, high = (float(x) for x in torch.aminmax(values))
    kinds: list[FixedPoint] = candidates(low, high, width, True)
    return min(squared_error(values, kind) for kind in kinds)
