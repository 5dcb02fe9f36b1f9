"""Weights that train as one number a class, beside those that are zero for good.

The slope of a class's number is the sum of its weights' slopes (Han et al. 2016, arXiv 1510.00149,
section 3.3). Each weight gets that sum as its own slope, so that an optimizer that goes weight by
weight moves all of a class alike, as if there were one number; that it is one to the last bit is
seen to after every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxloom.sharing import Shared, classes_of, signs_of


@dataclass(frozen=True, eq=False)
class ByClass:
    """The weights of a tensor, by class. For training, all is kept in memory.

    classes: int32 [weights]; pruned weights are in a further class, the last, which is zero. first:
    of each class, the place of one of its weights. signs: of the weights, None where all are 1.
    """

    classes: Tensor
    first: Tensor
    signs: Tensor | None

    @classmethod
    def of(cls, shared: Shared, kept: Tensor | None, place: torch.device) -> ByClass:
        """Classes of a tensor that lies on a device. kept: weights that are not pruned."""
        classes, signs = classes_of(shared).reshape(-1), signs_of(shared)
        if kept is not None:
            classes[~kept.reshape(-1)] = shared.classes
        first = torch.zeros(shared.classes + 1, dtype=torch.int64)
        places = torch.arange(len(classes))
        first.scatter_reduce_(0, classes.long(), places, "amin", include_self=False)
        signs = None if signs is None else signs.reshape(-1).to(place)
        return cls(classes.to(place), first.to(place), signs)

    def add_up(self, slopes: Tensor) -> None:
        """Give each weight the slope of its number, in place."""
        found = self._signed(slopes.reshape(-1)).to(torch.float64)
        total = torch.zeros(len(self.first), dtype=torch.float64, device=slopes.device)
        total.index_add_(0, self.classes, found)
        self._spread(total.to(slopes.dtype), slopes)

    def tie(self, weights: Tensor) -> None:
        """Make the weights of a class one number again, in place."""
        flat = weights.reshape(-1)
        numbers = self._signed(flat)[self.first] if self.signs is not None else flat[self.first]
        self._spread(numbers, weights)

    def bounds(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of weights within which the number of a class stays whatever their signs."""
        if self.signs is None:
            return low, high
        return torch.maximum(low, -high), torch.minimum(high, -low)

    def _signed(self, values: Tensor) -> Tensor:
        return values if self.signs is None else values * self.signs

    def _spread(self, numbers: Tensor, out: Tensor) -> None:
        numbers[-1] = 0
        values = self._signed(numbers.index_select(0, self.classes))
        out.copy_(values.reshape(out.shape))
