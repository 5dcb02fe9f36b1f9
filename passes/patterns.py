"""Which weights may vanish together, so that hardware vanishes with them.

Weights are taken in the order in which they are stored, rows [outputs, inputs] one after the other.
hls4ml's Resource layers give multiplier m the weights m * reuse to (m + 1) * reuse - 1, one a
cycle: a slot. Weights that are read in the same cycle share a word of memory: the same place
modulo the reuse factor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxloom.errors import RecipeError
from fxloom.passes.thresholds import smallest

Kind = Literal["free", "n:m", "slots", "words"]

_PLAIN: dict[str, Kind] = {"free": "free", "slots": "slots", "words": "words"}
_N_OF_M = re.compile(r"([1-9]\d{0,3}):([1-9]\d{0,3})")


@dataclass(frozen=True)
class Pattern:
    """free: any weight. n:m: of every `of` inputs in a row `kept` stay. slots, words: as above."""

    kind: Kind = "free"
    kept: int = 0
    of: int = 0

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Of "free", "2:4", "slots", "words". Raises RecipeError for others."""
        if text in _PLAIN:
            return cls(_PLAIN[text])
        found = _N_OF_M.fullmatch(text)
        if found is None or int(found[1]) >= int(found[2]):
            raise RecipeError(
                'pattern: required "free", "slots", "words" or N:M such as "2:4", N weights of M '
                f'that stay, with N below M; got "{text}"'
            )
        return cls("n:m", int(found[1]), int(found[2]))

    @property
    def sparsity(self) -> float | None:
        """What N:M leaves no choice of."""
        return 1 - self.kept / self.of if self.kind == "n:m" else None

    @property
    def is_blocks(self) -> bool:
        """Whether whole blocks go."""
        return self.kind in ("slots", "words")

    def problem(
        self, groups: int, size: int, inputs: int, transposed: bool, reuse: int
    ) -> str | None:
        """Why the weights of a layer cannot be pruned so, if they cannot. size: how many there are;
        inputs: of one output."""
        if self.kind == "n:m" and inputs % self.of:
            return f"its {inputs} weights an output are no multiple of {self.of}"
        if self.is_blocks and (groups > 1 or transposed):
            kind = "transposed convolution" if transposed else f"convolution in {groups} groups"
            return f"the weights of a {kind} are stored in another order"
        if self.is_blocks and size % reuse:
            return f"its {size:,} weights are no multiple of the reuse factor {reuse}"
        return None

    def blocks(self, values: Tensor, reuse: int) -> Tensor:
        """The values of each block in a row: [blocks, weights of a block]."""
        flat = values.reshape(-1)
        return flat.reshape(-1, reuse) if self.kind == "slots" else flat.reshape(-1, reuse).T

    def spread(self, dropped: Tensor, shape: torch.Size, reuse: int) -> Tensor:
        """What goes where these blocks go: bool, of the shape of the rows."""
        size = shape.numel()
        if self.kind == "slots":
            return dropped[:, None].expand(-1, reuse).reshape(shape)
        return dropped[None].expand(size // reuse, -1).reshape(shape)

    def drop(self, scores: Tensor, count: int, reuse: int) -> Tensor:
        """Which weights go, bool: `count` of those with the least scores that may go together, or
        as many as whole blocks leave below that.

        scores: not negative, of rows [groups, outputs, inputs]; zero where nothing is left.
        """
        if self.kind == "free":
            return smallest([scores.contiguous()], count)[0]
        if self.is_blocks:
            chosen = self.drop_blocks([scores], [reuse], count)
            return chosen[0]
        grouped = scores.reshape(-1, self.of)
        ranks = grouped.argsort(dim=1, stable=True).argsort(dim=1)
        may_go = ranks < self.of - self.kept
        judged = torch.where(may_go, grouped, torch.inf)
        most = min(count, int(may_go.sum()))
        return smallest([judged.contiguous()], most)[0].reshape(scores.shape)

    def drop_blocks(
        self, scores: Sequence[Tensor], reuse: Sequence[int], count: int
    ) -> list[Tensor]:
        """The same for blocks of several layers, which are judged by their mean scores."""
        means, sizes = [], []
        for rows, factor in zip(scores, reuse, strict=True):
            blocks = self.blocks(rows, factor)
            means.append(blocks.mean(1, dtype=torch.float64))
            sizes.append(torch.full((len(blocks),), blocks.shape[1]))
        order = torch.cat(means).argsort(stable=True)
        ordered = torch.cat(sizes)[order]
        chosen = torch.zeros(len(order), dtype=torch.bool)
        chosen[order] = ordered.cumsum(0) <= count
        parts = torch.split(chosen, [len(each) for each in sizes])
        return [
            self.spread(part, rows.shape, factor)
            for part, rows, factor in zip(parts, scores, reuse, strict=True)
        ]
