"""What one layer of an hls4ml project computes: a product, and the bias and rounding behind it.

Used by the backend and by the schedule of streams, so that they cannot disagree.
"""

from collections import Counter
from collections.abc import Sequence
from math import prod

from fxloom.accumulators import needed_bits
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.matrices import is_narrow
from fxloom.ops import Add, Requantize
from fxloom.program import Instr, Program, Value


class Fusion:
    """Who reads each value of a program, and which instructions are one layer.

    uses, outputs: how many arguments and output ports a value is.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.uses = Counter(name for instr in program.instrs for name in instr.args)
        self.outputs = Counter(port.value for port in program.outputs)
        self._user = {name: instr for instr in program.instrs for name in instr.args}

    def chain(self, first: Instr) -> list[Instr]:
        """A matmul or conv with the constant bias and the Requantize that follow, if any; with two
        of them where the first one only drops upper bits, as the accumulator can."""
        chain = [first]
        while not isinstance(chain[-1].op, Requantize) or _only_wraps(chain[-2:]):
            last = chain[-1].result
            if self.uses[last.name] != 1 or self.outputs[last.name]:
                break
            follower = self._user[last.name]
            biases = len(chain) == 1 and self.bias(follower, last) is not None
            requantizes = isinstance(follower.op, Requantize) and _header_is_exact(
                last.type, follower.op
            )
            if not biases and not requantizes:
                break
            chain.append(follower)
        return chain

    def bias(self, instr: Instr, product: Value) -> str | None:
        """Name of the constant that instr adds to product, one number a channel."""
        if not isinstance(instr.op, Add) or product.name not in instr.args:
            return None
        other = instr.args[1] if instr.args[0] == product.name else instr.args[0]
        constant = self.program.constants.get(other)
        if constant is None or instr.result.shape != product.shape:
            return None
        shape = constant.value.shape
        per_channel = prod(shape) == (shape[-1] if shape else 1)
        return other if per_channel and is_narrow(constant.value) else None


def _only_wraps(pair: Sequence[Instr]) -> bool:
    """Whether a sum comes first, and what follows drops upper bits of it and nothing else."""
    before, instr = pair
    if isinstance(before.op, Requantize) or not isinstance(instr.op, Requantize):
        return False
    return needed_bits(before.result.type, instr.op) == instr.result.type


def _header_is_exact(source: FixedPoint, op: Requantize) -> bool:
    """Whether a conversion from source by the ap_fixed headers is what op declares.

    Two exceptions are known. Symmetric saturation into one signed bit, whose range is zero alone:
    the headers let -1 through. Rounding off more bits than there are: right, but the headers'
    assertions abort, and a vendor's C simulation may have them switched on.
    """
    if op.to.width == 1 and op.to.signed and op.overflow is Overflow.SAT_SYM:
        return False
    return op.rounding is Rounding.TRN or source.fraction - op.to.fraction <= source.width
