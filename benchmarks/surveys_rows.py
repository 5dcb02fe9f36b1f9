"""What a row of the survey table says, and how graphs are counted for it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

import fxloom
from benchmarks.architectures import Architecture
from fxloom.layer_figures import LayerFigures, layer_figures, total
from fxloom.passes.prunable import Prunable, find_prunable

RANKS = 0.03
"""How far ratios at published settings may be from published ones."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside the published one.

    setting: what was given to the pass, or what it found. unit: of both. within: how far ours may
    be from the published one; None: the two are different things, and note says which.
    """

    family: str
    network: str
    setting: str
    figure: str
    published: float
    ours: float
    source: str
    unit: str = "x"
    within: float | None = RANKS
    note: str = ""

    @property
    def off(self) -> float:
        """How far ours is from the published one, of that one."""
        return self.ours / self.published - 1


def captured(of: Architecture, fading: float = 0.0) -> fx.GraphModule:
    """Its graph, with weights that are the same every time.

    They are normally distributed, as large as lets every layer matter to the outputs, and biases
    are zero (He et al. 2015, arXiv 1502.01852): a search for ranks would else find that nothing in
    front of the last biases counts. fading: how fast channels fade, in and out, as powers of their
    numbers: random matrices of equal channels have nothing that low ranks could keep.
    """
    case = of.case()
    model = case.model()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
            _fade(parameter, fading)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return fxloom.capture(model, case.inputs(1))


def _fade(weights: Tensor, power: float) -> None:
    """Scale outputs and inputs, not the size of the whole."""
    for axis in (0, 1):
        count = weights.shape[axis]
        scales = (1 + torch.randperm(count)).double().pow(-power)
        scales /= scales.square().mean().sqrt()
        with torch.no_grad():
            weights.mul_(scales.to(weights).unflatten(0, (-1, *(1,) * (weights.dim() - 1 - axis))))


def counted(graph: fx.GraphModule) -> LayerFigures:
    """All parameters that train, and multiply-adds of one sample."""
    return total(layer_figures(graph))


def in_layers(graph: fx.GraphModule, names: Iterable[str]) -> LayerFigures:
    """The same of some layers, and of what was made from them: layers named like them with a dot
    and more behind."""
    chosen = tuple(names)
    inside = tuple(f"{name}." for name in chosen)
    figures = layer_figures(graph).items()
    return total([each for name, each in figures if name in chosen or name.startswith(inside)])


def convolutions(graph: fx.GraphModule) -> list[Prunable]:
    """The convolutions' weights, in the order of the graph."""
    return [each for each in find_prunable(graph) if each.values.dim() > 2]


def linears(graph: fx.GraphModule) -> list[Prunable]:
    """The linear layers' weights, in the order of the graph."""
    return [each for each in find_prunable(graph) if each.values.dim() == 2]
