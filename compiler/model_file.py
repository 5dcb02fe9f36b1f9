"""Models as they arrive: modules, programs, files of several tools, objects of Keras."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.export import ExportedProgram

from fxloom.errors import CaptureError
from fxloom.keras.memory import is_keras_model
from fxloom.onnx.package import is_onnx_model
from fxloom.pt2_program import load_program_file
from fxloom.userfile import is_factory_spec, load_factory

KERAS = (".keras", ".h5", ".hdf5", ".json")
"""How the names of files of Keras and QKeras end, also as MODEL.json:WEIGHTS.h5."""


def opened(model: object) -> object:
    """A torch module or program for whatever stands for one: a file's name, or a model of Keras 2,
    Keras 3 or QKeras in memory. Anything else is returned as it is."""
    if isinstance(model, str | Path):
        return load_model(str(model))
    if is_keras_model(model):
        from fxloom.keras.model import network_of

        return network_of(model)
    if is_onnx_model(model):
        from fxloom.onnx.model import network_of as network_of_onnx

        return network_of_onnx(model)
    return model


def without_other_tools(model: nn.Module, examples: Sequence[Tensor]) -> nn.Module:
    """The model as it is, or a copy in which layers of Brevitas are ours.

    examples: what the model is called with.
    """
    from fxloom.brevitas.model import has_brevitas_layers, without_brevitas

    return without_brevitas(model, examples) if has_brevitas_layers(model) else model


def load_model(spec: str) -> nn.Module | ExportedProgram:
    """The model in a file, or what the function of FILE.py:FUNCTION returns.

    A `.pt2` file of torch.export.save and the files of Keras and QKeras (`.keras`, `.h5`, `.json`
    with weights; see fxloom.keras.files.read_model) and `.onnx` files are read as data, never as
    code; FILE.py is run. Raises CaptureError for anything else.
    """
    if is_factory_spec(spec):
        model = opened(load_factory(spec, CaptureError))
        if not isinstance(model, nn.Module | ExportedProgram):
            raise CaptureError(
                f"{spec}: required a torch.nn.Module or a model of Keras, the function returned an "
                f"object of type {type(model).__name__}"
            )
        return model
    if spec.lower().endswith(KERAS):
        from fxloom.keras.model import network_of_file

        return network_of_file(spec)
    suffix = Path(spec).suffix.lower()
    if suffix == ".pt2":
        return load_program_file(spec)
    if suffix == ".onnx":
        from fxloom.onnx.model import network_of as network_of_onnx

        return network_of_onnx(spec)
    if suffix == ".py" and not Path(spec).exists():
        raise CaptureError(f"{spec}: no such file")
    raise CaptureError(
        f"{spec}: required FILE.py:FUNCTION, the name of a function in a Python file that returns "
        "a torch.nn.Module or a model of Keras, a .pt2 file of torch.export.save, a .keras, .h5 or "
        ".json file of Keras or QKeras, or an .onnx file"
    )
