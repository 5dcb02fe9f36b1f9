"""The smallest of many numbers, exactly, in one pass and hardly any memory.

The k-th smallest magnitude lies between two of a random sample (Floyd and Rivest 1975, selection);
one pass, block by block in the cache, counts what is below the lower one and keeps what lies
between them, which is less than a hundredth. Where the bracket misses, a wider one is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

BLOCK = 2**16
"""Numbers that are looked at together: their magnitudes stay in the cache."""

SAMPLE = 2**18
"""Numbers that are drawn to find a bracket; of as many all are sorted."""

DEVIATIONS = 4.0
"""Half the width of the bracket, in standard deviations of the place in the sample."""


@dataclass(frozen=True)
class Threshold:
    """A magnitude, how many are smaller, and how many of those that equal it count as well."""

    value: float
    below: int
    equal: int


def threshold(tensors: Sequence[Tensor], count: int) -> Threshold:
    """What separates the `count` smallest magnitudes of all tensors from the others.

    tensors: finite floating numbers. count: 0 to as many as there are.
    """
    arrays = [_flat(tensor) for tensor in tensors]
    total = sum(len(array) for array in arrays)
    assert 0 <= count <= total
    if count == 0:
        return Threshold(-1.0, 0, 0)
    place = count - 1  # from zero, of the largest one that still counts
    if total <= SAMPLE:
        return _in(np.sort(np.concatenate([np.abs(array) for array in arrays])), place, 0)
    sample = _sample(arrays, total)
    expected, share = place / total * len(sample), place / total
    margin = DEVIATIONS * (len(sample) * share * (1 - share)) ** 0.5 + 2
    while True:
        first, last = int(expected - margin), int(expected + margin) + 1
        low = sample[first] if first >= 0 else sample.dtype.type(-1)
        high = sample[last] if last < len(sample) else sample.dtype.type(np.inf)
        found = _between(arrays, place, low, high)
        if found is not None:
            return found
        margin *= 8


def smallest(tensors: Sequence[Tensor], count: int) -> list[Tensor]:
    """For every tensor which of its numbers are among the `count` smallest magnitudes of all, bool.

    Of equal ones the first count, in the order of the tensors.
    """
    limit = threshold(tensors, count)
    left, found = limit.equal, []
    for tensor in tensors:
        values = tensor.detach()
        chosen = torch.empty(values.shape, dtype=torch.bool)
        flat, mask = _flat(values), chosen.reshape(-1).numpy()
        value = flat.dtype.type(limit.value)
        for start in range(0, len(flat), BLOCK):
            part = np.abs(flat[start : start + BLOCK])
            np.less(part, value, out=mask[start : start + BLOCK])
            if left > 0:
                ties = np.flatnonzero(part == value)[:left]
                mask[start + ties] = True
                left -= len(ties)
        found.append(chosen)
    return found


def _flat(tensor: Tensor) -> Array:
    values = tensor.detach().reshape(-1)
    array: Array = (values if values.dtype in _NATIVE else values.to(torch.float32)).numpy()
    return array


_NATIVE = (torch.float32, torch.float64, torch.float16)


def _sample(arrays: Sequence[Array], total: int) -> Array:
    """Magnitudes drawn at random, the same ones every time, sorted."""
    generator = np.random.default_rng(0)
    parts = []
    for array in arrays:
        share = -(-SAMPLE * len(array) // total)
        if len(array):
            parts.append(np.abs(array[generator.integers(0, len(array), share)]))
    return np.sort(np.concatenate(parts))


def _between(arrays: Sequence[Array], place: int, low: Any, high: Any) -> Threshold | None:
    """The threshold where it lies between two magnitudes or is one of them, else None."""
    size = max(len(array) for array in arrays)
    magnitudes = {array.dtype: np.empty(min(BLOCK, size), array.dtype) for array in arrays}
    masks = np.empty((2, min(BLOCK, size)), bool)
    below = upto = 0
    kept = np.empty(BLOCK, arrays[0].dtype)
    for array in arrays:
        for start in range(0, len(array), BLOCK):
            part = array[start : start + BLOCK]
            part = np.abs(part, out=magnitudes[array.dtype][: len(part)])
            above, inside = masks[:, : len(part)]
            np.less_equal(part, low, out=above)
            not_above = int(np.count_nonzero(above))
            np.less(part, high, out=inside)
            count = int(np.count_nonzero(inside)) - not_above
            below += not_above
            if count > 0:  # below it where both bounds are one number, which many may equal
                np.greater(inside, above, out=inside)
                if upto + count > len(kept):
                    kept.resize(max(len(kept) * 5 // 4, upto + count), refcheck=False)
                kept[upto : upto + count] = part[inside]
                upto += count
    if place < below:
        least = sum(_count(array, low, strict=True) for array in arrays)
        return Threshold(float(low), least, place + 1 - least) if place >= least else None
    if place < below + upto:
        kept = kept[:upto]
        kept.sort()
        return _in(kept, place - below, below)
    equal = sum(_count(array, high, strict=False) for array in arrays)
    if place < equal:
        return Threshold(float(high), below + upto, place + 1 - below - upto)
    return None


def _count(array: Array, limit: Any, *, strict: bool) -> int:
    compare = np.less if strict else np.less_equal
    return sum(
        int(np.count_nonzero(compare(np.abs(array[start : start + BLOCK]), limit)))
        for start in range(0, len(array), BLOCK)
    )


def _in(ordered: Array, place: int, below: int) -> Threshold:
    """The threshold at a place of sorted magnitudes. below: smaller ones that are not there."""
    value = ordered[place]
    smaller = int(np.searchsorted(ordered, value, "left"))
    return Threshold(float(value), below + smaller, place + 1 - smaller)
