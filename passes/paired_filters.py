"""Filters that come in opposite pairs, computed once: concatenated rectifiers.

Trained first layers have filters of opposite phase; one of a pair computes x, and relu(x) and
relu(-x) are what both gave (Shang et al. 2016, arXiv 1603.05201, eq. 1: the pair of a filter is the
one with the least cosine). Pairs are of any lengths: the length of the second filter goes into the
layers behind the rectifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import tensor_node
from fxloom.graph import arguments, constant
from fxloom.passes.legalize.core import insert
from fxloom.passes.rearranging import absorbed, put_in_order

aten = torch.ops.aten

SAME = 1e-6
"""Relative difference of lengths up to which they count as one."""


def opposite(filters: Tensor, threshold: float) -> list[tuple[int, int]]:
    """Pairs of filters [filters, inputs] whose cosine is at most the threshold, the most opposite
    first, each filter in one pair at most."""
    length = filters.double().norm(dim=1)
    units = filters.double() / torch.where(length > 0, length, 1.0)[:, None]
    cosines = units @ units.T
    first, second = torch.nonzero(cosines.triu(1) <= threshold, as_tuple=True)
    order = cosines[first, second].argsort(stable=True)
    taken: set[int] = set()
    pairs = []
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if not taken & {i, j}:
            taken |= {i, j}
            pairs.append((i, j))
    return pairs


@dataclass(frozen=True, eq=False)
class Halved:
    """What is left of a layer: rows [kept, inputs] with the pairs' first, biases [kept] or None.

    order: which output each is, followed by those that are opposites of the first ones; ratios: how
    much longer these are. error, square: what outputs are off by, and what they were, squared, in
    the metric.
    """

    rows: Tensor
    bias: Tensor | None
    order: Tensor
    ratios: Tensor
    error: float
    square: float


def halve(
    rows: Tensor, bias: Tensor | None, metric: Tensor | None, pairs: Sequence[tuple[int, int]]
) -> Halved:
    """The nearest filters for the pairs; all others as they are.

    rows: [outputs, inputs], float64. metric: the mean of the products of inputs, with a 1 behind
    them where there is a bias; None: all weights count alike.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return ((a if metric is None else a @ metric) * b).sum(1)

    vectors = rows if bias is None else torch.cat([rows, bias[:, None]], 1)
    one, two = (torch.tensor(side) for side in zip(*pairs, strict=True))
    left, right = vectors[one], -vectors[two]
    products = [dot(left, left), dot(left, right), dot(right, right)]
    gram = torch.stack([products[0], products[1], products[1], products[2]], 1).reshape(-1, 2, 2)
    _, bases = torch.linalg.eigh(gram)
    p, q = (bases[:, place, 1].abs()[:, None] for place in range(2))
    # Where the metric knows neither, or takes them for no opposites: the mean of both directions.
    known = (products[1] > 0)[:, None]
    p, q = (torch.where(known, side, 0.5**0.5) for side in (p, q))
    kept = p * (p * left + q * right)
    ratios = (q / p)[:, 0]
    off = torch.cat([kept - left, ratios[:, None] * kept - right])
    singles = torch.tensor(
        [n for n in range(len(rows)) if n not in {*one.tolist(), *two.tolist()}], dtype=torch.int64
    )
    left_over = torch.cat([kept, vectors[singles]])
    width = rows.shape[1]
    return Halved(
        left_over[:, :width],
        None if bias is None else left_over[:, width],
        torch.cat([one, singles, two]),
        torch.where((ratios - 1).abs() < SAME, 1.0, ratios),
        float(dot(off, off).sum()),
        float(dot(vectors, vectors).sum()),
    )


def write_halved(module: fx.GraphModule, readers: Sequence[Node], halved: Halved) -> int:
    """Put what is left in the place of a layer, wherever it is called; returns how many numbers
    there are beside weights and biases."""
    first = readers[0]
    source = arguments(first)[1]
    old = constant(module, source.target)
    dtype, name = old.dtype, str(source.target)
    rows = halved.rows.reshape(-1, *old.shape[1:]).to(dtype)
    base = name.removesuffix(".weight")
    weight = tensor_node(module, first, f"{base}.halved.weight", rows)
    bias = None
    if halved.bias is not None:
        bias = tensor_node(module, first, f"{base}.halved.bias", halved.bias.to(dtype))
    scale: Node | None = None
    count = len(halved.ratios)
    for reader in readers:
        axis = 1 if reader.target is aten.convolution.default else reader.meta["val"].dim() - 1
        with module.graph.inserting_before(reader):
            args = (arguments(reader)[0], weight, bias, *arguments(reader)[3:])
            kept = insert(module, reader, reader.target, *args)
            part = insert(module, reader, aten.slice.Tensor, kept, axis, 0, count, 1)
            opposites = insert(module, reader, aten.neg.default, part)
            joined = insert(module, reader, aten.cat.default, [kept, opposites], axis)
        reader.replace_all_uses_with(joined)
        module.graph.erase_node(reader)
        plain = torch.ones(len(rows), dtype=torch.float64)
        scales = torch.cat([plain, 1 / halved.ratios])
        if absorbed(module, joined, halved.order, axis, scales):
            continue
        if bool((halved.ratios != 1).any()):
            if scale is None:
                along = [-1] + [1] * (joined.meta["val"].dim() - 1 - axis)
                values = -halved.ratios.reshape(along).to(dtype)
                scale = tensor_node(module, weight, f"{base}.lengths", values)
            with module.graph.inserting_before(opposites):
                longer = insert(module, opposites, aten.mul.Tensor, part, scale)
            opposites.replace_all_uses_with(longer)
            module.graph.erase_node(opposites)
        put_in_order(module, joined, halved.order, axis)
    return 0 if scale is None else count
