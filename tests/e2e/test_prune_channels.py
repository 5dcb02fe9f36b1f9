"""Channels removed, the rest trained, quantized, lowered: the hardware is that of a smaller net."""

from typing import Any

import numpy as np
import torch
from torch import nn

import fxloom
from fxloom.demo import digits
from fxloom.exact import exact_forward
from fxloom.passes import Finetune, PruneChannels, Quantize
from fxloom.recipe import Recipe


def trained() -> tuple[nn.Module, fxloom.Data]:
    data = digits()
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    graph = fxloom.capture(net.eval(), data.example(2))
    result = Recipe([Finetune(epochs=8)]).run(graph, data)
    net.load_state_dict(result.graph.state_dict(), strict=False)
    return net, data


def accuracy(program: Any, data: fxloom.Data) -> float:
    x = data.x_test.numpy() if isinstance(data.x_test, torch.Tensor) else data.x_test
    outputs = np.asarray(fxloom.simulate(program, x))
    return float((outputs.argmax(1) == np.asarray(data.y_test)).mean())


def test_pruned_network_is_smaller_hardware() -> None:
    net, data = trained()
    graph = fxloom.capture(net, data.example(2))
    whole = fxloom.lower(Recipe([Quantize()]).run(graph, data).graph)
    steps = [
        PruneChannels(sparsity=0.5, criterion="reconstruction", exclude=("7",)),
        Finetune(epochs=4),
        Quantize(),
    ]
    result = Recipe(steps).run(graph, data)
    program = fxloom.lower(result.graph)
    program.verify()
    weights = [c.data.shape for c in program.constants.values() if c.data.ndim > 1]
    assert (3, 3, 1, 8) in weights
    assert (3, 3, 8, 8) in weights
    assert (32, 32) in weights  # 8 channels of 2x2 places
    assert accuracy(program, data) > accuracy(whole, data) - 0.04

    x = data.example(16)
    assert isinstance(x, torch.Tensor)
    assert np.array_equal(np.asarray(fxloom.simulate(program, x.numpy())),
                          np.asarray(exact_forward(result.graph, x)))  # fmt: skip
    target = fxloom.Target(part="xc7z020")
    before, after = fxloom.estimate(whole, target).total, fxloom.estimate(program, target).total
    assert after.weight_count < 0.5 * before.weight_count
    assert after.macs < 0.5 * before.macs
