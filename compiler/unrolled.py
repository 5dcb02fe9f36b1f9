"""Products with constant matrices as hardware that has an adder for every addition has them."""

from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from fxloom.fixed_point import Int64Array, IntArray
from fxloom.ops import Conv, MatMul, Operand
from fxloom.program import Instr, Program

SEED = 0


@dataclass(frozen=True)
class UnrolledProduct:
    """A product of one layer, at one position.

    layer: its name in the user's model; weight: the constant; lo, hi: interval of every input, the
    zeros of padding included; positions: how often it is applied to one sample, as one instruction
    or several.
    """

    layer: str
    weight: str
    op: MatMul | Conv
    data: IntArray = field(repr=False)
    lo: int
    hi: int
    positions: int

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs of one position."""
        outputs = int(self.data.shape[-1])
        groups = self.op.groups if isinstance(self.op, Conv) else 1
        return self.data.size // outputs * groups, outputs

    @property
    def least_adders(self) -> int:
        """A bound that costs nothing: every non-zero weight but the first of an output is added."""
        return int(np.count_nonzero(self.data)) - self.shape[1]

    @property
    def matrix(self) -> IntArray:
        """[inputs, outputs]; an input is a value of the window, in the order of height, width and
        channel. Outputs have zeros for the channels of other groups."""
        if self.data.ndim == 2:
            return self.data
        height, width, channels, outputs = self.data.shape
        groups = self.op.groups if isinstance(self.op, Conv) else 1
        whole = np.zeros((height, width, groups, channels, groups, outputs // groups), np.int64)
        parts = self.data.reshape(height, width, channels, groups, outputs // groups)
        for group in range(groups):
            whole[:, :, group, :, group] = parts[:, :, :, group]
        return whole.reshape(-1, outputs)

    def evaluate(self, x: Int64Array) -> Int64Array:
        """What the Program's operation gives, [N, outputs]. x: [N, inputs] mantissas."""
        weight = Operand(self.data.shape, 0, int(self.data.min()), int(self.data.max()), self.data)
        arrays = self.data.astype(np.int64)
        if isinstance(self.op, MatMul):
            operand = Operand((x.shape[1],), 0, self.lo, self.hi)
            return self.op.evaluate([operand, weight], [x, arrays])
        height, width, channels, _ = self.data.shape
        window = (height, width, channels * self.op.groups)
        operand = Operand(window, 0, self.lo, self.hi)
        # One window, without what lies around it.
        op = Conv(groups=self.op.groups)
        found = op.evaluate([operand, weight], [x.reshape(-1, *window), arrays])
        return found.reshape(len(x), -1)

    def inputs(self, samples: int) -> Int64Array:
        """Random mantissas and extreme ones: both ends, alternating, and what makes each of the
        first outputs least and most."""
        rng = np.random.default_rng(SEED)
        matrix = self.matrix
        count = len(matrix)
        found = [rng.integers(self.lo, self.hi, (samples, count), endpoint=True)]
        found.append(np.array([[self.lo] * count, [self.hi] * count]))
        odd = np.arange(count) % 2 == 0
        found.append(np.array([np.where(odd, self.lo, self.hi), np.where(odd, self.hi, self.lo)]))
        for column in matrix.T[:samples]:
            rising = np.where(column > 0, self.hi, self.lo)
            found += [rising[None], np.where(column > 0, self.lo, self.hi)[None]]
        return np.concatenate(found).astype(np.int64)


def unrolled_products(program: Program) -> list[UnrolledProduct]:
    """All products with constant matrices; instructions of a layer that are alike are one."""
    found: dict[tuple[str, str, int, int], UnrolledProduct] = {}
    for instr in program.instrs:
        if not isinstance(instr.op, MatMul | Conv) or instr.args[1] not in program.constants:
            continue
        product = _product(program, instr, instr.op)
        key = (product.layer, product.weight, product.lo, product.hi)
        before = found[key].positions if key in found else 0
        found[key] = replace(product, positions=before + product.positions)
    return list(found.values())


def _product(program: Program, instr: Instr, op: MatMul | Conv) -> UnrolledProduct:
    x, shape = program.value(instr.args[0]), instr.result.shape
    data = program.constants[instr.args[1]].data
    lo, hi = x.lo, x.hi
    if isinstance(op, Conv) and any(n for pair in op.padding for n in pair):
        lo, hi = min(lo, 0), max(hi, 0)
    positions = prod(shape[:-1]) if isinstance(op, MatMul) else prod(shape[:2])
    return UnrolledProduct(instr.origin, instr.args[1], op, data, lo, hi, positions)
