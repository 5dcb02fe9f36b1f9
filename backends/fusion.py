"""Several instructions in one step: a layer, its bias, its ReLU and its rounding.

A layer's sum is exact in floating point while it stays below 2**24 (2**53) units of its last place,
whatever power of two a unit is. So the rescaling of the rounding that follows goes into the weights
and the bias, and so does the half that rounding to nearest adds: the matrix product answers in
units of the result, which only need a floor and a clamp, in place. A ReLU is a clamp: rounding is
monotone and keeps zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from fxloom.backends.carriers import (
    Array,
    Plan,
    Run,
    carrier_for,
    channels_first,
    channels_last,
    convolution,
    dot_bound,
    fits_without_overflow,
    largest,
)
from fxloom.fixed_point import Overflow, Rounding
from fxloom.ops import Add, Conv, MatMul, Max, Operand, Requantize, Shift
from fxloom.program import Instr, Program

MAX_SHIFT = 60
"""Powers of two by which weights may be scaled without leaving the range of float32."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Instructions from a layer or a sum to the rounding behind it; only the last is seen."""

    instrs: tuple[Instr, ...]
    run: Run

    @property
    def result(self) -> str:
        """The value that the chain computes."""
        return self.instrs[-1].result.name


def find_chains(program: Program) -> dict[str, Chain]:
    """The chains that can be run in one step, by the name of their result."""
    users: dict[str, list[Instr]] = {}
    for instr in program.instrs:
        for name in instr.args:
            users.setdefault(name, []).append(instr)
    kept = {port.value for port in program.outputs}
    chains: dict[str, Chain] = {}
    for instr in program.instrs:
        if not _begins(program, instr):
            continue
        instrs = [instr]
        while not isinstance(instrs[-1].op, Requantize):
            name = instrs[-1].result.name
            following = users.get(name, [])
            if len(following) != 1 or name in kept or not _continues(program, following[0], name):
                break
            instrs.append(following[0])
        run = _run(program, instrs) if isinstance(instrs[-1].op, Requantize) else None
        if run is not None:
            chains[instrs[-1].result.name] = Chain(tuple(instrs), run)
    return chains


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


def _run(program: Program, instrs: Sequence[Instr]) -> Run | None:
    """One function for the chain; None where floats are too narrow or a mode has no short form."""
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
    fraction = first.result.type.fraction
    for before, instr in pairwise(instrs):
        if isinstance(instr.op, Shift):
            shifted += instr.result.type.fraction - before.result.type.fraction
        elif isinstance(instr.op, Add):
            if relu:
                return None
            biases.append((_other(program, instr, before.result.name), shifted))
        elif isinstance(instr.op, Max):
            relu = True
    # Units of the last place, before any shift of the binary point.
    finest = max([fraction, *(bias.fraction - at for bias, at in biases)])
    dropped = finest + shifted - last.op.to.fraction
    half = 1 << (dropped - 1) if last.op.rounding is Rounding.RND and dropped > 0 else 0
    bound = (_bound(plan) << (finest - fraction)) + half
    bound += sum(largest(b.lo, b.hi) << (finest - b.fraction + at) for b, at in biases)
    work = carrier_for(bound)
    ends = [dropped, finest - fraction, *(operand.fraction - finest for operand in plan.operands)]
    if work.kind != "f" or any(abs(end) > MAX_SHIFT for end in ends):
        return None
    offset = np.float64(half) + sum(
        b.data.astype(np.float64) * 2.0 ** (finest - b.fraction + at)
        for b, at in biases
        if b.data is not None
    )
    offset = (np.asarray(offset) * 2.0**-dropped).astype(work)
    low, high = last.result.lo, last.result.hi
    clamp = (float(max(low, 0) if relu else low), float(high))
    finish = _finish(clamp, dropped > 0, torch.from_numpy(np.zeros(0, rounding.carrier)).dtype)
    scale = 2.0 ** (finest - fraction - dropped)
    return _START[type(first.op)](plan, work, scale, offset, finish)


def _bound(plan: Plan) -> int:
    """Largest magnitude of any partial sum, in units of the first result."""
    if isinstance(plan.op, Add):
        return sum(
            largest(operand.lo, operand.hi) << (plan.result.type.fraction - operand.fraction)
            for operand in plan.operands
        )
    return dot_bound(plan, (0,) if isinstance(plan.op, MatMul) else (0, 1, 2))


Finish = Callable[[torch.Tensor], torch.Tensor]
Start = Callable[[Plan, "np.dtype[np.generic]", float, Array, Finish], Run]


def _finish(clamp: tuple[float, float], rounds: bool, carrier: torch.dtype) -> Finish:
    low, high = clamp

    def finish(y: torch.Tensor) -> torch.Tensor:
        if rounds:
            y.floor_()
        return y.clamp_(low, high).to(carrier)

    return finish


def _matmul(
    plan: Plan, work: "np.dtype[np.generic]", scale: float, offset: Array, finish: Finish
) -> Run:
    w = plan.operands[1]
    assert w.data is not None
    # A mantissa within the bound times a power of two within MAX_SHIFT is exact in either float.
    weight = torch.from_numpy(w.data.astype(work)).mul_(scale)
    bias = torch.from_numpy(np.broadcast_to(offset, w.shape[-1:]).copy())

    def run(arrays: Sequence[Array]) -> Array:
        x = torch.from_numpy(np.ascontiguousarray(arrays[0], dtype=work))
        with torch.inference_mode():
            y = torch.addmm(bias, x.view(-1, x.shape[-1]), weight)
            result: Array = finish(y).view(*x.shape[:-1], -1).numpy()
        return result

    return run


def _conv(
    plan: Plan, work: "np.dtype[np.generic]", scale: float, offset: Array, finish: Finish
) -> Run:
    assert isinstance(plan.op, Conv)
    w = plan.operands[1]
    assert w.data is not None
    bias = torch.from_numpy(np.broadcast_to(offset, w.shape[-1:]).copy())
    convolve = convolution(plan.op, w.data, work, scale, bias)

    def run(arrays: Sequence[Array]) -> Array:
        y = convolve(channels_first(arrays[0].astype(work, copy=False)))
        with torch.inference_mode():
            return channels_last(finish(y))

    return run


def _add(
    plan: Plan, work: "np.dtype[np.generic]", scale: float, offset: Array, finish: Finish
) -> Run:
    """scale is that of one unit of the sum; each argument has units of its own."""
    scales = [scale * 2.0 ** (plan.result.type.fraction - each.fraction) for each in plan.operands]
    start = torch.from_numpy(np.array(offset))

    def run(arrays: Sequence[Array]) -> Array:
        a, b = (torch.from_numpy(x.astype(work, copy=False)) for x in arrays)
        with torch.inference_mode():
            y = torch.add(start, a, alpha=scales[0]).add_(b, alpha=scales[1])
            result: Array = finish(y).numpy()
        return result

    return run


_START: dict[type, Start] = {MatMul: _matmul, Conv: _conv, Add: _add}
