"""Scales that are no powers of two, moved to where they cost least and merged.

Uniform quantizers hand on integers times a scale. A layer that multiplied those would have wide
products; a scale commutes with layers, rectifiers, pools and moves, so it comes behind them:

    linear(q * s, W) * w + b   =   linear(q, W) * (s * w) + b
    (y * s + b) * r            =   y * (s * r) + b * r

Where two constants become one, that one has SIGNIFICANT bits again: what it multiplies changes by
2**-SIGNIFICANT of itself at most. Products that are no longer than that are exact, as those of
powers of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from operator import add, mul
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import Node

from fxloom.editing import tensor_node
from fxloom.given_constants import (
    SIGNIFICANT,
    QuantizerRefused,
    constant_format,
    significant,
)
from fxloom.graph import arguments, constant, origin
from fxloom.lowering import mantissas
from fxloom.moves import GATHER
from fxloom.passes.legalize.core import insert
from fxloom.passes.legalize.rounded import rearranged
from fxloom.quantized_ops import GIVEN, REQUANTIZE, is_given
from fxloom.support.core import is_constant

aten = torch.ops.aten

MOST_NUMBERS = 2**16
"""Constants up to this size are looked at: one for each channel, not for each pixel."""
MERGED = "merged"
"""In the meta of a constant that was made of several."""

_LAYERS = (aten.linear.default, aten.convolution.default)
_THROUGH = (
    *(aten.relu.default, aten.max_pool1d.default, aten.max_pool2d.default, aten.amax.default),
    *(aten.sum.dim_IntList, aten.reshape.default, aten.view.default, aten.permute.default),
    *(GATHER, aten.constant_pad_nd.default, aten.avg_pool2d.default),
)
"""Operations of one value that give as many times more where that is as many times larger. They
are legalized: a pool adds up."""


@dataclass(frozen=True)
class Factor:
    """A value that is another one times a constant. numbers: its elements, exact."""

    x: Node
    constant: Node
    numbers: tuple[Fraction, ...]

    @property
    def scale(self) -> Fraction | None:
        """The one number by which all is multiplied."""
        return self.numbers[0] if len(self.numbers) == 1 else None


def move(module: GraphModule) -> tuple[list[str], list[str]]:
    """Rewrite a legalized graph of the caller's; returns the layers that were, and what people
    should know of it."""
    scales = _Scales(module)
    scales.run()
    remarks = []
    if scales.rounded:
        remarks.append(
            f"constant factors merged into one of {SIGNIFICANT} significant bits each, so that "
            f"values change by 2**-{SIGNIFICANT} of themselves at most: {', '.join(scales.rounded)}"
        )
    return scales.moved, remarks


@dataclass
class _Scales:
    """module: changed in place. moved: layers of which something was. rounded: those in which a
    merged constant is not exact."""

    module: GraphModule
    moved: list[str] = field(default_factory=list)
    rounded: dict[str, None] = field(default_factory=dict)
    gone: set[Node] = field(default_factory=set)
    known: dict[Node, tuple[Fraction, ...]] = field(default_factory=dict)

    def run(self) -> None:
        """From the first node to the last: each sees the factors that came before it."""
        rules: dict[Any, Callable[[Node], Node | None]] = {
            **dict.fromkeys(_LAYERS, self._behind_layer),
            **dict.fromkeys(_THROUGH, self._behind),
            **dict.fromkeys((aten.matmul.default, aten.bmm.default), self._behind_product),
            aten.mul.Tensor: self._merged,
            aten.div.Tensor: self._divided,
            aten.add.Tensor: self._behind_sum,
            aten.sub.Tensor: self._behind_sum,
            aten.cat.default: self._behind_cat,
        }
        for node in list(self.module.graph.nodes):
            rule = rules.get(node.target)
            if rule is None or node in self.gone or (result := rule(node)) is None:
                continue
            node.replace_all_uses_with(result)
            self.moved.append(origin(node))
            self._erase(node)

    def _erase(self, node: Node) -> None:
        """A node that nothing reads, and those that only it reads: others count their readers."""
        if node.users or node.op == "placeholder":
            return
        sources = node.all_input_nodes
        self.module.graph.erase_node(node)
        self.gone.add(node)
        for source in sources:
            self._erase(source)

    # Where factors are

    def factor(self, node: Any) -> Factor | None:
        """What a node multiplies by what, where that is a constant of the model's own."""
        return self._factor(node, self._numbers)

    def _factor(
        self, node: Any, numbers_of: Callable[[Any], tuple[Fraction, ...]]
    ) -> Factor | None:
        if not isinstance(node, Node) or node.target is not aten.mul.Tensor:
            return None
        for x, other in (arguments(node)[:2], arguments(node)[1::-1]):
            if isinstance(x, Node) and not self._plain(x) and (numbers := numbers_of(other)):
                return Factor(x, other, numbers)
        return None

    def _numbers(self, node: Any) -> tuple[Fraction, ...]:
        """A constant in a format of the model's own; () for anything else."""
        is_typed = isinstance(node, Node) and is_given(node) and node.target is REQUANTIZE
        return self._plain(node) if is_typed else ()

    def _plain(self, node: Any) -> tuple[Fraction, ...]:
        """A constant, rounded or not; () for anything else."""
        if not isinstance(node, Node):
            return ()
        if node not in self.known:
            self.known[node] = self._read(node)
        return self.known[node]

    def _read(self, node: Node) -> tuple[Fraction, ...]:
        is_typed = is_given(node) and node.target is REQUANTIZE
        source = arguments(node)[0] if is_typed else node
        if not is_constant(source) or node.meta["val"].numel() > MOST_NUMBERS:
            return ()
        values = constant(self.module, source.target).detach()
        if not is_typed:
            is_real = values.is_floating_point()
            return tuple(map(Fraction, values.reshape(-1).tolist())) if is_real else ()
        data, to, _ = mantissas(values, node)
        step = Fraction(2) ** -to.fraction
        return tuple(int(mantissa) * step for mantissa in data.reshape(-1))

    def _scaled(self, node: Any) -> Factor | None:
        """A factor that is one positive number and no power of two, which is but a binary point."""
        found = self.factor(node)
        if found is None or found.scale is None or found.scale <= 0 or _is_power(found.scale):
            return None
        return found

    # Moves

    def _behind_layer(self, node: Node) -> Node | None:
        x, weight, bias, *rest = arguments(node)
        found = self._scaled(x)
        if found is None:
            return None
        y = self._insert(node, node.target, found.x, weight, None, *rest)
        y = self._insert(node, aten.mul.Tensor, y, found.constant)
        if bias is None:
            return y
        if node.target is aten.convolution.default:
            shape = (-1, *(1,) * (y.meta["val"].dim() - 2))
            bias = rearranged(self.module, node, bias, lambda values: values.reshape(shape))
        return self._insert(node, aten.add.Tensor, y, bias)

    def _behind(self, node: Node) -> Node | None:
        x, *rest = arguments(node)
        found = self._scaled(x)
        if found is None or not self._all_take(x) or not _is_homogeneous(node):
            return None
        y = self._insert(node, node.target, found.x, *rest)
        return self._insert(node, aten.mul.Tensor, y, found.constant)

    def _all_take(self, x: Node) -> bool:
        """Whether nothing needs the product itself: else it would be computed once more."""
        return all(
            user.target in (*_LAYERS, *_THROUGH, aten.div.Tensor) or self.factor(user) is not None
            for user in x.users
        )

    def _behind_product(self, node: Node) -> Node | None:
        for position, x in enumerate(arguments(node)[:2]):
            found = self._scaled(x)
            if found is None:
                continue
            sides = list(arguments(node)[:2])
            sides[position] = found.x
            y = self._insert(node, node.target, *sides)
            scaled = self._insert(node, aten.mul.Tensor, y, found.constant)
            further = self._behind_product(y)
            if further is not None:
                scaled.update_arg(0, further)
                return self._merged(scaled) or scaled
            return scaled
        return None

    def _behind_sum(self, node: Node) -> Node | None:
        return self._summed(node) or self._of_equals(node, list(arguments(node)[:2]), lambda xs: xs)

    def _behind_cat(self, node: Node) -> Node | None:
        tensors, *rest = arguments(node)
        return self._of_equals(node, list(tensors), lambda xs: [xs, *rest])

    def _of_equals(
        self, node: Node, parts: list[Any], arranged: Callable[[list[Node]], list[Any]]
    ) -> Node | None:
        """What joins values that all have the same factor."""
        found = [self._scaled(part) for part in parts]
        factors = [each for each in found if each is not None]
        alone = any(isinstance(part, Node) and len(part.users) == 1 for part in parts)
        if len(factors) < len(parts) or not alone or node.kwargs:
            return None
        if len({each.scale for each in factors}) > 1:
            return None
        y = self._insert(node, node.target, *arranged([each.x for each in factors]))
        return self._insert(node, aten.mul.Tensor, y, factors[0].constant)

    # Merges

    def _merged(self, node: Node) -> Node | None:
        """A product with two constants as one with one of them. The outer one may be a float: it
        gets as many bits as that has."""
        outer = self._factor(node, self._plain)
        if outer is None:
            return None
        inner = self.factor(outer.x)
        if inner is not None:
            both = self._product(node, inner.constant, outer.constant)
            return both and self._insert(node, aten.mul.Tensor, inner.x, both)
        if outer.x.target is aten.div.Tensor:
            total, count = arguments(outer.x)[:2]
            share = self._share(node, outer.constant, count)
            return share and self._insert(node, aten.mul.Tensor, total, share)
        return self._distributed(node, outer)

    def _divided(self, node: Node) -> Node | None:
        """An average of scaled values: divided and scaled at once."""
        x, count = arguments(node)[:2]
        found = self.factor(x)
        if found is None:
            return None
        share = self._share(node, found.constant, count)
        return share and self._insert(node, aten.mul.Tensor, found.x, share)

    def _distributed(self, node: Node, outer: Factor) -> Node | None:
        """(y * s + b) * r, perhaps with a rectifier or a pool before r: no product of both s and
        r with y is as wide as one after the other."""
        between: list[Node] = []
        total = outer.x
        while total.target in _THROUGH and len(total.users) == 1 and _is_homogeneous(total):
            between.insert(0, total)
            total = arguments(total)[0]
        is_even = outer.scale is not None or {each.target for each in between} <= {
            aten.relu.default
        }
        if total.target not in (aten.add.Tensor, aten.sub.Tensor) or not is_even:
            return None
        x, offset = arguments(total)[:2]
        inner = self.factor(x)
        if inner is None or not self._numbers(offset) or len(total.users) != 1 or total.kwargs:
            return None
        if between and min(outer.numbers) <= 0:
            return None
        both = self._product(node, inner.constant, outer.constant)
        moved = self._product(node, offset, outer.constant)
        if both is None or moved is None:
            return None
        y = self._insert(node, aten.mul.Tensor, inner.x, both)
        y = self._insert(node, total.target, y, moved)
        for each in between:
            y = self._insert(each, each.target, y, *arguments(each)[1:], before=node)
        return y

    def _summed(self, node: Node) -> Node | None:
        """(y + b) + c as y + (b + c), where b is of the model's own."""
        total, offset = arguments(node)[:2]
        if not isinstance(total, Node) or not self._plain(offset) or node.kwargs or total.kwargs:
            return None
        if total.target is not aten.add.Tensor or len(total.users) != 1:
            return None
        if node.target is not aten.add.Tensor or not self._numbers(arguments(total)[1]):
            return None
        both = self._joined(node, arguments(total)[1], offset, add)
        return both and self._insert(node, aten.add.Tensor, arguments(total)[0], both)

    def _share(self, node: Node, factor: Node, count: Any) -> Node | None:
        """A constant divided by an integer."""
        if not isinstance(count, int | float):
            return None
        numbers = [number / Fraction(count) for number in self._plain(factor)]
        return self._constant(node, numbers, tuple(factor.meta["val"].shape))

    def _product(self, node: Node, first: Node, second: Node) -> Node | None:
        return self._joined(node, first, second, mul)

    def _joined(
        self,
        node: Node,
        first: Node,
        second: Node,
        join: Callable[[Fraction, Fraction], Fraction],
    ) -> Node | None:
        """One constant that is computed from two."""
        shapes = [tuple(each.meta["val"].shape) for each in (first, second)]
        shape = np.broadcast_shapes(*shapes)
        places = [
            torch.arange(len(self._plain(each))).reshape(own).expand(shape).reshape(-1).tolist()
            for each, own in zip((first, second), shapes, strict=True)
        ]
        left, right = (self._plain(each) for each in (first, second))
        numbers = [join(left[i], right[j]) for i, j in zip(*places, strict=True)]
        return self._constant(node, numbers, tuple(shape))

    def _constant(self, node: Node, numbers: list[Fraction], shape: tuple[int, ...]) -> Node | None:
        """These numbers to as many bits as a constant has; None where no format holds all."""
        short = [significant(number) for number in numbers]
        try:
            to = constant_format(short)
        except QuantizerRefused:
            return None
        dtype = node.meta["val"].dtype
        values: Tensor = torch.tensor([float(number) for number in short], dtype=torch.float64)
        source = tensor_node(
            self.module, node, f"{origin(node)}.factor", values.reshape(shape).to(dtype),
            trained=False,
        )  # fmt: skip
        if short != numbers:
            self.rounded[origin(node)] = None
        modes = (to.width, to.integer, to.signed, "RND_CONV", "SAT")
        with self.module.graph.inserting_before(node):
            typed = self.module.graph.call_function(REQUANTIZE, (source, *modes))
        typed.meta = {"origin": origin(node), "val": source.meta["val"], "batch_axis": None}
        typed.meta |= {GIVEN: True, MERGED: True}
        return typed

    def _insert(self, like: Node, target: Any, *args: Any, before: Node | None = None) -> Node:
        with self.module.graph.inserting_before(before or like):
            node = insert(self.module, like, target, *args)
        return node


def _is_power(number: Fraction) -> bool:
    return all(n & (n - 1) == 0 for n in (number.numerator, number.denominator))


def _is_homogeneous(node: Node) -> bool:
    if node.target is aten.constant_pad_nd.default:
        return bool(arguments(node)[2] == 0)
    return node.target is not aten.avg_pool2d.default or arguments(node)[6] == 1
