"""Tensors as sums of products of vectors: the canonical polyadic decomposition.

By alternating least squares from several starts at once, each sweep going beyond what it found and
back where that was too far (Mitchell, Ye & De Sterck 2020, arXiv 1810.05846): that needs a fraction
of the sweeps. The best sum of a given number of terms need not exist: sums come nearer and nearer
to the tensor while their terms grow and cancel each other (de Silva & Lim 2008). A small cost on
their size, a fixed share of the error, keeps them small.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from string import ascii_lowercase

import torch
from torch import Tensor

from fxloom.passes.low_rank import bases
from fxloom.passes.tucker import iterated

STARTS = 12
SWEEPS = 200
"""Of every start at most."""

MORE = 400
"""Of the two best starts, afterwards."""

WORK = 6e10
"""Multiply-adds that all sweeps together may have: larger tensors get fewer starts and sweeps."""

WIDER = 1.5
"""Of a large tensor: as many times as there are terms its first two axes are long, if not shorter,
while terms are sought."""

AFTER = 5
"""Sweeps over a large tensor afterwards."""

SHARE = 0.003
"""Of the squared error, what the size of the terms costs."""

GAIN = 1e-5
"""Of the squared error: sweeps end where ten of them gain less."""

FARTHEST = 3.0
"""How far beyond a sweep's own step one goes at most, in such steps."""

Terms = tuple[Tensor, ...]
"""Of each axis of the tensor the vectors, [groups, starts, size, terms]."""


def enough(sizes: Sequence[int]) -> int:
    """How many terms suffice for every tensor of these sizes."""
    return prod(sizes) // max(sizes)


def polyadic(tensor: Tensor, count: int, seed: int) -> Terms:
    """The sum of `count` terms nearest to a tensor [groups, *sizes], float64, that was found: of
    each axis the vectors, [groups, size, terms]. The vectors of a term are equally long.

    count: at most `enough(sizes)`, with which the sum is exact. seed: of the starts that are
    random. Fastest where the first axis is the longest.
    """
    tensor = tensor.unsqueeze(1)
    length = tensor.flatten(1).norm(dim=1).reshape(-1, *(1 for _ in tensor.shape[1:]))
    tensor = tensor / torch.where(length > 0, length, 1)
    is_large = 2 * tensor.numel() * count * STARTS * SWEEPS > WORK
    if count == enough(tensor.shape[2:]):
        terms = _of_slices(tensor, count)
    elif is_large and max(tensor.shape[2:4]) > WIDER * count:
        terms = _by_core(tensor, count, seed)
    else:
        terms = _searched(tensor, count, seed)
    first, *rest = (each[:, 0] for each in terms)
    return _even((first * length.reshape(-1, 1, 1), *rest))


def _searched(tensor: Tensor, count: int, seed: int) -> Terms:
    """The best of several starts. tensor: [groups, 1, *sizes], of length 1 each."""
    affordable = int(WORK / (2 * tensor.numel() * count))
    starts = min(STARTS, max(2, affordable // SWEEPS))
    drawn = _random(tensor, count, starts - 1, seed)
    leading = map(_beside, _bases(tensor, count), drawn)
    both = zip(_of_slices(tensor, count), leading, strict=True)
    terms = tuple(torch.cat(each, 1) for each in both)
    terms, errors = _swept(tensor, terms, max(2, min(SWEEPS, affordable // (2 * starts))))
    terms, errors = _swept(tensor, _best(terms, errors, 2), max(2, min(MORE, affordable // 4)))
    return _best(terms, errors, 1)


def _by_core(tensor: Tensor, count: int, seed: int) -> Terms:
    """The same by way of a tensor with the first two axes shorter (Bro & Andersson 1998)."""
    flat = tensor[:, 0].flatten(3)
    inputs, outputs = (min(size, int(WIDER * count)) for size in (flat.shape[2], flat.shape[1]))
    # In float32: sweeps over the whole tensor come afterwards.
    bases_of_both = iterated(flat.to(torch.float32), (inputs, outputs), seed)
    first, last = (each.to(tensor.dtype) for each in bases_of_both)
    core = torch.einsum("gock,goq,gcp->gqpk", flat, last, first)
    core = core.reshape(len(core), 1, outputs, inputs, *tensor.shape[4:])
    terms = _searched(core, count, seed)
    lifted = last.unsqueeze(1) @ terms[0], first.unsqueeze(1) @ terms[1], *terms[2:]
    return _swept(tensor, lifted, AFTER)[0]


def _of_slices(tensor: Tensor, count: int) -> Terms:
    """The largest singular triplets of the slices along the two longest axes: all of them are as
    many terms as are enough."""
    sizes = tensor.shape[2:]
    axes = sorted(range(len(sizes)), key=lambda axis: sizes[axis])
    slices = tensor.permute(0, 1, *(2 + axis for axis in axes))
    left, values, right = torch.linalg.svd(slices, full_matrices=False)
    places = values.flatten(2).argsort(2, descending=True)[..., :count]
    where = torch.unravel_index(places, values.shape[2:])
    found = {
        axis: torch.eye(sizes[axis], dtype=tensor.dtype)[place].mT
        for axis, place in zip(axes[:-2], where, strict=False)
    }
    columns = left.mT * values.unsqueeze(-1), right
    for axis, each in zip(axes[-2:], columns, strict=True):
        rows = each.flatten(2, -2)
        chosen = places.unsqueeze(-1).expand(*places.shape, sizes[axis])
        found[axis] = rows.gather(2, chosen).mT
    return tuple(found[axis] for axis in range(len(sizes)))


def _random(tensor: Tensor, count: int, starts: int, seed: int) -> Terms:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((len(tensor), starts, size, count) for size in tensor.shape[2:])
    return tuple(torch.randn(each, generator=generator, dtype=tensor.dtype) for each in shapes)


def _bases(tensor: Tensor, count: int) -> Terms:
    """Of every unfolding the leading vectors, at most `count`."""
    unfolded = (tensor[:, 0].movedim(axis, 1).flatten(2) for axis in range(1, tensor.dim() - 1))
    return tuple(bases(each, min(count, *each.shape[1:])).unsqueeze(1) for each in unfolded)


def _beside(leading: Tensor, random: Tensor) -> Tensor:
    """Random starts, the first of them with leading vectors as far as there are some."""
    random = random.clone()
    random[:, :1, :, : leading.shape[-1]] = leading
    return random


def _best(terms: Terms, errors: Tensor, count: int) -> Terms:
    """Of each group the starts with the least errors [groups, starts]."""
    chosen = errors.argsort(1)[:, :count, None, None]
    return tuple(each.gather(1, chosen.expand(-1, -1, *each.shape[2:])) for each in terms)


def _even(terms: Sequence[Tensor]) -> Terms:
    """The same sum, the vectors of a term equally long."""
    own = [each.norm(dim=-2, keepdim=True) for each in terms]
    length = prod(own[1:], start=own[0]) ** (1 / len(own))
    shares = (torch.where(each > 0, length / each, 0) for each in own)
    return tuple(each * share for each, share in zip(terms, shares, strict=True))


def _swept(tensor: Tensor, terms: Terms, sweeps: int) -> tuple[Terms, Tensor]:
    """Better terms, and their squared errors, [groups, starts]. tensor: [groups, 1, *sizes], of
    length 1 each."""
    here = _even(terms)
    errors = torch.full(here[0].shape[:2], torch.inf, dtype=tensor.dtype)
    sizes, costs, beyond = (torch.zeros_like(errors) for _ in range(3))
    checked, terms = errors, here
    for sweep in range(sweeps):
        found, error = _sweep(tensor, terms, costs)
        found = _even(found)
        size = sum((each.square().sum((2, 3)) for each in found), start=torch.zeros_like(error))
        is_better = error + costs * size <= errors + costs * sizes
        errors, sizes = torch.where(is_better, error, errors), torch.where(is_better, size, sizes)
        before, kept = here, is_better[..., None, None]
        here = tuple(torch.where(kept, new, old) for new, old in zip(found, here, strict=True))
        # Where it was too far, `here` is where it was, and the next sweep goes on from there.
        steps = beyond[..., None, None]
        terms = tuple(now + steps * (now - old) for now, old in zip(here, before, strict=True))
        beyond = torch.where(is_better, (1.1 * beyond + 0.05).clamp(max=FARTHEST), beyond / 2)
        if sweep % 5 == 0:
            costs = SHARE * errors / sizes.clamp(min=1e-30)
        if sweep % 10 == 9:
            if bool((checked - errors <= GAIN * errors).all()):
                break
            checked = errors
    return here, errors


def _sweep(tensor: Tensor, terms: Terms, costs: Tensor) -> tuple[Terms, Tensor]:
    """Each axis's vectors the best beside the others, one axis after another, and the squared
    errors. costs: [groups, starts], of the squared length of all vectors."""
    found = list(terms)
    grams = [each.mT @ each for each in found]
    flat = tensor.flatten(3)
    beside = found[1]
    for each in found[2:]:
        beside = (beside.unsqueeze(3) * each.unsqueeze(2)).flatten(2, 3)
    seen = flat @ beside
    rest = beside
    for axis in range(len(found)):
        if axis == 1:
            rest = (flat.mT @ found[0]).reshape(*rest.shape[:2], *tensor.shape[3:], -1)
        if axis > 0:
            seen = _projected(rest, found, axis)
        others = [each for other, each in enumerate(grams) if other != axis]
        gram = prod(others[1:], start=others[0])
        ridge = costs + 1e-13 * gram.diagonal(dim1=2, dim2=3).amax(2) + 1e-30
        gram = gram + ridge[..., None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype)
        found[axis] = torch.linalg.solve(gram, seen.mT).mT
        grams[axis] = found[axis].mT @ found[axis]
    squared = prod(grams[1:], start=grams[0]).sum((2, 3))
    total = tensor.square().flatten(1).sum(1, keepdim=True)
    return tuple(found), (total - 2 * (seen * found[-1]).sum((2, 3)) + squared).clamp(min=0)


def _projected(rest: Tensor, terms: Sequence[Tensor], axis: int) -> Tensor:
    """[groups, starts, size, terms]: what is left of [groups, starts, *sizes but the first, terms]
    along one axis, the vectors of the others multiplied in."""
    letters = dict(enumerate(ascii_lowercase[: len(terms)]))
    axes = [each for each in letters if each > 0]
    for other in sorted(axes, key=lambda each: -terms[each].shape[2]):
        if other != axis:
            now = "".join(letters[each] for each in axes)
            axes.remove(other)
            left = "".join(letters[each] for each in axes)
            form = f"xy{now}z,xy{letters[other]}z->xy{left}z"
            rest = torch.einsum(form, rest, terms[other])
    return rest
