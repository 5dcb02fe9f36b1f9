"""Canonical forms of matrix products: linear where one side is constant, else matmul."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import fx
from torch.fx.node import Node

from fxloom.einsum import parse
from fxloom.forms_views import diagonal
from fxloom.graph import aten, insert_like
from fxloom.rewriting import input_of, is_constant, make, rewrites, sizes_of, sizes_of_constant


@rewrites(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default)
def _matmul(graph: fx.Graph, node: Node) -> Node | None:
    return product(graph, node, input_of(node, 0), input_of(node, 1))


@rewrites(aten.linear.default)
def _linear(graph: fx.Graph, node: Node) -> Node | None:
    """A vector as weight is a product; a bias of one entry for several outputs is added."""
    x, weight = input_of(node, 0), input_of(node, 1)
    bias = input_of(node, 2) if len(node.args) > 2 and node.args[2] is not None else None
    is_vector = weight.meta["val"].dim() == 1
    is_narrow = bias is not None and bias.meta["val"].numel() != weight.meta["val"].shape[0]
    if not is_vector and not is_narrow:
        return None
    if is_vector:
        result = product(graph, node, x, weight)
    else:
        result = make(graph, node, aten.linear.default, x, weight, None)
    return result if bias is None else make(graph, node, aten.add.Tensor, result, bias)


def product(graph: fx.Graph, node: Node, left: Node, right: Node) -> Node:
    """left @ right; what has no form here stays a matmul, for the batch rules and the checks."""
    ranks = [side.meta["val"].dim() for side in (left, right)]
    if is_constant(right) and not is_constant(left):
        if ranks[1] == 1:
            row = make(graph, node, aten.reshape.default, right, [1, -1])
            column = make(graph, node, aten.linear.default, left, row, None)
            return make(graph, node, aten.reshape.default, column, sizes_of(column, -1)[:-1])
        if ranks[1] == 2:
            weight = _transposed(graph, node, right)
            return make(graph, node, aten.linear.default, left, weight, None)
        if ranks[0] > 1:
            return _by_stack(graph, node, left, right)
    elif is_constant(left) and not is_constant(right) and ranks[1] > 1:
        # The transpose of (right transposed) @ (left transposed).
        turned = _transposed(graph, node, right)
        if ranks[0] == 1:
            return product(graph, node, turned, left)
        flipped = product(graph, node, turned, _transposed(graph, node, left))
        return _transposed(graph, node, flipped)
    return make(graph, node, aten.matmul.default, left, right)


def _transposed(graph: fx.Graph, node: Node, matrix: Node) -> Node:
    """The last two axes exchanged; undoes a transpose where there is one."""
    rank = matrix.meta["val"].dim()
    order = [*range(rank - 2), rank - 1, rank - 2]
    if matrix.target is aten.permute.default and matrix.args[1] == order:
        return input_of(matrix)
    return make(graph, node, aten.permute.default, matrix, order)


def _by_stack(graph: fx.Graph, node: Node, left: Node, right: Node) -> Node:
    """x[A, L, M, K] times the constant w[L, K, N], a matrix for each index of L."""
    sizes = sizes_of(left, -1)
    missing = right.meta["val"].dim() - len(sizes)
    if missing > 0:
        sizes = [1] * missing + sizes
        left = make(graph, node, aten.reshape.default, left, sizes)
    matrices = _without_ones(graph, node, right)
    stack = sizes_of(matrices, -1)[:-2]
    if not stack:
        return product(graph, node, left, matrices)
    along = sizes[len(sizes) - 2 - len(stack) : -2]
    if sum(size == -1 for size in sizes) == 1:
        if len(sizes) == 3 and along == [-1] and sizes_of_constant(left)[0] == stack[0]:
            # Heads that are merged with the batch, and what is spread over it.
            apart = make(graph, node, aten.reshape.default, left, [-1, *stack, *sizes[1:]])
            result = _in_groups(graph, node, apart, matrices)
            return make(graph, node, aten.reshape.default, result, [-1, *sizes_of(result, -1)[2:]])
        if along == stack:
            return _in_groups(graph, node, left, matrices)
        if all(size == 1 for size in along):
            return _side_by_side(graph, node, left, matrices)
    return make(graph, node, aten.matmul.default, left, right)


def _without_ones(graph: fx.Graph, node: Node, stack: Node) -> Node:
    """A constant stack of matrices without leading axes of length 1, or spread over the batch,
    where it has length 1 in fact."""
    kept = sizes_of_constant(stack)
    while len(kept) > 2 and kept[0] == 1:
        del kept[0]
    if kept == sizes_of(stack, -1):
        return stack
    matrices = insert_like(graph, node, aten.reshape.default, (stack, kept))
    matrices.meta["val"] = stack.meta["val"].new_empty(kept)
    return matrices


def _in_groups(graph: fx.Graph, node: Node, left: Node, right: Node) -> Node:
    """A convolution with a group for each matrix and a kernel of one."""
    *stack, inner, columns = sizes_of(right, -1)
    sizes = sizes_of(left, -1)
    last, batch = len(sizes) - 1, sizes.index(-1)
    stacked = list(range(last - 1 - len(stack), last - 1))
    rest = [axis for axis in range(last) if axis not in (*stacked, batch)]
    order = [batch, *stacked, last, *rest]
    groups, positions = prod(stack), [sizes[axis] for axis in rest]
    x = make(graph, node, aten.permute.default, left, order)
    x = make(graph, node, aten.reshape.default, x, [-1, groups * inner, prod(positions)])
    weight = _transposed(graph, node, right)
    weight = make(graph, node, aten.reshape.default, weight, [groups * columns, inner, 1])
    ones: tuple[Any, ...] = ([1], [0], [1], False, [0], groups)
    x = make(graph, node, aten.convolution.default, x, weight, None, *ones)
    x = make(graph, node, aten.reshape.default, x, [-1, *stack, columns, *positions])
    back = [order.index(axis) for axis in range(len(order))]
    return make(graph, node, aten.permute.default, x, back)


def _side_by_side(graph: fx.Graph, node: Node, left: Node, right: Node) -> Node:
    """One linear layer with the columns of all matrices."""
    *stack, inner, columns = sizes_of(right, -1)
    sizes, depth = sizes_of(left, -1), len(stack)
    rank, lead = len(sizes), len(sizes) - 2 - depth
    weight = _transposed(graph, node, right)
    weight = make(graph, node, aten.reshape.default, weight, [prod(stack) * columns, inner])
    x = make(graph, node, aten.linear.default, left, weight, None)
    shape = [*sizes[:lead], sizes[rank - 2], *stack, columns]
    x = make(graph, node, aten.reshape.default, x, shape)
    order = [*range(lead), *range(lead + 1, rank - 1), lead, rank - 1]
    return make(graph, node, aten.permute.default, x, order)


@rewrites(aten.inner.default)
def _inner(graph: fx.Graph, node: Node) -> Node | None:
    """The products of rows with rows."""
    left, right = input_of(node, 0), input_of(node, 1)
    ranks = [side.meta["val"].dim() for side in (left, right)]
    if 1 in ranks:
        pair = (left, right) if ranks[1] == 1 else (right, left)
        return product(graph, node, *pair)
    if ranks[1] == 2:
        return product(graph, node, left, _transposed(graph, node, right))
    return None


@rewrites(aten.linalg_vecdot.default)
def _vecdot(graph: fx.Graph, node: Node) -> Node:
    products = make(graph, node, aten.mul.Tensor, *node.args[:2])
    dim = node.kwargs.get("dim", -1)
    assert isinstance(dim, int)
    dims = [dim % products.meta["val"].dim()]
    return insert_like(graph, node, aten.sum.dim_IntList, (products, dims, False))


@rewrites(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def _addmm(graph: fx.Graph, node: Node) -> Node | None:
    """beta * bias + alpha * (left @ right)."""
    bias, left, right = (input_of(node, position) for position in range(3))
    shapes = [side.meta["val"].dim() for side in (bias, right)]
    fixed = is_constant(bias) and is_constant(right) and not is_constant(left)
    if fixed and shapes == [1, 2] and not node.kwargs and bias.meta["val"].shape[0] != 1:
        args = (left, _transposed(graph, node, right), bias)
        return insert_like(graph, node, aten.linear.default, args)
    result = product(graph, node, left, right)
    scaled = [
        side if factor == 1 else make(graph, node, aten.mul.Tensor, side, factor)
        for side, factor in (
            (bias, node.kwargs.get("beta", 1)),
            (result, node.kwargs.get("alpha", 1)),
        )
    ]
    return insert_like(graph, node, aten.add.Tensor, tuple(scaled))


@rewrites(aten.einsum.default)
def _einsum(graph: fx.Graph, node: Node) -> Node | None:
    """One product after another, of diagonals where labels repeat. What mixes samples stays."""
    equation, operands = node.args[:2]
    assert isinstance(operands, Sequence)
    tensors = [tensor for tensor in operands if isinstance(tensor, Node)]
    found = parse(str(equation), [tensor.meta["val"].dim() for tensor in tensors])
    if found is None:
        return None
    terms, output = found
    if not _keeps_batch(tensors, terms, output):
        return None
    for position, term in enumerate(terms):
        while repeated := [label for label in term if term.count(label) > 1]:
            first = term.index(repeated[0])
            second = term.index(repeated[0], first + 1)
            taken = diagonal(graph, node, tensors[position], 0, first, second)
            if taken is None:
                return None
            tensors[position] = taken
            del term[second], term[first]
            term.append(repeated[0])
    step = _Contraction(graph, node)
    left, labels = tensors[0], terms[0]
    for n, (right, term) in enumerate(zip(tensors[1:], terms[1:], strict=True), 2):
        wanted = {*output}.union(*terms[n:])
        left, labels = step.of_two(left, labels, right, term, wanted)
    left, labels = step.summed(left, labels, {*output})
    return step.ordered(left, labels, output)


def _keeps_batch(tensors: Sequence[Node], terms: Sequence[list[str]], output: list[str]) -> bool:
    """Whether one label of the result is the batch of every computed tensor."""
    batches = [
        [label for label, size in zip(term, sizes_of(tensor, -1), strict=True) if size == -1]
        for tensor, term in zip(tensors, terms, strict=True)
        if not is_constant(tensor)
    ]
    first = batches[0] if batches else []
    return len(first) == 1 and first[0] in output and all(each == first for each in batches)


class _Contraction:
    """Writes an einsum of labelled tensors as permutations, sums and matrix products."""

    def __init__(self, graph: fx.Graph, node: Node) -> None:
        self.graph, self.node = graph, node

    def make(self, target: Callable[..., Any], *args: Any) -> Node:
        return make(self.graph, self.node, target, *args)

    def ordered(self, x: Node, labels: Sequence[str], wanted: Sequence[str]) -> Node:
        """x with its axes in the order of the labels wanted."""
        order = [labels.index(label) for label in wanted]
        if order == sorted(order):
            return x
        return self.make(aten.permute.default, x, order)

    def summed(self, x: Node, labels: Sequence[str], wanted: set[str]) -> tuple[Node, list[str]]:
        """x summed over every axis whose label nobody wants."""
        dims = [axis for axis, label in enumerate(labels) if label not in wanted]
        kept = [label for label in labels if label in wanted]
        return (self.make(aten.sum.dim_IntList, x, dims, False) if dims else x), kept

    def spread(
        self, a: Node, left: Sequence[str], b: Node, right: Sequence[str]
    ) -> tuple[Node, Sequence[str]]:
        """a without the axes of length 1 that broadcast along those of b."""
        lengths = dict(zip(right, sizes_of(b, -1), strict=True))
        kept = [
            (label, size)
            for label, size in zip(left, sizes_of(a, -1), strict=True)
            if size != 1 or lengths.get(label, 1) == 1
        ]
        if len(kept) == len(left):
            return a, left
        return self.make(aten.reshape.default, a, [size for _, size in kept]), [n for n, _ in kept]

    def of_two(
        self, a: Node, left: Sequence[str], b: Node, right: Sequence[str], wanted: set[str]
    ) -> tuple[Node, list[str]]:
        """The product of two tensors, and its labels."""
        a, left, b, right = *self.spread(a, left, b, right), *self.spread(b, right, a, left)
        a, left = self.summed(a, left, wanted.union(right))
        b, right = self.summed(b, right, wanted.union(left))
        sizes = dict(zip((*left, *right), (*sizes_of(a, -1), *sizes_of(b, -1)), strict=True))
        shared = [label for label in left if label in right and label in wanted]
        inner = [label for label in left if label in right and label not in wanted]
        rows = [label for label in left if label not in right]
        columns = [label for label in right if label not in left]
        if is_constant(a):  # a constant is the right side, whose leading axes broadcast
            a, b, left, right, rows, columns = b, a, right, left, columns, rows
        # The batch leads, where only one side has it: it cannot be merged with other axes.
        batch = [label for label in rows if sizes[label] == -1]
        rows = [label for label in rows if label not in batch]
        x = self.ordered(a, left, [*batch, *shared, *rows, *inner])
        y = self.ordered(b, right, [*shared, *inner, *columns])
        merged = [prod(sizes[label] for label in group) for group in (rows, inner, columns)]
        front = [sizes[label] for label in (*batch, *shared)]
        x = self.make(aten.reshape.default, x, [*front, *merged[:2]])
        y = self.make(aten.reshape.default, y, [*front[len(batch) :], *merged[1:]])
        result = product(self.graph, self.node, x, y)
        labels = [*batch, *shared, *rows, *columns]
        shape = [sizes[label] for label in labels]
        return self.make(aten.reshape.default, result, shape), labels
