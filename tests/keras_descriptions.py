"""Models of Keras written down as descriptions, for tests that have no TensorFlow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fxloom.keras import model as model  # registers the layers
from fxloom.keras.description import Array, Call, Layer, Model, TensorRef
from fxloom.keras.network import Network


class Described:
    """A functional model in the making: each method adds a layer and returns what it gives."""

    def __init__(self, *shape: int, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.layers = [Layer("InputLayer", "image", {"batch_shape": (None, *shape)})]
        self.channels = {"image": shape[-1]}
        self.image = "image"

    def add(
        self,
        kind: str,
        *sources: str,
        weights: Sequence[Array] = (),
        channels: int | None = None,
        **config: Any,
    ) -> str:
        name = f"{kind.lower()}_{len(self.layers)}"
        refs = tuple(TensorRef(source) for source in sources)
        call = Call((refs[0],) if len(refs) == 1 else (list(refs),))
        self.layers.append(Layer(kind, name, config, tuple(weights), (call,)))
        self.channels[name] = channels or self.channels[sources[0]]
        return name

    def conv(self, source: str, filters: int, size: int = 3, **config: Any) -> str:
        shape = (size, size, self.channels[source], filters)
        given: Mapping[str, Any] = {**CONV, **config}
        return self.add("Conv2D", source, weights=self._weights(shape), channels=filters, **given)

    def conv1d(self, source: str, filters: int, size: int = 3, **config: Any) -> str:
        shape = (size, self.channels[source], filters)
        given: Mapping[str, Any] = {**CONV, "strides": (1,), "dilation_rate": (1,), **config}
        return self.add("Conv1D", source, weights=self._weights(shape), channels=filters, **given)

    def dense(self, source: str, inputs: int, units: int, **config: Any) -> str:
        weights = self._weights((inputs, units))
        given = {"use_bias": True, "activation": "linear", **config}
        return self.add("Dense", source, weights=weights, channels=units, **given)

    def batch_norm(self, source: str) -> str:
        count = self.channels[source]
        weights = [self.random.uniform(0.5, 1.5, count) for _ in range(4)]
        return self.add("BatchNormalization", source, weights=weights, **NORM)

    def network(self, *outputs: str) -> Network:
        refs = tuple(TensorRef(output) for output in outputs)
        return Network(Model("model", tuple(self.layers), (TensorRef("image"),), refs)).eval()

    def _weights(self, shape: tuple[int, ...]) -> list[Array]:
        scale = np.prod(shape[:-1]) ** -0.5
        return [
            self.random.normal(0, scale, shape).astype(np.float32),
            self.random.normal(0, 0.1, shape[-1]).astype(np.float32),
        ]


CONV = {
    "padding": "same",
    "strides": (1, 1),
    "dilation_rate": (1, 1),
    "groups": 1,
    "use_bias": True,
    "activation": "linear",
    "data_format": "channels_last",
}
NORM = {"axis": -1, "epsilon": 1e-3, "scale": True, "center": True}
POOL = {"pool_size": (2, 2), "strides": (2, 2), "padding": "valid", "data_format": "channels_last"}


def classifier() -> Network:
    """Conv, batch norm, ReLU, pool, Flatten, Dense."""
    m = Described(8, 6, 2)
    y = m.add("ReLU", m.batch_norm(m.conv(m.image, 4)), max_value=None, negative_slope=0.0)
    y = m.add("MaxPooling2D", y, **POOL)
    y = m.conv(y, 5, activation="relu", strides=(2, 1))
    y = m.add("Flatten", y, data_format="channels_last")
    return m.network(m.dense(m.dense(y, 30, 7, activation="relu"), 7, 3))


def u_net() -> Network:
    """Down and up again, with a residual sum and a concatenation."""
    m = Described(8, 8, 3)
    wide = m.conv(m.image, 4, activation="relu")
    small = m.conv(m.add("AveragePooling2D", wide, **POOL), 4, activation="relu")
    small = m.add("Add", small, m.batch_norm(m.conv(small, 4)))
    up = m.add(
        "UpSampling2D", small, size=(2, 2), interpolation="nearest", data_format="channels_last"
    )
    joined = m.add("Concatenate", up, wide, axis=-1, channels=8)
    padded = m.add("ZeroPadding2D", joined, padding=((1, 1), (0, 2)), data_format="channels_last")
    return m.network(m.conv(padded, 2, size=1))


def signals() -> Network:
    """Convolutions over time."""
    m = Described(9, 3)
    y = m.batch_norm(m.conv1d(m.image, 4, padding="causal", activation="relu"))
    y = m.conv1d(y, 5, size=2, strides=(2,))
    return m.network(m.add("GlobalAveragePooling1D", y, data_format="channels_last"))
