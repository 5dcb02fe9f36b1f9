"""quantized_po2 and quantized_relu_po2: to the nearest power of two, by comparisons.

Between which powers a number is halfway is decided by float32 logarithms in QKeras, and so here.
Source: _clip_power_of_two and _get_min_max_exponents in qkeras/quantizers.py, 0.9.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxloom.keras.quantizers import Quantizer
from fxloom.keras.registry import Refused
from fxloom.keras.staircase import Staircase

Floats = npt.NDArray[np.float32]

EPSILON = np.float32(1e-7)
"""keras.backend.epsilon(); what is below it becomes the lowest power."""


@dataclass(frozen=True)
class Powers:
    """The exponents that a quantizer may give, before they are doubled by `quadratic`."""

    lowest: int
    highest: int
    most: float | None
    quadratic: bool
    down: bool

    @classmethod
    def of(cls, quantizer: Quantizer, sign_bits: int) -> Self:
        """sign_bits: of the number itself, 1 or 0."""
        most, quadratic = quantizer["max_value"], bool(quantizer["quadratic_approximation"])
        bits = quantizer["bits"] - sign_bits - (most is None or most > 1)
        if bits < 0:
            raise Refused(f"{quantizer.name} of {quantizer['bits']} bit has none for an exponent")
        highest = (1 << bits) - 1
        highest = highest // 2 * 2 if quadratic else highest
        down = quantizer["log2_rounding"] == "floor"
        return cls(-(1 << bits), highest, most, quadratic, down)

    def exponents(self, magnitudes: Floats) -> npt.NDArray[np.int64]:
        """The exponents of what is not negative, computed as QKeras does."""
        filtered = np.maximum(magnitudes, EPSILON)
        if self.most is not None:
            filtered = np.minimum(filtered, np.float32(self.most))
        with np.errstate(divide="ignore"):
            logarithms = np.log(np.sqrt(filtered) if self.quadratic else filtered)
        logarithms = logarithms / np.float32(np.log(2.0))
        rounded = np.floor(logarithms) if self.down else np.rint(logarithms)
        exponents = np.clip(rounded, self.lowest, self.highest) * (2 if self.quadratic else 1)
        lowest = self.lowest
        return np.where(magnitudes < EPSILON, lowest, exponents).astype(np.int64)

    def powers(self, magnitudes: Floats) -> Floats:
        """The powers of two themselves. Raises Refused where float32 does not hold one."""
        exponents = self.exponents(magnitudes)
        if exponents.size and not -126 <= exponents.min() <= exponents.max() <= 127:
            raise Refused("a power of two that float32 does not hold")
        powers: Floats = np.ldexp(np.float32(1), exponents.astype(np.int32))
        return powers

    def staircase(self) -> Staircase:
        """The power for a number that is not negative, which rises at the first float32 to have
        it."""
        ends = self.exponents(np.array([0, EPSILON, np.finfo(np.float32).max], np.float32))
        if ends.max() - ends.min() > 61:
            raise Refused(
                f"powers of two from 2**{ends.min()} to 2**{ends.max()} need more than 63 bits: "
                "give the quantizer fewer bits, or a max_value"
            )
        places = {int(ends[1]): EPSILON} if ends[0] != ends[1] else {}
        for exponent in range(int(ends[1]) + 1, int(ends[2]) + 1):
            place = self._first(exponent)
            places.setdefault(int(self.exponents(np.array([place]))[0]), place)
        if not places:
            raise Refused("a quantizer to one power of two is a constant")
        values = [2.0**exponent for exponent in (int(ends[0]), *places)]
        return Staircase([float(place) for place in places.values()], values)

    def _first(self, exponent: int) -> np.float32:
        """The least float32 from EPSILON on whose exponent is no less; by halves of bit patterns,
        which lie in the order of the numbers."""
        low, high = (int(np.float32(x).view(np.int32)) for x in (EPSILON, np.finfo(np.float32).max))
        while low < high:
            middle = (low + high) // 2
            number = np.array([middle], np.int32).view(np.float32)
            if self.exponents(number)[0] >= exponent:
                high = middle
            else:
                low = middle + 1
        return np.float32(np.array([low], np.int32).view(np.float32)[0])


def signed_powers(quantizer: Quantizer, numbers: Floats) -> Floats:
    """What quantized_po2 makes of constants."""
    powers = Powers.of(quantizer, 1)
    return np.where(numbers < 0, np.float32(-1), np.float32(1)) * powers.powers(np.abs(numbers))


def unsigned_powers(quantizer: Quantizer, numbers: Floats) -> Floats:
    """What quantized_relu_po2 makes of constants."""
    powers, slope = Powers.of(quantizer, 0), np.float32(quantizer["negative_slope"])
    above = powers.powers(np.maximum(numbers, 0))
    if not slope:
        return above
    return np.where(numbers >= 0, above, -powers.powers(np.maximum(-numbers, 0) * slope))


class SignedPowers(nn.Module):
    """quantized_po2: the sign of x, 1 of zero, times the power of two nearest to its magnitude."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.powers = Powers.of(quantizer, 1).staircase()

    def forward(self, x: Tensor) -> Tensor:
        power: Tensor = self.powers(torch.abs(x))
        return torch.where(x >= 0, power, -power)


class UnsignedPowers(nn.Module):
    """quantized_relu_po2: the power of two nearest to x, the least of what is not positive; with a
    slope, less the power nearest to that fraction of what is negative."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.powers = Powers.of(quantizer, 0).staircase()
        self.slope = quantizer["negative_slope"]

    def forward(self, x: Tensor) -> Tensor:
        if not self.slope:
            unsigned: Tensor = self.powers(x)
            return unsigned
        power: Tensor = self.powers(torch.maximum(x, x * -self.slope))
        return torch.where(x >= 0, power, -power)
