"""What every pass and reader may rely on in a captured graph, and the helpers that keep it so.

A captured graph is an `fx.GraphModule`: placeholders, `get_attr` of tensors, `call_function` of
ATen ops in one canonical form (see `normalize`), one output. Each node carries
    meta["origin"]      str, call_function only: the layer's name in the user's model
    meta["val"]         meta tensor(s): shape and dtype, the batch written as `BATCH` samples
    meta["batch_axis"]  see `batch_axis`
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Argument, Node, Target, map_aggregate

from fxloom.errors import CaptureError, UnsupportedLayer

aten = torch.ops.aten

# Shapes are computed for this many samples on meta tensors. A prime larger than any layer's
# dimension, so that a dimension holds the batch exactly when it is a multiple of it.
BATCH = 1_000_003

_TRAINING_ARGUMENT = {aten.batch_norm.default: 5, aten.dropout.default: 2}


def origin(node: Node) -> str:
    """The name of the layer in the user's model that this node computes."""
    if node.op != "call_function":
        return str(node.target)
    name = node.meta.get("origin")
    if not isinstance(name, str) or not name:
        raise AssertionError(f"node {node.name} ({node.target}) has no origin: use insert_like")
    return name


def arguments(node: Node) -> tuple[Any, ...]:
    """A node's positional arguments; their types are what ATen's schema says."""
    return node.args


def insert_like(
    graph: fx.Graph, like: Node, target: Callable[..., Any], args: tuple[Argument, ...]
) -> Node:
    """Add a call of `target` at the graph's insertion point, with the origin of `like`."""
    node = graph.call_function(target, args)
    node.meta = {key: value for key, value in like.meta.items() if key not in ("val", "batch_axis")}
    return node


def lint_origins(graph: fx.Graph) -> None:
    """Raise AssertionError for a compute node without an origin."""
    for node in graph.nodes:
        if node.op == "call_function":
            origin(node)


def describe(node: Node) -> str:
    """Layer and op, the way messages name them: "block1.conv (aten.convolution)"."""
    return f"{node.meta.get('origin', node.name)} ({op_name(node.target)})"


def op_name(target: Target) -> str:
    """An op's name without its default overload: "aten.relu", "aten.mean.dim"."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removesuffix(".default")
    return target if isinstance(target, str) else target.__name__


def constant(graph_module: fx.GraphModule, target: Target) -> Tensor:
    """The tensor behind a `get_attr` target such as "block1.conv.weight"."""
    value = operator.attrgetter(str(target))(graph_module)
    assert isinstance(value, Tensor), f"{target} is not a tensor"
    return value


def infer(graph_module: fx.GraphModule, node: Node) -> Any:
    """Value of `node` on meta tensors, from `meta["val"]` of its arguments."""
    if node.op == "get_attr":
        return constant(graph_module, node.target).to("meta")
    assert callable(node.target)
    args, kwargs = map_aggregate(
        (node.args, node.kwargs), lambda arg: arg.meta["val"] if isinstance(arg, Node) else arg
    )
    with torch.no_grad():
        return node.target(*args, **kwargs)


def refresh_shapes(graph_module: fx.GraphModule) -> None:
    """Recompute `meta["val"]` of every node, from those of the placeholders.

    Raises UnsupportedLayer naming the first layer whose argument shapes no longer fit.
    """
    for node in graph_module.graph.nodes:
        if node.op in ("get_attr", "call_function"):
            try:
                node.meta["val"] = infer(graph_module, node)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                raise UnsupportedLayer([shape_problem(node, error)]) from error


def shape_problem(node: Node, error: Exception) -> str:
    """One line that says which shapes arrived at `node` and why they do not fit."""
    arrived = [
        list(sample_dims(argument.meta["val"]))
        for argument in node.all_input_nodes
        if isinstance(argument.meta.get("val"), Tensor)
    ]
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    reason = reason.replace(str(BATCH), "batch")
    return f"{describe(node)}: the argument shapes {arrived} do not fit: {reason}"


def sample_dims(value: Tensor) -> tuple[int | str, ...]:
    """A shape for people: the batch dimension reads "batch", a merged one "12*batch"."""
    return tuple(
        size if size % BATCH or not size else "batch" if size == BATCH else f"{size // BATCH}*batch"
        for size in value.shape
    )


def output_nodes(graph_module: fx.GraphModule) -> list[Node]:
    """The nodes whose values the graph returns, in order; one may occur twice."""
    returned = graph_module.graph.output_node().args[0]
    nodes = returned if isinstance(returned, (tuple, list)) else (returned,)
    return [node for node in nodes if isinstance(node, Node)]


def set_training(graph_module: fx.GraphModule, training: bool) -> None:
    """Write `training` into every batch_norm and dropout node, in place, and recompile.

    The only switch there is: `graph_module.train()` and `.eval()` change nothing, for ATen
    ops carry the flag as an argument. With True, batch_norm updates its running statistics in
    place; whoever trains must have cloned the tensors, for they are the user's.
    """
    for node in graph_module.graph.nodes:
        position = _TRAINING_ARGUMENT.get(node.target)
        if position is not None:
            node.update_arg(position, training)
    graph_module.recompile()


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What an input must be. shape: of one sample, without the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    batch_axis: int


def input_specs(graph_module: fx.GraphModule) -> tuple[InputSpec, ...]:
    """The graph's inputs in order."""
    specs = []
    for node in graph_module.graph.find_nodes(op="placeholder"):
        value, axis = node.meta["val"], node.meta["batch_axis"]
        shape = tuple(size for dim, size in enumerate(value.shape) if dim != axis)
        specs.append(InputSpec(str(node.target), shape, value.dtype, axis))
    return tuple(specs)


def as_indices(
    graph_module: fx.GraphModule, inputs: Tensor | Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """`inputs` with those that the graph takes as integers in its type, if they are such numbers.

    Data are float32 wherever they come from.
    """
    tensors = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    specs = input_specs(graph_module)
    if len(specs) != len(tensors):
        return tensors
    return tuple(
        x.to(spec.dtype) if is_whole(x, spec.dtype) else x
        for x, spec in zip(tensors, specs, strict=True)
    )


def is_whole(x: Tensor, dtype: torch.dtype = torch.int64) -> bool:
    """Whether all values are integers that a type of integers can hold, whatever their own type."""
    if dtype.is_floating_point or x.numel() == 0:
        return False
    low, high = (float(bound) for bound in torch.aminmax(x))
    least, most = range_of(dtype)
    within = least <= low and high <= most
    return within and (not x.is_floating_point() or bool((x == x.round()).all()))


def range_of(dtype: torch.dtype) -> tuple[int, int]:
    """The smallest and the largest number of a type of integers or truth values."""
    if dtype == torch.bool:
        return 0, 1
    limits = torch.iinfo(dtype)
    return limits.min, limits.max


def check_inputs(graph_module: fx.GraphModule, inputs: Tensor | Sequence[Tensor]) -> None:
    """Raise CaptureError unless `inputs` are what the graph was captured for, in one batch."""
    arrived = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    _check(input_specs(graph_module), arrived)


def as_samples(
    graph_module: fx.GraphModule, inputs: Tensor | Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """A batch of data, samples first wherever the graph has them, in the types that it takes.

    Raises CaptureError unless it is what the graph was captured for.
    """
    specs = [replace(spec, batch_axis=0) for spec in input_specs(graph_module)]
    tensors = as_indices(graph_module, inputs)
    fitting = zip(tensors, specs, strict=False)
    typed = [x.to(spec.dtype) if spec.dtype.is_floating_point else x for x, spec in fitting]
    _check(specs, [*typed, *tensors[len(specs) :]])
    return tuple(typed)


def _check(specs: Sequence[InputSpec], arrived: Sequence[Tensor]) -> None:
    if len(arrived) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise CaptureError(f"required {len(specs)} inputs ({names}), {len(arrived)} arrived")
    batches: dict[str, int] = {}
    for spec, tensor in zip(specs, arrived, strict=True):
        required = list[int | str](spec.shape)
        required.insert(spec.batch_axis, "batch")
        wanted = f"input {spec.name}: required shape {required} of {spec.dtype}"
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"{wanted}, a {type(tensor).__name__} arrived")
        shape = list(tensor.shape)
        fits = len(shape) == len(required)
        batch = shape.pop(spec.batch_axis) if fits else 0
        if not fits or tuple(shape) != spec.shape or tensor.dtype != spec.dtype:
            raise CaptureError(f"{wanted}, {list(tensor.shape)} of {tensor.dtype} arrived")
        batches[spec.name] = batch
    if len(set(batches.values())) > 1:
        raise CaptureError(f"the inputs disagree on the batch size: {batches}")


class Float64(fx.Interpreter):
    """Runs a graph in float64, constants and literal types included."""

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return value.to(torch.float64) if value.is_floating_point() else value

    def call_function(self, target: Target, args: Any, kwargs: Any) -> Any:
        # A literal dtype in the graph would narrow the values again.
        wide = {
            key: torch.float64 if value in (torch.float32, torch.float64) else value
            for key, value in kwargs.items()
        }
        return super().call_function(target, args, wide)
