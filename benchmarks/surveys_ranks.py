"""Low-rank factors at published ranks, and at ranks that a search finds for published ratios.

The low-rank rows of Cheng et al. 2017 (arXiv 1710.09282, table II) are those of Tai et al. 2016
(arXiv 1511.06067): vertical filters, then horizontal ones. What is called CP there has the top-5
accuracy, 79.66% and 90.31%, of the plain networks in the authors' repository, whose ranks are given
to factorize here; the other row has batch norms. Their compression counts convolutions alone: so
their ranks give their ratio. Their speed-ups are wall times on a GPU, ours are of the multiply-adds
of the whole network.

Of the ranks of Kim et al. 2015 (arXiv 1511.06530) those are used whose published ratio of one layer
they reproduce; of whole networks only ratios, for which factorize finds ranks on seeded weights and
random images. One of the two ratios is the budget, the other is what these ranks happen to give.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

import fxloom
from benchmarks.architectures import IMAGENET, Architecture
from benchmarks.surveys_rows import Row, captured, convolutions, counted, in_layers, linears
from fxloom.layer_figures import LayerFigures
from fxloom.passes import Factorize

FAMILY = "low rank"
BUDGET = 0.02
"""How far a budget may be missed."""
IMAGES = 8
FADING = 0.5
"""Of the weights for which ranks are searched."""
_CHENG = "Cheng et al. 2017, arXiv 1710.09282, table II"
_TAI = "; ranks: chengtaipu/lowrankcnn, imagenet/"
_KIM = "Kim et al. 2015, arXiv 1511.06530"
WALL = "published: wall time on a GPU; ours: multiply-adds"

_RANKS: Mapping[str, tuple[tuple[int, ...], str]] = {
    "AlexNet": ((8, 20, 60, 50, 100), "models_caffenet/caffenet_lowrank_deploy.prototxt"),
    "VGG-16": (
        (5, 24, 48, 48, 64, 128, 160, 192, 192, 256, 320, 320, 320),
        "models_vgg/config.json of commit 9db9f22",
    ),
}
"""Of each convolution, in order; of one in groups, of each group.

The repository has VGG-16 twice; with 64 and not 48 in both layers of the second stage it is 2.73x.
"""

_CHENGS = {
    "AlexNet": {"": (5.0, 1.82), " with batch norms": (4.94, 1.09)},
    "VGG-16": {"": (2.75, 2.05), " with batch norms": (2.72, 1.53)},
    "GoogLeNet": {"": (2.84, 1.20), " with batch norms": (2.79, 1.08)},
}
"""Compression and speed-up; without batch norms where that table says CP."""


def _of(name: str) -> Architecture:
    return next(each for each in IMAGENET if each.name == name)


def _images(of: Architecture) -> fxloom.Data:
    return fxloom.Data.of(
        torch.randn(IMAGES, *of.shape, generator=torch.Generator().manual_seed(2))
    )


def _factored(
    graph: fx.GraphModule, data: fxloom.Data | None, **keys: Any
) -> tuple[fx.GraphModule, Mapping[str, Sequence[int]]]:
    """The graph after factorize, and the ranks of the layers that it factored."""
    run = fxloom.Recipe([Factorize(**keys)]).run(graph, data)
    layers: Any = run.steps[0].summary["layers"]
    return run.graph, {name: each["ranks"] for name, each in layers.items()}


def separable(name: str) -> Iterator[Row]:
    """Cheng's rows of a network whose ranks are published."""
    of = _of(name)
    graph = captured(of)
    names = [each.name for each in convolutions(graph)]
    ranks, path = _RANKS[name]
    layers = {layer: {"rank": rank} for layer, rank in zip(names, ranks, strict=True)}
    for norms in ("", " with batch norms"):
        data = _images(of) if norms else None
        smaller, used = _factored(
            graph, data, method="spatial", layers=layers, batchnorm=bool(norms)
        )
        setting = f"spatial, published ranks {_shown(used.values())}{norms}"
        yield from _chengs(name, norms, graph, smaller, names, setting, _CHENG + _TAI + path)


def searched(name: str) -> Iterator[Row]:
    """Cheng's rows of a network of which no ranks are published: factorize finds some."""
    of = _of(name)
    for norms in _CHENGS[name]:
        yield from _searched(of, "spatial", norms)


def canonical() -> Iterator[Row]:
    """The row that is called CP, reached with CP."""
    yield from _searched(_of("AlexNet"), "cp", "")


def _searched(of: Architecture, method: str, norms: str) -> Iterator[Row]:
    graph = captured(of, FADING)
    found = convolutions(graph)
    names = [each.name for each in found]
    small = {each.name: {"method": "svd"} for each in found if each.values.shape[2:].numel() == 1}
    compression, _ = _CHENGS[of.name][norms]
    part = in_layers(graph, names).parameters
    smaller, used = _factored(
        graph,
        _images(of),
        method=method,
        budget=1 - (part - part / compression) / counted(graph).parameters,
        include=tuple(names),
        layers=small,
        batchnorm=bool(norms),
    )
    setting = f"{method}, ranks by budget {_shown(used.get(each, ()) for each in names)}{norms}"
    yield from _chengs(of.name, norms, graph, smaller, names, setting, _CHENG)


def _chengs(
    name: str,
    norms: str,
    graph: fx.GraphModule,
    smaller: fx.GraphModule,
    names: Sequence[str],
    setting: str,
    source: str,
) -> Iterator[Row]:
    compression, speed = _CHENGS[name][norms]
    before, after = in_layers(graph, names), in_layers(smaller, names)
    yield Row(
        FAMILY,
        name,
        setting,
        "compression of convolutions",
        compression,
        before.parameters / after.parameters,
        source,
    )
    ours = counted(graph).macs / counted(smaller).macs
    yield Row(FAMILY, name, setting, "speed-up", speed, ours, source, within=None, note=WALL)


def _shown(ranks: Iterable[Sequence[int]]) -> str:
    """Of every layer; "-" of one that stays."""
    return " ".join("x".join(map(str, each)) or "-" for each in ranks)


_KIMS: Mapping[str, tuple[str, tuple[int, ...], float]] = {
    "conv1": ("svd", (26,), 2.92),
    "conv2": ("tucker", (25, 59), 3.37),
    "conv3": ("tucker", (105, 112), 5.03),
    "fc7": ("svd", (301,), 6.80),
    "fc8": ("svd", (195,), 4.12),
}
"""Layers of AlexNet: with one rank, that of the outputs, Tucker-2 is the factors of one matrix."""
_KIM_NETWORKS = {"AlexNet": (5.46, 2.67), "VGG-16": (1.09, 4.93), "GoogLeNet": (1.28, 2.06)}
"""Ratios of parameters and of multiply-adds."""


def tucker_layers() -> Iterator[Row]:
    """Single layers of AlexNet at their published ranks."""
    graph = captured(_of("AlexNet"))
    layers = _layers_of_kim(graph)
    smaller, _ = _factored(graph, None, layers=layers)
    for layer, (key, (_, ranks, ratio)) in zip(layers, _KIMS.items(), strict=True):
        before, after = (in_layers(each, [layer]).parameters for each in (graph, smaller))
        setting = f"{key}: published ranks {_shown([ranks])}"
        ours = before / after
        yield Row("Tucker-2", "AlexNet", setting, "compression", ratio, ours, f"{_KIM}, table 2")


def _layers_of_kim(graph: fx.GraphModule) -> dict[str, dict[str, Any]]:
    """What factorize is told of the layers whose ranks are published, by their names in a graph of
    AlexNet."""
    names = {f"conv{number}": each.name for number, each in enumerate(convolutions(graph), 1)}
    names |= {f"fc{number}": each.name for number, each in enumerate(linears(graph), 6)}
    return {
        names[key]: {"method": method, "rank": ranks} for key, (method, ranks, _) in _KIMS.items()
    }


def tucker(name: str) -> Iterator[Row]:
    """A whole network: ranks for one of its two published ratios.

    Of kernels larger than 1x1, and of AlexNet's linear layers, which have most of its parameters;
    those whose ranks are published have these.
    """
    of = _of(name)
    graph = captured(of, FADING)
    kernels = [each for each in convolutions(graph) if each.values.shape[2:].numel() > 1]
    flat = linears(graph) if name == "AlexNet" else []
    found = [*kernels, *flat]
    given = _layers_of_kim(graph) if name == "AlexNet" else {}
    parameters, macs = _KIM_NETWORKS[name]
    cost, ratio = ("parameters", parameters) if name == "AlexNet" else ("macs", macs)
    smaller, used = _factored(
        graph,
        _images(of),
        method="tucker",
        budget=1 / ratio,
        cost=cost,
        include=tuple(each.name for each in found),
        layers={each.name: {"method": "svd"} for each in flat} | given,
    )
    published = f"published ranks for {', '.join(_KIMS)}, the rest " if given else "ranks "
    setting = f"{published}by budget: {_shown(used.get(each.name, ()) for each in found)}"
    before, after = counted(graph), counted(smaller)
    yield from _kims(name, setting, cost, before, after)


def _kims(
    name: str, setting: str, cost: str, before: LayerFigures, after: LayerFigures
) -> Iterator[Row]:
    for figure, key, ratio in zip(
        ("compression", "speed-up (multiply-adds)"),
        ("parameters", "macs"),
        _KIM_NETWORKS[name],
        strict=True,
    ):
        ours = getattr(before, key) / getattr(after, key)
        is_budget = key == cost
        note = "the budget" if is_budget else "follows from our ranks, not from theirs"
        within = BUDGET if is_budget else None
        source = f"{_KIM}, table 1"
        yield Row("Tucker-2", name, setting, figure, ratio, ours, source, within=within, note=note)
