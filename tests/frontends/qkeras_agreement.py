"""Models of QKeras, trained for a moment, and whether fxloom gives the same integers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import fxloom

Numbers = npt.NDArray[Any]
Branches = tuple[dict[str, Any], Numbers]

SAMPLES = 400
OFF_GRID = 2.0**-20
"""How far float32 may take QKeras' x + (q - x) from q."""


def trained(
    *layers: Any, shape: tuple[int, ...] = (16,), seed: int = 0, samples: int = SAMPLES
) -> tuple[Any, Numbers]:
    """A sequential model after two epochs, and samples of what it was trained on."""
    from tensorflow import keras

    keras.utils.set_random_seed(seed)
    return _fitted(keras.Sequential([keras.layers.Input(shape), *layers]), shape, samples)


def trained_branches(first: Sequence[Any], branches: Mapping[str, Sequence[Any]]) -> Branches:
    """Models of the same first layers on 16 numbers, trained together, and samples: each goes on
    with layers of its own."""
    from tensorflow import keras

    keras.utils.set_random_seed(0)
    x = keras.layers.Input((16,))
    shared = _through(first, x)
    ends = {name: _through(layers, shared) for name, layers in branches.items()}
    _, samples = _fitted(keras.Model(x, list(ends.values())), (16,))
    return {name: keras.Model(x, end) for name, end in ends.items()}, samples


def _through(layers: Sequence[Any], x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


def _fitted(model: Any, shape: tuple[int, ...], samples: int = SAMPLES) -> tuple[Any, Numbers]:
    from tensorflow import keras

    random = np.random.default_rng(0)
    x = random.normal(0, 1.5, (samples, *shape)).astype(np.float32)
    outputs = model.output_shape if isinstance(model.output_shape, list) else [model.output_shape]
    # Eager, for a few steps: most of the time would go into compiling the training of them.
    model.compile(keras.optimizers.legacy.SGD(0.1), "mse", run_eagerly=True)
    targets = [random.normal(0, 1, (samples, *each[1:])) for each in outputs]
    model.fit(x, targets, batch_size=samples // 2, epochs=2, verbose=0)
    return model, x


def assert_same_integers(model: Any, x: Numbers, step: float) -> None:
    """The Program gives, of all samples, the steps that QKeras gives, not all of them the same."""
    given = torch.from_numpy(x)
    program = fxloom.lower(fxloom.capture(model, given[:2]))
    found = fxloom.simulate(program, given) / step
    expected = np.array(model(x), np.float64)
    integers = np.rint(expected / step)
    assert np.abs(integers * step - expected).max() <= OFF_GRID
    assert len(np.unique(integers)) > 1
    np.testing.assert_array_equal(found, integers)
