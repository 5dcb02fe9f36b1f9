"""Parameters and multiply-adds of every architecture, from captured graphs."""

from collections.abc import Iterator, Sequence

from torch import fx

from benchmarks.architectures import IMAGENET, WITHIN, Architecture, Count
from benchmarks.architectures_small import CIFAR, LENETS, RESNET_34
from benchmarks.surveys_rows import Row, captured, counted
from fxloom.passes.prunable import find_prunable

FAMILY = "sizes"
GROUPS: dict[str, Sequence[Architecture]] = {
    "sizes": [each for each in IMAGENET if not each.name.startswith("MobileNet")],
    "sizes of MobileNets": [each for each in IMAGENET if each.name.startswith("MobileNet")],
    "sizes of small networks": [*CIFAR, RESNET_34, *LENETS],
}


def rows(group: str) -> Iterator[Row]:
    """Of one group, each network after the other."""
    for each in GROUPS[group]:
        graph = captured(each)
        figures = counted(graph)
        weights = each in LENETS
        parameters = _weights(graph) if weights else figures.parameters
        if each.parameters is not None:
            yield _row(each, "weights" if weights else "parameters", parameters, each.parameters)
        if each.macs is not None:
            yield _row(each, "multiply-adds", figures.macs, each.macs)


def _weights(graph: fx.GraphModule) -> int:
    return sum(each.size for each in find_prunable(graph))


def _row(of: Architecture, figure: str, ours: int, published: Count) -> Row:
    within = max(WITHIN, published.digit / 2 / published.value)
    return Row(
        FAMILY,
        of.name,
        "",
        figure,
        published.value,
        ours,
        published.source,
        "",
        None if published.doubt else within,
        published.doubt,
    )
