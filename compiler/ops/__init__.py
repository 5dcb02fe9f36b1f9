"""The operations of a Program: what each computes, exactly.

Every class is one operation. Its fields are its attributes; ``infer`` gives shape, binary point and
proven interval of the result from those of the arguments (and from the actual values of constants);
``evaluate`` computes it on int64 mantissas. This is the only place where the meaning of an
operation is written; simulator, backends and graph are tested against it.

Shapes are channels-last and carry no batch axis. In ``evaluate`` every computed array has a leading
batch axis and every constant has none, so that both broadcast as their shapes say. Results are
exact; only Requantize and Divide lose information, and they declare their format. (A Lookup loses
it too, but its table says how.)
"""

from fxloom.ops.base import OPS, Inferred, Op, Operand, Pads, Shape, operation, require
from fxloom.ops.choosing import ArgMax, Compare, Embedding, Select
from fxloom.ops.elementwise import Add, Max, Min, Mul, Shift, Sub
from fxloom.ops.moving import Concat, Gather, Pad, Reshape, Transpose
from fxloom.ops.products import MatMul, dot_bounds, weight_sums
from fxloom.ops.reductions import ReduceMax, ReduceSum
from fxloom.ops.rounding import Divide, Requantize
from fxloom.ops.tables import MAX_TABLE_WIDTH, Lookup, Normalise, ShiftLike, leading_zeros
from fxloom.ops.windows import Conv, Pool, window_positions

__all__ = [
    "MAX_TABLE_WIDTH",
    "OPS",
    "Add",
    "ArgMax",
    "Compare",
    "Concat",
    "Conv",
    "Divide",
    "Embedding",
    "Gather",
    "Inferred",
    "Lookup",
    "MatMul",
    "Max",
    "Min",
    "Mul",
    "Normalise",
    "Op",
    "Operand",
    "Pad",
    "Pads",
    "Pool",
    "ReduceMax",
    "ReduceSum",
    "Requantize",
    "Reshape",
    "Select",
    "Shape",
    "Shift",
    "ShiftLike",
    "Sub",
    "Transpose",
    "dot_bounds",
    "leading_zeros",
    "operation",
    "require",
    "weight_sums",
    "window_positions",
]
