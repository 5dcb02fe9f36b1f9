"""The torch module of a Keras model."""

from typing import Any

# Importing a family registers its layers.
from fxloom.keras import activations as activations
from fxloom.keras import core as core
from fxloom.keras import qlayers as qlayers
from fxloom.keras.memory import describe
from fxloom.keras.network import Network


def network_of(model: Any) -> Network:
    """A model of Keras 2, Keras 3 or QKeras in memory, as a torch module with copied weights."""
    return Network(describe(model)).eval()
