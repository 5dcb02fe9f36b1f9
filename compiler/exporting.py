"""torch.export, leaving the user's model untouched and cutting its errors to the essential line."""

import contextlib
import inspect
import io
import linecache
import logging
import re
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.fx.node import Node

from fxloom.errors import CaptureError, FxloomError

aten = torch.ops.aten

_TORCH = str(Path(inspect.getfile(torch)).parent)
_EXPORTING = threading.RLock()


def export(
    model: nn.Module, examples: Sequence[Tensor], batch_axes: Sequence[int]
) -> ExportedProgram:
    """Export in eval mode with the batch dimension dynamic. Call it inside `untouched(model)`."""
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    pairs = []
    for example, axis in zip(examples, batch_axes, strict=True):
        # two samples: torch.export takes a size of 1 for a constant
        pair = example.detach().narrow(axis, 0, 1).repeat_interleave(2, dim=axis)
        shapes[pair] = {axis: Dim.DYNAMIC}
        pairs.append(pair)
    try:
        with quiet(), _masks_unseen(), torch.random.fork_rng(devices=[]):
            program = torch.export.export(model, tuple(pairs), dynamic_shapes=shapes, strict=False)
    except FxloomError:
        raise
    except Exception as error:
        raise CaptureError(_explain(model, pairs, error)) from error
    for symbol, allowed in program.range_constraints.items():
        # sizes that depend on data (u0) have bounds of their own; they are refused elsewhere
        of_data = str(symbol).startswith("u")
        if not of_data and allowed.upper.is_Integer and allowed.upper < sys.maxsize - 1:
            raise CaptureError(
                f"the model treats batches of more than {allowed.upper} samples differently. "
                "Remove the comparison with the batch size."
            )
    return program


def refuse_special_batches(program: ExportedProgram) -> None:
    """Raise CaptureError if the trace holds for some batch sizes only."""
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    environments = [value.fake_mode.shape_env for value in values if hasattr(value, "fake_mode")]
    batch = sympy.Symbol("b", integer=True, positive=True)
    for guard in environments[0].guards if environments else ():
        condition = guard.expr.subs(dict.fromkeys(guard.expr.free_symbols, batch))
        if not _holds_for_all(condition, batch):
            raise CaptureError(
                "the model treats some batch sizes differently: it was traced where "
                f"{condition} for the batch size b. Remove the comparison with the batch size."
            )


def _holds_for_all(condition: Any, batch: Any) -> bool:
    """Tried at small sizes and around the numbers in the condition: those are where it breaks.

    Not at one: torch guards against that size by itself, and the comparison with the model
    tries it.
    """
    if condition in (True, sympy.true):
        return True
    numbers = {abs(int(number)) for number in condition.atoms(sympy.Integer)}
    sums = {first + second for first in numbers for second in numbers} | numbers
    near = {number + step for number in sums for step in (-1, 0, 1)}
    sizes = {*range(2, 65), *(size for size in near if size > 1)}
    return all(condition.subs(batch, size) in (True, sympy.true) for size in sizes)


def functionalize(program: ExportedProgram, known: Container[Any]) -> ExportedProgram:
    """Without in-place ops: mutations become values, or outputs that the signature names.

    program: as `export` gave it; shapes in a program from elsewhere are to be derived anew. known:
    ops that need no decomposition.
    """
    if all(_is_plain(node, known) for node in program.graph.nodes):
        return program  # decomposing it takes longer than exporting, and would change nothing
    return decompose(program)


def _is_plain(node: Node, known: Container[Any]) -> bool:
    if node.op != "call_function":
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or node.target not in known:
        return False
    trains = node.target is aten.batch_norm.default and node.args[5] is not False
    return not trains and not node.target._schema.is_mutable


def decompose(program: ExportedProgram) -> ExportedProgram:
    """In functional ATen ops, every shape derived anew."""
    try:
        with quiet():
            functional: ExportedProgram = program.run_decompositions({})
            return functional
    except Exception as error:
        raise CaptureError(
            f"torch cannot make the model functional: {_first_line(error)}"
        ) from error


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode; on exit restore all attributes and buffers of `model`.

    `training` is set on each module rather than by `eval()`, which a model may have overridden
    with something that changes weights.
    """
    modules = list(model.modules())
    saved = [(module, dict(vars(module)), _contents(module)) for module in modules]
    buffers = [
        (tensor, tensor.clone(), tensor._version)
        for tensor in model.buffers()
        if not tensor.is_inference()
    ]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, attributes, contents in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for container, content in contents:
                if isinstance(container, list):
                    container[:] = content
                else:
                    container.clear()
                    container.update(content)
        with torch.no_grad():
            for tensor, value, version in buffers:
                if tensor._version != version:
                    tensor.copy_(value)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """The module's own containers (its parameters, hooks, lists, ...) with a copy of each."""
    return [
        (value, value.copy()) for value in vars(module).values() if isinstance(value, (dict, list))
    ]


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by qualified name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's warnings, logs and prints about tracing: what matters is in the exception.

    A failing export prints its unfinished graph to stderr.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _masks_unseen() -> Iterator[None]:
    """nn.Transformer asks whether a mask is the causal one, for a faster kernel: not while traced.

    Nobody knows values then. Without the hint the layers use the mask as it is. The function is
    torch's own: where a version has none, nothing is replaced. One thread at a time, lest another
    puts back what it found replaced.
    """
    module, name = nn.modules.transformer, "_detect_is_causal_mask"
    with _EXPORTING:
        detect = getattr(module, name, None)
        if detect is None:
            yield
            return
        setattr(module, name, lambda mask, is_causal=None, size=None: is_causal is True)
        try:
            yield
        finally:
            setattr(module, name, detect)


def source_line(node: Node) -> str:
    """ ", line 12 of net.py: `x = x.item()`" for the user's line behind a node, "" if unknown."""
    lines = str(node.meta.get("stack_trace") or "").splitlines()
    for position in range(len(lines) - 1, -1, -1):
        head = lines[position].strip()
        if head.startswith("File ") and _TORCH not in head and '"<' not in head:
            file, line = head.split('"')[1], head.split("line ")[1].split(",")[0]
            return _location(file, int(line))
    return ""


def _location(file: str, line: int) -> str:
    code = textwrap.shorten(linecache.getline(file, line), 80, placeholder=" ...")
    return f", line {line} of {Path(file).name}: `{code}`"


def _explain(model: nn.Module, inputs: Sequence[Tensor], error: Exception) -> str:
    """One line for an export failure; the model's own error where it fails without export, too."""
    if isinstance(error, GuardOnDataDependentSymNode):
        if any(frame.name == "one_hot" for frame in traceback.extract_tb(error.__traceback__)):
            return (
                f"one_hot without num_classes{_user_frame(error)}: how many there are would depend "
                "on the data. Say num_classes=."
            )
        return f"data-dependent control flow{_user_frame(error)}. Write it with torch.where."
    try:
        with torch.no_grad(), quiet(), torch.random.fork_rng(devices=[]):
            model(*inputs)
    except Exception as own:
        return f"the model fails on the example inputs{blame(own)}"
    text = str(error)
    if "specialized it to be a constant" in text or "Constraints violated" in text:
        fixed = ", ".join(dict.fromkeys(re.findall(r"L\['(\w+)'\]", text)))
        return (
            f"the model works for one batch size only: it fixes that of {fixed}. "
            "Use -1 or x.shape[0] where a literal batch size or len(x) stands."
        )
    if "fake tensor in the exported program" in text:
        return (
            "torch.export loses track of a tensor that is computed in forward, as behind x.data. "
            "Use x itself, or x.detach()"
        )
    return f"torch.export cannot trace the model{_user_frame(error)}: {_first_line(error)}"


def blame(error: BaseException) -> str:
    """ ", line 12 of net.py: `y = x @ w`: RuntimeError: shapes do not fit".

    The first of its notes, as the layer of a file is, stands where the line does.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = "".join(f", {note}" for note in getattr(error, "__notes__", ())[:1])
    return f"{_user_frame(error)}{where}: {type(error).__name__}: {lines[-1] if lines else ''}"


def _user_frame(error: BaseException) -> str:
    """The innermost line of the traceback that is neither torch's nor ours."""
    ours = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((_TORCH, ours, "<")):
            return _location(frame.filename, frame.lineno or 0)
    return ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
