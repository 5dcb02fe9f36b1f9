"""What removing weights does to the outputs of a model: expected by curvature, or measured.

Optimal brain damage (LeCun et al. 1990) expects h w^2 / 2 of removing a weight w, with h the second
derivative by it alone. The distance from the float model's own outputs has its minimum at the float
weights, so that no labels are needed and no h is negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.errors import DataError, RecipeError
from fxloom.graph import constant, output_nodes
from fxloom.passes.calibration import Batch
from fxloom.passes.distance import Distance, several
from fxloom.passes.hessian import Leaves
from fxloom.passes.prunable import Prunable
from fxloom.passes.surgeon import Curve

PROBES = 4
"""Random directions for every few samples."""

FEW = 16
"""Samples whose gradients are added before they are squared; those of others are independent."""

DAMPING = 1e-6
"""Of a layer's mean curvature, added to each: what no sample says anything of goes by magnitude."""

LEVELS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Shares of a layer's weights whose removal is measured."""


def distance_of(module: fx.GraphModule, batches: Sequence[Batch]) -> Distance:
    """How far outputs are from the model's. Raises RecipeError where none are real numbers."""
    if not any(node.meta["val"].is_floating_point() for node in output_nodes(module)):
        raise RecipeError(
            "prune: required an output of real numbers: how far others move says little about "
            'weights. Choose method = "magnitude" and scope = "layer" or "global"'
        )
    return Distance.of(module, lambda: iter(batches))


def saliencies(
    module: fx.GraphModule, prunables: Sequence[Prunable], batches: Sequence[Batch]
) -> dict[Prunable, Tensor]:
    """For every weight the root of the damage that its removal is expected to do, per sample.

    float32 of the tensors' shapes; zero only where the weight is zero or far too small.
    """
    distance = distance_of(module, batches)
    # Removing weights is no small step, and where a model is certain small ones do nothing.
    distance = distance.softened or distance
    generator = torch.Generator().manual_seed(0)
    curvature = {each: torch.zeros_like(each.values, dtype=torch.float32) for each in prunables}
    count = 0
    for batch in batches:
        for few in zip(*(torch.split(x, FEW) for x in batch), strict=True):
            count += len(few[0])
            for _ in range(PROBES):
                leaves = {each: each.values.clone().requires_grad_() for each in prunables}
                with torch.enable_grad():
                    outputs = several(Leaves(module, _stand_ins(module, leaves)).run(*few))
                    _require_finite([y.detach() for y in outputs])
                    slopes = torch.autograd.grad(
                        distance.probe(outputs, generator),
                        list(leaves.values()),
                        materialize_grads=True,
                    )
                for each, slope in zip(prunables, slopes, strict=True):
                    curvature[each] += slope.square()
    result = {}
    for each, total in curvature.items():
        _require_finite([total])
        mean = float(total.mean(dtype=torch.float64)) or 1.0
        spread = (total + DAMPING * mean) / (2 * PROBES * count)
        result[each] = spread.sqrt_().mul_(each.values.abs())
    return result


def _stand_ins(module: fx.GraphModule, tensors: Mapping[Prunable, Tensor]) -> dict[Node, Tensor]:
    """The nodes that read tensors, each with what stands for it."""
    found = {}
    owners = {name: each for each in tensors for name in each.names}
    for node in module.graph.find_nodes(op="get_attr"):
        each = owners.get(str(node.target))
        if each is not None:
            found[node] = each.seen_as(constant(module, node.target), tensors[each])
    return found


def _require_finite(values: Sequence[Tensor]) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise DataError(
            "prune: the float model gives NaN or infinity on the training data. Check its weights "
            "and the data"
        )


Candidate = Callable[[int], Tensor]
"""The weights of a layer with so many of them removed, of the tensor's shape and strides."""


class Damage:
    """How far the outputs of a model move on some data where single layers are pruned."""

    def __init__(self, module: fx.GraphModule, batches: Sequence[Batch]) -> None:
        self._module, self._batches = module, batches
        self._distance = distance_of(module, batches)
        with torch.inference_mode():
            self._wanted = [several(module(*batch)) for batch in batches]
        _require_finite([y for outputs in self._wanted for y in outputs])

    def curve(self, prunable: Prunable, candidate: Candidate) -> Curve:
        """Over the number of weights removed."""
        size, begin = prunable.size, prunable.size - prunable.kept
        counts = sorted({begin, *(round(level * size) for level in LEVELS if level * size > begin)})
        losses = [0.0]
        for count in counts[1:]:
            there = count < size
            tensor = candidate(count) if there else torch.zeros_like(prunable.values)
            losses.append(self._moved(prunable, tensor))
        if begin:
            counts, losses = [0, *counts], [0.0, *losses]
        return Curve.of(torch.tensor(counts), torch.tensor(losses, dtype=torch.float64))

    def _moved(self, prunable: Prunable, tensor: Tensor) -> float:
        run = Leaves(self._module, _stand_ins(self._module, {prunable: tensor}))
        with torch.inference_mode():
            return sum(
                float(self._distance.between(outputs, several(run.run(*batch))))
                for batch, outputs in zip(self._batches, self._wanted, strict=True)
            )
