"""Deep Compression (Han et al. 2016, arXiv 1510.00149v5): storage at published shares and bits.

Of AlexNet and VGG-16 in three ways: with the published widths of indices and runs, and with their
published Huffman codes, both from numbers alone (fxloom.storage.published), of which the layers'
sizes come from the captured graph; and of weights that nobody trained, pruned, shared, coded and
decoded by the passes. LeNets as `benchmarks.published_rates` has them, trained on digits.

Shares are published in whole percent: 4% of the weights of VGG-16's largest layer may be 3.5 or
4.5, so that ratios are held to a tenth.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

import fxloom
from benchmarks.architectures import IMAGENET
from benchmarks.published_rates import NETWORKS, WITHIN, records
from benchmarks.surveys_rows import Row
from fxloom.passes import CodeWeights, Prune, ShareWeights
from fxloom.passes.prunable import Prunable, find_prunable
from fxloom.storage import FLOAT_BITS, published

FAMILY = "Deep Compression"
_SOURCE = "Han et al. 2016, arXiv 1510.00149v5, "


@dataclass(frozen=True, slots=True)
class Layer:
    """kept: share of weights; bits: of an index; mean codes of an index and of a run, in bits."""

    kept: float
    bits: int
    index: float
    run: float


@dataclass(frozen=True, slots=True)
class Network:
    """layers: in their order. run_bits: of a run length. rate, huffman_rate: as published."""

    layers: tuple[Layer, ...]
    run_bits: int
    rate: float
    huffman_rate: float
    table: str


_NETWORKS = {
    "AlexNet": Network(
        (
            Layer(0.84, 8, 6.3, 1.2), Layer(0.38, 8, 5.5, 2.3), Layer(0.35, 8, 5.1, 2.6),
            Layer(0.37, 8, 5.2, 2.5), Layer(0.37, 8, 5.6, 2.5), Layer(0.09, 5, 3.9, 3.2),
            Layer(0.09, 5, 3.6, 3.7), Layer(0.25, 5, 4.0, 3.2),
        ), 4, 27, 35, "table 4",
    ),
    "VGG-16": Network(
        (
            Layer(0.58, 8, 6.8, 1.7), Layer(0.22, 8, 6.5, 2.6), Layer(0.34, 8, 5.6, 2.4),
            Layer(0.36, 8, 5.9, 2.3), Layer(0.53, 8, 4.8, 1.8), Layer(0.24, 8, 4.6, 2.9),
            Layer(0.42, 8, 4.6, 2.2), Layer(0.32, 8, 4.6, 2.6), Layer(0.27, 8, 4.2, 2.9),
            Layer(0.34, 8, 4.4, 2.5), Layer(0.35, 8, 4.7, 2.5), Layer(0.29, 8, 4.6, 2.7),
            Layer(0.36, 8, 4.6, 2.3), Layer(0.04, 5, 3.6, 3.5), Layer(0.04, 5, 4.0, 4.3),
            Layer(0.23, 5, 4.0, 3.4),
        ), 5, 31, 49, "table 5",
    ),
}  # fmt: skip
_PUBLISHED_LENETS = {"LeNet-300-100": (32, 40), "LeNet-5": (33, 39)}


def rows(name: str) -> Iterator[Row]:
    """Of AlexNet or VGG-16."""
    network = _NETWORKS[name]
    case = next(each for each in IMAGENET if each.name == name).case()
    model = case.model()
    _spread(model)
    graph = fxloom.capture(model, case.inputs(1))
    weights = find_prunable(graph)
    source = _SOURCE + network.table
    plain, coded = _stored(weights, network)
    how = "published shares and bits"
    yield Row(FAMILY, name, how, "P+Q", network.rate, plain, source, within=WITHIN)
    how += " and mean codes"
    yield Row(FAMILY, name, how, "P+Q+H", network.huffman_rate, coded, source, within=WITHIN)
    kept = {
        each.name: {"sparsity": 1 - layer.kept}
        for each, layer in zip(weights, network.layers, strict=True)
    }
    bits = {
        each.name: {"bits": layer.bits} for each, layer in zip(weights, network.layers, strict=True)
    }
    steps = [
        Prune(sparsity=0.0, layers=kept, scope="layer"),
        ShareWeights(bits=8, layers=bits),
        CodeWeights(index_bits=network.run_bits),
    ]
    summary = fxloom.Recipe(steps).run(graph).steps[-1].summary
    tensors = summary["tensors"]
    assert isinstance(tensors, dict)
    names = {each.names[0] for each in weights}
    stored = sum(row["huffman_bits"] for key, row in tensors.items() if key in names)
    total = sum(each.size for each in weights)
    ours = FLOAT_BITS * total / stored
    how = "published shares and bits; normally distributed weights, coded and decoded"
    note = "nobody trained these weights: their codes are as long as a normal distribution's"
    yield Row(
        FAMILY, name, how, "P+Q+H", network.huffman_rate, ours, source, within=None, note=note
    )


def _spread(model: nn.Module) -> None:
    """Weights as training leaves them rather than uniform: few are large."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=float(parameter[0].numel() ** -0.5))


def _stored(weights: list[Prunable], network: Network) -> tuple[float, float]:
    """Ratios without and with Huffman codes."""
    plain = coded = 0.0
    for each, layer in zip(weights, network.layers, strict=True):
        storage = published(
            each.size,
            layer.kept,
            layer.bits,
            network.run_bits,
            weight_code=layer.index,
            index_code=layer.run,
        )
        huffman = storage.huffman_bits
        assert huffman is not None
        plain, coded = plain + storage.bits, coded + huffman
    before = FLOAT_BITS * sum(each.size for each in weights)
    return before / plain, before / coded


def lenets() -> Iterator[Row]:
    """Of trained networks."""
    for name in NETWORKS:
        found = list(records(name))
        total = next(row for row in found if row["layer"] == "total")
        source = _SOURCE + "tables 2 and 3; totals in table 1"
        plain, huffman = _PUBLISHED_LENETS[name]
        how = "published shares and bits"
        ours = 1 / total["ratios"]
        yield Row(FAMILY, name, how, "P+Q", plain, ours, source, within=WITHIN)
        how += "; trained on digits, coded and decoded"
        note = f"accuracy {total['accuracy']:.2%} (pruned)"
        for figure, theirs, key in (("P+Q", plain, "coded"), ("P+Q+H", huffman, "coded_huffman")):
            ours = 1 / total[key]
            yield Row(FAMILY, name, how, figure, theirs, ours, source, within=WITHIN, note=note)
