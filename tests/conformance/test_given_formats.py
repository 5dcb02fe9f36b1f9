"""Models that bring formats along, in compiled C++: tables of exact values, averages that round
once, scales behind layers, parts that quantize gave formats."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import fxloom
from fxloom.data import Data
from fxloom.passes import Quantize
from fxloom.program import Program
from fxloom.target import Target
from tests.conformance.packing import pack
from tests.conformance.test_sparse import differences, unoptimized
from tests.given_nets import Rounded, Weighted, random_net
from tests.passes.test_given_scales import Layer, Residual, onto

__all__ = ["unoptimized"]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def completed(net: nn.Module, *shape: int) -> Program:
    x = torch.randn(40, *shape)
    graph = fxloom.capture(net.eval(), x[:2])
    return fxloom.lower(Quantize()(graph, Data(x)).graph)


def dense() -> list[Program]:
    scaled = nn.Sequential(
        onto(0.031, 8), Layer(nn.Linear(6, 5)), nn.ReLU(), onto(0.023, signed=False),
        Layer(nn.Linear(5, 4), by_channel=False),
    )  # fmt: skip
    tables = nn.Sequential(
        Rounded(6, 2), Weighted(nn.Linear(6, 5)), nn.Tanh(), Rounded(6, 1, modes="TRN SAT"),
        Weighted(nn.Linear(5, 4)), nn.BatchNorm1d(4), nn.ReLU(), Rounded(6, 2, False),
        Weighted(nn.Linear(4, 3)), nn.Softmax(1),
    )  # fmt: skip
    return [completed(scaled, 6), completed(tables, 6), completed(Residual(), 9)]


def images() -> list[Program]:
    scaled = nn.Sequential(
        onto(0.031, 8), Layer(nn.Conv2d(2, 4, 3, padding=1)), nn.ReLU(), nn.MaxPool2d(2),
        onto(0.023, signed=False), Layer(nn.Conv2d(4, 3, 3)), nn.ReLU(), onto(0.013, signed=False),
        nn.AvgPool2d(2), nn.Flatten(), Layer(nn.Linear(3, 4)),
    )  # fmt: skip
    pooled = nn.Sequential(
        Rounded(7, 2), Weighted(nn.Conv2d(2, 3, 3, padding=1), shifts=[0, 2, 1]), nn.ReLU(),
        nn.AvgPool2d(3), Rounded(6, 2, False, "RND_CONV SAT"), nn.Flatten(),
        Weighted(nn.Linear(12, 3)),
    )  # fmt: skip
    drawn = [random_net(seed) for seed in range(24)]
    random = next((net, shape) for net, shape in drawn if len(shape) == 3)
    return [
        completed(scaled, 2, 8, 8),
        completed(pooled, 2, 6, 6),
        completed(random[0], *random[1]),
    ]


@pytest.mark.parametrize(
    ("programs", "target"),
    [(dense, Target()), (images, Target(io="stream", strategy="resource", reuse=2))],
    ids=["dense", "images"],
)
def test_given_formats_give_the_simulators_integers(
    programs: object, target: Target, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    assert callable(programs)
    assert differences(pack(programs()), target, tmp_path) == {}
