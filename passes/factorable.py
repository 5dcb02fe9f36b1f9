"""Layers that can be factored, and what a method of factoring them offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxloom.passes.factors import Chain, Part

Ranks = tuple[int, ...]
Factors = tuple[Tensor, ...]
"""The numbers that a method finds, before they are weights of layers: the first axis of each counts
groups."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer, weight [outputs, inputs], or a convolution, [outputs, inputs / groups,
    *kernel].

    stride, padding, dilation: of a convolution, one number an axis of the kernel; empty: 1, 0 and
    1. transposed: whether it is a transposed convolution, which no method takes.
    """

    weight: Tensor
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    def __post_init__(self) -> None:
        axes = len(self.kernel)
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
            given = tuple(getattr(self, name)) or (usual,) * axes
            if len(given) != axes:
                raise ValueError(f"{name}: required {axes} numbers, got {given}")
            object.__setattr__(self, name, given)
        if self.weight.shape[0] % self.groups:
            raise ValueError(f"{self.weight.shape[0]} outputs are no {self.groups} groups")

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear layer."""
        return self.weight.dim() == 2

    @property
    def kernel(self) -> tuple[int, ...]:
        """The size of the kernel, one number an axis; of a linear layer empty."""
        return tuple(self.weight.shape[2:])

    @property
    def n_out(self) -> int:
        """Outputs of a group."""
        return self.weight.shape[0] // self.groups

    @property
    def n_in(self) -> int:
        """Inputs of a group."""
        return self.weight.shape[1]

    @property
    def size(self) -> int:
        """How many weights there are."""
        return self.weight.numel()

    @property
    def dense(self) -> Chain:
        """The layer as it is, a chain of one."""
        return (part(self, self.weight, range(len(self.kernel)), self.groups),)

    def grouped(self) -> Tensor:
        """The weights, float32 or float64, [groups, outputs, inputs, *kernel], of a group each.

        float64 where that costs little.
        """
        weight = self.weight.detach()
        dtype = torch.float64 if weight.numel() <= DOUBLE else torch.float32
        return weight.to(dtype).reshape(self.groups, self.n_out, *weight.shape[1:])


DOUBLE = 1 << 18
"""Up to so many weights a layer is factored in float64."""


class Method(Protocol):
    """A way to factor layers. Its functions but `problem` are for layers that it takes."""

    @property
    def name(self) -> str:
        """What recipes call it."""

    def problem(self, layer: Layer) -> str:
        """Why it cannot take a layer; empty where it can."""

    def full(self, layer: Layer) -> Ranks:
        """The largest ranks, at which it reproduces the layer exactly."""

    def feasible(self, layer: Layer, ranks: Ranks) -> Ranks:
        """The same ranks, lowered where one alone or beside the others has no use."""

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """The shapes of the factors."""

    def factors(self, layer: Layer, ranks: Ranks, seed: int) -> Factors:
        """The factors that come nearest to the layer's weights in least squares."""

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        """The layers with these factors as weights."""

    def unfoldings(self, layer: Layer) -> tuple[tuple[Tensor, ...], ...]:
        """For each rank the layer's weights as matrices [groups, rows, columns], which become
        matrices of at most this rank."""


class TwoFactors(Method, Protocol):
    """A method that factors one matrix a group into two: rows give outputs, columns see inputs."""

    def matrix(self, layer: Layer) -> Tensor:
        """[groups, rows, columns]: the layer's weights as the matrix that is factored."""


def part(layer: Layer, weight: Tensor, axes: Sequence[int] = (), groups: int | None = None) -> Part:
    """A part with these weights that has the layer's stride, padding and dilation on some axes.

    groups: the layer's where not given.
    """
    if weight.dim() == 2:
        return Part(weight)

    def chosen(values: tuple[int, ...], usual: int) -> tuple[int, ...]:
        return tuple(v if axis in axes else usual for axis, v in enumerate(values))

    return Part(
        weight,
        chosen(layer.stride, 1),
        chosen(layer.padding, 0),
        chosen(layer.dilation, 1),
        layer.groups if groups is None else groups,
    )


def merged(layer: Layer, factor: Tensor) -> Tensor:
    """A factor [groups, outputs, ...] as weights [groups * outputs, ...] of the layer's type."""
    flat = factor.reshape(factor.shape[0] * factor.shape[1], *factor.shape[2:])
    return flat.to(layer.weight.dtype).contiguous()


def pointwise(layer: Layer, factor: Tensor) -> Part:
    """The 1x1 convolution, or linear layer, with a factor [groups, outputs, inputs] as weights."""
    weight = merged(layer, factor)
    return part(layer, weight.reshape(*weight.shape, *(1 for _ in layer.kernel)))


def axes_of(layer: Layer) -> tuple[tuple[int, ...], ...]:
    """The axes of a kernel that get a part each, those of length 1 beside the first that is not."""
    long = [axis for axis, size in enumerate(layer.kernel) if size > 1]
    short = [axis for axis, size in enumerate(layer.kernel) if size == 1]
    return tuple((axis, *(short if axis == long[0] else ())) for axis in long)


def shaped(layer: Layer, weight: Tensor, axis: int) -> Tensor:
    """Weights [outputs, inputs, size] as those of a kernel that is long along one axis."""
    sizes = (weight.shape[2] if each == axis else 1 for each in range(len(layer.kernel)))
    return weight.reshape(*weight.shape[:2], *sizes)


def reason_against_all(layer: Layer) -> str:
    """Why no method takes a layer; empty where some may."""
    if layer.transposed:
        return "it is a transposed convolution: only linear layers and ordinary convolutions are"
    if layer.weight.dim() < 2 or not layer.size:
        return f"required weights of two axes or more, got {tuple(layer.weight.shape)}"
    return ""


def reason_against_mixing(layer: Layer) -> str:
    """Why no method takes a layer whose parts mix channels in another number; empty where some
    may."""
    if found := reason_against_all(layer):
        return found
    if layer.groups > 1 and min(layer.n_in, layer.n_out) == 1:
        return (
            f"its groups have {layer.n_in} inputs and {layer.n_out} outputs (a depthwise "
            "convolution, or nearly): there are no fewer channels. Only spatial takes it"
        )
    return ""


def output_sizes(each: Part, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes of a convolution's output. sizes: of its input, one number an axis."""
    return tuple(
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(
            sizes, each.weight.shape[2:], each.stride, each.padding, each.dilation, strict=True
        )
    )


def outline(method: Method, layer: Layer, ranks: Ranks) -> Chain:
    """The chain at these ranks without its numbers: weights are on the device "meta"."""
    shapes = method.shapes(layer, ranks)
    return method.assemble(layer, tuple(torch.empty(shape, device="meta") for shape in shapes))


def weight_of(layer: Layer, chain: Chain) -> Tensor:
    """The weights with which the layer computes what a chain in its place does."""
    if layer.is_linear:
        rows = torch.eye(layer.n_in, dtype=layer.weight.dtype)
        for each in chain:
            rows = through(each, rows)
        return rows.T
    total, done = layer.weight, ""
    for each in chain:
        weight = each.weight.reshape(layer.groups, -1, *each.weight.shape[1:])
        axes = [axis for axis, size in enumerate(each.weight.shape[2:]) if size > 1]
        weight = weight.reshape(*weight.shape[:3], *(weight.shape[3 + axis] for axis in axes))
        new = "".join("stuvw"[axis] for axis in axes)
        if each is chain[0]:
            total = weight
        elif each.groups == layer.groups:
            total = torch.einsum(f"abc{done},adb{new}->adc{done}{new}", total, weight)
        else:  # depthwise
            total = torch.einsum(f"abc{done},abd{new}->abc{done}{new}", total, weight)
        done += new
    order = sorted(range(len(done)), key=lambda each: done[each])
    return total.permute(0, 1, 2, *(3 + each for each in order)).reshape(layer.weight.shape)


def through(each: Part, rows: Tensor) -> Tensor:
    """What a linear part makes of rows [..., inputs]."""
    return (ordered(each, rows) @ each.weight.T).flatten(rows.dim() - 1)


def ordered(each: Part, rows: Tensor) -> Tensor:
    """Rows [..., inputs] as a linear part reads them, each of its own on the last axis."""
    if not each.view:
        return rows
    leading = rows.dim() - 1
    order = *range(leading), *(leading + axis for axis in each.order)
    rows = rows.reshape(*rows.shape[:-1], *each.view).permute(order)
    return rows.reshape(*rows.shape[:leading], -1, each.weight.shape[1])
