"""Which accumulators may be narrower than their exact sums, without another bit in the result.

Sums, and conversions that drop upper bits (WRAP), are computed modulo a power of two. So where a
sum is only ever read with its upper bits dropped, those bits need not be added up: an accumulator
that wraps on the way gives the same result as one that wraps at the end. A saturating one would
not, for what it gives depends on the order of the additions.
"""

from collections import Counter

from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.ops import Add, Conv, MatMul, Requantize
from fxloom.program import Program

_SHIFTING = (Rounding.TRN, Rounding.RND, Rounding.RND_MIN_INF, Rounding.RND_CONV)
"""Modes that round x + 2n as x, 2n higher; the others look at the sign."""


def needed_bits(exact: FixedPoint, op: Requantize) -> FixedPoint | None:
    """The format in which a sum may wrap that is converted by op; None where no bit is dropped.

    exact: the format that holds the sum. No fraction bit is lost: rounding sees all of them.
    """
    width = exact.fraction + op.to.integer
    drops = op.overflow is Overflow.WRAP and op.to.integer < exact.integer
    if not drops or op.rounding not in _SHIFTING or width < 1:
        return None
    return FixedPoint(width, op.to.integer, op.to.signed)


def accumulators(program: Program) -> dict[str, FixedPoint]:
    """The formats of sums of products with constants, with and without their bias, by the names of
    the values: the exact one, or a narrower one where upper bits are dropped next."""
    uses = Counter(name for instr in program.instrs for name in instr.args)
    uses.update(port.value for port in program.outputs)
    found: dict[str, FixedPoint] = {}
    summed: dict[str, tuple[str, ...]] = {}  # a sum, and the one that it adds a bias to
    for instr in program.instrs:
        name = instr.result.name
        if isinstance(instr.op, MatMul | Conv) and instr.args[1] in program.constants:
            summed[name] = (name,)
        elif isinstance(instr.op, Add) and any(arg in program.constants for arg in instr.args):
            before = [arg for arg in instr.args if arg in summed and uses[arg] == 1]
            if not before:
                continue
            summed[name] = (name, *before)
        elif isinstance(instr.op, Requantize) and instr.args[0] in summed:
            source = instr.args[0]
            kept = needed_bits(program.value(source).type, instr.op)
            if kept is not None and uses[source] == 1:
                found |= dict.fromkeys(summed[source], kept)
            continue
        else:
            continue
        found[name] = instr.result.type
    return found
