"""Parts of chains computed on values, as the layers that they become compute them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fxloom.passes.factorable import ordered, through
from fxloom.passes.factors import Part

aten = torch.ops.aten


def run_part(part: Part, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a part gives for an input; bias: of the layer, behind the last part."""
    if part.is_linear:
        y = through(part, x)
        return y if bias is None else y + bias
    sizes = [list(each) for each in (part.stride, part.padding, part.dilation)]
    rest = (False, [0] * len(part.stride), part.groups)
    result: Tensor = aten.convolution.default(x, part.weight, bias, *sizes, *rest)
    return result


def run_chain(chain: Sequence[Part], x: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a chain gives for an input."""
    for part in chain[:-1]:
        x = run_part(part, x)
    return run_part(chain[-1], x, bias)


def input_rows(part: Part, x: Tensor) -> Tensor:
    """[groups, rows, inputs]: what every output of a part is computed from."""
    if part.is_linear:
        rows = ordered(part, x)
        return rows.reshape(1, -1, rows.shape[-1])
    kernel, rest = tuple(part.weight.shape[2:]), (part.dilation, part.padding, part.stride)
    if x.dim() == 3:  # one row of an image
        x, kernel = x[:, :, None], (1, *kernel)
        rest = ((1, *part.dilation), (0, *part.padding), (1, *part.stride))
    columns = functional.unfold(x, kernel, *rest)
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
