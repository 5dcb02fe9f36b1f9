"""The best matrices of lower rank, as fast as their size demands."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

LARGE = 1024
"""From this shorter side on few columns of a basis are sought in a Krylov space."""

DOUBLE = 1 << 22
"""Up to so many numbers singular values are found in float64, which takes twice as long."""

BLOCK = 32
"""Columns by which a Krylov space grows at once."""

BALANCING = 4
"""How often factors are scaled against their neighbours."""

ROUNDS = 4
"""How often at most a block is made orthogonal to those before it."""


def bases(matrix: Tensor, rank: int, seed: int = 0) -> Tensor:
    """[groups, rows, rank]: the orthonormal columns onto which matrices [groups, rows, columns] are
    best projected, the most important first.

    rank: at most the shorter side. From the eigenvectors of the matrix times its transpose, or of
    the transpose times the matrix where that is smaller; few of a large matrix from a block Krylov
    space (Musco & Musco 2015, arXiv 1504.05477), where a matrix of noise, the worst there is, loses
    0.3% at most and one like trained weights nothing. seed: of that space.
    """
    rows, columns = matrix.shape[-2:]
    short, size = min(rows, columns), space_of(rank)
    if short >= LARGE and 5 * size <= 2 * short:
        return torch.stack([_krylov(each, rank, size, seed) for each in matrix])
    if rows > columns:
        right = _leading(matrix.transpose(-1, -2) @ matrix, rank)
        return _orthonormal(matrix @ right)
    left = _leading(matrix @ matrix.transpose(-1, -2), rank)
    if matrix.dtype == torch.float64 or 2 * rank > rows:
        return left
    # Squaring has left half of the digits: one step of the power iteration finds the others.
    return _orthonormal(matrix @ (matrix.transpose(-1, -2) @ left))


def space_of(rank: int) -> int:
    """How many columns the Krylov space has in which those of this rank are sought."""
    return -(-(3 * rank + 2 * BLOCK) // BLOCK) * BLOCK


def energies(matrix: Tensor) -> Tensor:
    """[groups, shorter side]: the squared singular values of matrices [groups, rows, columns],
    descending, float64; of more than `DOUBLE` numbers within 1e-6 of the largest."""
    rows, columns = matrix.shape[-2:]
    short = matrix if rows <= columns else matrix.transpose(-1, -2)
    short = short.to(torch.float64) if short.numel() <= DOUBLE else short
    values: Tensor = torch.linalg.eigvalsh(short @ short.transpose(-1, -2))
    return values.flip(-1).clamp(min=0).to(torch.float64)


def split(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors, [..., rows, rank] and [..., rank, columns], whose product is the matrix
    projected onto an orthonormal basis [..., rows, rank].

    Of each rank the column and the row are equally long, as with the root of the singular value in
    both, so that formats and training fit both.
    """
    right = basis.transpose(-1, -2) @ matrix
    scale = right.norm(dim=-1).sqrt()
    safe = torch.where(scale > 0, scale, 1)
    return basis * scale.unsqueeze(-2), right / safe.unsqueeze(-1)


def balanced(factors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Factors [groups, outputs, inputs, ...], each reading what the one before gives, scaled so
    that of what is between two the weights that give it are as large as those that read it."""
    found = list(factors)
    for _ in range(BALANCING):
        for index in range(len(found) - 1):
            given, read = found[index], found[index + 1]
            lengths = given.flatten(2).norm(dim=2), read.transpose(1, 2).flatten(2).norm(dim=2)
            ratio = (lengths[1] / lengths[0]).sqrt()
            scale = torch.where((ratio > 0) & ratio.isfinite(), ratio, 1)
            found[index] = given * scale.reshape(*scale.shape, *(1,) * (given.dim() - 2))
            shape = len(scale), 1, scale.shape[1], *(1,) * (read.dim() - 3)
            found[index + 1] = read / scale.reshape(shape)
    return tuple(found)


def _leading(gram: Tensor, count: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues, those first."""
    vectors: Tensor = torch.linalg.eigh(gram)[1]
    return vectors[..., -count:].flip(-1)


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis


def _krylov(matrix: Tensor, rank: int, size: int, seed: int) -> Tensor:
    """[rows, rank]: the best columns within a Krylov space of `size` columns."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(matrix.shape[1], BLOCK, generator=generator, dtype=matrix.dtype)
    space = matrix.new_empty(len(matrix), 0)
    block, seen = matrix @ start, []
    while True:
        # A space that the matrix maps into itself leaves noise, which is not orthogonal at once.
        for _ in range(ROUNDS):
            inside = space.T @ block
            block = _orthonormal(block - space @ inside)
            if space.numel() == 0 or float((space.T @ block).abs().max()) < 1e-5:
                break
        space = torch.cat([space, block], 1)
        seen.append(matrix.T @ block)
        if space.shape[1] >= size:
            break
        block = matrix @ seen[-1]
    projected = torch.cat(seen, 1)
    return _orthonormal(space @ _leading(projected.T @ projected, rank))
