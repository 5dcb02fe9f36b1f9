"""A `.pt2` file of torch.export.save as an ExportedProgram, without running anything from it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._export.serde import schema
from torch._export.serde.serialize import (
    _SERIALIZE_TO_TORCH_DTYPE,
    ExportedProgramDeserializer,
)
from torch.export import ExportedProgram

from fxloom.errors import CaptureError
from fxloom.exporting import quiet
from fxloom.pt2_archive import CONSTANTS, GRAPH, WEIGHTS, Archive, open_archive
from fxloom.pt2_schema import convert

_DTYPES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


def load_program_file(path: str | Path) -> ExportedProgram:
    """The program in a `.pt2` file.

    The file is data from anywhere: whatever is not a plain graph of ATen ops with plain tensors is
    a CaptureError that says what was found, and nothing of it is evaluated, imported or unpickled.
    """
    with open_archive(Path(path)) as archive:
        program = convert(schema.ExportedProgram, archive.document(GRAPH), GRAPH)
        if not program.graph_module.module_call_graph:
            raise CaptureError(f"{GRAPH}: it does not say how the model is called")
        weights = _tensors(archive, WEIGHTS, "model_weights_config.json")
        constants = _tensors(archive, CONSTANTS, "model_constants_config.json")
        _check_state(program, weights, constants)
        return _deserialize(program, weights, constants)


def _tensors(archive: Archive, folder: str, index: str) -> dict[str, Tensor]:
    """Tensors by name; those that share their bytes in the file share their storage."""
    document = archive.document(folder + index) or {"config": {}}
    config = convert(schema.PayloadConfig, document, folder + index).config
    storages: dict[str, Tensor] = {}
    views: dict[tuple[Any, ...], Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, payload in config.items():
        meta = payload.tensor_meta
        dtype = _SERIALIZE_TO_TORCH_DTYPE.get(meta.dtype)
        if dtype not in _DTYPES:
            raise CaptureError(f"{name}: tensors of {dtype} are not read from a file")
        numbers = (*meta.sizes, *meta.strides, meta.storage_offset)
        if any(number.type != "as_int" for number in numbers):
            raise CaptureError(f"{name}: required a shape of integers")
        sizes, strides = ([each.as_int for each in part] for part in (meta.sizes, meta.strides))
        member, offset = folder + payload.path_name, meta.storage_offset.as_int
        key = (member, dtype, tuple(sizes), tuple(strides), offset, payload.is_param)
        if key not in views:
            if member not in storages:
                storages[member] = torch.from_numpy(archive.raw(member))
            storage = _typed(storages[member], dtype, name)
            _check_inside(name, sizes, strides, offset, storage.numel())
            view = storage.as_strided(sizes, strides, offset)
            trains = payload.is_param and meta.requires_grad and view.is_floating_point()
            views[key] = nn.Parameter(view, requires_grad=trains) if payload.is_param else view
        tensors[name] = views[key]
    return tensors


def _typed(storage: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if storage.numel() % dtype.itemsize:
        raise CaptureError(f"{name}: damaged: {storage.numel()} bytes are no whole {dtype}")
    return storage.view(dtype) if storage.numel() else torch.empty(0, dtype=dtype)


def _check_inside(
    name: str, sizes: list[int], strides: list[int], offset: int, available: int
) -> None:
    """Every declared element lies in the file: no shape is larger than the bytes behind it."""
    elements = 1
    for size in sizes:
        elements *= size
    last = offset + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=False))
    if len(sizes) != len(strides) or elements > available or (elements and last >= available):
        raise CaptureError(
            f"{name}: damaged: shape {sizes} needs more than the {available} values in the file"
        )


def _check_state(
    program: schema.ExportedProgram, weights: dict[str, Tensor], constants: dict[str, Tensor]
) -> None:
    """Every tensor that the graph takes is there, in the shape that the graph declares."""
    declared = program.graph_module.graph.tensor_values
    for spec in program.graph_module.signature.input_specs:
        if spec.type == "user_input" or spec.type == "constant_input":
            continue
        value = spec.value
        target = getattr(value, f"{spec.type}_name")
        tensor = weights.get(target, constants.get(target))
        meta = declared.get(value.arg.name)
        if tensor is None or meta is None:
            raise CaptureError(f"{target}: the graph takes it and the archive does not hold it")
        if [size.value for size in meta.sizes] != list(tensor.shape):
            raise CaptureError(f"{target}: the graph declares another shape than its tensor has")


def _deserialize(
    program: schema.ExportedProgram, weights: dict[str, Tensor], constants: dict[str, Tensor]
) -> ExportedProgram:
    try:
        with quiet():
            # Dictionaries of tensors and no example inputs: nothing is left to unpickle.
            loaded: ExportedProgram = ExportedProgramDeserializer().deserialize(
                program, weights, constants, None
            )
    except Exception as fault:
        lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
        text = lines[-1] if lines else type(fault).__name__
        raise CaptureError(f"torch cannot read its graph: {text[:300]}") from None
    return loaded
