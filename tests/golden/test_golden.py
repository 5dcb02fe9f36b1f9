"""Generated text: the integer program and the C++ of a small model with hand-made weights."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fxloom.backends import get
from fxloom.data import Data
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize
from fxloom.program import Program
from fxloom.target import Target
from tests.golden import Golden


class Small(nn.Module):
    """A residual block, an average over 6 positions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x) + x)
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


def small_program() -> Program:
    """Weights and data are multiples of 1/16: the same on every machine."""
    model = Small().eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            steps = torch.arange(parameter.numel()) * (7 + number) % 23 - 11
            parameter.copy_(steps.reshape(parameter.shape) / 16)
    x = (torch.arange(8 * 2 * 2 * 3) * 5 % 37 - 18).reshape(8, 2, 2, 3) / 16
    graph = capture(model, x)
    step = Quantize(
        weights=6, activations=8, method="minmax", weight_rounding="nearest", bias_correction=False
    )
    return lower(step(graph, Data(x_train=x)).graph)


def test_text_of_the_program(golden: Golden) -> None:
    golden.check("program.txt", small_program().to_text())


def test_text_of_the_hls_project(golden: Golden, tmp_path: Path) -> None:
    get("hls4ml").emit(small_program(), Target(), tmp_path / "hls")
    files = ["firmware/myproject.cpp", "firmware/defines.h", "firmware/parameters.h", "project.tcl"]
    text = "".join(f"==> {name}\n{(tmp_path / 'hls' / name).read_text()}\n" for name in files)
    golden.check("hls.txt", text)
