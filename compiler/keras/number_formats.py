"""Formats of given numbers."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fxloom.fixed_point import MAX_WIDTH, FixedPoint
from fxloom.keras.registry import Refused


def narrowest(values: npt.NDArray[np.floating[Any]]) -> FixedPoint:
    """The narrowest format that holds float32 numbers exactly. Raises Refused beyond 63 bits."""
    if not np.isfinite(values).all():
        raise Refused("its numbers must be finite")
    numbers = values[values != 0].astype(np.float64)
    if not numbers.size:
        return FixedPoint(1, 1)
    mantissas, exponents = np.frexp(numbers)
    integers = np.ldexp(mantissas, 53).astype(np.int64)
    lowest = np.log2((integers & -integers).astype(np.float64)).astype(np.int64) + exponents - 53
    fraction = -int(lowest.min())
    if int(exponents.max()) + fraction > MAX_WIDTH - 1:
        raise Refused(
            f"its numbers, from {np.abs(numbers).min():g} to {np.abs(numbers).max():g}, need more "
            f"than {MAX_WIDTH} bits"
        )
    steps = np.ldexp(numbers, fraction)
    return FixedPoint.holding(min(int(steps.min()), 0), max(int(steps.max()), 0), fraction)
