"""Layers as trains of cores, each of which knows of the others only through a rank.

A convolution is a 1x1, one convolution an axis of its kernel, and a 1x1. A linear layer's inputs
and outputs are numbered by several digits each, and a core turns one digit of the inputs into one
of the outputs (Novikov et al. 2015, arXiv 1509.06569).

Cores come from singular value decompositions one after another (Oseledets 2011), and then each from
the best beside the others, from either end in turn (Zhou et al. 2022, arXiv 2010.02482).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from math import log, prod

from torch import Tensor

from fxloom.passes.factorable import (
    Factors,
    Layer,
    Ranks,
    axes_of,
    merged,
    part,
    pointwise,
    reason_against_mixing,
    shaped,
)
from fxloom.passes.factors import Chain, Part
from fxloom.passes.low_rank import balanced, bases

SWEEPS = 20
"""At most so many, from one end and the other; they end where both take less than `GAIN` of the
squared error away."""

GAIN = 1e-4

DIGITS = 64
"""Of a linear layer: cores are about so many weights a pair of ranks, 8 inputs by 8 outputs."""


@dataclass(frozen=True)
class TensorTrain:
    """Ranks: one between neighbours.

    inputs, outputs: of a linear layer, the digits' sizes, whose products are the layer's; empty:
    about equal ones.
    """

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    name: str = "tt"

    def problem(self, layer: Layer) -> str:
        if found := reason_against_mixing(layer):
            return found
        if not layer.is_linear:
            if prod(layer.kernel) == 1:
                return "it is a 1x1 convolution, which has no kernel to divide. Use svd"
            if self.inputs or self.outputs:
                return "inputs and outputs divide linear layers, and it is a convolution"
            return ""
        inputs, outputs = self.digits(layer)
        if len(inputs) != len(outputs) or len(inputs) < 2:
            return (
                f"required as many inputs as outputs, 2 or more, got {_shown(inputs)} and "
                f"{_shown(outputs)}"
            )
        for what, digits, size in (("in", inputs, layer.n_in), ("out", outputs, layer.n_out)):
            if prod(digits) != size or min(digits) < 1:
                return (
                    f"required {what}puts whose product is {size}, got {_shown(digits)}; for "
                    f"example {_shown(even_digits(size, max(2, len(digits))))}"
                )
        if layer.n_in in inputs and layer.n_out in outputs:
            return (
                f"neither its {layer.n_in} inputs nor its {layer.n_out} outputs are divided. Use "
                "svd, or another number of either"
            )
        return ""

    def digits(self, layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sizes of the inputs' and of the outputs' digits of a linear layer."""
        given = len(self.inputs) or len(self.outputs)
        count = given or max(2, round(log(layer.size) / log(DIGITS)))
        inputs = self.inputs or even_digits(layer.n_in, count)
        return inputs, self.outputs or even_digits(layer.n_out, count)[::-1]

    def full(self, layer: Layer) -> Ranks:
        sizes = self._sizes(layer)
        before = list(accumulate(sizes, int.__mul__))
        return tuple(min(each, before[-1] // each) for each in before[:-1])

    def feasible(self, layer: Layer, ranks: Ranks) -> Ranks:
        sizes = self._sizes(layer)
        found = [min(pair) for pair in zip(ranks, self.full(layer), strict=True)]
        for position in range(1, len(found)):
            found[position] = min(found[position], found[position - 1] * sizes[position])
        for position in range(len(found) - 2, -1, -1):
            found[position] = min(found[position], found[position + 1] * sizes[position + 1])
        return tuple(found)

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        pairs = list(pairwise((1, *ranks, 1)))
        if layer.is_linear:
            digits = zip(*self.digits(layer), strict=True)
            return tuple(
                (1, after, before, n_out, n_in)
                for (before, after), (n_in, n_out) in zip(pairs, digits, strict=True)
            )
        ends = (layer.groups, ranks[0], layer.n_in), (layer.groups, layer.n_out, ranks[-1])
        sizes = self._sizes(layer)[1:-1]
        between = (
            (layer.groups, after, before, size)
            for (before, after), size in zip(pairs[1:-1], sizes, strict=True)
        )
        return ends[0], *between, ends[1]

    def factors(self, layer: Layer, ranks: Ranks, seed: int) -> Factors:
        cores = train(self._tensor(layer), ranks)  # [groups, rank before, size, rank behind]
        if layer.is_linear:
            shapes = self.shapes(layer, ranks)
            return balanced(
                each.reshape(*each.shape[:2], *shape[-2:], -1).permute(0, 4, 1, 2, 3)
                for each, shape in zip(cores, shapes, strict=True)
            )
        first, *between, last = (each.permute(0, 3, 1, 2) for each in cores)
        return balanced((first.squeeze(2), *between, last.squeeze(1).transpose(1, 2)))

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        if layer.is_linear:
            return self._linear(layer, factors)
        first, *between, last = factors
        kernels = (
            part(layer, shaped(layer, merged(layer, factor), axes[0]), axes)
            for factor, axes in zip(between, axes_of(layer), strict=True)
        )
        return pointwise(layer, first), *kernels, pointwise(layer, last)

    def _linear(self, layer: Layer, factors: Factors) -> Chain:
        """Of each core a linear layer that reads a digit and the rank before it, and puts its own
        digit and rank behind the outputs that are there."""
        left, made, found = layer.n_in, 1, []
        for factor in factors:
            _, after, before, n_out, n_in = factor.shape
            left //= n_in
            weight = factor.permute(0, 3, 1, 4, 2).reshape(1, n_out * after, n_in * before)
            view, order = (n_in, left, made, before), (1, 2, 0, 3)
            found.append(Part(merged(layer, weight), view=view, order=order))
            made *= n_out
        return tuple(found)

    def unfoldings(self, layer: Layer) -> tuple[tuple[Tensor, ...], ...]:
        tensor = self._tensor(layer)
        axes = range(2, tensor.dim())
        return tuple((tensor.flatten(axis).flatten(1, axis - 1),) for axis in axes)

    def _sizes(self, layer: Layer) -> tuple[int, ...]:
        """Of the tensor that becomes a train, without its groups."""
        if layer.is_linear:
            return tuple(int.__mul__(*pair) for pair in zip(*self.digits(layer), strict=True))
        return layer.n_in, *(layer.kernel[axes[0]] for axes in axes_of(layer)), layer.n_out

    def _tensor(self, layer: Layer) -> Tensor:
        """[groups, *sizes]"""
        weight = layer.grouped()
        if layer.is_linear:
            inputs, outputs = self.digits(layer)
            count = len(inputs)
            weight = weight.reshape(*outputs, *inputs)
            order = [axis for k in range(count) for axis in (k, count + k)]
            return weight.permute(order).reshape(1, *self._sizes(layer))
        weight = weight.permute(0, *range(2, weight.dim()), 1)
        return weight.reshape(layer.groups, *self._sizes(layer))


def train(tensor: Tensor, ranks: Ranks) -> list[Tensor]:
    """Cores [groups, rank before, size, rank behind] whose product is nearest to a tensor [groups,
    *sizes]."""
    cores = _swept(tensor, ranks, None)
    kept, total = float(cores[-1].square().sum()), float(tensor.square().sum())
    turned = tensor.permute(0, *range(tensor.dim() - 1, 0, -1)).contiguous()
    for _ in range(SWEEPS):
        back = _swept(turned, ranks[::-1], cores)
        cores = _swept(tensor, ranks, back)
        before, kept = kept, float(cores[-1].square().sum())
        if kept - before <= GAIN * (total - kept):
            break
    return cores


def _swept(tensor: Tensor, ranks: Ranks, others: Sequence[Tensor] | None) -> list[Tensor]:
    """Cores of which all but the last have orthonormal columns.

    others: the cores from the other end, of which those beyond each core are kept; without them
    each core is the best if those beyond it were whole.
    """
    beyond = [None] * len(ranks) if others is None else _from_end(others)[::-1]
    groups, cores, left = len(tensor), [], tensor.flatten(1).unsqueeze(1)
    for rank, size, seen in zip(ranks, tensor.shape[1:], beyond, strict=False):
        before = left.shape[1]
        left = left.reshape(groups, before * size, -1)
        basis = bases(left if seen is None else left @ seen, rank)
        cores.append(basis.reshape(groups, before, size, rank))
        left = basis.transpose(1, 2) @ left
    return [*cores, left.unsqueeze(-1)]


def _from_end(cores: Sequence[Tensor]) -> list[Tensor]:
    """The products of the first cores, one, two and so on, [groups, sizes, rank], the digits in the
    order of the other end."""
    found = [cores[0].flatten(1, 2)]
    for core in cores[1:-1]:
        product = found[-1].unsqueeze(1) @ core.transpose(1, 2)
        found.append(product.flatten(1, 2))
    return found


@cache
def even_digits(size: int, count: int) -> tuple[int, ...]:
    """So many numbers whose product is `size` and whose sum is the least, ascending."""
    if count == 1:
        return (size,)
    divisors = (each for each in range(1, size + 1) if size % each == 0)
    found = ((each, *even_digits(size // each, count - 1)) for each in divisors)
    return min((tuple(sorted(each)) for each in found), key=lambda each: (sum(each), each))


def _shown(digits: Sequence[int]) -> str:
    return "x".join(map(str, digits)) or "none"
