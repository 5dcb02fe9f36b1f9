"""The different numbers among weights: a codebook, where they are few."""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fxloom.fixed_point import Int64Array, IntArray

MOST = 256
"""Different numbers of what is called a codebook."""

_SAMPLE = 1 << 12
_BLOCK = 1 << 20

_KEPT: dict[Any, Int64Array | None] = {}

T = TypeVar("T")


def codebook(weights: IntArray) -> Int64Array | None:
    """The different numbers, ascending, zero among them; None where they are more than MOST.

    Kept as long as the array is that it is all of: constants of programs do not change.
    """
    return kept(_KEPT, weights, (), _codebook)


def kept(cache: dict[Any, T], weights: IntArray, more: Any, make: Callable[[IntArray], T]) -> T:
    """What `make` says of an array, from a cache that has it as long as the array is that it is all
    of. more: what else tells it from others."""
    base = weights.base
    held = base if isinstance(base, np.ndarray) and base.size == weights.size else weights
    key = id(held), more
    if key not in cache:
        cache[key] = make(weights)
        weakref.finalize(held, cache.pop, key, None)
    return cache[key]


def _codebook(weights: IntArray) -> Int64Array | None:
    flat = weights.reshape(-1)
    if len(np.unique(flat[:: max(flat.size // _SAMPLE, 1)])) > MOST:
        return None
    found = np.empty(0, np.int64)
    for start in range(0, flat.size, _BLOCK):
        found = np.union1d(found, flat[start : start + _BLOCK].astype(np.int64))
        if len(found) > MOST:
            return None
    return found


def code_width(count: int) -> int:
    """Bits of the number of one of so many values."""
    return max((count - 1).bit_length(), 1)
