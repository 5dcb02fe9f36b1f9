"""Activations and arithmetic."""

from math import isfinite

import torch
from torch.fx.node import Node

from fxloom.functions import FUNCTIONS
from fxloom.graph import arguments, constant
from fxloom.support.core import MAX_CHOSEN, checks, is_constant
from fxloom.support.masks import masking_among, masking_behind

aten = torch.ops.aten


@checks(aten.relu.default, aten.reshape.default, aten.view.default, aten.permute.default)
def _anything(node: Node) -> str | None:
    return None


@checks(*FUNCTIONS)
def _function(node: Node) -> str | None:
    numbers = [n for n in (*arguments(node)[1:], *node.kwargs.values()) if isinstance(n, float)]
    bad = [n for n in numbers if not isfinite(n)]
    if bad:
        return f"its parameters must be finite, got {bad[0]}"
    return masking_behind(arguments(node)[0])


@checks(aten.softmax.int)
def _softmax(node: Node) -> str | None:
    if arguments(node)[2] not in (None, arguments(node)[0].meta["val"].dtype):
        return f"dtype={arguments(node)[2]} has no lowering. Leave the dtype out"
    return masking_behind(arguments(node)[0])


@checks(aten.clamp.default)
def _clamp(node: Node) -> str | None:
    low, high = arguments(node)[1:3]
    if (low is not None and low > MAX_CHOSEN) or (high is not None and high < -MAX_CHOSEN):
        return f"it makes every value {low if high is None else high}, for which there is no format"
    return _numbers(node)


@checks(aten.leaky_relu.default)
def _numbers(node: Node) -> str | None:
    bad = [n for n in arguments(node)[1:] if n is not None and not isfinite(n)]
    return f"its bounds must be finite, got {bad[0]}" if bad else None


@checks(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor)
def _merge(node: Node) -> str | None:
    for argument in arguments(node)[:2]:
        if isinstance(argument, complex) or (
            isinstance(argument, int | float) and not isfinite(argument)
        ):
            return f"needs finite real numbers, got {argument}"
        if node.target is not aten.mul.Tensor and isinstance(argument, Node):
            hidden = masking_among(node, argument)
            if hidden is not None:
                return hidden
    return None


@checks(aten.div.Tensor)
def _division(node: Node) -> str | None:
    divisor = arguments(node)[1]
    if isinstance(divisor, Node):
        module = node.graph.owning_module
        if is_constant(divisor) and module is not None:
            inverse = 1 / constant(module, divisor.target).detach()
            if not inverse.isfinite().all():
                return f"{divisor.target} holds a divisor of zero, or too small to be divided by"
        return None  # by computed values in floating point, by constants exactly
    if not isfinite(divisor) or divisor == 0:
        return f"needs a finite divisor that is not zero, got {divisor}"
    return None
