"""Tensors of torch.empty: exact where every element is assigned before it is read, else refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.errors import UnsupportedLayer
from fxloom.exact import exact_forward
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize
from fxloom.program import Program
from tests.models import Fn

torch.manual_seed(0)
X = torch.randn(32, 6)
Forward = Callable[[Any, Tensor], Any]


def program_of(forward: Forward) -> Program:
    torch.manual_seed(1)
    model = Fn(forward, a=nn.Linear(1, 4), b=nn.Linear(4, 4))
    result = Quantize()(capture(model, X[:2]), Data(x_train=X))
    program = lower(result.graph)
    np.testing.assert_array_equal(
        simulate(program, X.numpy()), exact_forward(result.graph, X).detach().numpy()
    )
    return program


def steps(m: Any, x: Tensor) -> list[Tensor]:
    h, found = x.new_zeros(x.shape[0], 4), []
    for i in range(3):
        h = torch.tanh(m.a(x[:, i : i + 1]) + m.b(h))
        found.append(h)
    return found


def collected(m: Any, x: Tensor) -> Tensor:
    every = torch.empty(x.shape[0], 3, 4)
    for i, h in enumerate(steps(m, x)):
        every[:, i] = h
    return every


def grid(m: Any, x: Tensor) -> Tensor:
    y = x.new_empty(x.size(0), 2, 3)
    for i in range(2):
        for j in range(3):
            y[:, i, j] = x[:, i * 3 + j] * (i + 1)
    return y


def interleaved(m: Any, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[:, ::2], y[:, 1::2] = x[:, :3], -x[:, 3:]
    return y


def used_in_part(m: Any, x: Tensor) -> Tensor:
    y = torch.empty(x.shape[0], 5)
    y[:, 1:4] = x[:, :3]
    return y[:, 1:4] * 2


def overwritten(m: Any, x: Tensor) -> Tensor:
    y = torch.empty(x.shape[0], 6).fill_(0.5)
    y[:, 2] = x[:, 2]
    return y


PAIRS: dict[str, tuple[Forward, Forward]] = {
    "steps of a loop": (collected, lambda m, x: torch.stack(steps(m, x), 1)),
    "entries": (grid, lambda m, x: torch.stack([x[:, :3], x[:, 3:] * 2], 1)),
    "strides": (interleaved, lambda m, x: torch.stack([x[:, :3], -x[:, 3:]], 2).flatten(1)),
    "a part": (used_in_part, lambda m, x: x[:, :3] * 2),
    "filled": (overwritten, lambda m, x: torch.where(torch.arange(6) == 2, x, 0.5)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_assigned_in_full_is_what_was_assigned(name: str) -> None:
    by_parts, at_once = (program_of(forward) for forward in PAIRS[name])
    np.testing.assert_array_equal(simulate(by_parts, X.numpy()), simulate(at_once, X.numpy()))


def half(x: Tensor) -> Tensor:
    y = torch.empty(x.shape[0], 6)
    y[:, :3] = x[:, :3]
    return y


@pytest.mark.parametrize(
    ("forward", "who"),
    [
        (lambda m, x: half(x), "forward returns it"),
        (lambda m, x: half(x).sum(1), r"aten\.sum\.dim_IntList reads it"),
        (lambda m, x: x + torch.empty(6), r"aten\.add\.Tensor reads it"),
        (lambda m, x: torch.slice_scatter(x, half(x)[:, 2:4], 1, 0, 2), "forward returns it"),
    ],
)
def test_what_is_not_assigned_is_refused_by_name(forward: Forward, who: str) -> None:
    where = r"empty\.memory_format, line \d+ of .*: "
    with pytest.raises(UnsupportedLayer, match=where + who + r".*torch\.zeros"):
        capture(Fn(forward), X[:2])
