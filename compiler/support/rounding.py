"""Roundings and tables that a model brings along: formats that whoever trained it chose."""

from torch.fx.node import Node

from fxloom.errors import VerifyError
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.graph import arguments, describe
from fxloom.quantized_ops import DIVIDE, LOOKUP, REQUANTIZE, REQUANTIZE_WEIGHTS
from fxloom.support.core import checks, is_weight


@checks(REQUANTIZE, REQUANTIZE_WEIGHTS, DIVIDE)
def _rounding(node: Node) -> str | None:
    *_, width, integer, signed, rounding, overflow = arguments(node)
    try:
        FixedPoint(width, integer, signed)
        Rounding(rounding), Overflow(overflow)
    except Exception as error:
        return f"{describe(node)}: {error}"
    return None


@checks(LOOKUP)
def _lookup(node: Node) -> str | None:
    _, table, width, integer, signed = arguments(node)
    if not is_weight(table):
        return "its table is computed. Only tables that are constants have a lowering"
    try:
        FixedPoint(width, integer, signed)
    except VerifyError as error:
        return str(error)
    return None
