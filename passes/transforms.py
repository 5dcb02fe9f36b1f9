"""Matrices as products of diagonals that train and transforms that never change.

    acdc      A C D C^-1, again and again with the outputs shuffled between (Moczulski et al. 2015,
              arXiv 1511.05946); C is the discrete cosine transform
    fastfood  S H G P H B, again and again (Yang et al. 2015, arXiv 1412.7149); H is the
              Walsh-Hadamard transform, whose entries are 1 and -1, P a permutation

A chain is transforms and the diagonals before, between and maybe behind them. Inputs that a
transform is too long for are zero and outputs beyond the matrix's are not computed: those columns
and rows are left out. Permutations are in the transforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["acdc", "fastfood"]

PROBES = 32
"""Random inputs of a step of the fit."""


@dataclass(frozen=True)
class Chain:
    """transforms: [outputs, inputs] each, float32; diagonals: one before each of them, and with
    fastfood one behind the last."""

    transforms: tuple[Tensor, ...]
    diagonals: tuple[Tensor, ...]

    @property
    def numbers(self) -> int:
        """How many train."""
        return sum(len(each) for each in self.diagonals)

    def __call__(self, x: Tensor) -> Tensor:
        """What the chain makes of inputs [..., n_in]."""
        for diagonal, transform in zip(self.diagonals, self.transforms, strict=False):
            x = (x * diagonal) @ transform.T
        behind = self.diagonals[len(self.transforms) :]
        return prod(behind, start=x)


def size_of(kind: Kind, n_in: int, n_out: int) -> int:
    """The length of the transforms: the longer side, for fastfood the next power of two."""
    longer = max(n_in, n_out)
    return longer if kind == "acdc" else 1 << (longer - 1).bit_length()


def numbers_of(kind: Kind, depth: int, n_in: int, n_out: int) -> int:
    """How many numbers a chain trains for a matrix."""
    size = size_of(kind, n_in, n_out)
    between = 2 * depth - 1
    return n_in + between * size + (n_out if kind == "fastfood" else 0)


def chain_of(kind: Kind, depth: int, n_in: int, n_out: int, seed: int) -> Chain:
    """A random chain of that many blocks for [n_out, n_in]; the same for the same seed."""
    size = size_of(kind, n_in, n_out)
    generator = torch.Generator().manual_seed(seed)
    transforms = []
    for block in range(depth):
        if kind == "acdc":
            cosine = _cosine(size)
            shuffled = cosine if block == 0 else cosine[:, _riffle(size)]
            transforms += [shuffled, cosine.T]
        else:
            hadamard = _hadamard(size)
            order = torch.randperm(size, generator=generator)
            transforms += [hadamard[order], hadamard]
    transforms[0] = transforms[0][:, :n_in]
    transforms[-1] = transforms[-1][:n_out]
    # Near 1, so that what went in comes out of the cosine transforms; of either sign, so that the
    # Hadamard transforms spread the inputs differently, and as large as before.
    diagonals = []
    for transform in transforms:
        noise = torch.randn(transform.shape[1], generator=generator)
        signs = noise.sign() / sqrt(size)
        diagonals.append(1 + 0.1 * noise if kind == "acdc" else signs)
    if kind == "fastfood":
        diagonals.append(torch.ones(n_out))
    return Chain(tuple(each.contiguous() for each in transforms), tuple(diagonals))


def fit(chain: Chain, weights: Tensor, steps: int, seed: int) -> tuple[Chain, float]:
    """The chain with diagonals that come nearer to the matrix [n_out, n_in], and the squared error
    that is left, relative to the matrix.

    By Adam on random inputs, whose mean squared error is that of the matrix: so neither the product
    of the chain nor a gradient of its size is ever there.
    """
    weights = weights.detach().to(torch.float32)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Tensor, Tensor]:
        probes = torch.randn(PROBES, weights.shape[1], generator=generator)
        return probes, probes @ weights.T

    with torch.no_grad():
        probes, wanted = draw()
        scale = wanted.square().mean().sqrt() / chain(probes).square().mean().sqrt()
    spread = scale ** (1 / len(chain.diagonals))
    diagonals = [(each * spread).requires_grad_() for each in chain.diagonals]
    chain = Chain(chain.transforms, tuple(diagonals))
    optimizer = torch.optim.Adam(
        [{"params": [each], "lr": 0.03 * float(each.detach().abs().mean())} for each in diagonals]
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    with torch.enable_grad():  # whatever the caller is in
        for step in range(steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            probes, wanted = draw()
            loss = (chain(probes) - wanted).square().mean() / wanted.square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    chain = Chain(chain.transforms, tuple(each.detach() for each in diagonals))
    with torch.no_grad():
        probes = torch.randn(max(PROBES, 256), weights.shape[1], generator=generator)
        wanted = probes @ weights.T
        error = (chain(probes) - wanted).square().sum() / wanted.square().sum()
    return chain, float(error)


def _cosine(size: int) -> Tensor:
    """The orthonormal discrete cosine transform, its inverse being the transpose (DCT-II)."""
    frequency, place = np.arange(size)[:, None], np.arange(size)
    matrix = sqrt(2 / size) * np.cos(np.pi * (2 * place + 1) * frequency / (2 * size))
    matrix[0] /= sqrt(2)
    return torch.from_numpy(matrix.astype(np.float32))


def _hadamard(size: int) -> Tensor:
    """The Walsh-Hadamard transform of a power of two, of 1 and -1."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _riffle(size: int) -> Tensor:
    """The even places, then the odd ones."""
    return torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2)])
