"""Codewords for pieces of rows: k-means in a few dimensions, for all pieces at once.

The rows of a weight matrix are cut into pieces, and the pieces at the same place of all rows are
clustered (Gong et al. 2014, arXiv 1412.6115, section 3.3), from a start by k-means++ (Arthur and
Vassilvitskii 2007).
"""

from __future__ import annotations

import torch
from torch import Tensor

SWEEPS = 25
AT_ONCE = 1 << 23
"""Distances that are computed together."""


def product_indices(
    rows: Tensor, kept: Tensor | None, clusters: int, dim: int, seed: int
) -> Tensor:
    """Which codeword each piece of `dim` weights of each row gets: int64 [rows, pieces].

    rows: float32 [rows, columns]. kept: weights that count, None for all.
    """
    count, columns = rows.shape
    pieces = -(-columns // dim)
    present = torch.ones_like(rows) if kept is None else kept.to(rows.dtype)
    missing = pieces * dim - columns
    if missing:  # of the last piece, which may be shorter
        rows, present = (torch.nn.functional.pad(x, (0, missing)) for x in (rows, present))
    x, mask = (each.reshape(count, pieces, dim).transpose(0, 1) for each in (rows, present))
    generator = torch.Generator().manual_seed(seed)
    step = max(AT_ONCE // (count * clusters), 1)
    found = [
        _clustered(part * here, here, min(clusters, count), generator)
        for part, here in zip(torch.split(x, step), torch.split(mask, step), strict=True)
    ]
    return torch.cat(found).T.contiguous()


def _clustered(x: Tensor, mask: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """The number of the codeword of each point: [pieces, points]. x: [pieces, points, dim], zero
    where mask is."""
    words = _started(x, mask, clusters, generator)
    numbers = _nearest(x, mask, words)
    for _ in range(SWEEPS):
        places = numbers[:, :, None].expand_as(x)
        total = torch.zeros_like(words).scatter_add_(1, places, x)
        count = torch.zeros_like(words).scatter_add_(1, places, mask)
        words = torch.where(count > 0, total / count.clamp(min=1), words)
        again = _nearest(x, mask, words)
        if torch.equal(again, numbers):
            break
        numbers = again
    return numbers


def _started(x: Tensor, mask: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Codewords to begin with: points, each drawn by its distance from those before."""
    pieces, points, _ = x.shape
    every = torch.arange(pieces)
    drawn = torch.randint(points, (pieces,), generator=generator)
    words, far = [x[every, drawn]], torch.full((pieces, points), torch.inf)
    for _ in range(clusters - 1):
        off = (x - words[-1][:, None]) * mask
        far = torch.minimum(far, off.square().sum(2))
        chances = far + torch.finfo(far.dtype).tiny  # where all are at a codeword, any
        words.append(x[every, torch.multinomial(chances, 1, generator=generator)[:, 0]])
    return torch.stack(words, 1)


def _nearest(x: Tensor, mask: Tensor, words: Tensor) -> Tensor:
    """The number of the nearest codeword; what is not there is at no distance."""
    across = words.transpose(1, 2)
    return (mask @ across.square() - 2 * x @ across).argmin(2)
