"""The torch module of an ONNX model."""

from pathlib import Path
from typing import Any

# Importing a family registers its operators.
from fxloom.onnx import elementwise as elementwise
from fxloom.onnx import layers as layers
from fxloom.onnx import linear_quantizers as linear_quantizers
from fxloom.onnx import moves as moves
from fxloom.onnx import norms as norms
from fxloom.onnx import pools as pools
from fxloom.onnx import quantizers as quantizers
from fxloom.onnx import recurrent as recurrent
from fxloom.onnx import reductions as reductions
from fxloom.onnx import reshapes as reshapes
from fxloom.onnx import resize as resize
from fxloom.onnx import shapes as shapes
from fxloom.onnx.files import check_model, read_model
from fxloom.onnx.loading import network_of_graph
from fxloom.onnx.network import Network
from fxloom.onnx.registry import BUILDERS as BUILDERS


def network_of(model: Any) -> Network:
    """An onnx.ModelProto, or the name of a file with one, as a torch module."""
    if isinstance(model, str | Path):
        return network_of_graph(read_model(Path(model)))
    check_model(model)
    return network_of_graph(model)
