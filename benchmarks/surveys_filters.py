"""Filter pruning at published numbers of filters: Li et al. 2016 and ThiNet (Luo et al. 2017).

Which filters go is by their norms, here those of weights that nobody trained; how many is published
or in the authors' and their repeaters' programs, and decides the sizes alone. FLOPs of ThiNet are
two a multiply-add.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from benchmarks.architectures import BILLION, IMAGENET, MILLION, Architecture, vgg16_average
from benchmarks.architectures_small import CIFAR, RESNET_34
from benchmarks.surveys_rows import Row, captured, convolutions, counted
from fxloom.layer_figures import LayerFigures
from fxloom.passes import PruneChannels

FAMILY = "filter pruning"
_LI = "Li et al. 2016, arXiv 1608.08710, tables 1 and 2"
_REPEATED = "; filters: Eric-mingjie/rethinking-network-pruning, "
_LUO = "Luo et al. 2017, arXiv 1707.06342; Roll920/ThiNet, README.md and prototxt"
_LUO_CODE = "Luo et al. 2017, arXiv 1707.06342; Roll920/ThiNet_Code, README.md"


@dataclass(frozen=True, slots=True)
class Blocks:
    """Shares of filters that go, from the first convolution of each basic block, by stage.

    skipped: such convolutions that keep theirs, counted among those of the blocks from 2 on.
    parameters, macs: shares saved, as published.
    """

    shares: tuple[float, ...]
    skipped: tuple[int, ...]
    parameters: float
    macs: float


_BLOCKS: Mapping[tuple[str, str], Blocks] = {
    ("ResNet-56", "A"): Blocks((0.1, 0.1, 0.1), (16, 20, 38, 54), 0.094, 0.104),
    ("ResNet-56", "B"): Blocks((0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54), 0.137, 0.276),
    ("ResNet-110", "A"): Blocks((0.5, 0.0, 0.0), (36,), 0.023, 0.159),
    ("ResNet-110", "B"): Blocks((0.5, 0.4, 0.3), (36, 38, 74), 0.324, 0.386),
    ("ResNet-34", "A"): Blocks((0.3, 0.3, 0.3, 0), (2, 8, 14, 16, 26, 28, 30, 32), 0.076, 0.155),
    ("ResNet-34", "B"): Blocks((0.5, 0.6, 0.4, 0), (2, 8, 14, 16, 26, 28, 30, 32), 0.108, 0.242),
}
_PROGRAMS = {
    "ResNet-56": "cifar/l1-norm-pruning/res56prune.py",
    "ResNet-110": "cifar/l1-norm-pruning/res110prune.py",
    "ResNet-34": "imagenet/l1-norm-pruning/prune.py",
}
_STAGES = {"ResNet-56": (9, 9, 9), "ResNet-110": (18, 18, 18), "ResNet-34": (3, 4, 6, 3)}

_CIFAR_VGG = (32, 64, 128, 128, 256, 256, 256, *[256] * 6)
_THINET = {
    "ThiNet-Conv": (32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512),
    "ThiNet-GAP": (32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512),
    "ThiNet-Tiny": (16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 256),
}
_THINET_SIZES = {
    "ThiNet-Conv": (131.44, 9.58),
    "ThiNet-GAP": (8.32, 9.34),
    "ThiNet-Tiny": (1.32, 2.01),
}


def _of(networks: Sequence[Architecture], name: str) -> Architecture:
    return next(each for each in networks if each.name == name)


def cifar() -> Iterator[Row]:
    """Li et al. on networks for CIFAR-10."""
    vgg = captured(_of(CIFAR, "VGG-16 for CIFAR-10"))
    names = [each.name for each in convolutions(vgg)]
    source = f"{_LI}{_REPEATED}cifar/l1-norm-pruning/vggprune.py"
    keep = dict(zip(names, _CIFAR_VGG, strict=True))
    yield from _saved("VGG-16 for CIFAR-10", "A", vgg, keep, (0.64, 0.342), source)
    for network in ("ResNet-56", "ResNet-110"):
        yield from _residual(_of(CIFAR, network))


def resnet34() -> Iterator[Row]:
    """Li et al. on ResNet-34."""
    yield from _residual(RESNET_34)


def _residual(of: Architecture) -> Iterator[Row]:
    graph = captured(of)
    wide = [each for each in convolutions(graph) if each.values.shape[2:].numel() > 1]
    for (network, version), blocks in _BLOCKS.items():
        if network != of.name:
            continue
        stages = [stage for stage, count in enumerate(_STAGES[network]) for _ in range(count)]
        keep = {}
        for block, stage in enumerate(stages):
            first = wide[2 * block + 1]
            stays = int(first.values.shape[0] * (1 - blocks.shares[stage]))
            if 2 * block + 2 not in blocks.skipped and blocks.shares[stage]:
                keep[first.name] = stays
        source = f"{_LI}{_REPEATED}{_PROGRAMS[network]}"
        yield from _saved(network, version, graph, keep, (blocks.parameters, blocks.macs), source)


def _saved(
    network: str,
    version: str,
    graph: fx.GraphModule,
    keep: Mapping[str, int],
    published: tuple[float, float],
    source: str,
) -> Iterator[Row]:
    """Ratios, from the shares that are saved."""
    before, after = counted(graph), counted(_pruned(graph, keep))
    for figure, share in zip(("parameters", "macs"), published, strict=True):
        ours = getattr(before, figure) / getattr(after, figure)
        name = _FIGURES[figure]
        note = f"published as {share:.1%} saved, ours {1 - 1 / ours:.1%}"
        yield Row(FAMILY, network, version, name, 1 / (1 - share), ours, source, note=note)


_FIGURES = {"parameters": "compression", "macs": "speed-up (multiply-adds)"}


def _pruned(graph: fx.GraphModule, keep: Mapping[str, int]) -> fx.GraphModule:
    layers = {name: {"keep": count} for name, count in keep.items()}
    return PruneChannels(layers=layers)(graph).graph


def thinet_vgg16() -> Iterator[Row]:
    """ThiNet on VGG-16: with its linear layers, and with an average in their place."""
    vgg = _of(IMAGENET, "VGG-16")
    graph = captured(vgg)
    before = counted(graph)
    yield from _thinet(vgg, graph, before, ("ThiNet-Conv",), _LUO_CODE)
    averaged = Architecture("VGG-16, average", vgg16_average, vgg.shape)
    yield from _thinet(vgg, captured(averaged), before, ("ThiNet-GAP", "ThiNet-Tiny"), _LUO)


def _thinet(
    of: Architecture,
    graph: fx.GraphModule,
    before: LayerFigures,
    versions: Sequence[str],
    source: str,
) -> Iterator[Row]:
    sizes = [(each.name, each.values.shape[0]) for each in convolutions(graph)]
    for version in versions:
        pairs = zip(sizes, _THINET[version], strict=True)
        keep = {name: count for (name, channels), count in pairs if count < channels}
        parameters, flops = _THINET_SIZES[version]
        smaller = counted(_pruned(graph, keep))
        yield from _ratios(of, version, before, smaller, (parameters, flops), source)


def _ratios(
    of: Architecture,
    version: str,
    before: LayerFigures,
    after: LayerFigures,
    published: tuple[float, float],
    source: str,
) -> Iterator[Row]:
    """published: millions of parameters and thousand millions of FLOPs afterwards."""
    assert of.parameters is not None
    assert of.macs is not None
    sizes = (published[0] * MILLION, published[1] * BILLION / 2)
    whole = (of.parameters.value, of.macs.value)
    for figure, size, first in zip(("parameters", "macs"), sizes, whole, strict=True):
        ours = getattr(before, figure) / getattr(after, figure)
        note = f"{getattr(after, figure) / MILLION:,.2f}M, published {size / MILLION:,.2f}M"
        yield Row(FAMILY, of.name, version, _FIGURES[figure], first / size, ours, source, note=note)


def thinet_resnet50() -> Iterator[Row]:
    """ThiNet on ResNet-50: 70% of the filters of the first two convolutions of each block stay."""
    of = _of(IMAGENET, "ResNet-50")
    graph = captured(of)
    inner = [each for each in convolutions(graph) if ".body." in each.name]
    keep = {
        each.name: int(0.7 * each.values.shape[0])
        for number, each in enumerate(inner)
        if number % 3 < 2
    }
    smaller = counted(_pruned(graph, keep))
    yield from _ratios(of, "ThiNet-70", counted(graph), smaller, (16.94, 4.88), _LUO_CODE)
