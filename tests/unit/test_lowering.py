"""Lowering: ports that hardware cannot have are refused by name before anything else."""

import pytest
import torch
from torch import nn

from fxloom.data import Data
from fxloom.errors import UnsupportedLayer
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize
from tests.capturing import capture_anything
from tests.models import Buffers, Fn


def test_an_output_whose_batch_is_not_first_is_refused() -> None:
    model = Fn(lambda m, x: x.transpose(0, 1) * 0.5)
    with pytest.raises(UnsupportedLayer, match="its batch is dimension 1, it must be the first"):
        capture(model, torch.randn(2, 5, 3))
    graph = capture_anything(model, torch.randn(2, 5, 3))
    with pytest.raises(UnsupportedLayer, match="its batch is dimension 1, it must be the first"):
        Quantize()(graph, Data(x_train=torch.randn(20, 5, 3)))
    with pytest.raises(UnsupportedLayer, match="its batch is dimension 1"):
        lower(graph)


def test_an_unused_input_is_refused_before_calibration() -> None:
    model = Fn(lambda m, x, y: m.fc(x), fc=nn.Linear(3, 2))
    x = (torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(UnsupportedLayer, match="input inputs_1: nothing uses it"):
        capture(model, x)
    graph = capture_anything(model, x)
    with pytest.raises(UnsupportedLayer, match="input inputs_1: nothing uses it"):
        Quantize()(graph, Data(x_train=(torch.randn(9, 3), torch.randn(9, 4))))


def test_a_constant_divisor_with_a_zero_is_refused_at_capture() -> None:
    model = Buffers(lambda m, x: x / m.scale, scale=torch.tensor([1.5, 0, 2]))
    with pytest.raises(UnsupportedLayer, match="scale holds a divisor of zero"):
        capture(model, torch.randn(2, 3))
