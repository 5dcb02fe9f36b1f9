"""Operators between capture and quantize: what legalize writes norms, attention and quotients as.

In a legalized float graph they compute what their definition says, with gradients; quantize writes
each of them out in integers, because which tables it needs follows from the format of its argument.
All are in the namespace fxloom and made of ATen ops, so that shapes and derivatives come for free.
"""

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("fxloom", "FRAGMENT")  # type: ignore[no-untyped-call]


class Scale(StrEnum):
    """What standardise divides by."""

    DEVIATION = "deviation"
    """sqrt(variance + eps), after the mean was subtracted: layer, group and instance norm."""
    MEAN_SQUARE = "mean_square"
    """sqrt(mean(x * x) + eps): RMS norm."""
    LENGTH = "length"
    """max(sqrt(sum(x * x)), eps): F.normalize."""


def _standardise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: Sequence[int], eps: float, by: str
) -> Tensor:
    """x over what `by` says of it along dims, times weight, plus bias (both broadcasting)."""
    dims = list(dims)
    match Scale(by):
        case Scale.DEVIATION:
            centred = x - x.mean(dims, keepdim=True)
            y = centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
        case Scale.MEAN_SQUARE:
            y = x * torch.rsqrt((x * x).mean(dims, keepdim=True) + eps)
        case Scale.LENGTH:
            y = x / torch.sqrt((x * x).sum(dims, keepdim=True)).clamp(min=eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _masked_softmax(x: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
    """softmax(scale * x) along dim; a boolean mask keeps where it is true, another is added.

    Where a boolean mask keeps nothing of a row all its values are the same.
    """
    scaled = x * scale
    if mask is None:
        return torch.softmax(scaled, dim)
    if mask.dtype == torch.bool:
        return torch.softmax(torch.where(mask, scaled, torch.finfo(x.dtype).min), dim)
    return torch.softmax(scaled + mask, dim)


def _quotient(x: Tensor | None, y: Tensor) -> Tensor:
    """x / y, or 1 / y."""
    return y.reciprocal() if x is None else x / y


def _root(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent for an exponent of 0.5 or -0.5; in integers x is at least one of its steps."""
    return torch.sqrt(x) if exponent > 0 else torch.rsqrt(x)


_DEFINITIONS = {
    "standardise(Tensor x, Tensor? weight, Tensor? bias, int[] dims, float eps, str by) "
    "-> Tensor": _standardise,
    "masked_softmax(Tensor x, Tensor? mask, int dim, float scale) -> Tensor": _masked_softmax,
    "quotient(Tensor? x, Tensor y) -> Tensor": _quotient,
    "root(Tensor x, float exponent) -> Tensor": _root,
}
for _schema, _function in _DEFINITIONS.items():
    _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
    _name = _schema.partition("(")[0]
    _LIBRARY.impl(_name, _function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]

STANDARDISE = torch.ops.fxloom.standardise.default
MASKED_SOFTMAX = torch.ops.fxloom.masked_softmax.default
QUOTIENT = torch.ops.fxloom.quotient.default
ROOT = torch.ops.fxloom.root.default
