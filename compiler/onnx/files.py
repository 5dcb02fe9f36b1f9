"""ONNX files as checked protobufs: what is wrong with one is said before anything is built."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fxloom.errors import CaptureError, UnsupportedLayer
from fxloom.onnx.package import onnx_package

OLDEST, NEWEST = 7, 26
"""Operator sets of ai.onnx whose meaning is known here. Before 7 broadcasting was another."""
MAX_BYTES = 2**31 - 1
"""What protobuf reads; larger models keep their weights in other files."""

STANDARD = ("", "ai.onnx")
QONNX = (
    "qonnx.custom_op.general",
    "qonnx.custom_op.channels_last",
    "finn.custom_op.general",
    "onnx.brevitas",
)
"""Domains of the quantizers of QONNX, as QONNX, FINN and Brevitas have called them."""


def read_model(path: Path) -> Any:
    """The onnx.ModelProto in a file, checked. Raises CaptureError and UnsupportedLayer."""
    onnx = onnx_package()
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CaptureError(f"required at most {MAX_BYTES} bytes, the file has {size}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise CaptureError(f"{path}: no such file") from None
    except OSError as fault:
        raise CaptureError(f"{path}: cannot be read: {fault.strerror}") from None
    except CaptureError as fault:
        raise CaptureError(f"{path}: {fault}") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as fault:  # protobuf's DecodeError, of one of its three implementations
        raise CaptureError(f"{path}: not an ONNX file, or damaged: {fault}") from None
    del content  # the protobuf has a copy
    try:
        check_model(model)
    except CaptureError as fault:
        raise CaptureError(f"{path}: {fault}") from None
    return model


def check_model(model: Any) -> None:
    """Raises CaptureError or UnsupportedLayer where a ModelProto is damaged or of no use here."""
    onnx = onnx_package()
    if not model.HasField("graph") or not model.graph.node:
        raise CaptureError("not an ONNX model: it has no graph with nodes")
    _refuse_bytes(model.graph)
    _check_operator_sets(model)
    _refuse_foreign(model)
    _refuse_other_files(model)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError, TypeError) as fault:
        raise CaptureError(f"not a valid ONNX model: {_first_lines(fault)}") from None


def opset(model: Any) -> int:
    """The version of ai.onnx that the nodes are of."""
    return max(int(each.version) for each in model.opset_import if each.domain in STANDARD)


def _first_lines(fault: Exception) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return " ".join(lines[:3])[:500] or type(fault).__name__


def _check_operator_sets(model: Any) -> None:
    versions = [int(each.version) for each in model.opset_import if each.domain in STANDARD]
    if len(set(versions)) != 1 or not OLDEST <= versions[0] <= NEWEST:
        arrived = ", ".join(map(str, versions)) or "none"
        raise CaptureError(
            f"required one operator set of ai.onnx from {OLDEST} to {NEWEST}, {arrived} arrived. "
            "onnx.version_converter.convert_version changes it"
        )


def _refuse_bytes(graph: Any) -> None:
    """Names that are no UTF-8 come as bytes from protobuf."""
    names = [each.name for each in (*graph.input, *graph.output, *graph.initializer)]
    for node in graph.node:
        names += [node.op_type, node.name, node.domain, *node.input, *node.output]
        names += [attribute.name for attribute in node.attribute]
    for name in names:
        if not isinstance(name, str):
            raise CaptureError(f"damaged: the name {name[:40]!r} is not text")


def _refuse_foreign(model: Any) -> None:
    problems = [f"{each.name}: a function of the model" for each in model.functions]
    if problems:
        problems = [
            f"{each}. Write it out: onnx.inliner.inline_local_functions" for each in problems
        ]
    if model.training_info:
        problems.append("training_info: a training step. Export the model for inference")
    graph = model.graph
    problems += [f"{each.values.name}: a sparse initializer" for each in graph.sparse_initializer]
    if problems:
        raise UnsupportedLayer(problems)


def _refuse_other_files(model: Any) -> None:
    """Before the checker, which would look for them."""
    for tensor in _tensors(model.graph):
        if tensor.data_location or tensor.external_data:
            raise CaptureError(
                f"tensor {tensor.name!r}: its values lie in another file, and only the model is "
                "read. Save all in one file: onnx.save(onnx.load(file), file, "
                "save_as_external_data=False)"
            )


def _tensors(graph: Any) -> Iterator[Any]:
    """Initializers and the tensors among attributes, those of graphs inside nodes too."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield from current.initializer
        for node in current.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                pending += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
