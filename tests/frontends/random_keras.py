"""Random convolutional networks and perceptrons of Keras, for either generation.

Keras says at every layer whether it is possible: what it refuses is drawn again.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Draw = Callable[["Drawn"], Any]


class Drawn:
    """Random choices, and the layers of one Keras."""

    def __init__(self, k: Any, seed: int) -> None:
        self.layers, self.random = k.layers, np.random.default_rng(seed)

    def one(self, *choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def number(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def pair(self, low: int, high: int) -> tuple[int, int]:
        return self.number(low, high), self.number(low, high)

    def function(self) -> str:
        return str(self.one("linear", "relu", "tanh", "sigmoid", "relu", "elu", "softmax"))

    def stride_or_dilation(self) -> dict[str, Any]:
        if self.one(0, 1, 1):
            return {"strides": self.number(1, 3)}
        return {"dilation_rate": self.number(1, 2)}

    def window(self) -> dict[str, Any]:
        return {
            "padding": self.one("same", "valid"),
            "activation": self.function(),
            "use_bias": self.one(True, False),
            **self.stride_or_dilation(),
        }


IMAGES: list[Draw] = [
    lambda d: d.layers.Conv2D(d.one(2, 4, 6), d.pair(1, 4), groups=d.one(1, 1, 2), **d.window()),
    lambda d: d.layers.DepthwiseConv2D(
        d.number(1, 3), depth_multiplier=d.number(1, 2), **d.window()
    ),
    lambda d: d.layers.SeparableConv2D(
        d.one(2, 4), d.pair(1, 3), depth_multiplier=d.number(1, 2), **d.window()
    ),
    lambda d: d.layers.Conv2DTranspose(
        d.one(2, 4), d.pair(1, 4), strides=d.pair(1, 3), padding=d.one("same", "valid")
    ),
    lambda d: d.layers.MaxPooling2D(
        d.pair(1, 4), strides=d.one(None, 1, 2, 3), padding=d.one("same", "valid")
    ),
    lambda d: d.layers.AveragePooling2D(
        d.pair(1, 4), strides=d.one(None, 1, 2, 3), padding=d.one("same", "valid")
    ),
    lambda d: d.layers.UpSampling2D(d.pair(1, 2), interpolation=d.one("nearest", "bilinear")),
    lambda d: d.layers.ZeroPadding2D((d.pair(0, 2), d.pair(0, 2))),
    lambda d: d.layers.Cropping2D((d.pair(0, 1), d.pair(0, 1))),
    lambda d: d.layers.BatchNormalization(
        axis=d.one(-1, -1, 1, 2), scale=d.one(True, False), center=d.one(True, False)
    ),
    lambda d: d.layers.GlobalAveragePooling2D(keepdims=d.one(True, False)),
    lambda d: d.layers.GlobalMaxPooling2D(keepdims=d.one(True, False)),
    lambda d: d.layers.Permute(d.one((2, 1, 3), (3, 1, 2), (1, 3, 2))),
    lambda d: d.layers.Reshape((-1, d.number(1, 4))),
    lambda d: d.layers.Flatten(),
    lambda d: d.layers.Dense(d.number(1, 4), activation=d.function()),
]
SIGNALS: list[Draw] = [
    lambda d: d.layers.Conv1D(
        d.one(2, 4), d.number(1, 4), **{**d.window(), "padding": d.one("same", "valid", "causal")}
    ),
    lambda d: d.layers.DepthwiseConv1D(d.number(1, 3), **d.window()),
    lambda d: d.layers.SeparableConv1D(d.one(2, 4), d.number(1, 3), **d.window()),
    lambda d: d.layers.Conv1DTranspose(
        d.one(2, 4), d.number(1, 4), strides=d.number(1, 3), padding=d.one("same", "valid")
    ),
    lambda d: d.layers.MaxPooling1D(d.number(1, 4), d.one(None, 1, 2), d.one("same", "valid")),
    lambda d: d.layers.AveragePooling1D(d.number(1, 4), d.one(None, 1, 2), d.one("same", "valid")),
    lambda d: d.layers.UpSampling1D(d.number(1, 3)),
    lambda d: d.layers.ZeroPadding1D(d.pair(0, 2)),
    lambda d: d.layers.Cropping1D(d.pair(0, 1)),
    lambda d: d.layers.BatchNormalization(axis=d.one(-1, 1)),
    lambda d: d.layers.GlobalAveragePooling1D(keepdims=d.one(True, False)),
    lambda d: d.layers.Permute((2, 1)),
    lambda d: d.layers.Reshape((d.number(1, 3), -1, d.number(1, 2))),
    lambda d: d.layers.Flatten(),
    lambda d: d.layers.Dense(d.number(1, 4), activation=d.function()),
]
VECTORS: list[Draw] = [
    lambda d: d.layers.Dense(d.number(1, 6), activation=d.function()),
    lambda d: d.layers.Dense(d.one(8, 12), activation=d.function()),
    lambda d: d.layers.BatchNormalization(),
    lambda d: d.layers.RepeatVector(d.number(1, 3)),
    lambda d: d.layers.Reshape((2, -1, 2)),
    lambda d: d.layers.Reshape((-1, 2)),
]
ANY: list[Draw] = [
    lambda d: d.layers.ReLU(),
    lambda d: d.layers.LeakyReLU(),
    lambda d: d.layers.Activation(d.function()),
    lambda d: d.layers.Dropout(0.3),
]
MERGES: list[Draw] = [
    lambda d: d.layers.Add(),
    lambda d: d.layers.Multiply(),
    lambda d: d.layers.Average(),
    lambda d: d.layers.Maximum(),
    lambda d: d.layers.Subtract(),
    lambda d: d.layers.Concatenate(axis=d.one(-1, -1, 1, 2)),
]
FAMILIES = {4: IMAGES, 3: SIGNALS, 2: VECTORS}
"""By how many dimensions they read."""
_MOST_VALUES = 2000


def random_model(k: Any, seed: int, layers: int = 12) -> Any:
    """A functional model with several outputs, some of its layers called twice."""
    d = Drawn(k, seed)
    shapes: list[tuple[int, ...]] = [(d.number(4, 9), d.number(4, 9), d.one(1, 2, 4)), (9, 3), (6,)]
    inputs = [k.layers.Input(shape) for shape in shapes[: d.number(1, 3)]]
    tensors, read = list(inputs), set[int]()
    last: Any = None
    while len(tensors) < len(inputs) + layers:
        x = tensors[-1] if d.one(0, 1, 1) else d.one(*tensors)
        merging = d.one(0, 0, 0, 1)
        given = [x, d.one(*tensors)] if merging else [x]
        try:
            drawn = d.one(*(MERGES if merging else FAMILIES.get(len(x.shape), []) + ANY))(d)
            layer = last if last is not None and not merging and d.one(*[0] * 9, 1) else drawn
            y = layer(given if merging else x)
        except (ValueError, TypeError, IndexError, AssertionError):
            continue
        if not all(y.shape[1:]) or np.prod(y.shape[1:]) > _MOST_VALUES:
            continue
        tensors.append(y)
        read |= {id(each) for each in given}
        last = last if merging else layer
    used = [each for each in inputs if id(each) in read]
    return k.Model(used, [each for each in tensors[len(inputs) :] if id(each) not in read])
