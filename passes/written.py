"""What quantize writes out in integers: how, for each op that rounds by itself."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX, QUOTIENT, ROOT, STANDARDISE
from fxloom.fixed_point import FixedPoint
from fxloom.functions import FUNCTIONS
from fxloom.passes.quotients import insert_quotient
from fxloom.passes.roots import insert_norm, insert_root
from fxloom.passes.softmaxes import insert_log_of_sum, insert_softmax
from fxloom.passes.tabulate import TableError, insert_function

aten = torch.ops.aten

Insert = Callable[
    [fx.GraphModule, Node, FixedPoint, int, Sequence[Any]], tuple[Node, FixedPoint, TableError]
]
"""Writes a node out in front of it. Gets the format wanted for its result, the bits that may index
a table, and the modes of its last rounding; returns the result, its format and its error."""

INSERTS: dict[Any, Insert] = {
    **dict.fromkeys(FUNCTIONS, insert_function),
    aten.softmax.int: insert_softmax,
    MASKED_SOFTMAX: insert_softmax,
    aten.log_softmax.int: insert_log_of_sum,
    aten.logsumexp.default: insert_log_of_sum,
    STANDARDISE: insert_norm,
    ROOT: insert_root,
    QUOTIENT: insert_quotient,
}
