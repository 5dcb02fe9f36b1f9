"""Tensors of torch as the bits that they are stored in, and back, without a copy."""

from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fxloom.coded_tensors import Pattern, unsigned
from fxloom.errors import WeightsError

DTYPES = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "U16": torch.uint16,
        "I16": torch.int16,
        "U32": torch.uint32,
        "I32": torch.int32,
        "U64": torch.uint64,
        "I64": torch.int64,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F32": torch.float32,
        "F64": torch.float64,
        "C64": torch.complex64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    }
)
"""By the names that the safetensors format has."""

_NAMES = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})


def require_dense(tensor: Tensor, name: str) -> None:
    """Raise WeightsError, which says `name`, for a type that safetensors has no name for, and for
    tensors that hold no plain numbers (sparse, quantized, meta) or none yet (lazy)."""
    if is_lazy(tensor):
        raise WeightsError(
            f"{name}: required a tensor with values, got one that has no shape yet: give the model "
            "inputs first"
        )
    if tensor.dtype not in _NAMES or tensor.layout is not torch.strided or tensor.is_meta:
        raise WeightsError(
            f"{name}: required a dense tensor of one of {', '.join(map(str, _NAMES))}, got "
            f"{tensor.dtype}, {tensor.layout} on {tensor.device}"
        )


def of_tensor(tensor: Tensor, name: str) -> Pattern:
    """The bits of a tensor, without a copy where it is contiguous and on the CPU.

    Raises WeightsError as `require_dense` does.
    """
    require_dense(tensor, name)
    dtype = _NAMES[tensor.dtype]
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return Pattern(
        dtype, flat.view(torch.uint8).numpy().view(unsigned(dtype)).reshape(tensor.shape)
    )


def to_tensor(pattern: Pattern) -> Tensor:
    """A tensor of its own type that shares the memory of the bits."""
    flat = torch.from_numpy(np.ascontiguousarray(pattern.bits).reshape(-1).view(np.uint8))
    return flat.view(DTYPES[pattern.dtype]).reshape(pattern.shape)
