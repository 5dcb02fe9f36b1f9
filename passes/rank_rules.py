"""Ranks of one layer, as a recipe says them: given, by energy, or by what is more than noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fxloom.errors import RecipeError
from fxloom.passes.decompositions import (
    METHODS,
    check,
    parameters,
    ranks_by_energy,
    ranks_by_vbmf,
)
from fxloom.passes.factorable import Layer, Method, Ranks

MethodName = Literal["svd", "spatial", "tucker", "cp", "tt"]


@dataclass(frozen=True)
class Rule:
    """method: how a layer is factored. rank, energy: how far, at most one of them."""

    method: MethodName | None = None
    rank: int | tuple[int, ...] | Literal["vbmf"] | None = None
    energy: float | None = None

    def problems(self) -> Iterator[str]:
        """What is wrong with it, whatever the layer."""
        if self.rank is not None and self.energy is not None:
            yield "required one of rank, energy, got both"
        if self.rank is not None and self.rank != "vbmf":
            given = (self.rank,) if isinstance(self.rank, int) else self.rank
            if not given or min(given) < 1:
                yield f"rank: required at least 1, got {self.rank}"
        if self.energy is not None and not 0 < self.energy < 1:
            yield f"energy: required a share between 0 and 1, got {self.energy:g}"

    @property
    def says(self) -> bool:
        """Whether it says how far."""
        return self.rank is not None or self.energy is not None

    def over(self, common: Rule) -> Rule:
        """This rule where it says something, another one elsewhere."""
        far = self if self.says else common
        return Rule(self.method or common.method, far.rank, far.energy)

    def ranks(self, layer: Layer, seed: int) -> Ranks:
        """The ranks that it says for a layer that its method takes."""
        assert self.method is not None
        method = METHODS[self.method]
        full = method.full(layer)
        if isinstance(self.rank, int):
            if len(full) == 1:
                return (self.rank,)
            return method.feasible(layer, tuple(min(self.rank, most) for most in full))
        if isinstance(self.rank, tuple):
            return self.rank
        if self.energy is not None:
            return ranks_by_energy(method, layer, self.energy, seed)
        return ranks_by_vbmf(method, layer)


def reason_against(method: Method, layer: Layer, ranks: Ranks) -> str:
    """Why a layer is not factored with these ranks; empty where it is."""
    try:
        check(method, layer, ranks)
    except RecipeError as error:
        return str(error)
    count = parameters(method, layer, ranks)
    if count < layer.size:
        return ""
    best = _largest(method, layer)
    advice = f"up to rank {best} it has fewer" if best else "it has fewer at no rank"
    return (
        f"{method.name} of rank {', '.join(map(str, ranks))} has {count:,} weights, and the layer "
        f"{layer.size:,}; {advice}"
    )


def _largest(method: Method, layer: Layer) -> int:
    """The largest number that saves weights as every rank; 0 where none does."""
    full = method.full(layer)
    low, high = 0, max(full)
    while low < high:
        middle = (low + high + 1) // 2
        ranks = method.feasible(layer, tuple(min(middle, most) for most in full))
        saves = parameters(method, layer, ranks) < layer.size
        low, high = (middle, high) if saves else (low, middle - 1)
    return low
