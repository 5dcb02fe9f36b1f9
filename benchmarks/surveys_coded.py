"""Deep Compression (Han et al. 2016, arXiv 1510.00149v5): storage at published shares and bits.

Of AlexNet and VGG-16 in three ways: with the published widths of indices and runs, and with their
published Huffman codes, both from numbers alone (fxloom.storage.published), of which the layers'
sizes come from the captured graph; and of weights that nobody trained, pruned, shared, coded and
decoded by the passes. LeNets as `benchmarks.published_rates` has them, trained on digits.

Shares are published in whole percent: 4% of the weights of VGG-16's largest layer may be 3.5 or
4.5, so that ratios are held to a tenth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fxloom
from benchmarks.architectures import IMAGENET
from benchmarks.published_rates import NETWORKS, WITHIN, records
from benchmarks.surveys_rows import Row, captured
from fxloom.passes import CodeWeights, Prune, ShareWeights
from fxloom.passes.prunable import find_prunable
from fxloom.storage import FLOAT_BITS, published

FAMILY = "Deep Compression"
_SOURCE = "Han et al. 2016, arXiv 1510.00149v5, "


@dataclass(frozen=True, slots=True)
class Layer:
    """kept: share of weights; bits: of an index; mean codes of an index and of a run, in bits;
    rates in percent without and with Huffman codes."""

    kept: float
    bits: int
    index: float
    run: float
    rate: float
    huffman_rate: float


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
            Layer(0.84, 8, 6.3, 1.2, 32.6, 20.53),
            Layer(0.38, 8, 5.5, 2.3, 14.5, 9.43),
            Layer(0.35, 8, 5.1, 2.6, 13.1, 8.44),
            Layer(0.37, 8, 5.2, 2.5, 14.1, 9.11),
            Layer(0.37, 8, 5.6, 2.5, 14.0, 9.43),
            Layer(0.09, 5, 3.9, 3.2, 3.0, 2.39),
            Layer(0.09, 5, 3.6, 3.7, 3.0, 2.46),
            Layer(0.25, 5, 4.0, 3.2, 7.3, 5.85),
        ), 4, 27, 35, "table 4",
    ),
    "VGG-16": Network(
        (
            Layer(0.58, 8, 6.8, 1.7, 40.0, 29.97),
            Layer(0.22, 8, 6.5, 2.6, 9.8, 6.99),
            Layer(0.34, 8, 5.6, 2.4, 14.3, 8.91),
            Layer(0.36, 8, 5.9, 2.3, 14.7, 9.31),
            Layer(0.53, 8, 4.8, 1.8, 21.7, 11.15),
            Layer(0.24, 8, 4.6, 2.9, 9.7, 5.67),
            Layer(0.42, 8, 4.6, 2.2, 17.0, 8.96),
            Layer(0.32, 8, 4.6, 2.6, 13.1, 7.29),
            Layer(0.27, 8, 4.2, 2.9, 10.9, 5.93),
            Layer(0.34, 8, 4.4, 2.5, 14.0, 7.47),
            Layer(0.35, 8, 4.7, 2.5, 14.3, 8.0),
            Layer(0.29, 8, 4.6, 2.7, 11.7, 6.52),
            Layer(0.36, 8, 4.6, 2.3, 14.8, 7.79),
            Layer(0.04, 5, 3.6, 3.5, 1.6, 1.1),
            Layer(0.04, 5, 4.0, 4.3, 1.5, 1.25),
            Layer(0.23, 5, 4.0, 3.4, 7.1, 5.24),
        ), 5, 31, 49, "table 5",
    ),
}  # fmt: skip
_PUBLISHED_LENETS = {"LeNet-300-100": (32, 40), "LeNet-5": (33, 39)}


def rows(name: str) -> Iterator[Row]:
    """Of AlexNet or VGG-16."""
    network = _NETWORKS[name]
    graph = captured(next(each for each in IMAGENET if each.name == name))
    weights = find_prunable(graph)
    yield from _from_numbers(name, network, [each.size for each in weights])
    layers = list(zip((each.name for each in weights), network.layers, strict=True))
    steps = [
        Prune(
            sparsity=0.0,
            layers={each: {"sparsity": 1 - layer.kept} for each, layer in layers},
            scope="layer",
        ),
        ShareWeights(bits=8, layers={each: {"bits": layer.bits} for each, layer in layers}),
        CodeWeights(index_bits=network.run_bits),
    ]
    summary: dict[str, Any] = fxloom.Recipe(steps).run(graph).steps[-1].summary
    tensors = [summary["tensors"][each.names[0]] for each in weights]
    taken = sum(each["huffman_bits"] for each in tensors)
    yield Row(
        FAMILY,
        name,
        "published shares and bits; normally distributed weights, coded and decoded",
        "P+Q+H",
        network.huffman_rate,
        FLOAT_BITS * sum(each.size for each in weights) / taken,
        _SOURCE + network.table,
        within=None,
        note="nobody trained these weights: their codes are as long as a normal distribution's",
    )


def _from_numbers(name: str, network: Network, sizes: Sequence[int]) -> Iterator[Row]:
    """What follows from the published numbers alone."""
    stored = [
        published(
            size,
            layer.kept,
            layer.bits,
            network.run_bits,
            weight_code=layer.index,
            index_code=layer.run,
        )
        for size, layer in zip(sizes, network.layers, strict=True)
    ]
    plain = [each.rate for each in stored], [layer.rate / 100 for layer in network.layers]
    huffman = (
        [each.huffman_rate or 0 for each in stored],
        [layer.huffman_rate / 100 for layer in network.layers],
    )
    for how, figure, theirs, (ours, layers) in (
        ("published shares and bits", "P+Q", network.rate, plain),
        ("published shares, bits and mean codes", "P+Q+H", network.huffman_rate, huffman),
    ):
        offs = [mine / their - 1 for mine, their in zip(ours, layers, strict=True)]
        note = (
            f"layer by layer {min(offs):+.0%} to {max(offs):+.0%} of the published bits, which add "
            f"up to {_ratio(sizes, layers):.1f}x"
        )
        source, ratio = _SOURCE + network.table, _ratio(sizes, ours)
        yield Row(FAMILY, name, how, figure, theirs, ratio, source, within=WITHIN, note=note)


def _ratio(sizes: Sequence[int], rates: Sequence[float]) -> float:
    """Of a whole network, from its layers' rates."""
    return sum(sizes) / sum(size * rate for size, rate in zip(sizes, rates, strict=True))


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
