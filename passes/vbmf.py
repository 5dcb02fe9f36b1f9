"""How many singular values of a matrix are more than noise.

Empirical variational Bayesian matrix factorization has a closed form when every entry is observed,
but for the variance of the noise, which is the minimum of a function of one number (Nakajima,
Sugiyama, Babacan & Tomioka 2013, "Global analytic solution of fully-observed variational Bayesian
matrix factorization", JMLR 14). Ranks of convolutions that way: Kim et al. 2015, arXiv 1511.06530.
"""

from __future__ import annotations

from math import ceil, log1p, sqrt

import torch
from torch import Tensor

POINTS = 512
"""Variances of noise that are tried at once."""

ZOOMS = 4
"""How often the neighbours of the best are divided again."""


def rank_of(energies: Tensor, rows: int, columns: int) -> int:
    """How many components of a matrix of rows by columns are signal; 0 where it is all noise.

    energies: all its squared singular values, descending.
    """
    short, long = min(rows, columns), max(rows, columns)
    energies = energies.to(torch.float64)
    if float(energies.sum()) == 0:
        return 0
    # Below the rounding of float32 nothing was stored; zeros have no logarithm.
    energies = energies.clamp(min=float(energies[0]) * 1e-14)
    ratio = short / long
    detected = threshold(ratio)
    variance = _noise(energies / long, ratio, detected)
    return int((energies > variance * long * detected).sum())


def threshold(ratio: float) -> float:
    """Of a matrix of noise of variance 1, shorter over longer side `ratio`, and with the longer
    side going to infinity: the squared singular value over that side from which a component counts.

    Noise alone has none above (1 + sqrt(ratio))**2 (Marchenko & Pastur 1967), which is less.
    """

    def sign(tau: float) -> float:
        return sum(log1p(each) / each - 0.5 for each in (tau, tau / ratio))

    low, high = 1e-12, 2.6  # at ratio 1, where it is the largest, 2.5129
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if sign(middle) > 0 else (low, middle)
    return (1 + high) * (1 + ratio / high)


def _noise(energies: Tensor, ratio: float, detected: float) -> float:
    """The variance of the noise. energies: squared singular values over the longer side."""
    short = len(energies)
    most = min(ceil(short / (1 + ratio)) - 1, short - 1)
    tail = energies[most:]
    low = max(float(tail[0]) / detected, float(tail.mean()))
    high = float(energies.mean())
    if not low < high:
        return high
    for _ in range(ZOOMS):
        variances = torch.linspace(0, 1, POINTS, dtype=torch.float64)
        variances = low * (high / low) ** variances
        best = int(_free_energy(energies / variances[:, None], ratio, detected).argmin())
        low, high = float(variances[max(best - 1, 0)]), float(variances[min(best + 1, POINTS - 1)])
    return sqrt(low * high)


def _free_energy(scaled: Tensor, ratio: float, detected: float) -> Tensor:
    """[variances]: what the variance minimizes. scaled: [variances, components], energies over the
    longer side and the variance."""
    noise = scaled - scaled.log()
    excess = scaled.clamp(min=detected) - (1 + ratio)
    tau = (excess + (excess.square() - 4 * ratio).sqrt()) / 2
    signal = (tau + 1).log() + ratio * (tau / ratio + 1).log() - tau
    return (noise + torch.where(scaled > detected, signal, 0)).mean(1)
