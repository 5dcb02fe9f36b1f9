"""Models of Keras with random weights, and whether fxloom computes what they predict."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

import fxloom
from fxloom.keras.memory import describe
from fxloom.keras.model import network_of
from tests.capturing import capture_anything


def randomise(model: Any, seed: int = 0) -> Any:
    """Every weight, statistics of batch norms and biases too, as none is at the start."""
    generator = np.random.default_rng(seed)

    def drawn(variable: Any) -> Any:
        name, shape = variable.name.rpartition("/")[2].partition(":")[0], tuple(variable.shape)
        if "count" in name:
            return np.ones(shape)
        if "variance" in name or name in ("gamma", "scale"):
            return generator.uniform(0.5, 1.5, shape)
        if len(shape) < 2:
            return generator.uniform(-0.5, 0.5, shape)
        fan_in = max(int(np.prod(shape[:-1])), 2)
        return generator.normal(0, fan_in**-0.5, shape)

    model.set_weights([drawn(variable) for variable in model.weights])
    return model


def inputs_of(model: Any, samples: int = 3, seed: int = 1) -> tuple[Tensor, ...]:
    """Normal numbers, or indices where an embedding reads them."""
    generator = np.random.default_rng(seed)
    drawn = []
    for example in network_of(model).example_inputs(samples):
        if example.is_floating_point():
            drawn.append(torch.from_numpy(generator.normal(0, 1, example.shape)).float())
        else:
            drawn.append(example)
    return tuple(drawn)


def assert_agrees(model: Any, *inputs: Tensor, anything: bool = False) -> GraphModule:
    """The captured graph, which gives what the model predicts to 1e-5.

    anything: take layers that can be captured and not lowered.
    """
    x = inputs or inputs_of(model)
    predicted = model.predict([each.numpy() for each in x] if len(x) > 1 else x[0].numpy(),
                              verbose=0, batch_size=len(x[0]))  # fmt: skip
    graph = (capture_anything if anything else fxloom.capture)(model, x)
    with torch.no_grad():
        found = graph(*x)
    expected = predicted if isinstance(predicted, list | tuple) else [predicted]
    results = found if isinstance(found, tuple) else (found,)
    assert len(results) == len(expected)
    names = [ref.layer for ref in describe(model).outputs]
    for name, one, other in zip(names, results, expected, strict=True):
        torch.testing.assert_close(
            one, torch.from_numpy(other), atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
        )
    return graph
