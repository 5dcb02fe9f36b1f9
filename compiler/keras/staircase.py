"""Functions with a few values: comparisons with constants, or a search through tables of them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxloom.keras.number_formats import narrowest
from fxloom.quantized_ops import LOOKUP, REQUANTIZE

MAX_COMPARISONS = 7
"""Steps that are compared side by side; of more, one is found bit by bit."""

SIGNIFICANT = 24
"""Bits of the largest step: as many as float32 has."""


class Staircase(nn.Module):
    """values[n] where x has reached n of the steps, which rise.

    Steps are rounded up to 24 significant bits of the largest: no x on a coarser grid sees that.
    """

    def __init__(self, steps: Sequence[float], values: Sequence[float]) -> None:
        super().__init__()
        assert len(values) == len(steps) + 1
        _, exponent = np.frexp(np.abs(steps).max())
        rounded = np.ldexp(np.ceil(np.ldexp(steps, SIGNIFICANT - exponent)), exponent - SIGNIFICANT)
        self.steps, self.values = rounded.tolist(), [float(value) for value in values]
        self.tables: list[tuple[str, int, tuple[int, int, bool]]] = []
        if len(steps) > MAX_COMPARISONS:
            self._make_tables(rounded)

    def _make_tables(self, steps: npt.NDArray[np.float64]) -> None:
        bits = len(steps).bit_length()
        missing = (1 << bits) - 1 - len(steps)
        # Behind the last step nothing changes any more, wherever further ones may be.
        steps = np.concatenate([steps, np.full(missing, steps[-1])])
        values = np.concatenate([self.values, np.full(missing, self.values[-1])])
        for found in range(bits):
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
        middle = float(getattr(self, self.tables[0][0])[0])
        count = (x >= middle).to(x.dtype)
        for name, bits, to in self.tables[1:]:
            table = REQUANTIZE(getattr(self, name), *to, "RND_CONV", "SAT")
            entry: Tensor = LOOKUP(count, table, bits, bits, False)
            if bits == len(self.tables) - 1:
                return entry
            count = count * 2 + (x >= entry).to(x.dtype)
        raise AssertionError
