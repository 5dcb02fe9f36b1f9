"""Four networks through the C simulation of every target: `make matrix`, about half an hour.

{io_parallel, io_stream} x {Latency, Resource with reuse 1, 4, largest} x {Vitis, Vivado} on an MLP
with softmax, LeNet-5, a depthwise-separable network and ResNet-8 (CIFAR shape). Every integer of
the outputs is compared with the reference simulator's; exit code 1 where any differs.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from examples.models import lenet5, resnet8
from fxloom import capture, lower
from fxloom.backends import get
from fxloom.backends.hls4ml import csim
from fxloom.backends.simulator import quantize_inputs, reference
from fxloom.data import Data
from fxloom.passes import Quantize
from fxloom.program import Program
from fxloom.target import Target

SETTINGS: dict[str, dict[str, Any]] = {
    "latency": {"strategy": "latency"},
    "resource 1": {"strategy": "resource", "reuse": 1},
    "resource 4": {"strategy": "resource", "reuse": 4},
    "resource largest": {"strategy": "resource", "reuse": 10**9},
}


def softmax_mlp() -> nn.Module:
    """The jet tagger with its softmax."""
    return nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(),
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5), nn.Softmax(-1),
    )  # fmt: skip


def separable() -> nn.Module:
    """Depthwise-separable blocks with strides, as in MobileNet, on a small image."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.ReLU6(), nn.Conv2d(16, 24, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp with softmax": (softmax_mlp, (16,), 500),
    "lenet5": (lenet5, (1, 28, 28), 20),
    "separable": (separable, (3, 24, 24), 40),
    "resnet8": (resnet8, (3, 32, 32), 4),
}


def program_of(name: str) -> tuple[Program, np.ndarray[Any, Any]]:
    """The quantized network, and inputs up to three times beyond what it was calibrated for."""
    make, shape, count = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(max(count, 64), *shape)
    graph = Quantize()(capture(model, x[:2]), Data(x_train=x)).graph
    beyond = x[:count] * torch.linspace(0.5, 3, count).reshape(-1, *(1,) * len(shape))
    return lower(graph), beyond.numpy()


def main(names: list[str]) -> int:
    """Run the matrix for the models named, all if none are; returns the number of differences."""
    csim.FLAGS = (*csim.FLAGS, "-O1")  # few samples a project: compiling is what costs
    wrong = 0
    for name in names or list(MODELS):
        program, x = program_of(name)
        wanted = reference(program, quantize_inputs(program, x))
        for io, setting, backend in itertools.product(
            ("parallel", "stream"), SETTINGS, ("Vitis", "Vivado")
        ):
            start = time.perf_counter()
            target = Target(backend=backend, io=io, **SETTINGS[setting])
            with tempfile.TemporaryDirectory() as folder:
                build = get("hls4ml").emit(
                    program, target, Path(folder) / "project", cache=Path(folder) / "cache"
                )
                got = build.run_mantissas(quantize_inputs(program, x))
            compared = sum(a.size for a in wanted)
            different = sum(int((a != b).sum()) for a, b in zip(wanted, got, strict=True))
            wrong += different
            print(
                f"{name:17} io_{io:9} {setting:17} {backend:7} {different} of {compared} differ"
                f"  ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
