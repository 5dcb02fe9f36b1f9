"""Factored layers: every method's chain of layers, quantized, gives the simulator's integers in
compiled C++, and costs less than the layer that it replaces."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxloom
from fxloom.data import Data
from fxloom.editing import copy_graph, finish
from fxloom.frontend import capture
from fxloom.passes import Quantize, decompositions
from fxloom.passes.decompositions import parts
from fxloom.passes.factor_subjects import layer_of
from fxloom.passes.factor_writing import obstacles, readers_of, write_chain
from fxloom.passes.factorable import Ranks
from fxloom.passes.prunable import find_prunable
from fxloom.passes.tensor_trains import TensorTrain
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


METHODS = {
    **decompositions.METHODS,
    "3x2x2 to 2x2x3": TensorTrain((3, 2, 2), (2, 2, 3)),
    "4x3x2 to 3x2x2": TensorTrain((4, 3, 2), (3, 2, 2)),
}

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
    "tt of a vector": ("3x2x2 to 2x2x3", (3, 4), VECTOR, lambda: nn.Linear(12, 12)),
    "tt of a flattened image": (
        *("4x3x2 to 3x2x2", (4, 3), IMAGE),
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 12)),
    ),
    "tt of rows": ("tt", (3,), (3, 12), lambda: nn.Linear(12, 8)),
    "embedding": ("svd", (2,), (3,), lambda: nn.Embedding(9, 4)),
    "recurrence": ("svd", (3,), (3, 2), lambda: Last(nn.RNN(2, 5, batch_first=True))),
}
"""Method, ranks, shape of a sample, model."""

STREAMS = ("rows", "groups", "spatial", "cp", "tt of a flattened image", "embedding")
"""Those that are tried as streams; the others are tried in parallel."""


def factored(graph: GraphModule, chosen: Callable[[str], tuple[str, Ranks]]) -> GraphModule:
    """Every layer with weights as a chain. chosen: method and ranks, by the name of a layer."""
    module = copy_graph(graph)
    for each in find_prunable(module, embeddings=True):
        assert list(obstacles(module, each)) == []
        readers = readers_of(module, each)
        method, ranks = chosen(each.name)
        write_chain(module, readers, parts(METHODS[method], layer_of(each, readers[0]), ranks))
    return finish(module)


@cache
def program_of(name: str) -> Program:
    """A case quantized."""
    method, ranks, shape, make = CASES[name]
    torch.manual_seed(len(name))
    x = torch.randn(64, *shape) if name != "embedding" else torch.randint(0, 9, (64, *shape))
    graph = capture(make().eval(), x[:2])
    module = factored(graph, lambda _: (method, ranks))
    return fxloom.lower(Quantize(weights=6, activations=7)(module, Data(x)).graph)


PARTS = [f"0.factor{k}" for k in range(3)] + [f"{n}.factor{k}" for n in (3, 5) for k in range(2)]


@needs_compiler
@pytest.mark.parametrize(
    ("target", "names"),
    [
        (Target(), CASES.keys() - STREAMS),
        (Target(io="stream", backend="Vivado", strategy="resource", reuse=4), STREAMS),
    ],
    ids=lambda each: each.io if isinstance(each, Target) else "",
)
def test_every_methods_chain_gives_the_simulators_integers(
    target: Target, names: Iterable[str], tmp_path: Path
) -> None:
    assert differences(pack([program_of(name) for name in sorted(names)]), target, tmp_path) == {}


def test_the_report_has_what_chains_save() -> None:
    """5.6 times fewer weights: fewer multipliers by as much where each weight has one, and with no
    more
    multipliers than the layers had 0.6 of the time at most."""
    torch.manual_seed(0)
    x = torch.randn(40, 8, 5, 5)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU(), nn.Flatten())
    model.extend([nn.Linear(400, 32), nn.ReLU(), nn.Linear(32, 32)])
    graph = capture(model, x[:2])
    chosen = {"0": ("tucker", (4, 4)), "3": ("svd", (5,)), "5": ("svd", (3,))}

    both = graph, factored(graph, chosen.__getitem__)
    dense, chains = (fxloom.lower(Quantize()(each, Data(x)).graph) for each in both)
    for io in ("parallel", "stream"):
        reports = [
            fxloom.estimate(program, Target("xcvu9p", io=io, strategy="resource", reuse=reuse))
            for program, reuse in ((dense, 1), (chains, 1), (dense, 40), (chains, 8))
        ]
        assert [layer.name for layer in reports[1].layers if layer.macs] == PARTS
        dsp = [report.total.csynth.dsp.value for report in reports]
        lut = [report.total.csynth.lut.value for report in reports]
        cycles = [report.total.latency.value for report in reports]
        assert dsp[0] > 5 * dsp[1]
        assert lut[0] > 4 * lut[1]
        assert dsp[3] <= dsp[2]
        assert cycles[3] < 0.6 * cycles[2]
