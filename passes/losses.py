"""The losses that training lowers, and which of them fits outputs and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fxloom.errors import DataError, RecipeError
from fxloom.passes.training import Samples

LossName = Literal["auto", "cross_entropy", "nll", "mse"]
Loss = Callable[[Tensor, Tensor], Tensor]

PROBABILITY_FLOOR = 2.0**-12
"""Added to probabilities before their logarithm: fixed-point ones may be zero."""


@dataclass(frozen=True)
class LabelObjective:
    """The objective of a training on labels. output: the number of the one that they are for."""

    loss: Loss
    output: int
    first_final: int = 0

    def __call__(self, outputs: tuple[Tensor, ...], samples: Samples, epoch: int) -> Tensor:
        assert samples.labels is not None
        return self.loss(outputs[self.output], samples.labels)


def loss_of(name: LossName, output: Tensor, labels: Tensor) -> tuple[str, Loss]:
    """The loss that fits labels and outputs, by name. output: that of the first
    samples. labels: of all.

    Raises DataError for labels outside the classes or of another shape, RecipeError for outputs
    that no gradient reaches.
    """
    if not output.is_floating_point():
        raise RecipeError(f"finetune: required a model whose output is real, got {output.dtype}")
    classes = output.shape[1] if output.dim() > 1 else 1
    whole = not labels.is_floating_point()
    if name == "auto" and whole and classes == 1:
        raise DataError(
            "y_train: whole numbers, but the model has one output: required class numbers and an "
            'output for each class, or loss = "mse"'
        )
    if name == "auto":
        name = "mse" if not whole else "nll" if are_probabilities(output) else "cross_entropy"
    if name == "mse":
        _require_shape(labels[:1].numel(), output[:1].numel(), labels, output)
        return name, lambda y, t: functional.mse_loss(y, t.to(y.dtype).reshape(y.shape))
    require_classes(labels, output, f'loss = "{name}" ')

    def entropy(y: Tensor, t: Tensor) -> Tensor:
        return functional.cross_entropy(y, t.reshape(len(y), *y.shape[2:]))

    def likelihood(y: Tensor, t: Tensor) -> Tensor:
        logarithms = torch.log(y.clamp(min=0) + PROBABILITY_FLOOR)
        return functional.nll_loss(logarithms, t.reshape(len(y), *y.shape[2:]))

    return name, entropy if name == "cross_entropy" else likelihood


def require_classes(labels: Tensor, output: Tensor, who: str = "") -> None:
    """Raise DataError for labels that are not one class of the outputs for every place."""
    if labels.is_floating_point():
        raise DataError(f"y_train: {who}required class numbers, got {labels.dtype}")
    _require_shape(labels[:1].numel(), output[:1, :1].numel(), labels, output)
    low, high, classes = int(labels.min()), int(labels.max()), output.shape[1]
    if low < 0 or high >= classes:
        raise DataError(
            f"y_train: required class numbers 0 to {classes - 1}, for the model has {classes} "
            f"outputs; got {low} to {high}"
        )


def are_probabilities(output: Tensor) -> bool:
    """Whether all outputs of a sample add up to one, rounding aside: a softmax came last."""
    sums = output.sum(1)
    return bool((output >= 0).all()) and bool(((sums - 1).abs() < 0.05).all())


def _require_shape(got: int, wanted: int, labels: Tensor, output: Tensor) -> None:
    if got != wanted:
        raise DataError(
            f"y_train: required {wanted} labels a sample, for the model's output is "
            f"{list(output.shape[1:])}; got {got}, shape {list(labels.shape[1:])}"
        )
