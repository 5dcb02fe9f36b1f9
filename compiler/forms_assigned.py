"""Canonical forms of values written into parts of a tensor: `x[:, 1:3] = y` and its relatives.

Functional ATen spells an assignment as a copy into a view and a scatter of the view into the
tensor. Who reads that view again gets what was written (`meta["written"]`), and who writes it
again, into what was there before (`meta["under"]`). What is known from the indices alone (where
something is written, and constants that are) is left to PyTorch: it becomes a constant when
constants are folded.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.forms_joins import joined
from fxloom.forms_views import expanded
from fxloom.graph import aten, insert_like
from fxloom.moves import GATHER
from fxloom.rewriting import filled, input_of, is_constant, make, numbered, rewrites, sizes_of

# What is written ----------------------------------------------------------------------------------


@rewrites(aten.copy.default)
def _copy(graph: fx.Graph, node: Node) -> Node:
    """Another value in the place of a whole tensor, of whose shape and type it becomes."""
    return expanded(graph, node, _cast(graph, node, input_of(node, 1)))


def _cast(graph: fx.Graph, node: Node, source: Node) -> Node:
    dtype = node.meta["val"].dtype
    if source.meta["val"].dtype == dtype:
        return source
    cast = insert_like(graph, node, aten._to_copy.default, (source,))
    cast.kwargs = {"dtype": dtype}
    cast.meta["val"] = source.meta["val"].to(dtype)
    return cast


@rewrites(aten.fill.Scalar, aten.fill.Tensor, aten.zero.default)
def _fill(graph: fx.Graph, node: Node) -> Node:
    value = node.args[1] if len(node.args) > 1 else 0
    if isinstance(value, Node):
        return expanded(graph, node, _cast(graph, node, value))
    assert isinstance(value, int | float)
    return filled(graph, node, sizes_of(node, 1), value, node.meta["val"].dtype)


# Where it is written ------------------------------------------------------------------------------


@rewrites(aten.slice_scatter.default)
def _into_slice(graph: fx.Graph, node: Node) -> Node | None:
    target, source, dim, start, end, step = node.args
    assert isinstance(target, Node)
    assert isinstance(source, Node)
    assert isinstance(dim, int)
    assert isinstance(step, int)
    size = target.meta["val"].shape[dim]
    if start in (None, 0) and step == 1 and source.meta["val"].shape[dim] == size:
        return source
    bounds = [bound if isinstance(bound, int) else None for bound in (start, end)]
    if not isinstance(size, int) or (is_constant(target) and is_constant(source)):
        return None
    first, stop, _ = slice(*bounds).indices(size)
    place = (dim, range(first, stop, step))
    return _noted(graph, node, target, source, source, place)


@rewrites(aten.select_scatter.default)
def _into_entry(graph: fx.Graph, node: Node) -> Node | None:
    target, source, dim, index = node.args
    assert isinstance(target, Node)
    assert isinstance(source, Node)
    assert isinstance(dim, int)
    assert isinstance(index, int)
    size = target.meta["val"].shape[dim]
    if not isinstance(size, int) or (is_constant(target) and is_constant(source)):
        return None
    shape = sizes_of(node, 1 if is_constant(source) else -1)
    shape[dim] = 1
    row = insert_like(graph, node, aten.reshape.default, (source, shape))
    row.meta["val"] = source.meta["val"].unsqueeze(dim)
    return _noted(graph, node, target, source, row, (dim, index % size))


def _noted(
    graph: fx.Graph, node: Node, target: Node, source: Node, part: Node, place: tuple[int, Any]
) -> Node:
    """target with a source, whose form as part of it fits there, and a note of it."""
    if target.meta.get("written", ())[:2] == place:
        target = target.meta["under"]
    dim, places = place
    places = places if isinstance(places, range) else range(places, places + 1)
    result = _written(graph, node, target, part, dim, places)
    if result not in (source, part):
        result.meta |= {"written": (*place, source), "under": target}
    return result


def _written(
    graph: fx.Graph, node: Node, target: Node, source: Node, dim: int, places: range
) -> Node:
    """target with source at these places along dim: parts side by side, or chosen one by one."""
    size = target.meta["val"].shape[dim]
    if is_constant(source):
        return _choice(graph, node, target, source, (dim, places.start, places.stop, places.step))
    if places.step == 1:
        before = _part(graph, node, target, dim, 0, places.start)
        behind = _part(graph, node, target, dim, places.stop, size)
        return joined(graph, node, [*before, source, *behind], dim)
    both = _beside(graph, node, target, source, dim)
    order = list(range(size))
    for number, place in enumerate(places):
        order[place] = size + number
    return make(graph, node, GATHER, both, dim, order)


def _choice(
    graph: fx.Graph, node: Node, target: Node, source: Node, where: tuple[int, ...]
) -> Node:
    """A choice between a constant, at its places, and what is around it."""

    def spread(fill: float, part: Node, dtype: torch.dtype) -> Node:
        base = filled(graph, node, sizes_of(node, 1), fill, dtype)
        base.meta["val"] = node.meta["val"].to(dtype)
        return make(graph, node, aten.slice_scatter.default, base, part, *where)

    true = filled(graph, node, sizes_of(source, 1), True, torch.bool)
    true.meta["val"] = source.meta["val"].to(torch.bool)
    mask = spread(False, true, torch.bool)
    if source.target is aten.full.default:
        return insert_like(graph, node, aten.where.ScalarSelf, (mask, source.args[1], target))
    constants = spread(0, source, node.meta["val"].dtype)
    return insert_like(graph, node, aten.where.self, (mask, constants, target))


def _part(graph: fx.Graph, node: Node, x: Node, dim: int, start: int, stop: int) -> list[Node]:
    if start >= stop:
        return []
    if x.target is aten.full.default:  # joined knows zeros when it sees them
        shape = sizes_of(x, 1)
        shape[dim] = stop - start
        fill: Any = x.args[1]
        part = filled(graph, node, shape, fill, x.meta["val"].dtype)
        part.meta["val"] = x.meta["val"].narrow(dim, start, stop - start)
        return [part]
    return [make(graph, node, aten.slice.Tensor, x, dim, start, stop, 1)]


def _beside(graph: fx.Graph, node: Node, target: Node, source: Node, dim: int) -> Node:
    both = joined(graph, node, [target, source], dim)
    first, second = target.meta["val"], source.meta["val"]
    shape = list(first.shape)
    shape[dim] += second.shape[dim]
    both.meta["val"] = first.new_empty(shape)
    return both


@rewrites(aten.index_put.default)
def _at_indices(graph: fx.Graph, node: Node) -> Node | None:
    x, indices, value, accumulate = node.args
    assert isinstance(x, Node)
    assert isinstance(indices, Sequence)
    assert isinstance(value, Node)
    given = {dim: index for dim, index in enumerate(indices) if isinstance(index, Node)}
    if accumulate or (is_constant(x) and all(map(is_constant, (value, *given.values())))):
        return None
    if any(index.meta["val"].dtype == torch.bool for index in given.values()):
        return _where_true(graph, node, x, given, value)
    shape = x.meta["val"].shape
    if not all(is_constant(index) and isinstance(shape[dim], int) for dim, index in given.items()):
        return None
    if is_constant(value):
        return _marked(
            graph, node, x, value,
            lambda base, put: make(
                graph, node, aten.index_put.default, base, indices, put, False
            ),
        )  # fmt: skip
    if len(given) > 1:
        return None
    ((dim, index),) = given.items()
    if index.meta["val"].dim() != 1:
        return None
    like = make(graph, node, aten.index_select.default, x, dim, index)
    source = expanded(graph, like, value)
    source.meta["val"] = like.meta["val"]
    return _at_places(graph, node, x, dim, index, source)


def _where_true(
    graph: fx.Graph, node: Node, x: Node, given: dict[int, Node], value: Node
) -> Node | None:
    """One number wherever a mask is true; how many others are needed, nobody knows before."""
    if len(given) > 1 or value.meta["val"].numel() != 1:
        return None
    ((dim, mask),) = given.items()
    rest = x.meta["val"].dim() - dim - mask.meta["val"].dim()
    if rest:
        shape = [*sizes_of(mask, -1), *[1] * rest]
        mask = make(graph, node, aten.reshape.default, mask, shape)
    return insert_like(graph, node, aten.where.self, (mask, value, x))


def _marked(graph: fx.Graph, node: Node, x: Node, value: Any, write: Any) -> Node:
    """A choice between x and constants. write: puts a constant into the places of a tensor."""
    shape, dtype = sizes_of(x, 1), x.meta["val"].dtype
    number = isinstance(value, int | float)
    true = True if number else filled(graph, node, [], True, torch.bool)
    mask = write(filled(graph, node, shape, False, torch.bool), true)
    if number:
        return insert_like(graph, node, aten.where.ScalarSelf, (mask, value, x))
    constants = write(filled(graph, node, shape, 0, dtype), value)
    return insert_like(graph, node, aten.where.self, (mask, constants, x))


@rewrites(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)
def _fill_at_indices(graph: fx.Graph, node: Node) -> Node | None:
    x, dim, index, value = node.args
    assert isinstance(x, Node)
    assert isinstance(index, Node)
    if is_constant(x) or not is_constant(index):
        return None

    def write(base: Node, put: Any) -> Node:
        return make(graph, node, node.target, base, dim, index, put)

    return _marked(graph, node, x, value, write)


@rewrites(aten.scatter.value, aten.scatter.src)
def _scatter(graph: fx.Graph, node: Node) -> Node | None:
    """Constants at constant places, and one number at computed ones."""
    x, dim, index, value = node.args
    assert isinstance(x, Node)
    assert isinstance(dim, int)
    assert isinstance(index, Node)
    if not is_constant(index):
        return _at_computed(graph, node, x, dim, index, value)
    fixed = is_constant(index) and (not isinstance(value, Node) or is_constant(value))
    static = [
        [isinstance(size, int) for size in each.meta["val"].shape] for each in (x, index)
    ]  # an index for one sample alone would be none for the others
    if is_constant(x) or not fixed or node.kwargs or static[0] != static[1]:
        return None
    shape, dtype = sizes_of(x, 1), x.meta["val"].dtype
    base = filled(graph, node, shape, False, torch.bool)
    base.meta["val"] = x.meta["val"].to(torch.bool)
    mask = make(graph, node, aten.scatter.value, base, dim, index, True)
    if not isinstance(value, Node):
        return insert_like(graph, node, aten.where.ScalarSelf, (mask, value, x))
    constants = filled(graph, node, shape, 0, dtype)
    constants.meta["val"] = x.meta["val"]
    constants = make(graph, node, aten.scatter.src, constants, dim, index, value)
    return insert_like(graph, node, aten.where.self, (mask, constants, x))


def _at_computed(
    graph: fx.Graph, node: Node, x: Node, dim: int, index: Node, value: Any
) -> Node | None:
    """A choice by which of all places is asked for: as in a one-hot encoding, an index that is none
    of them changes nothing."""
    size, count = (each.meta["val"].shape[dim] for each in (node, index))
    if node.kwargs or not isinstance(size, int) or not isinstance(count, int):
        return None
    beside = [_beside_dim(each, dim) for each in (node, index, value) if isinstance(each, Node)]
    if any(each != beside[0] for each in beside) or min(size, count) < 1:
        return None
    shape = [1] * node.meta["val"].dim()
    shape[dim] = size
    every = make(graph, node, aten.reshape.default, numbered(graph, node, 0, size), shape)

    def entry(of: Node, number: int) -> Node:
        alone = of.meta["val"].shape[dim] == 1
        return of if alone else make(
            graph, node, aten.slice.Tensor, of, dim, number, number + 1, 1
        )  # fmt: skip

    for number in range(count):
        chosen = make(graph, node, aten.eq.Tensor, entry(index, number), every)
        is_node = isinstance(value, Node)
        target = aten.where.self if is_node else aten.where.ScalarSelf
        put = entry(value, number) if is_node else value
        x = insert_like(graph, node, target, (chosen, put, x))
        x.meta["val"] = node.meta["val"]
    return x


def _beside_dim(node: Node, dim: int) -> list[str]:
    """Sizes along all other dimensions, symbols as text."""
    return [str(size) for axis, size in enumerate(node.meta["val"].shape) if axis != dim]


@rewrites(aten.index_copy.default)
def _copy_to_indices(graph: fx.Graph, node: Node) -> Node | None:
    x, dim, index, source = node.args
    assert isinstance(x, Node)
    assert isinstance(dim, int)
    assert isinstance(index, Node)
    assert isinstance(source, Node)
    computed = not is_constant(x) or not is_constant(source)
    if not computed or not is_constant(index) or not isinstance(x.meta["val"].shape[dim], int):
        return None
    return _at_places(graph, node, x, dim, index, source)


def _at_places(graph: fx.Graph, node: Node, x: Node, dim: int, index: Node, source: Node) -> Node:
    """x with the entries of source at constant indices along dim."""
    size, count = x.meta["val"].shape[dim], source.meta["val"].shape[dim]
    places = numbered(graph, node, 0, size)
    fresh = numbered(graph, node, size, size + count)
    order = make(graph, node, aten.index_copy.default, places, 0, index, fresh)
    both = _beside(graph, node, x, source, dim)
    return insert_like(graph, node, aten.index_select.default, (both, dim, order))
