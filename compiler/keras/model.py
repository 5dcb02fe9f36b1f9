"""The torch module of a Keras model."""

from typing import Any

from fxloom.errors import UnsupportedLayer

# Importing a family registers its layers.
from fxloom.keras import activations as activations
from fxloom.keras import arithmetic as arithmetic
from fxloom.keras import attention as attention
from fxloom.keras import batch_norm as batch_norm
from fxloom.keras import convolutions as convolutions
from fxloom.keras import core as core
from fxloom.keras import dot as dot
from fxloom.keras import embedding as embedding
from fxloom.keras import merges as merges
from fxloom.keras import moves as moves
from fxloom.keras import norms as norms
from fxloom.keras import operations as operations
from fxloom.keras import pools as pools
from fxloom.keras import qconvolutions as qconvolutions
from fxloom.keras import qlayers as qlayers
from fxloom.keras import qnorms as qnorms
from fxloom.keras import qpools as qpools
from fxloom.keras import recurrent as recurrent
from fxloom.keras import transposed as transposed
from fxloom.keras import wrappers as wrappers
from fxloom.keras.files import read_model
from fxloom.keras.memory import describe
from fxloom.keras.network import Network
from fxloom.keras.registry import BUILDERS as BUILDERS


def network_of(model: Any) -> Network:
    """A model of Keras 2, Keras 3 or QKeras in memory, as a torch module with copied weights."""
    return Network(describe(model)).eval()


def network_of_file(spec: str) -> Network:
    """The model in a file of Keras or QKeras (see read_model), as a torch module.

    Raises CaptureError and UnsupportedLayer, which name the file.
    """
    try:
        return Network(read_model(spec)).eval()
    except UnsupportedLayer as fault:
        raise UnsupportedLayer([f"{spec}: {problem}" for problem in fault.problems]) from fault
