"""Patterns reach the hardware: whole multiplier slots and memory words of the program are zero."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxloom import ops
from fxloom.data import Data
from fxloom.errors import RecipeError
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes import Prune, Quantize
from fxloom.passes.prunable import find_prunable
from fxloom.program import Program

REUSE = {"0": 9, "3": 18, "6": 8, "8": 16}


def images() -> tuple[nn.Module, Data]:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, padding=1)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4)),
    )
    return model.eval(), Data(torch.randn(100, 2, 10, 10))


def kernels(program: Program) -> list[np.ndarray]:  # type: ignore[type-arg]
    """The weights of every layer as hls4ml's Resource layers store them: outputs first."""
    found = []
    for instr in program.instrs:
        if isinstance(instr.op, ops.MatMul | ops.Conv):
            found.append(np.moveaxis(program.constants[instr.args[1]].data, -1, 0).reshape(-1))
    return found


@pytest.mark.parametrize("kind", ["slots", "words"])
@pytest.mark.parametrize("method", ["magnitude", "obd", "obs"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_whole_slots_and_words_of_the_program_vanish(kind: Any, method: Any, scope: Any) -> None:
    model, data = images()
    graph = capture(model, data.example(2))
    layers = {name: {"reuse": reuse} for name, reuse in REUSE.items()}
    step = Prune(sparsity=0.5, pattern=kind, method=method, scope=scope, layers=layers)
    pruned = step(graph, data).graph
    before, after = find_prunable(graph), find_prunable(pruned)
    program = lower(Quantize(weights=6)(pruned, data).graph)
    slots = 0
    for each, stored in zip(after, kernels(program), strict=True):
        reuse = REUSE[each.name]
        blocks = stored.reshape(-1, reuse) if kind == "slots" else stored.reshape(-1, reuse).T
        gone = ~blocks.any(1)
        zeros = each.size - int(each.is_nonzero().sum())
        assert zeros == gone.sum() * blocks.shape[1]
        if scope == "layer":
            assert gone.sum() == len(blocks) // 2
        slots += int(zeros)
    total = sum(each.size for each in before)
    assert 0 <= total / 2 - slots < 128  # weights of the largest word


@pytest.mark.parametrize("method", ["magnitude", "obd", "obs"])
@pytest.mark.parametrize(("text", "kept", "of"), [("2:4", 2, 4), ("1:8", 1, 8), ("3:4", 3, 4)])
def test_n_of_m_inputs_stay(method: Any, text: str, kept: int, of: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2), nn.ReLU(),
                          nn.Flatten(), nn.Linear(64, 8))  # fmt: skip
    data = Data(torch.randn(60, 8, 4, 4))
    pruned = Prune(pattern=text, method=method)(capture(model, data.example(2)), data).graph
    for each in find_prunable(pruned):
        inputs = each.rows(each.values).reshape(-1, of)
        assert ((inputs != 0).sum(1) == kept).all()


def test_patterns_come_in_steps() -> None:
    model, data = images()
    graph = capture(model, data.example(2))
    layers = {name: {"reuse": reuse} for name, reuse in REUSE.items()}
    for keys in ({"pattern": "2:4", "exclude": ("0", "3")},
                 {"pattern": "slots", "sparsity": 0.5, "layers": layers}):  # fmt: skip
        step = Prune(schedule="gradual", steps=3, scope="layer", **keys)  # type: ignore[arg-type]
        summary: Any = step(graph).summary
        reached = [each["sparsity"] for each in summary["steps"]]
        assert reached == sorted(reached)
        assert 0.46 < reached[-1] <= 0.5


def test_second_order_slots_lose_less_than_those_of_small_weights() -> None:
    model, data = images()
    x = torch.as_tensor(data.example(100))
    graph = capture(model, x[:2])
    errors = []
    for keys in ({}, {"method": "obs"}):
        step = Prune(sparsity=0.5, pattern="slots", reuse=2, **keys)  # type: ignore[arg-type]
        errors.append(float((step(graph, data).graph(x) - graph(x)).detach().square().mean()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pattern": "2:4"}, "0: its 18 weights an output are no multiple of 4. Exclude it"),
        (
            {"pattern": "slots", "reuse": 5, "sparsity": 0.5},
            "its 108 weights are no multiple",
        ),
        (
            {"pattern": "words", "layers": {"6": {"reuse": 8}}, "sparsity": 0.5},
            "0: no reuse factor is given for it",
        ),
    ],
)
def test_patterns_that_do_not_divide_are_refused(keys: dict[str, Any], message: str) -> None:
    model, data = images()
    with pytest.raises(RecipeError, match=message):
        Prune(**keys)(capture(model, data.example(2)), data)


def test_blocks_of_layers_stored_otherwise_are_refused() -> None:
    x = torch.randn(2, 4, 5, 5)
    for layer, message in (
        (nn.Conv2d(4, 4, 3, groups=2), "a convolution in 2 groups are stored in another order"),
        (nn.ConvTranspose2d(4, 4, 3), "a transposed convolution are stored in another order"),
    ):
        with pytest.raises(RecipeError, match=message):
            Prune(sparsity=0.5, pattern="slots", reuse=2)(capture(layer, x))
