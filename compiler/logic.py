"""LUTs, DSP blocks and memory of operations that are not products with a constant matrix.

What one result element takes after logic synthesis, from the bits that there are: an adder is a LUT
a bit, a choice between two numbers half a LUT to one a bit, and so on. The bounds are wide where
nothing was synthesised; conversions were (requantize_cost.py).
"""

from collections.abc import Callable, Mapping
from math import ceil, log2, prod
from typing import Any, NamedTuple

import numpy as np

from fxloom.features import NO_DSP_BITS
from fxloom.multipliers import HARD_DIGITS, csd_digits
from fxloom.ops import (
    Add,
    ArgMax,
    Compare,
    Divide,
    Embedding,
    Lookup,
    MatMul,
    Max,
    Min,
    Mul,
    Normalise,
    Pool,
    ReduceMax,
    ReduceSum,
    Requantize,
    Select,
    ShiftLike,
    Sub,
)
from fxloom.program import Constant, Instr, Program
from fxloom.requantize_cost import conversion_luts

LUT_ROM_BITS = 64
"""Bits of a constant table in one LUT of six inputs."""

SMALL_ROM_BITS = 1024
"""Tables of at most so many bits are built from LUTs."""

BLOCKS = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))
"""Depth and width of a BRAM18 as memory with one port. Source: AMD UG473, UG573."""

DSP_INPUTS = (26, 17)
"""Bits of magnitude that one DSP block multiplies: 27 x 18 with signs (AMD UG579; the 7 series
has 25 x 18)."""


Bounds = tuple[float, float, float]
"""Likely, least, most."""

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


class Logic(NamedTuple):
    """What an operation takes.

    lut: for all that is done at once; dsp, bram18: as well; bits: of the results that registers may
    hold.
    """

    lut: Bounds = (0, 0, 0)
    dsp: Bounds = (0, 0, 0)
    bram18: Bounds = (0, 0, 0)
    bits: int = 0

    def times(self, count: int) -> "Logic":
        """So many of them side by side."""
        return Logic(
            scaled(self.lut, count),
            scaled(self.dsp, count),
            scaled(self.bram18, count),
            count * self.bits,
        )


def scaled(bounds: Bounds, factor: float) -> Bounds:
    """All three times a factor."""
    return bounds[0] * factor, bounds[1] * factor, bounds[2] * factor


def bram18(depth: int, width: int) -> int:
    """Blocks of 18 Kb for a memory of so many words, in the best of their shapes, two of them where
    a depth is not one of theirs."""
    if depth <= BLOCKS[0][0]:
        return ceil(width / BLOCKS[0][1])
    whole = min(ceil(width / bits) * ceil(depth / words) for words, bits in BLOCKS)
    parts = [
        ceil(width / bits) * (depth // words) + bram18(depth % words, width)
        for words, bits in BLOCKS
        if words < depth and depth % words
    ]
    return min([whole, *parts])


def rom_blocks(words: int, width: int) -> int:
    """Blocks of 18 Kb of a memory of weights; short ones are built from LUTs."""
    return bram18(words, width) if words > 16 else 0


def multiplier_dsp(a: int, b: int) -> Bounds:
    """DSP blocks of one product of numbers of so many bits: none where one has 4 bits or fewer, one
    up to what a block multiplies, more beyond."""
    narrow, wide = min(a, b), max(a, b)
    blocks = min(
        ceil((wide - 1) / DSP_INPUTS[0]) * ceil((narrow - 1) / DSP_INPUTS[1]),
        ceil((wide - 1) / DSP_INPUTS[1]) * ceil((narrow - 1) / DSP_INPUTS[0]),
    )
    if narrow <= 4:
        return 0, 0, 0
    return blocks, 0 if narrow < 8 else blocks, blocks


def logic(program: Program, instr: Instr) -> Logic | None:
    """Of one element of the result; None where there is no rule."""
    rule = _RULES.get(type(instr.op))
    return None if rule is None else rule(program, instr)


def buffer_bits(depth: int, width: int) -> int:
    """LUTs of a memory that is shifted: 32 bits of one lane in each."""
    return width * ceil(depth / 32)


def in_dsp(constant: Constant) -> BoolArray:
    """Which products with these constants DSP blocks form, as in layers with weights."""
    if constant.value.type.width <= NO_DSP_BITS:
        return np.zeros(constant.value.shape, dtype=bool)
    found: BoolArray = csd_digits(constant.data) >= HARD_DIGITS
    return found


def _width(program: Program, name: str) -> int:
    return program.value(name).type.width


def _adder(program: Program, instr: Instr) -> Logic:
    width = instr.result.type.width
    return Logic((width, width / 2, 2 * width), bits=width)


def _extreme(program: Program, instr: Instr) -> Logic:
    """Compare and choose; against a constant such as zero, half of it."""
    width = instr.result.type.width
    if any(arg in program.constants for arg in instr.args):
        return Logic((width / 2, 0, width), bits=width)
    return Logic((1.5 * width, width, 2 * width), bits=width)


def _compare(program: Program, instr: Instr) -> Logic:
    width = max(_width(program, arg) for arg in instr.args)
    return Logic((max(width / 2, 1), 1, width), bits=1)


def _select(program: Program, instr: Instr) -> Logic:
    width = instr.result.type.width
    return Logic((width, width / 2, width), bits=width)


def _multiply(program: Program, instr: Instr) -> Logic:
    width = instr.result.type.width
    constants = [program.constants[arg] for arg in instr.args if arg in program.constants]
    if constants:
        digits = csd_digits(constants[0].data)
        other = next((a for a in instr.args if a not in program.constants), instr.args[0])
        adders = np.maximum(digits - 1, 0)
        outside = adders * ~in_dsp(constants[0])  # of DSP blocks
        bits = _width(program, other) + 2
        likely = float(outside.mean()) * bits
        return Logic((likely, likely / 2, 2 * float(adders.mean()) * bits), bits=width)
    a, b = (_width(program, arg) for arg in instr.args)
    return _product(a, b, width)


def _product(a: int, b: int, width: int) -> Logic:
    """Of two computed numbers: a DSP block, or LUTs, of which the bounds know both."""
    dsp = multiplier_dsp(a, b)
    luts = float(a * b)
    return Logic((0 if dsp[0] else luts, 0 if dsp[2] else luts / 2, luts if not dsp[1] else width),
                 dsp, bits=width)  # fmt: skip


def _matmul(program: Program, instr: Instr) -> Logic:
    """A sum of products of computed numbers."""
    terms = program.value(instr.args[0]).shape[-1]
    a, b = (_width(program, arg) for arg in instr.args)
    width = instr.result.type.width
    product = _product(a, b, a + b).times(terms)
    sums = (terms - 1) * width
    lut = (product.lut[0] + sums, product.lut[1] + sums / 2, product.lut[2] + 2 * sums)
    return Logic(lut, product.dsp, bits=width)


def _requantize(program: Program, instr: Instr) -> Logic:
    assert isinstance(instr.op, Requantize)
    op = instr.op.without_idle_overflow(program.operand(instr.args[0]))
    source = program.value(instr.args[0]).type
    parts = conversion_luts(source, op.to, op.rounding, op.overflow)
    likely, least, most = (sum(each) for each in zip(*parts, strict=True))
    return Logic((likely, least, most), bits=op.to.width)


def _lookup(program: Program, instr: Instr) -> Logic:
    table = program.constants[instr.args[1]]
    return _rom(table.value.size, instr.result.type.width)


def _embedding(program: Program, instr: Instr) -> Logic:
    table = program.constants[instr.args[1]].value
    return _rom(table.shape[0], table.type.width)


def _rom(words: int, width: int) -> Logic:
    if words * width <= SMALL_ROM_BITS:
        luts = width * ceil(words / LUT_ROM_BITS)
        return Logic((luts, 0, 2 * luts), bits=width)
    blocks = bram18(words, width)
    luts = width * ceil(words / LUT_ROM_BITS)
    # A memory has two ports: two numbers at a time can be looked up in it.
    return Logic((0, 0, luts), bram18=(blocks / 2, 0, blocks), bits=width)


def _sum(program: Program, instr: Instr) -> Logic:
    added = program.value(instr.args[0]).size // instr.result.size
    return _tree(added, instr.result.type.width, 1.0)


def _largest(program: Program, instr: Instr) -> Logic:
    chosen = program.value(instr.args[0]).size // instr.result.size
    width = _width(program, instr.args[0])
    index = instr.result.type.width if isinstance(instr.op, ArgMax) else 0
    return _tree(chosen, width + index, 1.5)


def _pool(program: Program, instr: Instr) -> Logic:
    assert isinstance(instr.op, Pool)
    share = 1.0 if instr.op.kind == "sum" else 1.5
    return _tree(prod(instr.op.kernel), instr.result.type.width, share)


def _tree(terms: int, width: int, share: float) -> Logic:
    luts = (terms - 1) * width * share
    return Logic((luts, luts / 2, 2 * luts), bits=width)


def _shifter(program: Program, instr: Instr) -> Logic:
    """A shift by a computed number: a choice for every bit of the distance, half of it where a LUT
    holds two; and finding the distance."""
    width = max([instr.result.type.width, *(_width(program, arg) for arg in instr.args)])
    stages = ceil(log2(max(width, 2)))
    return Logic((width * stages, width * stages / 3, 2 * width * stages), bits=width)


def _divide(program: Program, instr: Instr) -> Logic:
    """By a constant: an array of subtracters at worst, a product with its inverse at best."""
    a, b = _width(program, instr.args[0]), _width(program, instr.args[1])
    quotient = instr.result.type.width
    luts = (quotient + 2) * (b + 2)
    return Logic((luts, luts / 3, 3 * max(luts, (a + 2) ** 2)), (0, 0, 4), bits=quotient)


_RULES: Mapping[type[Any], Callable[[Program, Instr], Logic]] = {
    Add: _adder,
    Sub: _adder,
    Max: _extreme,
    Min: _extreme,
    Compare: _compare,
    Select: _select,
    Mul: _multiply,
    MatMul: _matmul,
    Requantize: _requantize,
    Lookup: _lookup,
    Embedding: _embedding,
    ReduceSum: _sum,
    ReduceMax: _largest,
    ArgMax: _largest,
    Pool: _pool,
    Normalise: _shifter,
    ShiftLike: _shifter,
    Divide: _divide,
}
