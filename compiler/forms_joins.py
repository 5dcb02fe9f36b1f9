"""Canonical forms of joining tensors: constants among them have no batch to follow."""

from collections.abc import Sequence

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.graph import aten, insert_like
from fxloom.rewriting import filled, is_constant, make, rewrites, sizes_of


@rewrites(aten.stack.default)
def _stack(graph: fx.Graph, node: Node) -> Node:
    parts, dim = node.args
    assert isinstance(parts, Sequence)
    assert isinstance(dim, int)
    reshaped = []
    for part in parts:
        assert isinstance(part, Node)
        shape = sizes_of(node, 1 if is_constant(part) else -1)
        shape[dim] = 1
        row = insert_like(graph, node, aten.reshape.default, (part, shape))
        row.meta["val"] = part.meta["val"].unsqueeze(dim)
        reshaped.append(row)
    return joined(graph, node, reshaped, dim)


@rewrites(
    aten.hstack.default, aten.vstack.default, aten.dstack.default, aten.column_stack.default,
)  # fmt: skip
def _along_axis(graph: fx.Graph, node: Node) -> Node:
    """Joined along one of the first three dimensions; what has fewer gets some of length 1."""
    target = node.target
    parts: list[Node] = []
    assert isinstance(node.args[0], Sequence)
    for part in node.args[0]:
        assert isinstance(part, Node)
        held = sizes_of(part, -1)
        sizes = held
        if len(held) == 1 and target is not aten.hstack.default:
            sizes = [*held, 1] if target is aten.column_stack.default else [1, *held]
        if len(sizes) == 2 and target is aten.dstack.default:
            sizes = [*sizes, 1]
        if sizes != held:
            part = make(graph, node, aten.reshape.default, part, sizes)
        parts.append(part)
    dim = 0 if target is aten.vstack.default else 2 if target is aten.dstack.default else 1
    return joined(graph, node, parts, min(dim, parts[0].meta["val"].dim() - 1))


@rewrites(aten.cat.default, aten.concat.default, aten.concatenate.default)
def _cat(graph: fx.Graph, node: Node) -> Node:
    parts, dim = node.args
    assert isinstance(parts, Sequence)
    assert isinstance(dim, int)
    return joined(graph, node, [part for part in parts if isinstance(part, Node)], dim)


def joined(graph: fx.Graph, node: Node, parts: Sequence[Node], dim: int) -> Node:
    """The computed parts, padded where constants lie among them, which are chosen there."""
    # torch lets tensors of shape [0] pass, whatever the rank of the others
    shapes = [part.meta["val"].shape for part in parts]
    lengths = [shape[dim] if dim < len(shape) else 0 for shape in shapes]
    known = all(isinstance(length, int) for length in lengths)
    parts = [part for part, n in zip(parts, lengths, strict=True) if not known or n > 0]
    computed = [part for part in parts if not is_constant(part)]
    if not known or not computed or len(computed) == len(parts):
        if len(parts) == 1:
            return parts[0]
        return insert_like(graph, node, aten.cat.default, (list(parts), dim))
    padded = _padded(graph, node, parts, dim)
    result = padded[0]
    if len(padded) > 1:
        result = make(graph, node, aten.cat.default, padded, dim)
    if all(_is_zero(part) for part in parts if is_constant(part)):
        return result
    shape = next(sizes_of(part, 1) for part in parts if is_constant(part))
    mask, constants = [], []
    for part in parts:
        shape[dim] = part.meta["val"].shape[dim]
        along = [size if axis == dim else 1 for axis, size in enumerate(shape)]
        fixed = is_constant(part)
        mask.append(filled(graph, node, along, fixed, torch.bool))
        zeros = node.meta["val"].dtype
        constants.append(part if fixed else filled(graph, node, shape, 0, zeros))
    whole = [insert_like(graph, node, aten.cat.default, (all_, dim)) for all_ in (mask, constants)]
    return insert_like(graph, node, aten.where.self, (*whole, result))


def _padded(graph: fx.Graph, node: Node, parts: Sequence[Node], dim: int) -> list[Node]:
    """The computed parts with zeros for the constants behind each, and before the first."""
    pieces: list[tuple[Node, int, int]] = []
    before = 0
    for part in parts:
        length = part.meta["val"].shape[dim]
        if not is_constant(part):
            pieces.append((part, before, 0))
            before = 0
        elif pieces:
            last, first, behind = pieces[-1]
            pieces[-1] = (last, first, behind + length)
        else:
            before += length
    rest = [0, 0] * (node.meta["val"].dim() - dim - 1)
    return [
        make(graph, node, aten.constant_pad_nd.default, part, [*rest, *widths], 0.0)
        if any(widths)
        else part
        for part, *widths in pieces
    ]


def _is_zero(part: Node) -> bool:
    return part.target is aten.full.default and part.args[1] in (0, False)
