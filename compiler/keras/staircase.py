"""Functions with a few values: comparisons with constants, or a search through tables of them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxloom.keras.number_formats import narrowest
from fxloom.quantized_ops import LOOKUP, REQUANTIZE

MAX_COMPARISONS = 15
"""Steps that are compared side by side; of more, one is found bit by bit."""


class Staircase(nn.Module):
    """values[n] where x has reached n of the steps, float32 numbers that rise."""

    def __init__(self, steps: Sequence[float], values: Sequence[float]) -> None:
        super().__init__()
        assert len(values) == len(steps) + 1
        self.steps, self.values = ([float(each) for each in listed] for listed in (steps, values))
        self.tables: list[tuple[str, int, tuple[int, int, bool]]] = []
        if len(steps) > MAX_COMPARISONS:
            self._make_tables(np.array(self.steps))

    def _make_tables(self, steps: npt.NDArray[np.float64]) -> None:
        bits = len(steps).bit_length()
        missing = (1 << bits) - 1 - len(steps)
        # Behind the last step nothing changes any more, wherever further ones may be.
        steps = np.concatenate([steps, np.full(missing, steps[-1])])
        values = np.concatenate([self.values, np.full(missing, self.values[-1])])
        self.middle = float(steps[len(steps) // 2])
        for found in range(1, bits):
            half = 1 << (bits - found - 1)
            self._table(found, steps[half - 1 :: 2 * half])
        self._table(bits, values)

    def _table(self, bits: int, entries: npt.NDArray[np.float64]) -> None:
        name, to = f"table{bits}", narrowest(entries)
        self.register_buffer(name, torch.tensor(entries, dtype=torch.float32))
        self.tables.append((name, bits, (to.width, to.integer, to.signed)))

    def forward(self, x: Tensor) -> Tensor:
        if self.tables:
            return self._searched(x)
        y = (x >= self.steps[0]).to(x.dtype) * (self.values[1] - self.values[0]) + self.values[0]
        for step, value in zip(self.steps[1:], self.values[2:], strict=True):
            y = torch.where(x >= step, value, y)
        return y

    def _searched(self, x: Tensor) -> Tensor:
        """How many steps are reached is found from its highest bit on."""
        count = (x >= self.middle).to(x.dtype)
        *steps, values = self.tables
        for table in steps:
            count = count * 2 + (x >= self._entry(count, *table)).to(x.dtype)
        return self._entry(count, *values)

    def _entry(self, count: Tensor, name: str, bits: int, to: tuple[int, int, bool]) -> Tensor:
        table = REQUANTIZE(getattr(self, name), *to, "RND_CONV", "SAT")
        entry: Tensor = LOOKUP(count, table, bits, bits, False)
        return entry
