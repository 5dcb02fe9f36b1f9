"""Several instructions in one step: a layer, its bias, its ReLU and its rounding.

A layer's sum is exact in floating point while it stays below 2**24 (2**53) units of its last place,
whatever power of two a unit is. So the rescaling of the rounding that follows goes into the weights
and the bias, and so does the half that rounding to nearest adds: the matrix product answers in
units of the result, which only need a floor and a clamp, in place. A ReLU is a clamp: rounding is
monotone and keeps zero.

Dense layers that follow one another run on columns, a sample each: a row of ones below the values
adds the bias within the matrix product, and no result is moved before the last.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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
    exact_products,
    fits_without_overflow,
    largest,
)
from fxloom.fixed_point import Overflow, Rounding
from fxloom.ops import Add, Conv, MatMul, Max, Operand, Requantize, Shift
from fxloom.program import Instr, Program

MAX_SHIFT = 60
"""Powers of two by which weights may be scaled without leaving the range of float32."""


Carrier = np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Chain:
    """Instructions from a layer or a sum to the rounding behind it; only the last is seen."""

    instrs: tuple[Instr, ...]
    run: Run
    dense: tuple["Dense", ...] = ()  # what run does, where it is dense layers only

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
        chain = _chain(program, instrs) if isinstance(instrs[-1].op, Requantize) else None
        if chain is None:
            continue
        before = chains.get(instr.args[0])
        if before is not None and len(users[before.result]) == 1 and before.result not in kept:
            joined = _joined(before, chain)
            if joined is not None:
                del chains[before.result]
                chain = joined
        chains[chain.result] = chain
    return chains


def _joined(first: Chain, second: Chain) -> Chain | None:
    """Two chains as one where both are dense layers in the same floats."""
    layers = (*first.dense, *second.dense)
    if not (first.dense and second.dense) or len({each.weight.dtype for each in layers}) > 1:
        return None
    return Chain((*first.instrs, *second.instrs), _on_columns(layers), layers)


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


def _chain(program: Program, instrs: Sequence[Instr]) -> Chain | None:
    """The chain of instrs; None where floats are too narrow or a mode has no short form."""
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
    finish = _finish(clamp, dropped > 0)
    scale = 2.0 ** (finest - fraction - dropped)
    if isinstance(first.op, MatMul):
        layers = (_dense(plan, work, scale, offset, finish, rounding.carrier),)
        return Chain(tuple(instrs), _on_columns(layers), layers)
    start = _conv if isinstance(first.op, Conv) else _add
    return Chain(tuple(instrs), start(plan, work, scale, offset, finish, rounding.carrier))


def _bound(plan: Plan) -> int:
    """Largest magnitude of any partial sum, in units of the first result."""
    if isinstance(plan.op, Add):
        return sum(
            largest(operand.lo, operand.hi) << (plan.result.type.fraction - operand.fraction)
            for operand in plan.operands
        )
    return dot_bound(plan, (0,) if isinstance(plan.op, MatMul) else (0, 1, 2))


Finish = Callable[[torch.Tensor], torch.Tensor]


def _finish(clamp: tuple[float, float], rounds: bool) -> Finish:
    """Rounds and saturates in place."""
    low, high = clamp

    def finish(y: torch.Tensor) -> torch.Tensor:
        if rounds:
            y.floor_()
        return y.clamp_(low, high)

    return finish


@dataclass(frozen=True, slots=True)
class Dense:
    """finish(weight[N, K + 1] @ x[K + 1, samples]); the last row of x is ones, for the bias."""

    weight: torch.Tensor
    finish: Finish
    carrier: Carrier


def _dense(
    plan: Plan, work: Carrier, scale: float, offset: Array, finish: Finish, carrier: Carrier
) -> Dense:
    w = plan.operands[1]
    assert w.data is not None
    n_in, n_out = w.shape
    weight = torch.empty(n_out, n_in + 1, dtype=_torch_type(work))
    # A mantissa within the bound times a power of two within MAX_SHIFT is exact in either float.
    weight[:, :-1].copy_(torch.from_numpy(w.data.T)).mul_(scale)
    weight[:, -1] = torch.from_numpy(np.asarray(offset))
    return Dense(weight, finish, carrier)


def _torch_type(carrier: Carrier) -> torch.dtype:
    return torch.from_numpy(np.empty(0, carrier)).dtype


def _on_columns(layers: Sequence[Dense]) -> Run:
    """Dense layers, one after the other, on x[..., K]."""
    dtype, last = layers[0].weight.dtype, layers[-1]
    sizes = [layers[0].weight.shape[1] - 1, *(len(layer.weight) for layer in layers)]
    scratch = threading.local()  # columns for one count of samples; no two runs may share them

    def columns(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For the input of every layer: all rows, and those above the ones."""
        if getattr(scratch, "count", None) != count:
            fresh = [torch.ones(size + 1, count, dtype=dtype) for size in sizes[:-1]]
            scratch.count, scratch.columns = count, [(each, each[:-1]) for each in fresh]
        found: list[tuple[torch.Tensor, torch.Tensor]] = scratch.columns
        return found

    def run(arrays: Sequence[Array]) -> Array:
        rows = arrays[0].reshape(-1, sizes[0])
        with torch.inference_mode(), exact_products():
            held = columns(len(rows))
            np.copyto(held[0][1].numpy(), rows.T, casting="same_kind")
            for layer, (x, _), (_, y) in zip(layers[:-1], held, held[1:], strict=False):
                layer.finish(torch.mm(layer.weight, x, out=y))
            y = last.finish(torch.mm(last.weight, held[-1][0]))
        result: Array = y.numpy().T.reshape(*arrays[0].shape[:-1], -1)
        return result.astype(last.carrier, copy=False)

    return run


def _conv(
    plan: Plan, work: Carrier, scale: float, offset: Array, finish: Finish, carrier: Carrier
) -> Run:
    assert isinstance(plan.op, Conv)
    w = plan.operands[1]
    assert w.data is not None
    bias = torch.from_numpy(np.broadcast_to(offset, w.shape[-1:]).copy())
    convolve = convolution(plan.op, w.data, work, scale, bias)

    def run(arrays: Sequence[Array]) -> Array:
        y = convolve(channels_first(arrays[0].astype(work, copy=False)))
        with torch.inference_mode():
            return channels_last(finish(y)).astype(carrier, copy=False)

    return run


def _add(
    plan: Plan, work: Carrier, scale: float, offset: Array, finish: Finish, carrier: Carrier
) -> Run:
    """scale is that of one unit of the sum; each argument has units of its own."""
    scales = [scale * 2.0 ** (plan.result.type.fraction - each.fraction) for each in plan.operands]
    start = torch.from_numpy(np.array(offset))

    def run(arrays: Sequence[Array]) -> Array:
        a, b = (torch.from_numpy(x.astype(work, copy=False)) for x in arrays)
        with torch.inference_mode():
            y = torch.add(start, a, alpha=scales[0]).add_(b, alpha=scales[1])
            result: Array = finish(y).numpy()
        return result.astype(carrier, copy=False)

    return run
