"""Attributes of nodes and declared inputs, from their protobufs."""

from collections.abc import Mapping
from typing import Any

import torch

from fxloom.onnx.node import Refused
from fxloom.onnx.tensors import TORCH_TYPES, tensor_of, type_name

KINDS = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
"""The field of an attribute by AttributeProto.AttributeType."""


def attributes_of(proto: Any) -> Mapping[str, Any]:
    return {each.name: _attribute(each) for each in proto.attribute if each.type in KINDS}


def _attribute(proto: Any) -> Any:
    found = getattr(proto, KINDS[proto.type])
    match proto.type:
        case 3:
            return found.decode(errors="replace")
        case 4:
            return tensor_of(found, f"attribute {proto.name}")
        case 8:
            return [each.decode(errors="replace") for each in found]
    return list(found) if proto.type in (6, 7) else found


def declared(proto: Any) -> tuple[list[int | None], torch.dtype, int]:
    """Shape of an input, its type, and which dimension is the batch: None where of any size."""
    tensor = proto.type.tensor_type
    if not proto.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise Refused("required a tensor of known shape. Declare its shape")
    dtype = TORCH_TYPES.get(tensor.elem_type)
    if dtype is None:
        raise Refused(f"required a tensor of numbers, {type_name(tensor.elem_type)} arrived")
    shape = [int(dim.dim_value) if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    dynamic = [dim for dim, size in enumerate(shape) if size is None]
    if not shape:
        raise Refused("it has no dimensions, and so none for the batch")
    if len(dynamic) > 1:
        raise Refused(
            f"required every size but the batch, dimensions {dynamic} are dynamic. Fix the others: "
            "onnx.tools.update_model_dims.update_inputs_outputs_dims"
        )
    if any(size is not None and size < 1 for size in shape):
        raise Refused(f"required sizes of at least 1, {shape} arrived")
    return shape, dtype, dynamic[0] if dynamic else 0
