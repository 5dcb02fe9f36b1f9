"""The package `onnx`, which is an optional extra."""

from types import ModuleType

from fxloom.errors import CaptureError


def is_onnx_model(model: object) -> bool:
    """Whether an object is an onnx.ModelProto, told by its class and without an import."""
    kind = type(model)
    return kind.__name__ == "ModelProto" and kind.__module__.partition(".")[0] == "onnx"


def onnx_package() -> ModuleType:
    """The package `onnx`. Raises CaptureError that says how to install it."""
    try:
        import onnx
    except ImportError:
        raise CaptureError(
            "reading ONNX models needs the package onnx, which is not installed: "
            "pip install 'fxloom[onnx]'"
        ) from None
    module: ModuleType = onnx
    return module
