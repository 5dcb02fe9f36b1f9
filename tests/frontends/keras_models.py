"""What tests of Keras models share: weights that say something, and the comparison."""

from typing import Any

import numpy as np
import torch

import fxloom
from fxloom.keras.model import network_of


def with_random_weights(model: Any, seed: int = 0) -> Any:
    """The model with other weights than those that begin as zeros and ones."""
    random = np.random.default_rng(seed)
    weights = []
    for variable in model.weights:
        shape = tuple(variable.shape)
        if "variance" in variable.name:
            weights.append(random.uniform(0.5, 2, shape))
        else:
            fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 4
            weights.append(random.normal(0, fan_in**-0.5, shape))
    model.set_weights([w.astype(np.float32) for w in weights])
    return model


def assert_predicts_the_same(
    model: Any, *inputs: np.ndarray[Any, Any], at_most: float = 1e-5
) -> None:
    """The captured graph computes what model.predict does."""
    network = network_of(model)
    given = tuple(map(torch.from_numpy, inputs)) or network.example_inputs(3)
    arrays = [x.numpy() for x in given]
    expected = model.predict(arrays if len(arrays) > 1 else arrays[0], verbose=0)
    graph = fxloom.capture(model, given)
    results = graph(*given)
    if not isinstance(expected, list | tuple):
        expected, results = [expected], [results]
    assert len(results) == len(expected)
    names = [ref.layer for ref in network._model.outputs]
    wrong = []
    for name, result, reference in zip(names, results, expected, strict=True):
        if tuple(result.shape) != reference.shape:
            wrong.append(f"{name}: shape {tuple(result.shape)}, Keras has {reference.shape}")
        elif not np.abs(result.detach().numpy() - reference).max() <= at_most:
            wrong.append(f"{name}: {np.abs(result.detach().numpy() - reference).max()} too far")
    assert not wrong, "\n".join(wrong)
