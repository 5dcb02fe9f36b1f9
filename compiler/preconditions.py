"""What example inputs and a model's state must be before a capture is tried."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxloom.errors import CaptureError

_DTYPES = (torch.float32, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def check_examples(
    example_inputs: Tensor | tuple[Tensor, ...], batch_axes: int | Sequence[int]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Examples and their batch axes as equally long tuples, axes non-negative."""
    examples = _as_tuple(example_inputs, Tensor, "example_inputs: required a tensor or a tuple")
    axes = _as_tuple(batch_axes, int, "batch_axes: required an integer or one for each input")
    if isinstance(batch_axes, int):
        axes *= len(examples)
    if not all(isinstance(axis, int) for axis in axes):
        raise CaptureError(f"batch_axes: required integers, {batch_axes!r} arrived")
    if not examples:
        raise CaptureError("required at least one example input, none arrived")
    if len(axes) != len(examples):
        raise CaptureError(f"{len(examples)} example inputs, but {len(axes)} batch_axes")
    sizes = set()
    for index, (example, axis) in enumerate(zip(examples, axes, strict=True)):
        where = f"example input {index}"
        if not isinstance(example, Tensor):
            raise CaptureError(f"{where}: required a tensor, {type_name(example)} arrived")
        _check_tensor(where, example, (*_DTYPES, *_INTEGERS))
        if not -example.dim() <= axis < example.dim():
            raise CaptureError(
                f"{where}: the batch axis {axis} does not exist in shape {list(example.shape)}. "
                "Add a batch dimension, for example with x.unsqueeze(0)."
            )
        if example.numel() == 0:
            raise CaptureError(f"{where}: it is empty, its shape is {list(example.shape)}")
        if not bool(torch.isfinite(example).all()):
            raise CaptureError(f"{where}: it holds NaN or infinity")
        sizes.add(example.shape[axis])
    if len(sizes) > 1:
        raise CaptureError(f"the example inputs disagree on the batch size: {sorted(sizes)}")
    return examples, tuple(axis % tensor.dim() for axis, tensor in zip(axes, examples, strict=True))


def _as_tuple(value: Any, one: type, required: str) -> tuple[Any, ...]:
    """The value alone where it is a `one`, else its entries."""
    if isinstance(value, one):
        return (value,)
    try:
        return tuple(value)
    except TypeError:
        raise CaptureError(f"{required}, {type_name(value)} arrived") from None


def _check_tensor(where: str, tensor: Tensor, allowed: Sequence[torch.dtype] = _DTYPES) -> None:
    if tensor.device.type != "cpu":
        raise CaptureError(
            f"{where}: required a tensor on the CPU, it is on {tensor.device}. Call .cpu() first."
        )
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise CaptureError(f"{where}: required a plain dense tensor, {tensor.layout} arrived")
    if tensor.dtype not in allowed:
        integers = ", integers or truth values" if len(allowed) > len(_DTYPES) else ""
        raise CaptureError(
            f"{where}: required float32 or float64{integers}, {tensor.dtype} arrived. "
            "Convert with .float()."
        )


def check_state(state: dict[str, Tensor]) -> None:
    """Refuse parameters and buffers that no graph can hold; integers serve as counters, masks."""
    for name, tensor in state.items():
        if torch.nn.parameter.is_lazy(tensor):
            raise CaptureError(
                f"parameter {name} is not initialized. Call the model once on example data."
            )
        if tensor.is_floating_point() or tensor.is_complex():
            _check_tensor(f"parameter {name}", tensor)
        elif tensor.device.type != "cpu":
            raise CaptureError(f"buffer {name} is on {tensor.device}. Call model.cpu() first.")


def type_name(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_finite(name: str, tensor: Tensor, *, lowest: bool = False) -> None:
    """Raise CaptureError for NaN or infinity; lowest: minus infinity is let through, for masks."""
    # the sum is finite wherever all entries are, overflow aside, and needs no second array
    if tensor.is_floating_point() and not math.isfinite(tensor.detach().sum().item()):
        finite = torch.isfinite(tensor) | torch.isneginf(tensor) if lowest else tensor.isfinite()
        bad = int((~finite).sum())
        if bad:
            hint = (
                ". Minus infinity is understood where softmax or attention reads it as its mask, "
                "and nothing else does"
            )
            raise CaptureError(
                f"parameter {name}: {bad} of {tensor.numel()} values are NaN or infinite"
                f"{hint if tensor.isneginf().any() else ''}"
            )
