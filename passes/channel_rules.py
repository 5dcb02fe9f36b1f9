"""How operations tie channels together: layers, elementwise operations, norms, reductions, pools.

A rule ties the numbers of its arguments and returns those of its result. A removed channel is zero
in every value that carries it; a rule may let it pass only where leaving it out is the same. What
has no rule pins all that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX
from fxloom.graph import arguments, describe
from fxloom.passes.channel_ties import Channels, Ids, Value, fixed, sizes_of

aten = torch.ops.aten

Rule = Callable[[Channels, Node], Value]
RULES: dict[Any, Rule] = {}

PRODUCTS = (aten.mul.Tensor,)
"""Zero wherever one argument is."""
QUOTIENTS = (aten.div.Tensor,)
"""Zero wherever the first argument is."""
UNTAGGED = (
    *(aten.hardswish.default, aten.log_sigmoid.default, aten._to_copy.default),
    *(aten.where.ScalarSelf, aten.where.ScalarOther),
)
"""Elementwise, though ATen does not say so."""


def channel_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the rule of one or more ops."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def apply(c: Channels, node: Node) -> Value:
    """The numbers of a node's value, after its rule has tied those of its arguments."""
    rule = RULES.get(node.target)
    if rule is not None:
        return rule(c, node)
    tags = getattr(node.target, "tags", ())
    if torch.Tag.pointwise in tags or node.target in UNTAGGED:
        return elementwise(c, node)
    for source in node.all_input_nodes:
        for ids in c.values[source]:
            c.ties.pin(ids, f"{describe(node)} reads it, which cannot shrink")
    value = node.meta["val"]
    return tuple(fixed(n) for n in sizes_of(node)) if isinstance(value, Tensor) else ()


# Layers ------------------------------------------------------------------------------------------


@channel_rule(aten.linear.default)
def _linear(c: Channels, node: Node) -> Value:
    x, weight, bias = (_value(c, argument) for argument in arguments(node)[:3])
    assert x is not None
    assert weight is not None
    c.ties.tie(x[-1], weight[1], _read_by(c, node))
    if bias is not None:
        c.ties.tie(weight[0], bias[0], _read_by(c, node))
    return (*x[:-1], weight[0])


@channel_rule(aten.convolution.default)
def _convolution(c: Channels, node: Node) -> Value:
    x, weight, bias = (_value(c, argument) for argument in arguments(node)[:3])
    assert x is not None
    assert weight is not None
    transposed, groups = arguments(node)[6], arguments(node)[8]
    reason = _read_by(c, node)
    for ids in (*x[2:], *weight[2:]):
        c.ties.pin(ids, reason)
    if groups == 1:
        source, outputs = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
        c.ties.tie(x[1], source, reason)
    else:
        outputs = _grouped(c, node, x[1], weight, groups, transposed)
    if bias is not None:
        c.ties.tie(outputs, bias[0], reason)
    return (x[0], outputs, *(fixed(n) for n in sizes_of(node)[2:]))


def _grouped(
    c: Channels, node: Node, inputs: Ids, weight: Value, groups: int, transposed: bool
) -> Ids:
    """Outputs of a grouped convolution: whole groups go, or the same channel of every group."""
    reason = f"{describe(node)} has groups, which must stay equal"
    read = inputs.reshape(groups, -1)
    own = weight[0].reshape(groups, -1)  # inputs where it is transposed, else outputs
    ways = [own[:, 0]]
    if max(own.shape[1], weight[1].size) > 1:
        ways.append(np.concatenate([own[0], weight[1]]))
    way = c.choose(node, 0, ways)
    c.ways[node] = way
    if way == 0:
        _tie_rows(c, read.T, reason)
        _tie_rows(c, own.T, reason)
        c.ties.tie(read[:, 0], own[:, 0], reason)
        c.ties.pin(weight[1], reason)
        return np.repeat(own[:, 0], weight[1].size) if transposed else weight[0]
    _tie_rows(c, read, reason)
    _tie_rows(c, own, reason)
    c.ties.tie(read[0], own[0] if transposed else weight[1], _read_by(c, node))
    return np.tile(weight[1], groups) if transposed else weight[0]


def _tie_rows(c: Channels, rows: Ids, reason: str) -> None:
    """All rows of a matrix go together, entry by entry."""
    for row in rows[1:]:
        c.ties.tie(rows[0], row, reason)


@channel_rule(aten.embedding.default)
def _embedding(c: Channels, node: Node) -> Value:
    weight, indices = (_value(c, argument) for argument in arguments(node)[:2])
    assert weight is not None
    assert indices is not None
    for ids in (weight[0], *indices):
        c.ties.pin(ids, f"{describe(node)} looks rows up by it")
    return (*indices, weight[1])


@channel_rule(aten.matmul.default, aten.bmm.default)
def _matmul(c: Channels, node: Node) -> Value:
    left, right = (_value(c, argument) for argument in arguments(node)[:2])
    assert left is not None
    assert right is not None
    if min(len(left), len(right)) < 2:
        return _pinned(c, node)
    c.ties.tie(left[-1], right[-2], _read_by(c, node))
    rank = len(sizes_of(node)) - 2
    stacks = [
        (value[:-2], source in c.computed)
        for value, source in zip((left, right), arguments(node)[:2], strict=True)
    ]
    return (*_broadcast(c, node, stacks, rank, (0, 1)), left[-2], right[-1])


@channel_rule(aten.scaled_dot_product_attention.default)
def _attention(c: Channels, node: Node) -> Value:
    """Heads, entries of queries with those of keys, entries of values; no positions."""
    if node.kwargs.get("enable_gqa"):
        return _pinned(c, node)
    q, k, v, mask = (_value(c, argument) for argument in (*arguments(node), None)[:4])
    assert q is not None
    assert k is not None
    assert v is not None
    reason = f"{describe(node)} weighs all positions against each other"
    c.ties.tie(q[-1], k[-1], _read_by(c, node))
    for ids in (q[-2], k[-2], v[-2], *(() if mask is None else mask[-2:])):
        c.ties.pin(ids, reason)
    stacks = [(value[:-2], source in c.computed)
              for value, source in zip((q, k, v, mask), arguments(node)[:4], strict=False)
              if value is not None]  # fmt: skip
    stack = _broadcast(c, node, stacks, len(sizes_of(node)) - 2, range(4))
    return (*stack, fixed(q[-2].size), v[-1])


# Elementwise -------------------------------------------------------------------------------------


def elementwise(c: Channels, node: Node) -> Value:
    """All arguments go together, except where one has a single entry for all.

    Where such a one is computed it may only scale: it would be left where it is added to zeros.
    """
    stacks = [(c.values[source], source in c.computed) for source in _operands(node)]
    scaling: Sequence[int] = ()
    if node.target in PRODUCTS:
        scaling = range(len(stacks))
    elif node.target in QUOTIENTS and len(stacks) == 2:
        scaling = (1,)
    return _broadcast(c, node, stacks, len(sizes_of(node)), scaling)


def _operands(node: Node) -> list[Node]:
    """The node's tensor arguments, in order, one that occurs twice twice."""
    found: list[Node] = []
    torch.fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _broadcast(
    c: Channels,
    node: Node,
    operands: Sequence[tuple[Value, bool]],
    rank: int,
    scaling: Sequence[int],
) -> Value:
    """The numbers after broadcasting. operands: with whether they are computed from inputs;
    scaling: which of them may have a single entry for all channels."""
    result: list[Ids] = []
    for axis in range(-rank, 0):
        entries: Ids | None = None
        shared = False
        for place, (value, is_computed) in enumerate(operands):
            ids = value[axis] if len(value) >= -axis else fixed(1)
            if ids.size == 1:
                shared |= is_computed and place not in scaling
            elif entries is None:
                entries = ids
            else:
                c.ties.tie(entries, ids, _read_by(c, node))
        if entries is None:
            entries = fixed(1)
        elif shared:
            c.ties.pin(entries, f"{describe(node)} brings in a value that all its channels share")
        result.append(entries)
    return tuple(result)


@channel_rule(aten.prelu.default)
def _prelu(c: Channels, node: Node) -> Value:
    x, slopes = (_value(c, argument) for argument in arguments(node)[:2])
    assert x is not None
    assert slopes is not None
    if slopes and slopes[0].size > 1:
        c.ties.tie(x[1], slopes[0], _read_by(c, node))
    return x


# Norms -------------------------------------------------------------------------------------------


@channel_rule(aten.batch_norm.default, aten.instance_norm.default)
def _channel_norm(c: Channels, node: Node) -> Value:
    x = _value(c, arguments(node)[0])
    assert x is not None
    for argument in arguments(node)[1:5]:
        if isinstance(argument, Node):
            c.ties.tie(x[1], c.values[argument][0], _read_by(c, node))
    if node.target is aten.instance_norm.default:
        _pin_axes(c, node, x, range(2, len(x)))
    return x


@channel_rule(aten.layer_norm.default, aten.rms_norm.default)
def _layer_norm(c: Channels, node: Node) -> Value:
    x = _value(c, arguments(node)[0])
    assert x is not None
    count = len(arguments(node)[1])
    _pin_axes(c, node, x, range(len(x) - count, len(x)))
    for argument in arguments(node)[2:4]:
        if isinstance(argument, Node):
            _pin_axes(c, node, c.values[argument], range(count))
    return x


@channel_rule(aten.group_norm.default)
def _group_norm(c: Channels, node: Node) -> Value:
    """Whole groups go: the others keep their means and variances."""
    x = _value(c, arguments(node)[0])
    assert x is not None
    groups = x[1].reshape(arguments(node)[1], -1)
    reason = f"{describe(node)} normalises over groups of channels"
    _tie_rows(c, groups.T, reason)
    if len(groups) == 1:
        c.ties.pin(groups, reason)
    for argument in arguments(node)[2:4]:
        if isinstance(argument, Node):
            c.ties.tie(x[1], c.values[argument][0], reason)
    _pin_axes(c, node, x, range(2, len(x)))
    return x


def _pin_axes(c: Channels, node: Node, value: Value, axes: Sequence[int]) -> None:
    for axis in axes:
        c.ties.pin(
            value[axis], f"{describe(node)} is computed over all of it: the others would change"
        )


# Along dimensions --------------------------------------------------------------------------------


@channel_rule(aten.softmax.int, aten.log_softmax.int, aten.cumsum.default)
def _along(c: Channels, node: Node) -> Value:
    x = _value(c, arguments(node)[0])
    assert x is not None
    _pin_axes(c, node, x, [arguments(node)[1]])
    return x


@channel_rule(MASKED_SOFTMAX)
def _masked_softmax(c: Channels, node: Node) -> Value:
    result = elementwise(c, node)
    dims = arguments(node)[2]
    _pin_axes(c, node, result, [dims] if isinstance(dims, int) else dims)
    return result


@channel_rule(
    aten.mean.dim, aten.amax.default, aten.amin.default, aten.argmax.default, aten.argmin.default,
    aten.var.correction, aten.std.correction, aten.logsumexp.default, aten.sum.dim_IntList,
)  # fmt: skip
def _reduction(c: Channels, node: Node) -> Value:
    """What is summed may go, zeros add nothing; all other reductions see how many there are."""
    x = _value(c, arguments(node)[0])
    assert x is not None
    dims = arguments(node)[1] if len(arguments(node)) > 1 else None
    return _reduced(c, node, x, dims, node.target is aten.sum.dim_IntList)


@channel_rule(aten.linalg_vector_norm.default)
def _vector_norm(c: Channels, node: Node) -> Value:
    x = _value(c, arguments(node)[0])
    assert x is not None
    order = arguments(node)[1]
    return _reduced(c, node, x, arguments(node)[2], order in (1, 2))


def _reduced(c: Channels, node: Node, x: Value, dims: Any, may_shrink: bool) -> Value:
    chosen = range(len(x)) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = [dim % len(x) for dim in chosen] or list(range(len(x)))
    if not may_shrink:
        _pin_axes(c, node, x, axes)
    if len(sizes_of(node)) == len(x):
        return tuple(fixed(1) if axis in axes else ids for axis, ids in enumerate(x))
    return tuple(ids for axis, ids in enumerate(x) if axis not in axes)


# Pools and images of another size ----------------------------------------------------------------


@channel_rule(
    aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool1d.default,
    aten.avg_pool2d.default, aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default,
    aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec, aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.vec, aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec,
)  # fmt: skip
def _of_images(c: Channels, node: Node) -> Value:
    x = _value(c, arguments(node)[0])
    assert x is not None
    spatial = 1 if "1d" in str(node.target) else 2
    first = len(x) - spatial
    _pin_axes(c, node, x, range(first, len(x)))
    return (*x[:first], *(fixed(n) for n in sizes_of(node)[first:]))


def _pinned(c: Channels, node: Node) -> Value:
    for source in node.all_input_nodes:
        _pin_axes(c, node, c.values[source], range(len(c.values[source])))
    return tuple(fixed(n) for n in sizes_of(node))


def _value(c: Channels, argument: Any) -> Value | None:
    return c.values[argument] if isinstance(argument, Node) else None


def _read_by(c: Channels, node: Node) -> str:
    return f"{describe(node)} ties it to channels that must stay"
