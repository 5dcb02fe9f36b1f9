"""Products with a constant matrix: what a linear layer and a convolution have in common."""

from dataclasses import dataclass
from math import prod

from fxloom.fixed_point import IntArray
from fxloom.ops import Conv, MatMul
from fxloom.program import Instr, Program, Value
from fxloom.target import Target

KERNEL = "FxloomKernel"
"""The class of layers that are not hls4ml's own."""

RULED_BACKENDS = ("Vitis", "Vivado")
"""For these hls4ml's own layers are used, and there are rules of what they cost."""

EXACT_DOUBLE = 53
"""Mantissa bits of a double: hls4ml's layers read weights as decimal literals."""

MAX_WINDOW_LINES = 16384
"""hls4ml writes a line of C++ for every element of every window of a convolution; beyond this our
kernel, which has loops instead, keeps compilers alive."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """The constant matrix of an instruction, and at how many positions it is applied.

    weights: [n_in, n_out], a row an input of the unrolled product; width: bits of one; kind: the
    class of hls4ml that computes it, KERNEL where none is exact; inputs: how many values one
    position reads, which for groups are more than weights has rows for an output; rows: of
    windows, 0 where there are none; data: bits of an input; groups: into which inputs and outputs
    are divided, those of every kernel position, of which each has inputs_of_group.
    """

    weights: IntArray
    width: int
    positions: int
    kind: str
    inputs: int
    rows: int = 0
    data: int = 8
    groups: int = 1
    inputs_of_group: int = 1

    @property
    def taps(self) -> int:
        """Places of a window, by which rows are ordered."""
        return self.inputs // (self.groups * self.inputs_of_group)

    @property
    def sum_width(self) -> int:
        """Bits of a sum of products, at most."""
        return self.data + self.width + (self.shape[0] - 1).bit_length()

    @property
    def shape(self) -> tuple[int, int]:
        n_in, n_out = self.weights.shape
        return n_in, n_out

    @property
    def outputs(self) -> int:
        """Of one position."""
        return self.groups * self.shape[1]

    @property
    def macs(self) -> int:
        return self.positions * self.weights.size


def matrix_of(program: Program, instr: Instr, target: Target) -> Matrix | None:
    """The matrix of a matmul or conv by a constant, None for everything else.

    Used by the backend and by the estimate, so that they cannot disagree about its kind.
    """
    if not isinstance(instr.op, MatMul | Conv) or instr.args[1] not in program.constants:
        return None
    constant = program.constants[instr.args[1]]
    weight, width = constant.data, constant.value.type.width
    x = program.value(instr.args[0])
    data = x.type.width
    exact = target.backend in RULED_BACKENDS and is_narrow(constant.value)
    if isinstance(instr.op, MatMul):
        positions = prod(instr.result.shape[:-1])
        # With leading axes hls4ml's Dense would take all of them for one long vector.
        kind = "Dense" if exact and positions == 1 else KERNEL
        n_in = weight.shape[0]
        return Matrix(weight, width, positions, kind, n_in, data=data, inputs_of_group=n_in)
    groups, outputs = instr.op.groups, weight.shape[3]
    # One row an input of the unrolled product: kernel position and input channel.
    by_group = weight.reshape(*weight.shape[:3], groups, outputs // groups)
    matrix = by_group.transpose(0, 1, 3, 2, 4).reshape(-1, outputs // groups)
    kind = _kind(instr.op, x, weight.shape, instr.result, target.io) if exact else KERNEL
    positions, rows = prod(instr.result.shape[:2]), instr.result.shape[0]
    inputs = prod(weight.shape[:2]) * x.shape[2]
    return Matrix(matrix, width, positions, kind, inputs, rows, data, groups, weight.shape[2])


def _kind(op: Conv, x: Value, weight: tuple[int, ...], result: Value, io: str) -> str:
    """The hls4ml class that computes a convolution exactly."""
    height, width, per_group, outputs = weight
    depthwise = op.groups > 1 and per_group == 1 and outputs == op.groups
    if op.dilation != (1, 1) or not (op.groups == 1 or depthwise):
        return KERNEL
    pointwise = (height, width) == (1, 1) and not depthwise
    if io == "stream" and height == 1 and (op.stride[0] > 1 or depthwise) and not pointwise:
        # hls4ml's line buffer for height 1 forgets the vertical stride, and has no room for
        # depthwise.
        return KERNEL
    lines = prod(result.shape[:2]) * height * width * x.shape[2]
    if lines > MAX_WINDOW_LINES and io != "stream":
        return KERNEL
    return "DepthwiseConv2D" if depthwise else "Conv2D"


def is_narrow(value: Value) -> bool:
    """Whether a double holds every mantissa, so that decimal literals are exact."""
    return max(-value.lo, value.hi).bit_length() <= EXACT_DOUBLE
