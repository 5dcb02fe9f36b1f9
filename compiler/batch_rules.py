"""The batch rule of each op: where the batch lies in its result, or why its samples are mixed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from operator import getitem
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX, QUOTIENT, ROOT, STANDARDISE
from fxloom.graph import BATCH, aten
from fxloom.quantized_ops import DIVIDE, EMBEDDING, LOOKUP, REQUANTIZE, REQUANTIZE_WEIGHTS


@dataclass(frozen=True, slots=True)
class Merged:
    """A dimension of outer * batch * inner entries, row-major."""

    axis: int
    outer: int
    inner: int


BatchAxis = int | Merged | None
Rule = Callable[[Node], BatchAxis]


class Mixed(Exception):
    """The op mixes samples; the text says how."""


RULES: dict[Any, Rule] = {}


def batch_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the batch rule of one or more ops."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def position_of(axis: BatchAxis) -> int | None:
    """The dimension that holds the batch."""
    return axis.axis if isinstance(axis, Merged) else axis


def _moved(axis: BatchAxis, position: int) -> BatchAxis:
    if isinstance(axis, Merged):
        return Merged(position, axis.outer, axis.inner)
    return None if axis is None else position


def _axis(node: Any) -> BatchAxis:
    axis: BatchAxis = node.meta["batch_axis"] if isinstance(node, Node) else None
    return axis


def _rank(node: Any) -> int:
    return node.meta["val"].dim() if isinstance(node.meta["val"], Tensor) else 0


def _aligned(nodes: Sequence[Node], trailing: int = 0) -> tuple[BatchAxis, int]:
    """Axis and rank after broadcasting; `trailing` last dimensions may not hold the batch."""
    rank = max(_rank(node) for node in nodes)
    found = {
        _moved(_axis(node), (position_of(_axis(node)) or 0) + rank - _rank(node)) for node in nodes
    } - {None}
    if len(found) > 1:
        raise Mixed("its arguments hold the batch in different dimensions. Align them first.")
    axis = found.pop()
    position = position_of(axis)
    if position is not None and position >= rank - trailing:
        raise Mixed(f"it works across dimension {position}, which holds the batch.")
    return axis, rank


# the pointwise ops that ATen does not tag so
@batch_rule(
    aten.hardswish.default, aten.log_sigmoid.default, aten._to_copy.default,
    aten.where.ScalarSelf, aten.where.ScalarOther,
    REQUANTIZE, REQUANTIZE_WEIGHTS, DIVIDE,
)  # fmt: skip
def broadcast(node: Node) -> BatchAxis:
    """Pointwise ops: all arguments must hold the batch in the same broadcast dimension."""
    return _aligned(node.all_input_nodes)[0]


@batch_rule(aten.convolution.default)
def _convolution(node: Node) -> BatchAxis:
    _constants_only(node, node.args[1:])
    return _leading(node, 1)


@batch_rule(
    aten.batch_norm.default, aten.group_norm.default, aten.instance_norm.default,
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default,
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default, aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default, aten.prelu.default, aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default, aten.channel_shuffle.default,
    aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec, aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.vec, aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec,
    aten.max_pool2d_with_indices.default,
)  # fmt: skip
def _image(node: Node) -> BatchAxis:
    if node.target is aten.batch_norm.default and node.args[5]:
        raise Mixed("it normalises over the batch. Call set_training(graph, False).")
    _constants_only(node, node.args[1:])
    return _leading(node, 1)


@batch_rule(aten._native_batch_norm_legit.no_stats)
def _batch_statistics(node: Node) -> BatchAxis:
    raise Mixed("it normalises over the batch. Keep running statistics, capture in eval mode.")


def _constants_only(node: Node, arguments: Sequence[Any]) -> None:
    for argument in arguments:
        if _axis(argument) is not None:
            raise Mixed(f"{argument} must be a constant, it is computed from the input.")


def _leading(node: Node, count: int) -> BatchAxis:
    axis = _axis(node.args[0])
    position = position_of(axis)
    if position is not None and position >= count:
        raise Mixed(
            f"the batch must be dimension 0 of its input, it is dimension {position}. "
            "Declare it with batch_axes or permute the tensor."
        )
    return axis


@batch_rule(aten.linear.default)
def _linear(node: Node) -> BatchAxis:
    _constants_only(node, node.args[1:])
    return _aligned([_node(node.args[0])], trailing=1)[0]


@batch_rule(LOOKUP)
def _lookup(node: Node) -> BatchAxis:
    _constants_only(node, node.args[1:])
    return _axis(_node(node.args[0]))


@batch_rule(aten.embedding.default, EMBEDDING)
def _embedding(node: Node) -> BatchAxis:
    """Rows take the place of their indices: one more dimension, behind the others."""
    weight, indices = node.args[:2] if node.target is aten.embedding.default else node.args[1::-1]
    _constants_only(node, [weight])
    return _axis(indices)


@batch_rule(aten.layer_norm.default, aten.rms_norm.default)
def _layer_norm(node: Node) -> BatchAxis:
    _constants_only(node, node.args[2:])
    normalized = node.args[1]
    assert isinstance(normalized, Sequence)
    return _aligned([_node(node.args[0])], trailing=len(normalized))[0]


@batch_rule(aten.matmul.default, aten.bmm.default, aten.mm.default)
def _matmul(node: Node) -> BatchAxis:
    left, right = _node(node.args[0]), _node(node.args[1])
    if _axis(left) is not None and _axis(right) is not None:
        return _aligned([left, right], trailing=2)[0]
    if min(_rank(left), _rank(right)) < 2:
        raise Mixed("a vector operand has no batch rule. Use a matrix or F.linear.")
    batched = left if _axis(left) is not None else right
    axis = _axis(batched)
    position = (position_of(axis) or 0) - _rank(batched)
    if position == (-1 if batched is left else -2):
        raise Mixed("it sums over the batch.")
    return _moved(axis, position + max(_rank(left), _rank(right)))


@batch_rule(aten.einsum.default)
def _einsum(node: Node) -> BatchAxis:
    raise Mixed("not every computed tensor has the batch as one and the same axis of the result.")


@batch_rule(aten.tril.default, aten.triu.default, aten.diagonal.default)
def _of_matrices(node: Node) -> BatchAxis:
    raise Mixed("one of its two dimensions holds the batch.")


@batch_rule(aten.scaled_dot_product_attention.default)
def _attention(node: Node) -> BatchAxis:
    return _aligned([_node(arg) for arg in node.args[:4] if isinstance(arg, Node)], trailing=2)[0]


@batch_rule(
    aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.argmax.default,
    aten.argmin.default, aten.max.dim, aten.min.dim, aten.var.correction, aten.var.dim,
    aten.prod.dim_int, aten.std.dim, aten.std.correction, aten.logsumexp.default, aten.any.dim,
    aten.all.dim,
)  # fmt: skip
def _reduction(node: Node) -> BatchAxis:
    source = _node(node.args[0])
    dims = _dims(node.args[1] if len(node.args) > 1 else None) or list(range(_rank(source)))
    position = _kept_apart(node, dims)
    keepdim = _rank(node) == _rank(source) if isinstance(node.meta["val"], Tensor) else node.args[2]
    return _moved(
        _axis(source), position if keepdim else position - sum(d < position for d in dims)
    )


@batch_rule(
    aten.softmax.int, aten.log_softmax.int, aten.cumsum.default, aten.flip.default,
    aten.sort.default, aten.roll.default, aten.glu.default,
)  # fmt: skip
def _along_dims(node: Node) -> BatchAxis:
    dims = _dims(node.args[2] if node.target is aten.roll.default else node.args[1])
    if node.target is aten.roll.default and not dims:
        raise Mixed("without dims it moves values from one sample to the next.")
    _kept_apart(node, dims)
    return _axis(node.args[0])


@batch_rule(
    aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.topk.default,
)  # fmt: skip
def _split(node: Node) -> BatchAxis:
    _kept_apart(node, _dims(node.args[2]))
    return _axis(node.args[0])


@batch_rule(aten.slice.Tensor, aten.index_select.default, aten.narrow.default)
def _slice(node: Node) -> BatchAxis:
    _constants_only(node, node.args[2:])
    _kept_apart(node, _dims(node.args[1]))
    return _axis(node.args[0])


@batch_rule(aten.repeat_interleave.self_int)
def _repeat_interleave(node: Node) -> BatchAxis:
    if node.args[2] is None:
        raise Mixed("without dim it moves values from one sample to the next.")
    _kept_apart(node, _dims(node.args[2]))
    return _axis(node.args[0])


@batch_rule(aten.repeat.default)
def _repeat(node: Node) -> BatchAxis:
    source, times = _node(node.args[0]), node.args[1]
    assert isinstance(times, Sequence)
    axis = _axis(source)
    position = (position_of(axis) or 0) + len(times) - _rank(source)
    if times[position] != 1:
        raise Mixed(f"it repeats dimension {position}, which holds the batch.")
    return _moved(axis, position)


@batch_rule(aten.index.Tensor)
def _index(node: Node) -> BatchAxis:
    """Where index tensors stand side by side their dimensions come in their place, else first."""
    source, indices = _node(node.args[0]), node.args[1]
    assert isinstance(indices, Sequence)
    _constants_only(node, indices)
    held = [dim for dim, index in enumerate(indices) if index is not None]
    position = _kept_apart(node, held)
    rank = max(_rank(index) for index in indices if index is not None)
    beside = held == list(range(held[0], held[-1] + 1))
    before = sum(dim < position for dim in held)
    inserted = rank if not beside or held[0] < position else 0
    return _moved(_axis(source), position - before + inserted)


@batch_rule(aten.select.int)
def _select(node: Node) -> BatchAxis:
    dims = _dims(node.args[1])
    position = _kept_apart(node, dims)
    return _moved(_axis(node.args[0]), position - (dims[0] < position))


@batch_rule(aten.cat.default)
def _cat(node: Node) -> BatchAxis:
    axis, _ = _aligned(node.all_input_nodes)
    if len({_rank(part) for part in node.all_input_nodes}) > 1:
        raise Mixed("its arguments differ in rank.")
    if position_of(axis) == node.args[1]:
        raise Mixed(f"it concatenates along dimension {node.args[1]}, which holds the batch.")
    return axis


@batch_rule(aten.constant_pad_nd.default, aten.pad.default)
def _pad(node: Node) -> BatchAxis:
    x, widths = _node(node.args[0]), node.args[1]
    assert isinstance(widths, Sequence)
    last = _rank(x) - 1
    _kept_apart(node, [last - index // 2 for index, width in enumerate(widths) if width])
    return _axis(x)


@batch_rule(aten.permute.default)
def _permute(node: Node) -> BatchAxis:
    axis = _axis(node.args[0])
    return _moved(axis, _dims(node.args[1]).index(position_of(axis) or 0))


@batch_rule(aten.expand.default)
def _expand(node: Node) -> BatchAxis:
    source = _node(node.args[0])
    axis = _axis(source)
    return _moved(axis, (position_of(axis) or 0) + _rank(node) - _rank(source))


@batch_rule(aten.reshape.default)
def _reshape(node: Node) -> BatchAxis:
    """Locate the batch again: row-major order fixes which outer and inner indices surround it."""
    source = _node(node.args[0])
    axis = _axis(source)
    position, outer, inner = (
        (axis.axis, axis.outer, axis.inner) if isinstance(axis, Merged) else (axis or 0, 1, 1)
    )
    before = prod(source.meta["val"].shape[:position]) * outer
    shape = node.meta["val"].shape
    holders = [dim for dim, size in enumerate(shape) if size and size % BATCH == 0]
    for dim in holders:
        factor, left = shape[dim] // BATCH, prod(shape[:dim])
        # left dimensions split off `before`; the rest of it must lead the merged dimension
        if before % left == 0 and factor % (before // left) == 0:
            outer, inner = before // left, factor // (before // left)
            return dim if outer == inner == 1 else Merged(dim, outer, inner)
    raise Mixed("it splits or reorders the batch. Keep the batch size as a dimension of its own.")


@batch_rule(getitem)
def _getitem(node: Node) -> BatchAxis:
    return _axis(node.args[0])


def _kept_apart(node: Node, dims: Sequence[int]) -> int:
    """The batch's position in the first argument; raises Mixed where `dims` holds it."""
    position = position_of(_axis(node.args[0]))
    if position is None or position in dims:
        raise Mixed(f"it works along dimension {position}, which holds the batch.")
    return position


def _dims(dims: Any) -> list[int]:
    return [] if dims is None else [dims] if isinstance(dims, int) else list(dims)


@batch_rule(STANDARDISE, aten.linalg_vector_norm.default)
def _standardise(node: Node) -> BatchAxis:
    position = 3 if node.target is STANDARDISE else 2
    dims = _dims(node.args[position]) or list(range(_rank(node.args[0])))
    before = _kept_apart(node, dims)
    gone = 0 if _rank(node) == _rank(node.args[0]) else sum(dim < before for dim in dims)
    return _moved(_axis(node.args[0]), before - gone)


@batch_rule(MASKED_SOFTMAX)
def _masked_softmax(node: Node) -> BatchAxis:
    _kept_apart(node, _dims(node.args[2]))
    return _aligned(node.all_input_nodes)[0]


@batch_rule(QUOTIENT, ROOT)
def _pointwise(node: Node) -> BatchAxis:
    return _aligned(node.all_input_nodes)[0]


def _node(argument: Any) -> Node:
    assert isinstance(argument, Node)
    return argument
