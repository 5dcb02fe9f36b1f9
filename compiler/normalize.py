"""One canonical form per operation: readers of a graph need to know one spelling only.

`normalize` rewrites the ops that torch.export leaves (a dozen spellings of a view, four of a
convolution) by the table `RULES`: op -> small function that returns what replaces the node, or None
to keep it. Arguments come out positional, defaults filled in, dimensions non-negative; only
arguments that ATen declares keyword-only and that are not at their default stay in `kwargs`.

Shapes are read from the symbolic `meta["val"]` of torch.export: a symbolic size is the batch. No
literal batch size and no `sym_size` survives: the batch entry of a reshape is -1, and a constant
spread over the batch (`zeros(B, n)`, `token.expand(B, -1)`) keeps size 1 there and broadcasts.
"""

import math
from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument, Node

from fxloom.graph import insert_like

aten = torch.ops.aten
Rule = Callable[[fx.Graph, Node], Node | None]

RULES: dict[Any, Rule] = {}
# Keyword-only arguments that say nothing about values on one CPU.
_PLACEMENT = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking"})
_ASSERTIONS = (
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
)


def rewrites(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the rule of one or more ops."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def normalize(graph: fx.Graph) -> None:
    """Rewrite `graph` in place; every node must carry the `meta["val"]` of torch.export."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
            continue
        _fill_arguments(node)
        rule = RULES.get(node.target)
        with graph.inserting_before(node):
            replacement = rule(graph, node) if rule is not None else None
        if replacement is None or replacement is node:
            continue
        replacement.meta.setdefault("val", node.meta["val"])
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def _fill_arguments(node: Node) -> None:
    """Make arguments positional with defaults filled in, and dimensions non-negative."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    args, kwargs = list(node.args), dict(node.kwargs)
    rest: dict[str, Argument] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        if argument.kwarg_only:
            if argument.name not in _PLACEMENT and kwargs.get(argument.name, default) != default:
                rest[argument.name] = kwargs[argument.name]
        elif position >= len(args):
            args.append(kwargs.get(argument.name, default))
    for position, argument in enumerate(node.target._schema.arguments[: len(args)]):
        if argument.name in ("dim", "dims", "dim0", "dim1") and node.all_input_nodes:
            first = node.all_input_nodes[0].meta["val"]
            rank = first.dim() + (node.target in (aten.stack.default, aten.unsqueeze.default))
            args[position] = _non_negative(args[position], max(rank, 1))
    node.args, node.kwargs = tuple(args), rest


def _non_negative(dims: Any, rank: int) -> Any:
    if isinstance(dims, int):
        return dims % rank
    return [dim % rank for dim in dims] if isinstance(dims, (list, tuple)) else dims


def _sizes(node: Node, batch: int) -> list[int]:
    """The node's shape with `batch` written for symbolic entries."""
    return [size if isinstance(size, int) else batch for size in node.meta["val"].shape]


def _spread(sizes: Any, count: int) -> list[int]:
    """[3] -> [3, 3]: ATen takes one entry for all spatial dimensions."""
    entries = [sizes] if isinstance(sizes, int) else list(sizes)
    return entries * count if len(entries) == 1 else entries


def _input(node: Node, position: int = 0) -> Node:
    source = node.args[position]
    assert isinstance(source, Node)
    return source


def _same_shape(node: Node, other: Node) -> bool:
    """Compares symbols as text: `==` on a SymInt would answer for the example's batch size."""
    first, second = node.meta["val"].shape, other.meta["val"].shape
    return [str(size) for size in first] == [str(size) for size in second]


def is_constant(node: Node) -> bool:
    """Computed from no input: parameters, buffers, and whatever follows from them alone."""
    pending = [node]
    while pending:
        node = pending.pop()
        if node.op == "placeholder":
            return False
        pending.extend(node.all_input_nodes)
    return True


# Nothing happens ---------------------------------------------------------------------------------


@rewrites(
    aten.alias.default, aten.clone.default, aten.detach.default, aten.contiguous.default,
    aten.lift_fresh.default, aten.lift_fresh_copy.default, aten._to_copy.default,
    aten.to.dtype, aten.positive.default,
)  # fmt: skip
def _identity(graph: fx.Graph, node: Node) -> Node | None:
    source = _input(node)
    return source if source.meta["val"].dtype == node.meta["val"].dtype else None


@rewrites(aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
def _dropout(graph: fx.Graph, node: Node) -> Node | None:
    return None if node.args[2] else _input(node)


# Views -------------------------------------------------------------------------------------------


@rewrites(
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default,
)  # fmt: skip
def _reshape(graph: fx.Graph, node: Node) -> Node:
    if _same_shape(node, _input(node)):
        return _input(node)
    return insert_like(graph, node, aten.reshape.default, (_input(node), _sizes(node, -1)))


@rewrites(aten.transpose.int, aten.t.default, aten.permute.default, aten.numpy_T.default)
def _permute(graph: fx.Graph, node: Node) -> Node:
    rank = node.meta["val"].dim()
    order = list(range(rank))
    if node.target is aten.transpose.int:
        first, second = node.args[1:]
        assert isinstance(first, int)
        assert isinstance(second, int)
        order[first], order[second] = second, first
    elif node.target is aten.permute.default:
        assert isinstance(node.args[1], Sequence)
        order = [dim for dim in node.args[1] if isinstance(dim, int)]
    else:
        order.reverse()
    if order == sorted(order):
        return _input(node)
    return insert_like(graph, node, aten.permute.default, (_input(node), order))


@rewrites(aten.expand.default)
def _expand(graph: fx.Graph, node: Node) -> Node:
    source = _input(node)
    sizes = _sizes(node, -1)
    lead = len(sizes) - source.meta["val"].dim()
    for dim, size in enumerate(sizes):
        held = source.meta["val"].shape[dim - lead] if dim >= lead else 1
        if size == -1 and isinstance(held, int):
            sizes[dim] = 1
    if not lead and sizes == _sizes(source, -1):
        return source
    return insert_like(graph, node, aten.expand.default, (source, sizes))


@rewrites(aten.slice.Tensor)
def _slice(graph: fx.Graph, node: Node) -> Node | None:
    if node.args[4] == 1 and _same_shape(node, _input(node)):
        return _input(node)
    source, dim, start, end, step = node.args
    assert isinstance(dim, int)
    size = _input(node).meta["val"].shape[dim]
    if isinstance(size, int):  # the batch keeps what was written, for the message
        bounds = [bound if isinstance(bound, int) else None for bound in (start, end)]
        start, end, _ = slice(*bounds).indices(size)
    node.args = (source, dim, start, end, step)
    return None


@rewrites(aten.select.int)
def _select(graph: fx.Graph, node: Node) -> None:
    source, dim, index = node.args
    assert isinstance(dim, int)
    size = _input(node).meta["val"].shape[dim]
    if isinstance(size, int) and isinstance(index, int):
        node.args = (source, dim, index % size)


@rewrites(aten.stack.default)
def _stack(graph: fx.Graph, node: Node) -> Node:
    parts, dim = node.args
    assert isinstance(parts, Sequence)
    assert isinstance(dim, int)
    shape = _sizes(node, -1)
    shape[dim] = 1
    reshaped = [insert_like(graph, node, aten.reshape.default, (part, shape)) for part in parts]
    return insert_like(graph, node, aten.cat.default, (reshaped, dim))


@rewrites(aten.pad.default, aten.constant_pad_nd.default)
def _pad(graph: fx.Graph, node: Node) -> Node | None:
    widths, value = node.args[1], node.args[-1]
    assert isinstance(widths, Sequence)
    if not any(widths):
        return _input(node)
    if node.target is aten.pad.default and node.args[2] != "constant":
        return None
    args = (_input(node), list(widths), 0.0 if value is None else value)
    return insert_like(graph, node, aten.constant_pad_nd.default, args)


# Linear layers -----------------------------------------------------------------------------------


def _transposed(graph: fx.Graph, node: Node, weight: Node) -> Node:
    """The weight of F.linear for `x @ weight`: undoes a transpose where there is one."""
    if weight.target is aten.permute.default and weight.args[1] == [1, 0]:
        return _input(weight)
    result = insert_like(graph, node, aten.permute.default, (weight, [1, 0]))
    result.meta["val"] = weight.meta["val"].t()
    return result


@rewrites(aten.matmul.default, aten.mm.default)
def _matmul(graph: fx.Graph, node: Node) -> Node | None:
    left, right = _input(node, 0), _input(node, 1)
    if right.meta["val"].dim() != 2 or not is_constant(right) or is_constant(left):
        return None
    args = (left, _transposed(graph, node, right), None)
    return insert_like(graph, node, aten.linear.default, args)


@rewrites(aten.addmm.default)
def _addmm(graph: fx.Graph, node: Node) -> Node | None:
    bias, left, right = (_input(node, position) for position in range(3))
    plain = is_constant(bias) and is_constant(right) and not is_constant(left) and not node.kwargs
    if not plain or bias.meta["val"].dim() != 1:
        return None
    args = (left, _transposed(graph, node, right), bias)
    return insert_like(graph, node, aten.linear.default, args)


@rewrites(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    aten.convolution.default,
)  # fmt: skip
def _convolution(graph: fx.Graph, node: Node) -> Node | None:
    spatial = _input(node, 1).meta["val"].dim() - 2
    if node.target is aten.convolution.default or _input(node).meta["val"].dim() != spatial + 2:
        return None  # an input without a batch: the batch rules refuse it by name
    transposed = "transpose" in str(node.target)
    source, weight, bias, stride, padding, *rest = node.args
    output, groups, dilation = rest if transposed else (0, rest[1], rest[0])
    dilation = _spread(dilation, spatial)
    if padding == "same":
        source, padding = _pad_to_same(graph, node, dilation)
    elif padding == "valid":
        padding = 0
    args = (
        source, weight, bias, _spread(stride, spatial), _spread(padding, spatial), dilation,
        transposed, _spread(output, spatial), groups,
    )  # fmt: skip
    return insert_like(graph, node, aten.convolution.default, args)


def _pad_to_same(graph: fx.Graph, node: Node, dilation: list[int]) -> tuple[Node, list[int]]:
    """Input and padding for 'same'; an odd total needs a pad of its own, the extra column last."""
    kernel = _input(node, 1).meta["val"].shape[2:]
    totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    if all(total % 2 == 0 for total in totals):
        return _input(node), [total // 2 for total in totals]
    widths = [width for total in reversed(totals) for width in (total // 2, total - total // 2)]
    padded = insert_like(graph, node, aten.constant_pad_nd.default, (_input(node), widths, 0.0))
    return padded, [0] * len(totals)


# Activations and arithmetic ----------------------------------------------------------------------


@rewrites(
    aten.clamp.default, aten.clip.default, aten.clamp_min.default, aten.clamp_max.default,
    aten.hardtanh.default, aten.relu6.default,
)  # fmt: skip
def _clamp(graph: fx.Graph, node: Node) -> Node:
    low, high = (*node.args[1:], None, None)[:2]
    if node.target is aten.clamp_max.default:
        low, high = None, low
    elif node.target is aten.relu6.default:
        low, high = 0, 6
    if low == 0 and high is None:
        return insert_like(graph, node, aten.relu.default, (_input(node),))
    return insert_like(graph, node, aten.clamp.default, (_input(node), low, high))


@rewrites(aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar)
@rewrites(aten.rsub.Tensor)
def _add(graph: fx.Graph, node: Node) -> Node:
    """left + alpha * right, with alpha a multiplication of its own."""
    left, right, *scale = node.args
    alpha = node.kwargs.get("alpha", scale[0] if scale else 1)
    reverse = node.target in (aten.rsub.Scalar, aten.rsub.Tensor)
    if reverse:
        left, right = right, left
    if alpha != 1:
        assert isinstance(alpha, (int, float))
        if isinstance(right, Node):
            scaled = insert_like(graph, node, aten.mul.Tensor, (right, alpha))
            scaled.meta["val"] = right.meta["val"]
            right = scaled
        else:
            assert isinstance(right, (int, float))
            right = right * alpha
    target = aten.add.Tensor if "add" in str(node.target) else aten.sub.Tensor
    return insert_like(graph, node, target, (left, right))


@rewrites(aten.mul.Scalar)
def _multiply(graph: fx.Graph, node: Node) -> Node:
    return insert_like(graph, node, aten.mul.Tensor, node.args)


@rewrites(aten.div.Tensor, aten.div.Scalar)
def _divide(graph: fx.Graph, node: Node) -> Node:
    """Division by a power of two is the same floating-point number as a multiplication."""
    divisor = node.args[1]
    if isinstance(divisor, (int, float)) and abs(math.frexp(divisor)[0]) == 0.5:
        return insert_like(graph, node, aten.mul.Tensor, (node.args[0], 1 / divisor))
    return insert_like(graph, node, aten.div.Tensor, node.args)


# Reductions and pools ----------------------------------------------------------------------------

_OVER_ALL: dict[Any, Any] = {
    aten.mean.default: aten.mean.dim,
    aten.sum.default: aten.sum.dim_IntList,
    aten.max.default: aten.amax.default,
    aten.min.default: aten.amin.default,
}


@rewrites(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, *_OVER_ALL)
def _reduce(graph: fx.Graph, node: Node) -> Node | None:
    dims, keepdim = (*node.args[1:], False)[:2] if node.target not in _OVER_ALL else (None, False)
    order = sorted(dims) if isinstance(dims, Sequence) and dims else None  # type: ignore[type-var]
    everything = list(range(_input(node).meta["val"].dim()))
    target = _OVER_ALL.get(node.target, node.target)
    reduced = insert_like(graph, node, target, (_input(node), order or everything, keepdim))
    reduced.kwargs = node.kwargs
    return reduced


@rewrites(
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default,
)  # fmt: skip
def _pool(graph: fx.Graph, node: Node) -> None:
    spatial = int(str(node.target).partition("pool")[2][0])
    source, kernel, stride, *rest = node.args
    rest = [
        _spread(entry, spatial) if isinstance(entry, (list, tuple)) else entry for entry in rest
    ]
    node.args = (source, _spread(kernel, spatial), _spread(stride or kernel, spatial), *rest)


# Constants spread over the batch -----------------------------------------------------------------


@rewrites(
    aten.zeros.default, aten.ones.default, aten.full.default, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default, aten.zeros_like.default,
    aten.ones_like.default, aten.full_like.default,
)  # fmt: skip
def _filled(graph: fx.Graph, node: Node) -> Node:
    fill = 0 if "zeros" in str(node.target) else 1 if "ones" in str(node.target) else None
    value = node.args[-1] if fill is None else fill
    if node.target in (aten.full_like.default, aten.full.default):
        value = node.args[1]
    elif node.target is aten.new_full.default:
        value = node.args[2]
    filled = insert_like(graph, node, aten.full.default, (_sizes(node, 1), value))
    filled.kwargs = {"dtype": node.meta["val"].dtype}
    return filled


# Ops with several results ------------------------------------------------------------------------


@rewrites(getitem)
def _getitem(graph: fx.Graph, node: Node) -> Node | None:
    producer, index = _input(node), node.args[1]
    assert isinstance(index, int)
    rule = _RESULTS.get(producer.target)
    return rule(graph, node, producer, index) if rule is not None else None


def _batch_norm(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    source, weight, bias, mean, variance, momentum, eps = producer.args
    args = (source, weight, bias, mean, variance, False, momentum, eps, False)
    return insert_like(graph, node, aten.batch_norm.default, args)


def _max_pool_values(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    if index != 0:
        return None
    pool = insert_like(graph, node, aten.max_pool2d.default, producer.args)
    _pool(graph, pool)
    return pool


def _extreme(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    if index != 0:
        return None
    target = aten.amax.default if producer.target is aten.max.dim else aten.amin.default
    source, dim, keepdim = producer.args
    return insert_like(graph, node, target, (source, [dim], keepdim))


def _split(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node | None:
    dim = producer.args[2]
    assert isinstance(dim, int)
    widths = [part.shape[dim] for part in producer.meta["val"]]
    if not all(isinstance(width, int) for width in widths):
        return None
    start = sum(widths[:index])
    args = (producer.args[0], dim, start, start + widths[index], 1)
    return insert_like(graph, node, aten.slice.Tensor, args)


def _unbind(graph: fx.Graph, node: Node, producer: Node, index: int) -> Node:
    source, dim = producer.args
    return insert_like(graph, node, aten.select.int, (source, dim, index))


_RESULTS: dict[Any, Callable[[fx.Graph, Node, Node, int], Node | None]] = {
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.max_pool2d_with_indices.default: _max_pool_values,
    aten.max.dim: _extreme,
    aten.min.dim: _extreme,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.unbind.int: _unbind,
}
