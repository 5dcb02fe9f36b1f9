"""Smaller blocks in the place of a convolution, and the weights with which they begin.

A block is a first convolution, perhaps a batch norm and a rectifier, and heads whose outputs lie
side by side. Depthwise separable (Howard et al. 2017, arXiv 1704.04861): the kernels of single
input channels, then one 1x1 head; with a kernel for every position of the window the block is any
convolution (Guo et al. 2018, arXiv 1808.05517). Fire module (Iandola et al. 2016, arXiv
1602.07360): a 1x1 squeeze, then a 1x1 and a kxk head.

Without a rectifier both are products of two factors, and the weights are least squares: one factor
by singular vectors, then each in turn given the other, in the metric of the data where there are
some (Zhang et al. 2015, arXiv 1505.06798, section 3, reconstruct outputs in the same way). With
one, a fire module begins with pairs of opposite channels, whose difference no rectifier changes,
and a separable block with shifts that leave nothing to cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from fxloom.passes.factors import Part

SWEEPS = 20
ENOUGH = 1e-4
"""Turns of alternating least squares at most, and the relative gain at which they end."""

MOST_UNKNOWNS = 2048
"""Entries of a first factor up to which it is solved for; larger ones stay where they began."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm between: vectors of its channels, and what is added to the variance."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    eps: float = 1e-5


@dataclass(frozen=True, eq=False)
class Head:
    """A last layer of a block. outputs: which of the original layer's outputs it gives. A padding
    below zero crops."""

    part: Part
    outputs: Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """What takes the place of a convolution.

    offset: bias of the first layer, None for none. shift: what is added to the original layer's
    bias [outputs], None for nothing.
    """

    first: Part
    heads: tuple[Head, ...]
    offset: Tensor | None = None
    norm: Norm | None = None
    rectified: bool = False
    shift: Tensor | None = None

    def with_zeros(self) -> Block:
        """The block with biases that change nothing."""
        weight = self.first.weight
        shift = weight.new_zeros(sum(len(head.outputs) for head in self.heads))
        return replace(self, offset=weight.new_zeros(len(weight)), shift=shift)


@dataclass(frozen=True)
class Window:
    """How a convolution reads: one number an axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def size(self) -> int:
        """Positions."""
        return prod(self.kernel)

    @property
    def middle(self) -> int:
        """The place of the middle among the positions."""
        return self.size // 2

    def whole(self, weight: Tensor) -> Part:
        """A convolution that reads so. weight: [outputs, inputs, positions]."""
        shaped = weight.reshape(*weight.shape[:2], *self.kernel)
        return Part(shaped, self.stride, self.padding, self.dilation)

    def pointwise(self, weight: Tensor) -> Part:
        """A 1x1 convolution that reads the middle. weight: [outputs, inputs]."""
        padding = tuple(
            pad - step * (size // 2)
            for size, pad, step in zip(self.kernel, self.padding, self.dilation, strict=True)
        )
        return Part(_spread(weight, self), self.stride, padding, self._ones)

    def depthwise(self, kernels: Tensor) -> Part:
        """The convolution of single channels. kernels: [channels, multiplier, positions]."""
        weight = kernels.reshape(-1, 1, *self.kernel)
        return Part(weight, self.stride, self.padding, self.dilation, len(kernels))

    def plain(self, weight: Tensor) -> Part:
        """A 1x1 convolution at every position. weight: [outputs, inputs]."""
        return Part(_spread(weight, self), self._ones, tuple(0 for _ in self.kernel), self._ones)

    @property
    def _ones(self) -> tuple[int, ...]:
        return tuple(1 for _ in self.kernel)


def separable(
    target: Tensor, metric: Tensor, window: Window, multiplier: int
) -> tuple[Block, float]:
    """The depthwise separable block that is nearest, and its squared error relative to the target.

    target: [outputs, channels, positions], what the block should compute. metric: covariance of
    channels * positions inputs, in float64 as the target.
    """
    n_out, channels, taps = target.shape
    products = metric.reshape(channels, taps, channels, taps)
    own = torch.linalg.cholesky(products.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
    rows = target.transpose(0, 1) @ own  # [channels, outputs, positions]
    _, vectors = torch.linalg.eigh(rows.transpose(1, 2) @ rows)
    vectors = vectors[:, :, -multiplier:].transpose(1, 2)
    kernels = torch.linalg.solve_triangular(own, vectors, upper=False, left=False)
    wanted = (target.flatten(1) @ metric).reshape(target.shape)

    def points() -> Tensor:
        inner = torch.einsum("cik,ckdl,djl->cidj", kernels, products, kernels)
        right = torch.einsum("ock,cik->oci", wanted, kernels).flatten(1)
        return solved(inner.reshape(channels * multiplier, -1), right)

    def error(found: Tensor) -> float:
        joined = found.reshape(n_out, channels, multiplier)
        off = torch.einsum("oci,cik->ock", joined, kernels).sub_(target).flatten(1)
        return float(((off @ metric) * off).sum())

    found = points()
    least, power = error(found), float((wanted * target).sum())
    for _ in range(SWEEPS if kernels.numel() <= MOST_UNKNOWNS else 0):
        if least <= ENOUGH**2 * power:
            break
        joined = found.reshape(n_out, channels, multiplier)
        inner = torch.einsum("oci,odj,ckdl->cikdjl", joined, joined, products)
        right = torch.einsum("oci,ock->cik", joined, wanted).reshape(1, -1)
        size = right.shape[1]
        kernels = solved(inner.reshape(size, size), right).reshape(kernels.shape)
        found = points()
        before, least = least, error(found)
        if before - least <= ENOUGH * before:
            break
    scale = _balance(kernels.flatten(0, 1), found).reshape(channels, multiplier, 1)
    part = window.plain(found / scale.flatten())
    block = Block(window.depthwise(kernels * scale), (Head(part, torch.arange(n_out)),))
    return block, least / max(power, torch.finfo(torch.float64).tiny)


def fire(
    target: Tensor, metric: Tensor, window: Window, squeeze: int, points: int, *, rectified: bool
) -> tuple[Block, float]:
    """The fire module that is nearest, and its squared error relative to the target.

    squeeze: its channels between; points: outputs of its 1x1
    head, those whose middle positions say most. rectified: a rectifier follows the squeeze: then
    channels are opposite pairs. target, metric: as in `separable`."""
    n_out, channels, taps = target.shape
    chosen, restricted, lost = _pointwise(target, metric, window.middle, points)
    others = torch.tensor([n for n in range(n_out) if n not in set(chosen.tolist())])
    products = metric.reshape(channels, taps, channels, taps)
    middle = products[:, window.middle, :, window.middle]
    rank = squeeze // 2 if rectified else squeeze
    wide = target[others].reshape(len(others), channels, taps)
    level = torch.linalg.cholesky(torch.einsum("ckdk->cd", products) / taps)
    rows = torch.cat([wide.transpose(1, 2).reshape(-1, channels), restricted]) @ level
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    first = torch.linalg.solve_triangular(level, vectors[:, -rank:].T, upper=False, left=False)
    wanted = (wide.flatten(1) @ metric).reshape(wide.shape)
    few = restricted @ middle

    def heads() -> tuple[Tensor, Tensor]:
        inner = torch.einsum("ic,ckdl,jd->ikjl", first, products, first)
        right = torch.einsum("ock,ic->oik", wanted, first).flatten(1)
        large = solved(inner.reshape(rank * taps, -1), right).reshape(-1, rank, taps)
        return solved(first @ middle @ first.T, few @ first.T), large

    def error(small: Tensor, large: Tensor) -> float:
        off = (torch.einsum("oik,ic->ock", large, first) - wide).flatten(1)
        rest = small @ first - restricted
        return float(((off @ metric) * off).sum() + ((rest @ middle) * rest).sum())

    small, large = heads()
    least = error(small, large)
    power = float((wanted * wide).sum() + (few * restricted).sum())
    for _ in range(SWEEPS if rank * channels <= MOST_UNKNOWNS else 0):
        if least <= ENOUGH**2 * power:
            break
        inner = torch.einsum("oik,ojl,ckdl->icjd", large, large, products)
        inner += torch.einsum("oi,oj,cd->icjd", small, small, middle)
        right = torch.einsum("oik,ock->ic", large, wanted) + small.T @ few
        first = solved(inner.reshape(rank * channels, -1), right.reshape(1, -1))
        first = first.reshape(rank, channels)
        small, large = heads()
        before, least = least, error(small, large)
        if before - least <= ENOUGH * before:
            break
    scale = _balance(first, torch.cat([small, large.transpose(1, 2).reshape(-1, rank)]))
    first, small, large = first * scale[:, None], small / scale, large / scale[:, None]
    if rectified:
        first = torch.cat([first, -first])
        small, large = torch.cat([small, -small], 1), torch.cat([large, -large], 1)
    found = [Head(window.pointwise(small), chosen), Head(window.whole(large), others)]
    heads_found = tuple(head for head in found if len(head.outputs))
    left = float((target.flatten(1) @ metric * target.flatten(1)).sum())
    block = Block(window.plain(first), heads_found, rectified=rectified)
    return block, (least + lost) / max(left, torch.finfo(torch.float64).tiny)


def cast(block: Block, dtype: torch.dtype) -> Block:
    """A block without vectors whose weights have another type."""
    first = replace(block.first, weight=block.first.weight.to(dtype))
    heads = tuple(
        Head(replace(head.part, weight=head.part.weight.to(dtype)), head.outputs)
        for head in block.heads
    )
    return replace(block, first=first, heads=heads)


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """X with X matrix = right in the least squares sense. matrix: symmetric."""
    level = matrix.diagonal().mean().clamp(min=torch.finfo(matrix.dtype).tiny)
    ridged = matrix + 1e-10 * level * torch.eye(len(matrix), dtype=matrix.dtype)
    factor, failed = torch.linalg.cholesky_ex(ridged)
    if bool(failed):
        return right @ torch.linalg.pinv(matrix, hermitian=True)  # type: ignore[no-any-return]
    found: Tensor = torch.cholesky_solve(right.T, factor).T
    return found


def _pointwise(
    target: Tensor, metric: Tensor, middle: int, count: int
) -> tuple[Tensor, Tensor, float]:
    """The outputs that lose least where only the middle position is read, in order, their best
    weights there [count, channels], and what they lose."""
    taps = target.shape[2]
    columns = torch.arange(target.shape[1]) * taps + middle
    wanted = target.flatten(1) @ metric
    best = solved(metric[columns[:, None], columns], wanted[:, columns])
    gained = (best * wanted[:, columns]).sum(1)
    lost = (wanted * target.flatten(1)).sum(1) - gained
    chosen = lost.argsort(stable=True)[:count].sort().values
    return chosen, best[chosen], float(lost[chosen].sum())


def _balance(first: Tensor, last: Tensor) -> Tensor:
    """What to multiply the channels between by, so that both sides' weights of each are as long.

    first: [channels, weights]. last: [weights, channels]."""
    before, after = first.norm(dim=1), last.norm(dim=0)
    there = (before > 0) & (after > 0)
    return torch.where(there, (after / before.where(there, 1.0)).sqrt(), 1.0)


def _spread(weight: Tensor, window: Window) -> Tensor:
    return weight.reshape(*weight.shape, *(1 for _ in window.kernel))
