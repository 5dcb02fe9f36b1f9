"""Tensors of an ONNX file: their sizes are compared with their bytes before anything is made."""

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxloom.errors import CaptureError
from fxloom.onnx.package import onnx_package

_FIELDS = {
    1: (np.float32, "float_data"),
    2: (np.uint8, "int32_data"),
    3: (np.int8, "int32_data"),
    4: (np.uint16, "int32_data"),
    5: (np.int16, "int32_data"),
    6: (np.int32, "int32_data"),
    7: (np.int64, "int64_data"),
    9: (np.bool_, "int32_data"),
    11: (np.float64, "double_data"),
}
"""By TensorProto.DataType: the type of NumPy, and the field that holds values which are not raw."""

TORCH_TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def type_name(kind: int) -> str:
    """ "float16" for 10."""
    try:
        return str(onnx_package().TensorProto.DataType.Name(kind)).lower()
    except ValueError:
        return f"type {kind}"


def tensor_of(proto: Any, what: str) -> Tensor:
    """The values of a TensorProto, as a copy.

    Raises CaptureError where they lie in another file, are of a type that has no use here, or are
    not as many as its dimensions say.
    """
    name = f"{what} {proto.name!r}" if proto.name else what
    if proto.data_location or proto.external_data:
        raise CaptureError(
            f"{name}: its values lie in another file, and only the model is read. Save all in one "
            "file: onnx.save(onnx.load(file), file, save_as_external_data=False)"
        )
    if proto.HasField("segment"):
        raise CaptureError(f"{name}: is stored in segments, which nothing writes and none reads")
    if proto.data_type not in _FIELDS:
        raise CaptureError(
            f"{name}: required float32, float64, integers or truth values, "
            f"{type_name(proto.data_type)} arrived"
        )
    kind, field = _FIELDS[proto.data_type]
    if any(size < 0 for size in proto.dims):
        raise CaptureError(f"{name}: damaged: it has {list(proto.dims)} as dimensions")
    count = prod(proto.dims)
    raw = proto.HasField("raw_data")
    values = _raw(proto, kind, name) if raw else _typed(proto, kind, field, name)
    if len(values) != count:
        raise CaptureError(
            f"{name}: damaged: {list(proto.dims)} needs {count} values, {len(values)} are there"
        )
    return torch.from_numpy(values.reshape(tuple(proto.dims)))


def _raw(proto: Any, kind: Any, name: str) -> Any:
    little, data = np.dtype(kind).newbyteorder("<"), proto.raw_data
    if len(data) % little.itemsize:
        raise CaptureError(f"{name}: damaged: its last value has {little.itemsize} bytes, not all")
    return np.frombuffer(data, little).astype(kind)


def _typed(proto: Any, kind: Any, field: str, name: str) -> Any:
    wide = np.array(getattr(proto, field))
    values = wide.astype(kind)
    if wide.size and not np.array_equal(values, wide, equal_nan=kind in (np.float32, np.float64)):
        raise CaptureError(f"{name}: damaged: it holds numbers that {kind.__name__} does not")
    return values.reshape(-1)
