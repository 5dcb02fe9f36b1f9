"""Parts of chains computed on values, as the layers that they become compute them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from fxloom.passes.factors import Part

aten = torch.ops.aten


def run_part(part: Part, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a part gives for an input; bias: of the layer, behind the last part."""
    if part.is_linear:
        lead = x.shape[:-1]
        y = functional.linear(_ordered(part, x), part.weight).reshape(*lead, -1)
        return y if bias is None else y + bias
    sizes = [list(each) for each in (part.stride, part.padding, part.dilation)]
    rest = (False, [0] * len(part.stride), part.groups)
    return aten.convolution.default(x, part.weight, bias, *sizes, *rest)


def run_chain(chain: Sequence[Part], x: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a chain gives for an input."""
    for part in chain[:-1]:
        x = run_part(part, x)
    return run_part(chain[-1], x, bias)


def input_rows(part: Part, x: Tensor) -> Tensor:
    """[groups, rows, inputs]: what every output of a part is computed from."""
    if part.is_linear:
        ordered = _ordered(part, x)
        return ordered.reshape(1, -1, ordered.shape[-1])
    kernel = tuple(part.weight.shape[2:])
    sizes = (kernel, part.dilation, part.padding, part.stride)
    if x.dim() == 3:  # one row of an image
        x = x[:, :, None]
        sizes = tuple((usual, *each) for usual, each in zip((1, 1, 0, 1), sizes, strict=True))
    if prod(kernel) == 1 and not any(part.padding):
        columns = x[:, :, :: sizes[3][0], :: sizes[3][1]].flatten(2)
    else:
        columns = functional.unfold(x, *sizes)
    return _grouped(columns, part.groups)


def output_rows(part: Part, y: Tensor) -> Tensor:
    """[groups, rows, outputs]: what a part gives, row by row of `input_rows`. y: with the outputs
    of a layer whose last part it is, perhaps."""
    if part.is_linear:
        return y.reshape(1, -1, part.weight.shape[0])
    return _grouped(y.flatten(2), part.groups)


def _grouped(columns: Tensor, groups: int) -> Tensor:
    samples, channels, places = columns.shape
    apart = columns.reshape(samples, groups, channels // groups, places)
    return apart.permute(1, 0, 3, 2).reshape(groups, samples * places, -1)


def _ordered(part: Part, x: Tensor) -> Tensor:
    """The input of a linear part in the order in which it is read, its last axis what is read."""
    if not part.view:
        return x
    lead = x.dim() - 1
    x = x.reshape(*x.shape[:-1], *part.view)
    x = x.permute(*range(lead), *(lead + axis for axis in part.order))
    return x.reshape(*x.shape[:lead], -1, part.weight.shape[1])
