"""Capture: from a PyTorch model to a checked FX graph of canonical ATen ops.

    model -> torch.export (eval, dynamic batch) -> functional ATen -> normalize -> fold constants
          -> name layers -> track the batch -> compare with the model -> graph

The user's model is left as it was, and the graph's parameters share its storage.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.node import Node

from fxloom.batch_axis import track
from fxloom.comparison import compare
from fxloom.composite_ops import MASKED_SOFTMAX
from fxloom.errors import CaptureError, UnsupportedLayer
from fxloom.examples import declared_inputs
from fxloom.exporting import (
    decompose,
    export,
    functionalize,
    parameters_of,
    refuse_special_batches,
    source_line,
    untouched,
)
from fxloom.graph import BATCH, aten, describe, input_specs, insert_like, op_name
from fxloom.model_file import opened, without_other_tools
from fxloom.naming import State, fold_constants, name_layers, share
from fxloom.nested_tensors import refuse_nested_tensors
from fxloom.normalize import UNTOUCHED, normalize
from fxloom.preconditions import check_examples, check_finite, check_state, type_name
from fxloom.quantized_ops import GIVEN, ROUNDINGS
from fxloom.rewriting import RULES
from fxloom.state_names import spelled_program
from fxloom.support import CHECKS, refusal, refused_ports
from fxloom.unassigned import begin_as_zeros

MAX_ELEMENTS = 2**28
"""Values of one tensor for one sample: the trial runs must fit into memory."""

Supported = Callable[[Node], str | None]
_HALF = (torch.float16, torch.bfloat16)
_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
# ATen tags these as random; they are not where the argument at this position is 0 or False.
_RANDOM_IF: dict[Any, int] = {
    aten.dropout.default: 2,
    aten.feature_dropout.default: 2,
    aten.alpha_dropout.default: 2,
    aten.feature_alpha_dropout.default: 2,
    aten.rrelu.default: 3,
    aten.scaled_dot_product_attention.default: 4,
    aten.lstm.input: 6,
    aten.gru.input: 6,
    aten.rnn_tanh.input: 6,
    aten.rnn_relu.input: 6,
}
_MASK: dict[Any, int] = {aten.scaled_dot_product_attention.default: 3, MASKED_SOFTMAX: 1}


def capture(
    model: object,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    *,
    batch_axes: int | Sequence[int] = 0,
    supported: Supported = refusal,
) -> fx.GraphModule:
    """A graph of ATen ops in canonical form that computes what `model` computes in eval mode.

    model: a torch.nn.Module, with layers of Brevitas or without, an ExportedProgram, a model of
    Keras 2, Keras 3 or QKeras, or the name of a file that holds one (see load_model).
    example_inputs: what `model` is called with, any batch size from 1 up: float32, float64,
    integers or truth values. None where the model declares its inputs, as those of Keras do.
    batch_axes: the dimension of each input that is the batch, or one for all. supported: returns
    why a node cannot be converted, None where it can; by default, what lowering cannot do exactly.
    An ExportedProgram must have been exported with a dynamic batch dimension.
    Raises CaptureError where no faithful graph exists, and UnsupportedLayer listing every layer
    that `supported` refuses or that mixes the samples of a batch.
    """
    model = opened(model)
    if example_inputs is None:
        example_inputs = declared_inputs(model)
    if example_inputs is None:
        raise CaptureError(
            "example_inputs: required a tensor or a tuple, since the model declares no inputs "
            "itself"
        )
    examples, axes = check_examples(example_inputs, batch_axes)
    if isinstance(model, ExportedProgram):
        _refuse_keywords(model)
        traced = spelled_program(model)
        program = decompose(traced)
        run = traced.module()
        return _capture_program(traced, program, run, examples, axes, supported)
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"required a torch.nn.Module or an ExportedProgram, {type_name(model)} arrived"
        )
    check_state(parameters_of(model))
    model = without_other_tools(model, examples)
    with untouched(model):
        refuse_nested_tensors(model, examples)
        traced = spelled_program(export(model, examples, axes))
        program = functionalize(traced, {*CHECKS, *RULES, *UNTOUCHED})
        names = tuple(getattr(model, "input_names", ()))
        return _capture_program(traced, program, model, examples, axes, supported, names)


def _capture_program(
    traced: ExportedProgram,
    program: ExportedProgram,
    model: Callable[..., object],
    examples: Sequence[Tensor],
    axes: Sequence[int],
    supported: Supported,
    names: Sequence[str] = (),
) -> fx.GraphModule:
    _refuse_unfaithful(program)
    graph, state = _import(program, examples, axes, names)
    begin_as_zeros(graph)
    normalize(graph)
    fold_constants(graph, state)
    for name, readers in _readers(graph).items():
        check_finite(name, state[name], lowest=all(_is_mask(*reader) for reader in readers))
    copies = name_layers(graph)
    problems = [
        f"{describe(copy)}: it uses the batch size as a number. Remove what depends on it."
        for node, copy in copies.items()
        if _uses_batch_size(node)
    ]
    graph_module = _as_module(copies, state, examples, axes)
    nodes = graph_module.graph.nodes
    written = {copy: node for node, copy in copies.items()}

    def line(node: Node) -> str:
        return source_line(written[node])

    problems += track(graph_module, line)
    for node in nodes:
        if node.op == "call_function" and "batch_axis" in node.meta:
            reason = supported(node)
            where = "" if node.target in CHECKS else line(node)
            problems += [f"{describe(node)}{where}: {reason}"] if reason is not None else []
    if supported is refusal:
        problems += refused_ports(graph_module)
    if problems:
        raise UnsupportedLayer(problems)
    refuse_special_batches(traced)
    graph_module.meta["fxloom_inputs"] = input_specs(graph_module)
    for node in nodes:
        if node.target in ROUNDINGS:
            node.meta[GIVEN] = True
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        compare(model, graph_module, examples, axes)
    return graph_module


def _readers(graph: fx.Graph) -> dict[str, list[tuple[Node, Node]]]:
    """For every constant, who reads which of its nodes."""
    found: dict[str, list[tuple[Node, Node]]] = {}
    for node in graph.find_nodes(op="get_attr"):
        found.setdefault(str(node.target), []).extend((user, node) for user in node.users)
    return found


def _is_mask(reader: Node, constant: Node) -> bool:
    """Whether a constant is but a mask of scores, in which minus infinity has a meaning."""
    position = _MASK.get(reader.target)
    return position is not None and [
        place for place, argument in enumerate(reader.args) if argument is constant
    ] == [position]


def _refuse_keywords(program: ExportedProgram) -> None:
    """Inputs have an order and no names: those that are given by name alone have no place in it."""
    names = program.call_spec.in_spec.child(1).context if program.call_spec.in_spec else ()
    if names:
        raise CaptureError(
            f"inputs {', '.join(map(str, names))} are given by name. Export the program with all "
            "inputs in one tuple, args=(x, y), and none in kwargs; forward must take them so"
        )


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
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        position = _RANDOM_IF.get(node.target)
        if position is None or any(node.args[position : position + 1]):
            if "dropout" in str(node.target):
                return "dropout stays on in eval mode. Use nn.Dropout, or pass self.training."
            return "it is random. Make the random tensor a buffer or an input."
    value = node.meta.get("val")
    if isinstance(value, Tensor) and _sample_size(value) > MAX_ELEMENTS:
        return f"its result has more than {MAX_ELEMENTS} values for one sample."
    if node.target is aten.index.Tensor and node.meta.get("unbacked_bindings"):
        return (
            "a mask as index: its result's shape depends on the data. Use indices in its place "
            "(mask.nonzero()[:, 0] of a mask that is a constant), or torch.where."
        )
    if node.meta.get("unbacked_bindings"):
        return "its result's shape or value depends on the data, which hardware cannot follow."
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return "control flow and higher-order ops cannot be converted."
    if isinstance(value, Tensor) and (value.is_complex() or value.dtype in _HALF):
        return f"it computes in {value.dtype}. Use float32, and leave autocast off."
    return None


def _sample_size(value: Tensor) -> int:
    return prod(size for size in value.shape if isinstance(size, int))


def _import(
    program: ExportedProgram,
    examples: Sequence[Tensor],
    axes: Sequence[int],
    input_names: Sequence[str],
) -> tuple[fx.Graph, State]:
    """The program as a graph with `get_attr` nodes, and the tensors behind them.

    Tied tensors become one entry. input_names: of a model that says so itself; none for those of
    the arguments of its forward.
    """
    inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    tensors = program.state_dict | program.constants
    graph, state = fx.Graph(), State()
    copies: dict[Node, Node] = {}
    names: dict[int, str] = {}
    remaining = list(zip(examples, axes, strict=True))
    for node in program.graph.nodes:
        spec = inputs.get(node.name) if node.op == "placeholder" else None
        if spec is not None and spec.kind in _STATE:
            assert spec.target is not None
            tensor = tensors[spec.target]
            name = names.setdefault(id(tensor), spec.target)
            if node.users and name not in state:
                # before anything is computed from it; what a mask is, is known later
                check_finite(name, tensor, lowest=True)
                state[name] = share(tensor)
            copies[node] = graph.get_attr(name)
            copies[node].meta["val"] = node.meta["val"]
            if spec.kind is InputKind.CONSTANT_TENSOR and tensor.dim() == 0:
                copies[node].meta["number"] = float(tensor)  # as torch.tensor(-1e9) in forward
        elif node.op == "output":
            graph.output(_outputs(program, [copies.get(out) for out in node.args[0]]))
        else:
            if spec is not None:
                if not remaining:
                    raise CaptureError(f"input {node.name}: no example input was given for it")
                _check_dynamic(node, *remaining.pop(0))
            if spec is not None and input_names:
                copies[node] = graph.placeholder(input_names[len(examples) - len(remaining) - 1])
                copies[node].meta = dict(node.meta)
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
            if spec is not None and node.meta["val"].dtype == torch.bool:
                # As a number of one bit, for everything that becomes of it: a condition is what
                # is computed, and has no format of its own.
                copies[node] = insert_like(graph, node, aten.ne.Scalar, (copies[node], 0))
                copies[node].meta["val"] = node.meta["val"]
    if remaining:
        raise CaptureError(f"{len(axes)} example inputs, more than the model takes")
    graph.eliminate_dead_code()
    return graph, state


def _check_dynamic(node: Node, example: Tensor, axis: int) -> None:
    """An input of the program: of the example's shape, dynamic in its batch dimension alone."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        raise CaptureError(f"input {node.name}: required a tensor")
    wanted = [size if isinstance(size, int) else "batch" for size in value.shape]
    arrived = ["batch" if dim == axis else size for dim, size in enumerate(example.shape)]
    dynamic = [dim for dim, size in enumerate(value.shape) if not isinstance(size, int)]
    if dynamic != [axis]:
        raise CaptureError(
            f"input {node.name}: required dimension {axis}, the batch, to be the only dynamic one, "
            f"dynamic are {dynamic}. "
            f"Export it with dynamic_shapes=({{{axis}: torch.export.Dim('batch')}},), one such "
            "table for each input, and an example of at least two samples."
        )
    if wanted != arrived or value.dtype != example.dtype:
        raise CaptureError(
            f"input {node.name}: required shape {wanted} of {value.dtype}, "
            f"{arrived} of {example.dtype} arrived"
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
    return isinstance(node.meta.get("val"), Tensor | tuple | list) and any(
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
