"""The methods by which layers are factored, and what is known of them before anything is computed.

    svd      linear layers and all convolutions: two parts (passes/two_factors.py)
    spatial  convolutions of two axes: two parts
    tucker   convolutions: 1x1, kernel, 1x1 (passes/tucker.py)
    cp       convolutions: 1x1, one depthwise an axis, 1x1 (passes/canonical.py)
    tt       convolutions: 1x1, one an axis, 1x1; linear layers: one part a core
             (passes/tensor_trains.py)

Ranks: svd and spatial have one, cp one, tucker two (of the inputs, of the outputs), tt one between
neighbouring parts or cores.

Convolutions of groups are factored group by group, with the same ranks, into parts of as many
groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from fxloom.errors import RecipeError
from fxloom.passes.canonical import Canonical
from fxloom.passes.factorable import (
    Layer,
    Method,
    Ranks,
    TwoFactors,
    outline,
    output_sizes,
    weight_of,
)
from fxloom.passes.factors import Chain, positions_of_row
from fxloom.passes.factors import macs as macs_of_chain
from fxloom.passes.factors import parameters as parameters_of_chain
from fxloom.passes.low_rank import energies, split
from fxloom.passes.tensor_trains import TensorTrain
from fxloom.passes.tucker import Tucker
from fxloom.passes.two_factors import Spatial, Svd
from fxloom.passes.vbmf import rank_of

METHODS: Mapping[str, Method] = {
    each.name: each for each in (Svd(), Spatial(), Tucker(), Canonical(), TensorTrain())
}

TWO_FACTORS: Mapping[str, TwoFactors] = {each.name: each for each in (Svd(), Spatial())}
"""Those of one matrix, of which a chain can be had from a given basis."""


def parts(method: Method, layer: Layer, ranks: Ranks, seed: int = 0) -> Chain:
    """The layer factored: at `method.full(layer)` it computes the same.

    ranks: as many as `method.full(layer)` has. seed: of what is random; the same chain for the
    same seed. Raises RecipeError for a layer that the method cannot take, and for ranks that are
    too many, too few, too large or of no use beside the others, naming the largest possible.
    """
    check(method, layer, ranks)
    return method.assemble(layer, method.factors(layer, ranks, seed))


def check(method: Method, layer: Layer, ranks: Ranks) -> None:
    """Raise RecipeError where `parts` would."""
    if problem := method.problem(layer):
        raise RecipeError(f"{method.name}: {problem}")
    full = method.full(layer)
    if len(ranks) != len(full):
        raise RecipeError(f"{method.name}: required {len(full)} ranks, got {len(ranks)}: {ranks}")
    if min(ranks) < 1:
        raise RecipeError(f"{method.name}: required ranks of at least 1, got {_shown(ranks)}")
    if (feasible := method.feasible(layer, ranks)) != tuple(ranks):
        raise RecipeError(
            f"{method.name}: required ranks of at most {_shown(full)}, got {_shown(ranks)}; the "
            f"largest possible below these are {_shown(feasible)}"
        )


def parameters(method: Method, layer: Layer, ranks: Ranks) -> int:
    """How many weights the chain at these ranks has."""
    return parameters_of_chain(outline(method, layer, ranks))


def macs(method: Method, layer: Layer, ranks: Ranks, sizes: Sequence[int]) -> int:
    """Multiply-adds of one sample of the chain at these ranks. sizes: as with `positions`."""
    chain = outline(method, layer, ranks)
    return macs_of_chain(chain, positions(chain, sizes))


def positions(chain: Chain, sizes: Sequence[int]) -> tuple[int, ...]:
    """Of each part how often its weights are used for one sample.

    sizes: of the axes of the chain's input; of convolutions without samples and channels, of linear
    layers without samples and the last.
    """
    found = []
    for each in chain:
        if each.is_linear:
            found.append(prod(sizes) * positions_of_row(each))
        else:
            sizes = output_sizes(each, sizes)
            found.append(prod(sizes))
    return tuple(found)


def parts_on_basis(method: TwoFactors, layer: Layer, basis: Tensor) -> Chain:
    """The chain whose product is the layer's matrix projected onto a basis.

    basis: [groups, rows, rank], or [rows, rank] where there is one group, with orthonormal columns;
    rows as `method.matrix(layer)` has them: for svd the outputs.
    """
    matrix = method.matrix(layer)
    basis = basis.to(matrix.dtype).reshape(layer.groups, matrix.shape[1], -1)
    check(method, layer, (basis.shape[-1],))
    return method.assemble(layer, split(matrix, basis))


def spectra(method: Method, layer: Layer) -> tuple[Tensor, ...]:
    """For each rank the squared singular values that it cuts off, descending, float64, added over
    the groups: what is lost by this rank alone, as a squared error, is the sum of those beyond it.

    Of a rank that bounds several matrices (cp) of the one that loses most.
    """
    found = []
    for matrices in method.unfoldings(layer):
        values = [energies(each).sum(0) for each in matrices]
        found.append(max(values, key=lambda each: float((each * torch.arange(len(each))).sum())))
    return tuple(found)


def ranks_by_energy(method: Method, layer: Layer, energy: float, seed: int = 0) -> Ranks:
    """Ranks at which the squared error is at most 1 - energy of the squared weights.

    energy: from 0 to 1. One rank is the smallest; of cp the smallest found by trying, and at 1 the
    full rank; tucker's two are those with the fewest weights. Of tt each may lose the same share:
    all together lose at most the sum (Oseledets 2011), so less is lost. Raises RecipeError for a
    layer that the method cannot take.
    """
    check(method, layer, method.full(layer))
    if not 0 <= energy <= 1:
        raise RecipeError(f"{method.name}: required an energy from 0 to 1, got {energy}")
    if isinstance(method, Tucker):
        return method.feasible(layer, method.cheapest(layer, energy))
    cut = spectra(method, layer)
    ranks = tuple(_rank_of_tail(values, (1 - energy) / len(cut)) for values in cut)
    if isinstance(method, Canonical):
        return (_fewest_terms(method, layer, 1 - energy, ranks[0], seed),)
    return method.feasible(layer, ranks)


def ranks_by_vbmf(method: Method, layer: Layer) -> Ranks:
    """The ranks by analytic variational Bayes of the matrices that the ranks bound, at least 1.

    The largest of all groups; of cp the largest of all unfoldings, a lower bound of what it needs.
    Raises RecipeError for a layer that the method cannot take.
    """
    check(method, layer, method.full(layer))
    found = []
    for matrices in method.unfoldings(layer):
        ranks = (rank_of(values, *each.shape[1:]) for each in matrices for values in energies(each))
        found.append(max(1, *ranks))
    return method.feasible(layer, tuple(found))


def _fewest_terms(method: Canonical, layer: Layer, lost: float, least: int, seed: int) -> int:
    """The smallest rank found whose squared error is at most `lost` of the squared weights."""

    def is_enough(rank: int) -> bool:
        missing = layer.weight - weight_of(layer, parts(method, layer, (rank,), seed))
        return float(missing.square().sum()) <= lost * float(layer.weight.square().sum())

    (most,) = method.full(layer)
    if lost == 0 and bool(layer.weight.any()):
        return most
    low, high = least - 1, least
    while high < most and not is_enough(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _rank_of_tail(values: Tensor, lost: float) -> int:
    """The smallest rank beyond which at most this share of the sum is, at least 1."""
    tails = values.flip(0).cumsum(0).flip(0)
    return max(1, int((tails > lost * values.sum() + 1e-12 * values.sum()).sum()))


def _shown(ranks: Ranks) -> str:
    return ", ".join(map(str, ranks))
