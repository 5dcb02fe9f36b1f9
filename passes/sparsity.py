"""How many weights each layer gives up, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from fxloom.passes.surgeon import Curve

Schedule = Literal["one_shot", "iterative", "gradual"]


def shares(schedule: Schedule, steps: int, sparsity: float) -> list[float]:
    """The sparsity after every step.

    iterative: each step takes the same share of what is left (Han et al. 2015). gradual: many
    weights first and ever fewer, by a cubic law (Zhu and Gupta 2017, arXiv 1710.01878).
    """
    if schedule == "one_shot":
        return [sparsity]
    if schedule == "iterative":
        early = [1 - (1 - sparsity) ** (step / steps) for step in range(1, steps)]
    else:
        early = [sparsity * (1 - (1 - step / steps) ** 3) for step in range(1, steps)]
    return [*early, sparsity]


def allocate(curves: Sequence[Curve], count: int) -> list[int]:
    """How many weights each layer gives up, so that together `count` go and cost least.

    The last weight of a layer goes only where nothing else is left.
    """
    lasts = [int(curve.sizes.nonzero().max()) for curve in curves]
    prices = torch.cat([*(curve.prices for curve in curves), torch.full((len(curves),), torch.inf)])
    sizes = torch.cat([*(curve.sizes for curve in curves), torch.ones(len(curves)).long()])
    starts = torch.tensor([0, *(len(curve.sizes) for curve in curves[:-1])]).cumsum(0)
    sizes[starts + torch.tensor(lasts)] -= 1
    every = torch.arange(len(curves))
    lengths = torch.tensor([len(curve.sizes) for curve in curves])
    owners = torch.cat([every.repeat_interleave(lengths), every])
    order = prices.argsort(stable=True)
    before = sizes[order].cumsum(0) - sizes[order]
    taken = (count - before).clamp(min=0).minimum(sizes[order])
    totals = torch.zeros(len(curves), dtype=torch.int64).index_add_(0, owners[order], taken)
    found: list[int] = totals.tolist()
    return found
