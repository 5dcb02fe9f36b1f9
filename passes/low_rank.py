"""The best matrices of lower rank, as fast as their size demands."""

from __future__ import annotations

import torch
from torch import Tensor


def bases(matrix: Tensor, rank: int, seed: int = 0) -> Tensor:
    """[..., rows, rank]: the orthonormal columns onto which a matrix [..., rows, columns] is best
    projected, the most important first."""
    left: Tensor = torch.linalg.svd(matrix, full_matrices=False)[0]
    return left[..., :rank]


def energies(matrix: Tensor) -> Tensor:
    """The squared singular values of matrices [groups, rows, columns], descending, float64, added
    over the groups."""
    rows, columns = matrix.shape[-2:]
    short = matrix if rows <= columns else matrix.transpose(-1, -2)
    short = short.to(torch.float64)
    values: Tensor = torch.linalg.eigvalsh(short @ short.transpose(-1, -2))
    return values.flip(-1).clamp(min=0).sum(0)


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
