"""Which instructions a simulator may take in one step, and the numbers of that step.

A layer or a sum of two values, its bias, its ReLU and its rounding are one sum in units of the
result, of which the floor is taken and clamped. The sum is exact in floating point while it stays
below 2**24 (2**53) units of its last place, whatever power of two a unit is. So the rescaling goes
into the weights and the bias, and so does the half that rounding to nearest adds. A ReLU is a
clamp: rounding is monotone and keeps zero. Between the bias and the ReLU upper bits may be dropped,
as a narrow accumulator does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fxloom.backends.carriers import (
    Plan,
    carrier_for,
    dot_bound,
    fits_without_overflow,
    largest,
)
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.ops import Add, Conv, MatMul, Max, Operand, Requantize, Shift
from fxloom.program import Instr, Program

MAX_SHIFT = 60
"""Powers of two by which weights may be scaled without leaving the range of float32."""


Carrier = np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Wrap:
    """Multiples of `period` are taken off y, floor(y / period + offset) of them; units of the
    result."""

    period: float
    offset: float


@dataclass(frozen=True, slots=True)
class Rounded:
    """clamp(floor(wrap(scale * first + offset))): from a layer or a sum to its rounding.

    first: the result of the first instruction, in its own units. bound: largest magnitude of any
    partial sum; one unit of it is 2**-dropped of the result. work: floats that hold it.
    """

    instrs: tuple[Instr, ...]
    plan: Plan
    work: Carrier
    bound: int
    dropped: int
    scale: float
    offset: npt.NDArray[np.float64]
    clamp: tuple[int, int]
    carrier: Carrier
    wrap: Wrap | None = None

    @property
    def rounds(self) -> bool:
        """Whether there is anything to round."""
        return self.dropped > 0

    @property
    def scales(self) -> tuple[float, ...]:
        """Units of the result in one unit of each argument, where first is a sum of them."""
        fraction = self.plan.result.type.fraction
        return tuple(
            self.scale * 2.0 ** (fraction - operand.fraction) for operand in self.plan.operands
        )


Finish = Callable[[torch.Tensor], torch.Tensor]


def finish(rounded: Rounded) -> Finish:
    """Wraps, rounds and saturates what counts in units of the result, in place."""
    (low, high), rounds, wrap = rounded.clamp, rounded.rounds, rounded.wrap

    def end(y: torch.Tensor) -> torch.Tensor:
        if wrap is not None:
            times = torch.mul(y, 1 / wrap.period).add_(wrap.offset).floor_()
            y.sub_(times, alpha=wrap.period)
        if rounds:
            y.floor_()
        return y.clamp_(low, high)

    return end


def rounded_sums(program: Program) -> dict[str, Rounded]:
    """The steps that a program has room for, by the name of their result, in order."""
    users = users_of(program)
    kept = {port.value for port in program.outputs}
    found: dict[str, Rounded] = {}
    for instr in program.instrs:
        if not _begins(program, instr):
            continue
        instrs = [instr]
        while not isinstance(instrs[-1].op, Requantize) or _only_wraps(program, instrs[-1]):
            name = instrs[-1].result.name
            following = users.get(name, [])
            if len(following) != 1 or name in kept or not _continues(program, following[0], name):
                break
            instrs.append(following[0])
        ends = [n for n, each in enumerate(instrs, 1) if isinstance(each.op, Requantize)]
        for end in reversed(ends):
            rounded = _numbers(program, instrs[:end])
            if rounded is not None:
                found[instrs[end - 1].result.name] = rounded
                break
    return found


def _only_wraps(program: Program, instr: Instr) -> bool:
    """Whether a Requantize drops upper bits at most."""
    (x,), op = program.operands(instr), instr.op
    assert isinstance(op, Requantize)
    return op.overflow is Overflow.WRAP and op.to.fraction == x.fraction


def users_of(program: Program) -> dict[str, list[Instr]]:
    """Who reads a value, once for every time."""
    users: dict[str, list[Instr]] = {}
    for instr in program.instrs:
        for name in instr.args:
            users.setdefault(name, []).append(instr)
    return users


def _begins(program: Program, instr: Instr) -> bool:
    constants = [name in program.constants for name in instr.args]
    if isinstance(instr.op, MatMul | Conv):
        return constants == [False, True]
    shapes = [operand.shape for operand in program.operands(instr)]
    return isinstance(instr.op, Add) and not any(constants) and shapes[0] == shapes[1]


def _continues(program: Program, instr: Instr, name: str) -> bool:
    """Whether an instruction adds a constant to every channel, is a ReLU, or rounds."""
    if isinstance(instr.op, Requantize | Shift):
        return True
    if instr.args.count(name) != 1 or not isinstance(instr.op, Add | Max):
        return False
    other = _other(program, instr, name)
    if other.data is None or instr.result.shape != program.value(name).shape:
        return False
    if isinstance(instr.op, Max):
        return other.lo == other.hi == 0
    return len(other.shape) == 1 or other.data.size == 1


def _other(program: Program, instr: Instr, name: str) -> Operand:
    return program.operands(instr)[1 - instr.args.index(name)]


def _numbers(program: Program, instrs: Sequence[Instr]) -> Rounded | None:
    """Instructions as one step; None where floats are too narrow or a mode has no short form."""
    first, last = instrs[0], instrs[-1]
    assert isinstance(last.op, Requantize)
    plan = Plan(first.op, tuple(program.operands(first)), first.result, (False, False))
    rounding = Plan(last.op, tuple(program.operands(last)), last.result, (False,))
    if last.op.rounding not in (Rounding.TRN, Rounding.RND):
        return None
    if last.op.overflow is not Overflow.SAT and not fits_without_overflow(rounding, last.op):
        return None
    biases: list[tuple[Operand, int]] = []
    shifted, relu = 0, False  # value of the chain = mantissa * 2**-(fraction) * 2**shifted
    wrapped: Requantize | None = None
    fraction = first.result.type.fraction
    for before, instr in pairwise(instrs):
        if isinstance(instr.op, Shift):
            shifted += instr.result.type.fraction - before.result.type.fraction
        elif isinstance(instr.op, Add):
            if relu or wrapped is not None:
                return None
            biases.append((_other(program, instr, before.result.name), shifted))
        elif isinstance(instr.op, Max):
            relu = True
        elif isinstance(instr.op, Requantize) and instr is not last:
            if _is_idle(program, instr):
                continue
            if relu or wrapped is not None:
                return None
            wrapped = instr.op
    # Units of the last place, before any shift of the binary point.
    finest = max([fraction, *(bias.fraction - at for bias, at in biases)])
    dropped = finest + shifted - last.op.to.fraction
    half = 1 << (dropped - 1) if last.op.rounding is Rounding.RND and dropped > 0 else 0
    bound = (_bound(plan) << (finest - fraction)) + half
    bound += sum(largest(b.lo, b.hi) << (finest - b.fraction + at) for b, at in biases)
    room = 1 << wrapped.to.width if wrapped is not None else 0
    work = carrier_for(bound + room)
    ends = [dropped, finest - fraction, *(operand.fraction - finest for operand in plan.operands)]
    if work.kind != "f" or any(abs(end) > MAX_SHIFT for end in ends):
        return None
    offset = np.float64(half) + sum(
        b.data.astype(np.float64) * 2.0 ** (finest - b.fraction + at)
        for b, at in biases
        if b.data is not None
    )
    low, high = last.result.lo, last.result.hi
    return Rounded(
        instrs=tuple(instrs),
        plan=plan,
        work=work,
        bound=bound,
        dropped=dropped,
        scale=2.0 ** (finest - fraction - dropped),
        offset=np.reshape(offset * 2.0**-dropped, -1),
        clamp=(max(low, 0) if relu else low, high),
        carrier=rounding.carrier,
        wrap=None if wrapped is None else _wrap(wrapped.to, half, dropped),
    )


def _is_idle(program: Program, instr: Instr) -> bool:
    """Whether no value that a Requantize can meet overflows."""
    plan = Plan(instr.op, tuple(program.operands(instr)), instr.result, (False,))
    assert isinstance(instr.op, Requantize)
    return fits_without_overflow(plan, instr.op)


def _wrap(to: FixedPoint, half: int, dropped: int) -> Wrap:
    """half: what rounding has added already, of which wrapping knows nothing, in units of the last
    place; 2**dropped of these are one of the result."""
    period = 1 << to.width
    begin = (period >> 1 if to.signed else 0) - half
    return Wrap(period * 2.0**-dropped, begin / period)


def _bound(plan: Plan) -> int:
    """Largest magnitude of any partial sum, in units of the first result."""
    if isinstance(plan.op, Add):
        return sum(
            largest(operand.lo, operand.hi) << (plan.result.type.fraction - operand.fraction)
            for operand in plan.operands
        )
    return dot_bound(plan, (0,) if isinstance(plan.op, MatMul) else (0, 1, 2))
