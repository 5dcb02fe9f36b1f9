"""Layers factored one after the other, each on what the factored ones before it give.

Every chain is fitted to what its layer gave in the graph before anything was factored, so that
errors of earlier layers are made good where that is possible instead of adding up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.passes.calibration import Batch
from fxloom.passes.decompositions import METHODS, parts
from fxloom.passes.factor_norms import Moments
from fxloom.passes.factor_subjects import Subject
from fxloom.passes.factorable import Method, Ranks, weight_of
from fxloom.passes.factors import Chain, Part, positions_of_row
from fxloom.passes.layerwise import bias_of
from fxloom.passes.output_statistics import Statistics, roots
from fxloom.passes.part_running import input_rows, output_rows, run_chain
from fxloom.passes.reduced_rank import Fixed, Regression, projected
from fxloom.passes.two_streams import TwoStreams

aten = torch.ops.aten

MOST_PRODUCTS = 2**35
"""Multiplications for products of a layer's inputs, about: rows are drawn where it were more."""

FEWEST_ROWS, MOST_ROWS = 1024, 16384

Values = tuple[Tensor, Tensor]
"""What a layer reads in one batch, and what it is to give without its bias."""


@dataclass(frozen=True, eq=False)
class Choice:
    """How a layer is to be factored."""

    subject: Subject
    method: Method
    ranks: Ranks


@dataclass(frozen=True, eq=False)
class Factored:
    """A chain, and what is added to the layer's bias where that may move. error: of the outputs,
    squared, relative to their variance, on the rows that it was fitted to."""

    chain: Chain
    shift: Tensor | None
    error: float


@torch.no_grad()
def fitted(
    module: fx.GraphModule,
    choices: Sequence[Choice],
    statistics: Mapping[str, Statistics],
    batches: Sequence[Batch],
    seed: int,
) -> Iterator[tuple[Choice, Factored]]:
    """The chains of layers in the order in which they first run.

    module: is left as it is. statistics: by the names of the layers.
    """
    owner = {node: each for each in choices for node in each.subject.readers}
    ahead = _ahead(module, [each for each in choices if len(each.subject.readers) > 1], batches)
    found: dict[Choice, Factored] = {}
    streams = TwoStreams(module, batches)
    for node in module.graph.nodes:
        choice = owner.get(node)
        if choice is None:
            streams.step(node)
            continue
        if choice not in found:
            values = ahead.pop(choice, None) or list(_values(module, node, streams))
            made = factored(choice, values, statistics[choice.subject.name], seed)
            found[choice] = made
            yield choice, made
        made, bias = found[choice], bias_of(module, node)
        if made.shift is not None:
            bias = made.shift if bias is None else bias + made.shift
        streams.step(node, partial(choice.subject.run, made.chain, bias=bias))


def unfitted(choices: Sequence[Choice], seed: int) -> Iterator[tuple[Choice, Factored]]:
    """The chains nearest to the layers' weights; their errors are those of the weights."""
    for choice in choices:
        layer = choice.subject.layer
        chain = parts(choice.method, layer, choice.ranks, seed)
        wrong = (layer.weight.detach() - weight_of(layer, chain)).square().sum()
        total = layer.weight.detach().square().sum()
        yield choice, Factored(chain, None, float(wrong / total))


def factored(
    choice: Choice, values: Sequence[Values], known: Statistics, seed: int = 0
) -> Factored:
    """One layer. values: batch by batch."""
    subject, method = choice.subject, choice.method
    layer, is_centred = subject.layer, subject.bias is not None
    chain: Chain
    if method is METHODS["svd"]:
        (rank,), metric = choice.ranks, roots(known.metric)
        if subject.is_embedding:  # it reads the same as ever
            weights = Fixed(layer.weight.detach()[None])
            factors = projected(weights, known.covariance, rank, metric)
        else:
            factors = _problem(layer.dense[0], values, known.ridge, is_centred).reduced(
                rank, metric
            )
        chain = method.assemble(layer, factors)
    else:
        chain = parts(method, layer, choice.ranks, seed)
        if not subject.is_embedding:
            chain = _mended(chain, values, known.ridge, is_centred)
    return Factored(chain, *_off(subject, chain, values))


def _mended(chain: Chain, values: Iterable[Values], ridge: float, is_centred: bool) -> Chain:
    """A chain whose last part makes good what it can of what the others lose."""
    *first, last = chain
    read = [(run_chain(first, x) if first else x, y) for x, y in values]
    # A mean belongs to an output of the layer, and several of those may be one of the part's.
    centred = is_centred and (not last.is_linear or positions_of_row(last) == 1)
    weights = _problem(last, read, ridge, centred).fitted().weights()
    weight = weights.reshape(last.weight.shape).to(last.weight.dtype)
    return *first, replace(last, weight=weight)


def _problem(part: Part, values: Iterable[Values], ridge: float, centred: bool) -> Regression:
    """What a part is to give for what it reads; its weights pull."""
    inputs = part.weight[0].numel()
    most = min(max(MOST_PRODUCTS // inputs**2, FEWEST_ROWS), MOST_ROWS)
    generator = torch.Generator().manual_seed(0)
    values = list(values)
    rows = []
    for x, y in values:
        pair = input_rows(part, x), output_rows(part, y)
        count = -(-most // len(values))
        if count < pair[0].shape[1]:
            drawn = torch.randperm(pair[0].shape[1], generator=generator)[:count]
            pair = pair[0][:, drawn], pair[1][:, drawn]
        rows.append(pair)
    x, y = (torch.cat(each, 1) for each in zip(*rows, strict=True))
    weights = part.weight.detach().reshape(part.groups, -1, inputs)
    return Regression.of(x, y, weights, ridge, centred)


def _off(subject: Subject, chain: Chain, values: Iterable[Values]) -> tuple[Tensor | None, float]:
    """What the outputs of a chain lack in the mean, where a bias can add that, and their squared
    error then, relative to their variance."""
    moments = [Moments(), Moments()]
    for x, wanted in values:
        for sums, value in zip(moments, (wanted - subject.run(chain, x), wanted), strict=True):
            sums.see(value.flatten(0, -2) if subject.layer.is_linear else value)
    is_centred = subject.bias is not None
    wrong, power = (
        float((each.variance + (0 if is_centred else each.mean.square())).sum()) for each in moments
    )
    shift = moments[0].mean.to(subject.layer.weight.dtype) if is_centred else None
    return shift, wrong / (power or 1.0)


def _values(module: fx.GraphModule, node: Node, streams: TwoStreams) -> Iterator[Values]:
    bias = bias_of(module, node)
    for x, y in streams.pairs(node):
        axes = 0 if node.target is not aten.convolution.default else y.dim() - 2
        yield x, y if bias is None else y - bias.reshape(-1, *(1,) * axes)


def _ahead(
    module: fx.GraphModule, choices: Sequence[Choice], batches: Sequence[Batch]
) -> dict[Choice, list[Values]]:
    """For layers that are called several times what all calls read, before anything is factored:
    the first call cannot wait for the last."""
    found: dict[Choice, list[Values]] = {each: [] for each in choices}
    owner = {node: each for each in choices for node in each.subject.readers}
    streams = TwoStreams(module, batches)
    for node in module.graph.nodes if choices else ():
        if node in owner:
            found[owner[node]] += _values(module, node, streams)
        streams.step(node)
    return found
