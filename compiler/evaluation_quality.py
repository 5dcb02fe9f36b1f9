"""What the outputs of a compressed model are worth: against the labels, and against the original's
outputs on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from fxloom.accuracy import float_outputs, outputs_of
from fxloom.data import Data, SplitName
from fxloom.errors import DataError
from fxloom.evaluation_report import Quality
from fxloom.graph import output_nodes
from fxloom.samples import Inputs

Values = npt.NDArray[Any]
Run = Callable[[Inputs], Any]


@dataclass
class Judge:
    """Judges models on the same samples, which it holds, with what the original gives for them.

    graph: the original, as captured. samples: at most so many, evenly spread; all by default.
    output: the one that labels are for, where there are several: output_0, output_1 and so on.
    Raises DataError for an output that there is not.
    """

    graph: fx.GraphModule
    data: Data
    samples: int | None = None
    output: str | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.split: SplitName = "test" if self.data.has("test") else "train"
        self._place = _place_of(self.graph, self.output)
        pairs = (
            self.data.pairs(self.split)
            if self.samples is None
            else self.data.sampled(self.split, self.samples)
        )
        # Once, for a loader that shuffles would give others the next time.
        found = [(x, labels) for x, labels in pairs]
        self.batches: list[Inputs] = [x for x, _ in found]
        self._originals = [outputs_of(float_outputs(self.graph, x)) for x in self.batches]
        self.count = sum(len(outputs[0]) for outputs in self._originals)
        self._labels = self._usable([labels for _, labels in found])
        self._right: Values | None = None
        if self.split == "train":
            self.notes.append("there are no test samples: training samples were judged")

    def __call__(self, run: Run) -> Quality:
        """run: gives the outputs of a batch. The first call is for the original itself."""
        squares, errors = [0.0] * len(self._originals[0]), [0.0] * len(self._originals[0])
        right, distance, numbers = [], 0.0, 0
        for batch, (x, wants) in enumerate(zip(self.batches, self._originals, strict=True)):
            haves = outputs_of(run(x))
            for place, (want, have) in enumerate(zip(wants, haves, strict=True)):
                squares[place] += _distance(want, 0.0)
                errors[place] += _distance(have, want)
            if self._labels is None:
                continue
            truth, have = self._labels[batch], haves[self._place or 0]
            if truth.dtype == np.int64:
                decided = have if _are_decisions(wants[self._place or 0], truth) else have.argmax(1)
                right.append(decided.reshape(-1) == truth.reshape(-1))
            else:
                distance += _distance(have.reshape(-1), truth.reshape(-1))
                numbers += truth.size
        met = np.concatenate(right) if right else None
        if self._right is None:
            self._right = met
        return Quality(
            accuracy=None if met is None else float(met.mean()),
            label_error=_rounded(sqrt(distance / numbers)) if numbers else None,
            places=numbers if met is None else met.size,
            lost=0 if met is None or self._right is None else int((self._right & ~met).sum()),
            gained=0 if met is None or self._right is None else int((met & ~self._right).sum()),
            errors=tuple(map(_relative, errors, squares)),
        )

    def _usable(self, labels: list[Tensor | None]) -> list[Values] | None:
        """The labels, where they are classes or numbers of the output; a note says why not."""
        given = [each for each in labels if each is not None]
        if len(given) < len(labels):
            self.notes.append(f"y_{self.split}: no labels, so no accuracy")
            return None
        if self._place is None:
            count = len(self._originals[0])
            self.notes.append(
                f"y_{self.split}: the model has {count} outputs, so no accuracy; output = "
                f'"output_0" to "output_{count - 1}" says which one the labels are for'
            )
            return None
        outputs = [each[self._place] for each in self._originals]
        if all(_are_decisions(y, t.numpy()) for y, t in zip(outputs, given, strict=True)):
            return [each.numpy() for each in given]
        if all(map(_are_classes, outputs, given)):
            low = min(int(each.min()) for each in given)
            high = max(int(each.max()) for each in given)
            classes = outputs[0].shape[1]
            if low < 0 or high >= classes:
                self.notes.append(
                    f"y_{self.split}: required class numbers 0 to {classes - 1}, got {low} to "
                    f"{high}, so no accuracy"
                )
                return None
            return [each.numpy() for each in given]
        if all(_are_numbers(*pair) for pair in zip(outputs, given, strict=True)):
            return [each.numpy().astype(np.float64) for each in given]
        shapes = [list(each.shape[1:]) for each in (outputs[0], given[0])]
        self.notes.append(
            f"y_{self.split}: required class numbers for an output of several classes, or a real "
            f"number for every output, which is of shape {shapes[0]} a sample; got "
            f"{given[0].dtype} of shape {shapes[1]}, so no accuracy"
        )
        return None


def size_of(x: Inputs) -> int:
    """Samples in a batch."""
    return len(x if isinstance(x, Tensor) else x[0])


def _place_of(graph: fx.GraphModule, output: str | None) -> int | None:
    """The number of the output that labels are for; None where several may be meant."""
    count = len(output_nodes(graph))
    names = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
    if output is None:
        return 0 if count == 1 else None
    if output not in names:
        raise DataError(f"output: required one of {', '.join(names)}, got {output!r}")
    return names.index(output)


def _are_classes(output: Values, labels: Tensor) -> bool:
    """One class a place, with a number for each class along the second axis."""
    several = output.ndim > 1 and output.shape[1] > 1
    return (
        several and labels.dtype == torch.int64 and labels.numel() * output.shape[1] == output.size
    )


def _are_decisions(output: Values, labels: Values) -> bool:
    """A whole number for each label: the model itself says which class is largest."""
    whole = output.dtype.kind in "iub" and labels.dtype.kind == "i"
    return whole and labels.size == output.size


def _are_numbers(output: Values, labels: Tensor) -> bool:
    return labels.dtype != torch.int64 and labels.numel() == output.size


def _distance(values: Values, others: Values | float) -> float:
    """Sum of the squares of all differences, in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.square(np.subtract(values, others, dtype=np.float64)).sum())


def _relative(error: float, square: float) -> float | None:
    if not (isfinite(error) and isfinite(square)):
        return None
    if not square:
        return None if error else 0.0
    return _rounded(sqrt(error / square))


def _rounded(number: float) -> float:
    """Sums of float32 may differ in later digits between machines."""
    return float(f"{number:.6g}")
