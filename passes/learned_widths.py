"""Widths that gradients find (FracBits: Yang and Jin 2020, arXiv 2007.02017).

A channel of 3.4 bits has weights between those of 3 and of 4 bits, so that the distance of the
outputs has a slope by its bits; what bits cost, by multiplication with the bits they meet where
that is the budget (Sun et al. 2024, arXiv 2405.00645, the effective bits of products), has another.
The price of a bit rises while the budget is overdrawn. Weights stay as they are, no labels are
needed, and errors are those that the whole network makes of all channels together.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, islice

import torch
from torch import Tensor

from fxloom.passes.distance import several
from fxloom.passes.sensitivity import Costs, Replaced, Rounded, Weights, injected

STEPS = 400
RATE = 0.05
"""Bits that a step moves by, about; it falls to nothing as a cosine."""
PRICE_RATE = 1.0
"""How fast the price of bits follows a budget that is overdrawn."""


def learned_bits(costs: Costs, units: Mapping[str, int], budget: float) -> dict[str, Tensor]:
    """For every layer the bits of each channel, real numbers.

    units: what a bit of a channel costs; budget: what all may cost together.
    """
    widths = torch.tensor(costs.widths, dtype=torch.float64)
    total = sum(units[each.name] * each.channels for each in costs.weights)
    start = min(max(budget / total, float(widths[0])), float(widths[-1]))
    bits = {
        each.name: torch.full((each.channels,), start, dtype=torch.float64, requires_grad=True)
        for each in costs.weights
    }
    optimizer = torch.optim.Adam(bits.values(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    price = 0.0
    batches = list(costs.batches())
    with torch.no_grad():
        outputs = [several(costs.module(*batch)) for batch in batches]
    with torch.enable_grad():
        for batch, wanted in islice(cycle(zip(batches, outputs, strict=True)), STEPS):
            replaced = {
                each: between(costs.rounded[each.name], widths, bits[each.name], each)
                for each in costs.weights
            }
            got = several(injected(costs.module, replaced, batch))
            moved = costs.distance.between(wanted, got) / len(wanted[0])
            used = sum(
                (units[each.name] * bits[each.name].sum() for each in costs.weights),
                torch.zeros((), dtype=torch.float64),
            ) / max(budget, 1)
            scale = float(moved.detach()) + 1e-12  # a price relative to what there is to win
            price = max(0.0, price + PRICE_RATE * (float(used.detach()) - 1))
            optimizer.zero_grad()
            (moved / scale + price * used).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for each in bits.values():
                    each.clamp_(float(widths[0]), float(widths[-1]))
    return {name: each.detach() for name, each in bits.items()}


def between(choices: list[Rounded], widths: Tensor, bits: Tensor, each: Weights) -> Replaced:
    """Weights in real numbers of bits: on the way from one width to the next."""
    upper = torch.searchsorted(widths, bits.detach(), right=True).clamp(1, len(widths) - 1)
    lower = upper - 1
    share = (bits - widths[lower]) / (widths[upper] - widths[lower])
    rows = torch.arange(len(bits))
    weights = torch.stack([choice.mantissas * choice.steps[:, None] for choice in choices])
    shifts = torch.stack([choice.shifts for choice in choices])
    mixed = weights[lower, rows] + share[:, None] * (weights[upper, rows] - weights[lower, rows])
    shifted = shifts[lower, rows] + share * (shifts[upper, rows] - shifts[lower, rows])
    dtype = each.values.dtype
    return Replaced(mixed.reshape(each.values.shape).to(dtype), shifted.to(dtype))
