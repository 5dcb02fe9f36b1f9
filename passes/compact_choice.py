"""Which layers compact filters can take the place of, and what that saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.facts import has_facts
from fxloom.graph import BATCH, arguments
from fxloom.passes.fitting import MOST_INPUTS
from fxloom.passes.paired_filters import opposite
from fxloom.passes.prunable import Prunable
from fxloom.passes.replacing import is_read_otherwise

aten = torch.ops.aten

Kind = Literal["fire", "separable", "crelu"]
Costs = tuple[int, int]
"""Parameters, and multiply-adds of one sample."""


@dataclass(frozen=True)
class Plan:
    """What is to take a layer's place; of the keys that its kind does not have nothing is read.

    squeeze, points: channels between of a fire module and outputs of its 1x1. multiplier: kernels
    for each input channel. threshold: cosine at most of which filters are opposite. rectified,
    normed: what lies between.
    """

    kind: Kind
    squeeze: int
    points: int
    multiplier: int
    threshold: float
    rectified: bool
    normed: bool

    @property
    def measures(self) -> bool:
        """Whether data must say how it begins."""
        return self.normed or (self.rectified and self.kind == "separable")


def problems(module: fx.GraphModule, each: Prunable, plan: Plan) -> Iterator[str]:
    """What stands against it."""
    if is_read_otherwise(module, each):
        yield "its weights are read in other ways as well"
        return
    if each.transposed:
        yield "it is a transposed convolution"
    if each.groups > 1:
        yield f"it is a convolution with {each.groups} groups"
    if any(reader.meta.get("tied") for reader in each.readers):
        yield "it is a part of a recurrence"
    biases = [arguments(reader)[2] for reader in each.readers]
    if any(bias is not None and bias.op != "get_attr" for bias in biases):
        yield "its bias is computed"
    if has_facts(module, each.names):
        yield "its weights were pruned or shared: put compact before that"
    if not each.kept:
        yield "all of its weights are zero"
    yield from _unpaired(each, plan) if plan.kind == "crelu" else _unsuitable(each, plan)


def _unpaired(each: Prunable, plan: Plan) -> Iterator[str]:
    if not all(is_rectified(reader) for reader in each.readers):
        yield "no relu alone reads its outputs"
    if len({arguments(reader)[2] for reader in each.readers}) > 1:
        yield "its calls have biases of their own"
    if not opposite(each.values.flatten(1), plan.threshold):
        yield f"no two filters have a cosine of at most {plan.threshold:g}"


def _unsuitable(each: Prunable, plan: Plan) -> Iterator[str]:
    if each.readers[0].target is not aten.convolution.default:
        yield "it is no convolution"
        return
    kernel = tuple(each.values.shape[2:])
    shown = "x".join(str(size) for size in kernel)
    if max(kernel) == 1:
        yield f"its kernel is {shown}"
        return
    if plan.kind == "fire" and not all(size % 2 for size in kernel):
        yield f"a fire module needs a kernel with a middle, and this one is {shown}"
        return
    if len({str(arguments(reader)[3:6]) for reader in each.readers}) > 1:
        yield "its calls have different strides, paddings or dilations"
        return
    if plan.measures and each.inputs > MOST_INPUTS:
        yield (
            f"what lies between begins with statistics, and an output reads {each.inputs:,} "
            f"inputs: at most {MOST_INPUTS:,}"
        )
    before, after = costs(each), costs_after(each, plan)
    for what, had, has in zip(("parameters", "multiply-adds"), before, after, strict=True):
        if has >= had:
            yield f"it would have {has:,} {what} instead of {had:,}"


def is_rectified(layer: Node) -> bool:
    """Whether a relu reads a layer, at once or behind a maximum, and nothing else does."""
    users = list(layer.users)
    maxima = (aten.max_pool1d.default, aten.max_pool2d.default)
    if len(users) == 1 and users[0].target in maxima:
        return is_rectified(users[0])
    return len(users) == 1 and users[0].target is aten.relu.default


# Costs --------------------------------------------------------------------------------------------


def positions(node: Node) -> int:
    """Where a layer's weights are used in one sample: places of its value that are no channels."""
    value = node.meta["val"]
    channels = value.shape[1 if node.target is not aten.linear.default else -1]
    return int(value.numel() // (BATCH * channels))


def costs(each: Prunable) -> Costs:
    """Of a layer as it is, wherever it is called."""
    places = sum(positions(reader) for reader in each.readers)
    return each.size + _bias_numbers(each), each.size * places


def costs_after(each: Prunable, plan: Plan) -> Costs:
    """Of a fire module or a separable pair in its place."""
    n_out, channels = each.values.shape[:2]
    taps = prod(each.values.shape[2:])
    if plan.kind == "separable":
        between = channels * plan.multiplier
        first, last = between * taps, between * n_out
    else:
        between = plan.squeeze
        first = channels * between
        last = between * (plan.points + (n_out - plan.points) * taps)
    vectors = between * (2 if plan.normed else 1 if plan.rectified else 0)
    if plan.rectified and any(arguments(reader)[2] is None for reader in each.readers):
        vectors += n_out  # a bias where there was none
    macs = 0
    for reader in each.readers:
        outside = positions(reader)
        inside = outside if plan.kind == "separable" else positions(arguments(reader)[0])
        macs += first * inside + last * outside
    return first + last + vectors + _bias_numbers(each), macs


def figures(before: Costs, after: Costs) -> dict[str, object]:
    """What the summary says of them."""
    return {
        "parameters": before[0],
        "parameters_after": after[0],
        "macs": before[1],
        "macs_after": after[1],
    }


def total(layers: Mapping[str, Mapping[str, object]]) -> str:
    """What was saved by all, in a sentence."""

    def counted(key: str) -> tuple[int, int]:
        had, has = (
            sum(int(str(each[name])) for each in layers.values()) for name in (key, f"{key}_after")
        )
        return had, has

    (had, has), (did, does) = counted("parameters"), counted("macs")
    return (
        f"{had:,} parameters and {did:,} multiply-adds of {len(layers)} layers are {has:,} "
        f"({had / has:.2f}x fewer) and {does:,} ({did / does:.2f}x)"
    )


def _bias_numbers(each: Prunable) -> int:
    """Numbers of the biases of all calls."""
    found = {arguments(reader)[2] for reader in each.readers} - {None}
    return len(each.values) * len(found)
