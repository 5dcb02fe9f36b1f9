"""How far the outputs of a model are from those of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from fxloom.errors import RecipeError
from fxloom.graph import output_nodes
from fxloom.passes.calibration import Batch
from fxloom.passes.losses import are_probabilities

SOFT = 2.0
"""Deviation of scores up to which a softmax is soft."""


def several(outputs: Any) -> list[Tensor]:
    """The outputs that are numbers, of one or of several."""
    found = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    return [y for y in found if y.is_floating_point()]


@dataclass(frozen=True)
class Distance:
    """Per sample: for class scores [batch, classes] the divergence of Kullback and Leibler between
    the softmaxes; for others half the squared error, relative to the variance of the output.

    variances: of every output. is_scores: whether the only output is class scores. temperature:
    scores are divided by it before the softmax.
    """

    variances: tuple[float, ...]
    is_scores: bool = False
    temperature: float = 1.0

    @classmethod
    def of(
        cls,
        module: fx.GraphModule,
        batches: Callable[[], Iterator[Batch]],
        squares: bool = False,
    ) -> Distance:
        """For the outputs of a float graph. squares: as numbers, even where they are scores."""
        values = [n.meta["val"] for n in output_nodes(module) if n.meta["val"].is_floating_point()]
        if not values:
            raise RecipeError(
                "mixed_precision: required an output of real numbers: how far others move says "
                "little about widths"
            )
        is_table = len(values) == 1 and values[0].dim() == 2 and values[0].shape[1] > 1
        is_scores = is_table and not squares
        sums = torch.zeros(3, len(values), dtype=torch.float64)
        with torch.inference_mode():
            for batch in batches():
                outputs = several(module(*batch))
                is_scores = is_scores and not are_probabilities(outputs[0])
                for place, y in enumerate(outputs):
                    wide = y.to(torch.float64)
                    sums[:, place] += torch.stack(
                        [wide.sum(), wide.square().sum(), torch.tensor(float(y.numel()))]
                    )
        variance = sums[1] / sums[2] - (sums[0] / sums[2]).square()
        return cls(tuple(torch.where(variance > 0, variance, 1.0).tolist()), is_scores)

    @property
    def softened(self) -> Distance | None:
        """The same at a temperature at which no sample is certain of its class, so that small
        steps tell something of larger ones; None where nothing changes."""
        deviation = self.variances[0] ** 0.5
        is_certain = self.is_scores and deviation > SOFT
        return replace(self, temperature=deviation / SOFT) if is_certain else None

    def between(self, wanted: Sequence[Tensor], got: Sequence[Tensor]) -> Tensor:
        """Summed over the samples; in float64."""
        if self.is_scores:
            p, q = (
                functional.log_softmax(y[0].to(torch.float64) / self.temperature, 1)
                for y in (wanted, got)
            )
            return (p.exp() * (p - q)).sum()
        total = torch.zeros((), dtype=torch.float64)
        for a, b, variance in zip(wanted, got, self.variances, strict=True):
            squares = (a.to(torch.float64) - b).square().sum()
            total = total + squares * len(a) / a.numel() / variance / 2
        return total

    def probe(self, outputs: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """A number whose gradients, squared, have the curvature of the distance as their mean."""
        if self.is_scores:
            scores = outputs[0] / self.temperature
            drawn = torch.multinomial(scores.detach().softmax(1), 1, generator=generator)
            return -functional.log_softmax(scores, 1).gather(1, drawn).sum()
        total = torch.zeros(())
        for y, variance in zip(outputs, self.variances, strict=True):
            signs = torch.randint(0, 2, y.shape, generator=generator).to(y.dtype) * 2 - 1
            total = total + (y * signs).sum() / (variance * y[:1].numel()) ** 0.5
        return total
