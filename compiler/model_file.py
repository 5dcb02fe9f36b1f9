"""Models as they arrive: modules, programs, files of several tools, objects of Keras."""

from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from fxloom.errors import CaptureError
from fxloom.keras.memory import is_keras_model
from fxloom.onnx.package import is_onnx_model
from fxloom.pt2_program import load_program_file
from fxloom.userfile import is_factory_spec, load_factory


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


_LATER = {".keras": "Keras", ".h5": "Keras"}


def load_model(spec: str) -> nn.Module | ExportedProgram:
    """The model in a `.pt2` file, or what the function of FILE.py:FUNCTION returns.

    A `.pt2` file of torch.export.save is read as data, never as code; FILE.py is run. Raises
    CaptureError for anything else.
    """
    if is_factory_spec(spec):
        model = load_factory(spec, CaptureError)
        if not isinstance(model, nn.Module | ExportedProgram):
            raise CaptureError(
                f"{spec}: required a torch.nn.Module, the function returned an object of type "
                f"{type(model).__name__}"
            )
        return model
    suffix = Path(spec).suffix.lower()
    if suffix == ".pt2":
        return load_program_file(spec)
    if suffix == ".onnx":
        from fxloom.onnx.model import network_of as network_of_onnx

        return network_of_onnx(spec)
    if suffix in (".py", *_LATER) and not Path(spec).exists():
        raise CaptureError(f"{spec}: no such file")
    if suffix in _LATER:
        raise CaptureError(
            f"{spec}: {_LATER[suffix]} files are not supported yet. "
            "Give FILE.py:FUNCTION, a function that returns the torch.nn.Module, or a .pt2 file"
        )
    raise CaptureError(
        f"{spec}: required FILE.py:FUNCTION, the name of a function in a Python file that returns "
        "a torch.nn.Module, a .pt2 file of torch.export.save, or an .onnx file"
    )
