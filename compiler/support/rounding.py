"""Roundings that a model brings along: formats that whoever trained it chose."""

from torch.fx.node import Node

from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.graph import arguments, describe
from fxloom.quantized_ops import DIVIDE, REQUANTIZE, REQUANTIZE_WEIGHTS
from fxloom.support.core import checks


@checks(REQUANTIZE, REQUANTIZE_WEIGHTS, DIVIDE)
def _rounding(node: Node) -> str | None:
    *_, width, integer, signed, rounding, overflow = arguments(node)
    try:
        FixedPoint(width, integer, signed)
        Rounding(rounding), Overflow(overflow)
    except Exception as error:
        return f"{describe(node)}: {error}"
    return None
