"""Several instructions in one step: a layer, its bias, its ReLU and its rounding.

The matrix product answers in units of the result (see rounded.py), which only need a floor and a
clamp, in place. Narrow layers run on bytes where the processor has products of them (narrow.py).

Dense layers that follow one another run on columns, a sample each: a row of ones below the values
adds the bias within the matrix product, and no result is moved before the last.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fxloom.backends.carriers import (
    Array,
    Run,
    channels_first,
    channels_last,
    convolution,
    exact_products,
)
from fxloom.backends.narrow import narrow_results, narrow_step
from fxloom.backends.rounded import Carrier, Finish, Rounded, finish, rounded_sums, users_of
from fxloom.ops import Conv, MatMul
from fxloom.program import Instr, Program


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
    users = users_of(program)
    kept = {port.value for port in program.outputs}
    chains: dict[str, Chain] = {}
    steps = rounded_sums(program)
    narrow = narrow_results(steps, users)
    for name, rounded in steps.items():
        if name in narrow:
            chains[name] = Chain(rounded.instrs, narrow_step(rounded, narrow[name]))
            continue
        chain = _chain(rounded)
        before = chains.get(rounded.instrs[0].args[0])
        if before is not None and len(users[before.result]) == 1 and before.result not in kept:
            joined = _joined(before, chain)
            if joined is not None:
                del chains[before.result]
                chain = joined
        chains[name] = chain
    return chains


def _chain(rounded: Rounded) -> Chain:
    if isinstance(rounded.plan.op, MatMul):
        layers = (_dense(rounded),)
        return Chain(rounded.instrs, _on_columns(layers), layers)
    return Chain(
        rounded.instrs, _conv(rounded) if isinstance(rounded.plan.op, Conv) else _add(rounded)
    )


def _joined(first: Chain, second: Chain) -> Chain | None:
    """Two chains as one where both are dense layers in the same floats."""
    layers = (*first.dense, *second.dense)
    if not (first.dense and second.dense) or len({each.weight.dtype for each in layers}) > 1:
        return None
    return Chain((*first.instrs, *second.instrs), _on_columns(layers), layers)


@dataclass(frozen=True, slots=True)
class Dense:
    """finish(weight[N, K + 1] @ x[K + 1, samples]); the last row of x is ones, for the bias."""

    weight: torch.Tensor
    finish: Finish
    carrier: Carrier


def _dense(rounded: Rounded) -> Dense:
    w = rounded.plan.operands[1]
    assert w.data is not None
    n_in, n_out = w.shape
    weight = torch.empty(n_out, n_in + 1, dtype=_torch_type(rounded.work))
    # A mantissa within the bound times a power of two within MAX_SHIFT is exact in either float.
    weight[:, :-1].copy_(torch.from_numpy(w.data.T)).mul_(rounded.scale)
    weight[:, -1] = torch.from_numpy(rounded.offset)
    return Dense(weight, finish(rounded), rounded.carrier)


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


def _conv(rounded: Rounded) -> Run:
    op, w, work = rounded.plan.op, rounded.plan.operands[1], rounded.work
    assert isinstance(op, Conv)
    assert w.data is not None
    bias = torch.from_numpy(np.broadcast_to(rounded.offset, w.shape[-1:]).astype(work))
    convolve = convolution(op, w.data, work, rounded.scale, bias)
    end, carrier = finish(rounded), rounded.carrier

    def run(arrays: Sequence[Array]) -> Array:
        y = convolve(channels_first(arrays[0].astype(work, copy=False)))
        with torch.inference_mode():
            return channels_last(end(y)).astype(carrier, copy=False)

    return run


def _add(rounded: Rounded) -> Run:
    a_scale, b_scale = rounded.scales
    start = torch.from_numpy(rounded.offset.astype(rounded.work))
    end, work, carrier = finish(rounded), rounded.work, rounded.carrier

    def run(arrays: Sequence[Array]) -> Array:
        a, b = (torch.from_numpy(x.astype(work, copy=False)) for x in arrays)
        with torch.inference_mode():
            y = torch.add(start, a, alpha=a_scale).add_(b, alpha=b_scale)
            result: Array = end(y).numpy()
        return result.astype(carrier, copy=False)

    return run
