"""How many multipliers products with a constant matrix need, and which constants need none."""

from math import ceil

import numpy as np

from fxloom.fixed_point import IntArray

HARD_DIGITS = 3
"""A constant with fewer non-zero signed digits becomes one addition or none, not a multiplier."""

MOST_SHIFTS = 16
"""Bits of a mantissa up to which choosing one of its shifts is taken for less than a product."""


def csd_digits(weights: IntArray) -> IntArray:
    """Non-zero digits of the canonical signed digit (non-adjacent) form of every weight.

    NAF(n) has a digit wherever n and 3n differ in binary. Source: Reitwiesner 1960. weights: any
    shape, magnitudes below 2**61.
    """
    magnitude = np.abs(weights.astype(np.int64))
    differing = magnitude ^ (3 * magnitude)
    octets = np.ascontiguousarray(differing)[..., None].view(np.uint8)
    counts: IntArray = np.unpackbits(octets, axis=-1).sum(axis=-1, dtype=np.int64)
    return counts


def are_powers(mantissas: IntArray, width: int) -> bool:
    """Whether no multiplier is needed: all mantissas are zero or a power of two, with a sign."""
    if width > MOST_SHIFTS:
        return False
    flat = mantissas.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        magnitude = np.abs(flat[start : start + (1 << 20)].astype(np.int32))
        if np.any(magnitude & (magnitude - 1)):
            return False
    return True


def hard_multiplications(matrix: IntArray) -> int:
    """Over the rows (inputs) of a weight matrix, the number of distinct weights that need a
    multiplier: w and -w are two, a weight twice in a row is one.
    """
    lo, hi = int(matrix.min()), int(matrix.max())
    count = _hard_by_presence if hi - lo < matrix.shape[1] * 4 else _hard_by_order
    rows = max(1, (1 << 20) // max(matrix.shape[1], 1))
    return sum(
        count(matrix[start : start + rows].astype(np.int64), lo, hi)
        for start in range(0, matrix.shape[0], rows)
    )


def _hard_by_presence(rows: IntArray, lo: int, hi: int) -> int:
    """For few possible weights: mark those that occur in a row."""
    present = np.zeros((rows.shape[0], hi - lo + 1), dtype=bool)
    present[np.arange(rows.shape[0])[:, None], rows - lo] = True
    hard = csd_digits(np.arange(lo, hi + 1)) >= HARD_DIGITS
    return int(present[:, hard].sum())


def _hard_by_order(rows: IntArray, lo: int, hi: int) -> int:
    """For many possible weights: equal ones become neighbours."""
    ordered = np.sort(rows, axis=1)
    first = np.ones(ordered.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return int((first & (csd_digits(ordered) >= HARD_DIGITS)).sum())


def multiplier_limit(size: int, zeros: int, reuse: int) -> int:
    """How many multipliers hls4ml allows a dense layer with this many weights."""
    return ceil(size / reuse) - zeros // reuse


def latency_dsp(hard: int, size: int, zeros: int, reuse: int) -> int:
    """DSP blocks of a dense layer with the Latency strategy (rule 1)."""
    return min(hard, multiplier_limit(size, zeros, reuse))
