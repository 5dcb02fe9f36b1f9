"""Capture: from a PyTorch model to a checked FX graph of canonical ATen ops.

    model -> torch.export (eval, dynamic batch) -> functional ATen -> normalize -> fold constants
          -> name layers -> track the batch -> compare with the model -> graph

The user's model is left as it was, and the graph's parameters share its storage.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fxloom.batch_axis import track
from fxloom.comparison import compare
from fxloom.errors import CaptureError, UnsupportedLayer
from fxloom.exporting import export, parameters_of, quiet, source_line, untouched
from fxloom.graph import BATCH, aten, describe, input_specs, op_name
from fxloom.naming import State, fold_constants, name_layers, share
from fxloom.normalize import normalize
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.node import Node

Supported = Callable[[Node], str | None]
_DTYPES = (torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)
_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
# Tagged as random by ATen for their dropout argument, at this position; harmless where it is 0.
_DROPOUT_PROBABILITY: dict[Any, int] = {
    aten.scaled_dot_product_attention.default: 4,
    aten.lstm.input: 5,
    aten.gru.input: 5,
}


def capture(
    model: nn.Module | ExportedProgram,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    batch_axes: int | Sequence[int] = 0,
    supported: Supported | None = None,
) -> fx.GraphModule:
    """A graph of ATen ops in canonical form that computes what `model` computes in eval mode.

    example_inputs: what `model` is called with, any batch size from 1 up, float32 or float64.
    batch_axes: the dimension of each input that is the batch, or one for all. supported: returns
    why a node cannot be converted, None where it can; by default every op passes.
    An ExportedProgram must have been exported with a dynamic batch dimension.
    Raises CaptureError where no faithful graph exists, and UnsupportedLayer listing every layer
    that `supported` refuses or that mixes the samples of a batch.
    """
    examples, axes = _check_examples(example_inputs, batch_axes)
    if isinstance(model, ExportedProgram):
        return _capture_program(model, model.module(), examples, axes, supported)
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"required a torch.nn.Module or an ExportedProgram, {_type_name(model)} arrived"
        )
    _check_state(parameters_of(model))
    with untouched(model):
        return _capture_program(export(model, examples, axes), model, examples, axes, supported)


def _capture_program(
    program: ExportedProgram,
    model: Callable[..., object],
    examples: Sequence[Tensor],
    axes: Sequence[int],
    supported: Supported | None,
) -> fx.GraphModule:
    with quiet():
        program = program.run_decompositions({})
    _refuse_unfaithful(program)
    graph, state = _import(program, axes)
    normalize(graph)
    fold_constants(graph, state)
    copies = name_layers(graph)
    problems = [
        f"{describe(copy)}: it uses the batch size as a number. Remove what depends on it."
        for node, copy in copies.items()
        if _uses_batch_size(node)
    ]
    graph_module = _as_module(copies, state, examples, axes)
    nodes = graph_module.graph.nodes
    problems += track(graph_module)
    if supported is not None:
        for node in nodes:
            if node.op == "call_function" and "batch_axis" in node.meta:
                reason = supported(node)
                problems += [f"{describe(node)}: {reason}"] if reason is not None else []
    if problems:
        raise UnsupportedLayer(problems)
    graph_module.meta["fxloom_inputs"] = input_specs(graph_module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        compare(model, graph_module, examples, axes)
    return graph_module


def _check_examples(
    example_inputs: Tensor | tuple[Tensor, ...], batch_axes: int | Sequence[int]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Examples and their batch axes as equally long tuples, axes non-negative."""
    examples = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    axes = (batch_axes,) * len(examples) if isinstance(batch_axes, int) else tuple(batch_axes)
    if not examples:
        raise CaptureError("required at least one example input, none arrived")
    if len(axes) != len(examples):
        raise CaptureError(f"{len(examples)} example inputs, but {len(axes)} batch_axes")
    sizes = set()
    for index, (example, axis) in enumerate(zip(examples, axes, strict=True)):
        where = f"example input {index}"
        if not isinstance(example, Tensor):
            raise CaptureError(f"{where}: required a tensor, {_type_name(example)} arrived")
        _check_tensor(where, example)
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


def _check_tensor(where: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise CaptureError(
            f"{where}: required a tensor on the CPU, it is on {tensor.device}. Call .cpu() first."
        )
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise CaptureError(f"{where}: required a plain dense tensor, {tensor.layout} arrived")
    if tensor.dtype not in _DTYPES:
        raise CaptureError(
            f"{where}: required float32 or float64, {tensor.dtype} arrived. Convert with .float()."
        )


def _check_state(state: dict[str, Tensor]) -> None:
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


def _type_name(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _refuse_unfaithful(program: ExportedProgram) -> None:
    """Raise CaptureError listing what makes the model no function of its inputs alone."""
    refusals = []
    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            kind = spec.kind.name.lower().replace("_", " ")
            name = spec.target or getattr(spec.arg, "name", "")
            refusals.append(f"{name}: {kind}. forward must leave its inputs and state as they are.")
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        reason = _unfaithful(node)
        if reason is not None:
            refusals.append(f"{op_name(node.target)}{source_line(node)}: {reason}")
    if refusals:
        raise CaptureError("\n".join(dict.fromkeys(refusals)))


def _unfaithful(node: Node) -> str | None:
    tags = getattr(node.target, "tags", ())
    position = _DROPOUT_PROBABILITY.get(node.target)
    drops = position is None or (len(node.args) > position and node.args[position] != 0)
    if "dropout" in str(node.target) and torch.Tag.nondeterministic_seeded in tags:
        if len(node.args) > 2 and node.args[2] is False:
            return None
        return "dropout stays on in eval mode. Use nn.Dropout, or pass training=self.training."
    if torch.Tag.nondeterministic_seeded in tags and drops:
        return "it is random. Make the random tensor a buffer or an input."
    value = node.meta.get("val")
    if node.meta.get("unbacked_bindings"):
        return "its result's shape or value depends on the data, which hardware cannot follow."
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return "control flow and higher-order ops cannot be converted."
    if isinstance(value, Tensor) and (value.is_complex() or value.dtype in _HALF):
        return f"it computes in {value.dtype}. Use float32, and leave autocast off."
    return None


def _import(program: ExportedProgram, axes: Sequence[int]) -> tuple[fx.Graph, State]:
    """The program as a graph with `get_attr` nodes, and the tensors behind them.

    Tied tensors become one entry.
    """
    inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    graph, state = fx.Graph(), State()
    copies: dict[Node, Node] = {}
    names: dict[int, str] = {}
    remaining_axes = list(axes)
    for node in program.graph.nodes:
        spec = inputs.get(node.name) if node.op == "placeholder" else None
        if spec is not None and spec.kind in _STATE:
            assert spec.target is not None
            tensor = (program.state_dict | program.constants)[spec.target]
            name = names.setdefault(id(tensor), spec.target)
            if node.users and name not in state:
                _check_finite(name, tensor)
                state[name] = share(tensor)
            copies[node] = graph.get_attr(name)
            copies[node].meta["val"] = node.meta["val"]
        elif node.op == "output":
            graph.output(_outputs(program, [copies.get(out) for out in node.args[0]]))
        else:
            if spec is not None:
                _check_dynamic(node, remaining_axes.pop(0) if remaining_axes else None)
            copies[node] = graph.node_copy(node, copies.__getitem__)
    if remaining_axes:
        raise CaptureError(f"{len(axes)} example inputs, more than the model takes")
    graph.eliminate_dead_code()
    return graph, state


def _check_finite(name: str, tensor: Tensor) -> None:
    # the sum is finite wherever all entries are, overflow aside, and needs no second array
    if tensor.is_floating_point() and not math.isfinite(tensor.detach().sum().item()):
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise CaptureError(
                f"parameter {name}: {bad} of {tensor.numel()} values are NaN or infinite"
            )


def _check_dynamic(node: Node, axis: int | None) -> None:
    value = node.meta["val"]
    if axis is None:
        raise CaptureError(f"input {node.name}: no example input was given for it")
    if not isinstance(value, Tensor):
        raise CaptureError(f"input {node.name}: required a tensor")
    dynamic = [dim for dim, size in enumerate(value.shape) if not isinstance(size, int)]
    if dynamic != [axis]:
        raise CaptureError(
            f"input {node.name}: required dimension {axis}, the batch, to be the only dynamic one, "
            f"dynamic are {dynamic}. "
            f"Export it with dynamic_shapes={{{axis}: torch.export.Dim('batch')}}."
        )


def _outputs(program: ExportedProgram, nodes: Sequence[Node | None]) -> Node | tuple[Node, ...]:
    """One node, or a tuple of them, as forward returns it."""
    spec = program.call_spec.out_spec
    children = spec.children() if spec is not None else []
    nested = any(not child.is_leaf() for child in children)
    if spec is None or nested or (not spec.is_leaf() and spec.type not in (tuple, list)):
        kind = "a nested structure" if nested or spec is None else f"a {spec.type.__name__}"
        raise CaptureError(f"forward returns {kind}. Return a tensor or a flat tuple of tensors.")
    found = [node for node in nodes if node is not None]
    if len(found) < len(nodes) or not all(isinstance(node.meta["val"], Tensor) for node in found):
        raise CaptureError("forward returns something other than tensors. Return tensors only.")
    return found[0] if spec.is_leaf() else tuple(found)


def _uses_batch_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor) and any(
        isinstance(argument.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))
        for argument in node.all_input_nodes
    )


def _as_module(
    copies: dict[Node, Node], state: State, examples: Sequence[Tensor], axes: Sequence[int]
) -> fx.GraphModule:
    """The graph with its state, and its inputs declared for `BATCH` samples."""
    graph = next(iter(copies.values())).graph
    for node, example, axis in zip(graph.find_nodes(op="placeholder"), examples, axes, strict=True):
        shape = list(example.shape)
        shape[axis] = BATCH
        node.meta = {
            "val": torch.empty(shape, dtype=example.dtype, device="meta"),
            "batch_axis": axis,
        }
    used = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    return fx.GraphModule({name: state[name] for name in state if name in used}, graph)
