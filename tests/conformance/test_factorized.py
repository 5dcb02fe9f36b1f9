"""Factored layers: every method's chain of layers, quantized, gives the simulator's integers in
compiled C++, and costs less than the layer that it replaces."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxloom
from fxloom.data import Data
from fxloom.editing import copy_graph, finish
from fxloom.frontend import capture
from fxloom.graph import arguments
from fxloom.passes import Quantize
from fxloom.passes.decompositions import METHODS, parts
from fxloom.passes.factor_writing import obstacles, readers_of, write_chain
from fxloom.passes.factorable import Layer
from fxloom.passes.factors import Chain
from fxloom.passes.prunable import Prunable, find_prunable
from fxloom.program import Program
from fxloom.target import Target
from tests.conformance.packing import pack
from tests.conformance.test_sparse import differences, unoptimized

__all__ = ["unoptimized"]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

IMAGE, SIGNAL, VECTOR = (4, 6, 5), (4, 9), (12,)


class Last(nn.Module):
    """The last step of a recurrent layer."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][:, -1]


CASES: Mapping[str, tuple[str, tuple[int, ...], tuple[int, ...], Callable[[], nn.Module]]] = {
    "vector": ("svd", (3,), VECTOR, lambda: nn.Linear(12, 10)),
    "rows": ("svd", (2,), (3, 2, 6), lambda: nn.Linear(6, 8, bias=False)),
    "groups": ("svd", (2,), IMAGE, lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), 1, groups=2)),
    "signal": ("svd", (3,), SIGNAL, lambda: nn.Conv1d(4, 6, 3, 2, 2, dilation=2)),
    "pointwise": ("svd", (2,), IMAGE, lambda: nn.Conv2d(4, 5, 1, bias=False)),
    "spatial": ("spatial", (4,), IMAGE, lambda: nn.Conv2d(4, 5, 3, (1, 2), (2, 1), (2, 1))),
    "tucker": ("tucker", (3, 2), IMAGE, lambda: nn.Conv2d(4, 6, 3, (2, 1), 1)),
    "tucker of groups": ("tucker", (1, 2), SIGNAL, lambda: nn.Conv1d(4, 6, 3, 1, 1, 1, 2)),
    "cp": ("cp", (5,), IMAGE, lambda: nn.Conv2d(4, 6, 3, (2, 1), (1, 2), (1, 2))),
    "tt": ("tt", (3, 4, 3), IMAGE, lambda: nn.Conv2d(4, 6, 3, 2, 1, bias=False)),
    "tt of a vector": ("tt", (3, 4), VECTOR, lambda: nn.Linear(12, 12)),
    "tt of a flattened image": (
        *("tt", (4, 3), IMAGE),
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 12)),
    ),
    "tt of rows": ("tt", (3, 2), (3, 12), lambda: nn.Linear(12, 8)),
    "recurrence": ("svd", (3,), (3, 2), lambda: Last(nn.LSTM(2, 4, batch_first=True))),
}
"""Method, ranks, shape of a sample, model."""


def layer_of(each: Prunable) -> Layer:
    """Weights as the methods take them."""
    if each.values.dim() == 2:
        return Layer(each.values)
    stride, padding, dilation = (tuple(n) for n in arguments(each.readers[0])[3:6])
    return Layer(each.values, stride, padding, dilation, each.groups)


def factored(graph: GraphModule, make: Callable[[Prunable], Chain]) -> GraphModule:
    module = copy_graph(graph)
    for each in find_prunable(module):
        assert list(obstacles(module, each)) == []
        write_chain(module, readers_of(module, each), make(each))
    return finish(module)


def program_of(name: str) -> Program:
    method, ranks, shape, make = CASES[name]
    torch.manual_seed(len(name))
    x = torch.randn(64, *shape)
    graph = capture(make().eval(), x[:2])
    module = factored(graph, lambda each: parts(METHODS[method], layer_of(each), ranks))
    return fxloom.lower(Quantize(weights=6, activations=7)(module, Data(x)).graph)


@needs_compiler
@pytest.mark.parametrize(("io", "reuse"), [("parallel", 1), ("stream", 4)])
def test_every_methods_chain_gives_the_simulators_integers(
    io: Literal["parallel", "stream"], reuse: int, tmp_path: Path
) -> None:
    program = pack([program_of(name) for name in CASES if CASES[name][0] in METHODS])
    target = Target(io=io, strategy="resource" if reuse > 1 else "latency", reuse=reuse)
    assert differences(program, target, tmp_path) == {}
