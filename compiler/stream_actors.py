"""Actors of the processes of a streamed project: when each reads and writes, as its C++ says.

The loops are those of hls4ml's line buffers (nnet_conv2d_stream.h, nnet_sepconv2d_stream.h,
nnet_dense_stream.h) and of our kernels (fxloom_streams.h, the headers of fxloom.kernels, and what
backends/hls4ml/kernels/streaming.py writes). How deep their pipelines are is not in the C++: that
comes from a rule, with bounds.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import NamedTuple

import numpy as np

from fxloom.costs import DENSE_CYCLES, adder_tree_depth
from fxloom.dataflow import Actor, Pattern
from fxloom.kernels import KERNELS, Rhythm
from fxloom.ops import ArgMax, Conv, MatMul, Pool, ReduceMax, ReduceSum
from fxloom.packs import packs_of
from fxloom.stream_layers import StreamLayer


class Timing(NamedTuple):
    """interval: cycles from one position to the next; latency: from a read to what it leads to."""

    interval: int
    latency: int


class Timings(NamedTuple):
    """Of one process: what is likely, the least and the most that is."""

    likely: Timing
    least: Timing
    most: Timing


Rule = Callable[[StreamLayer], Timings]

MOVES = (1, 1, 2)
"""Cycles from a read to the write of what is copied, padded or moved."""

ELEMENTWISE = (2, 1, 2)
"""Of ReLU, LeakyReLU and PReLU in streams: 2 in six syntheses by hls4ml's developers."""

PIPELINES = {
    "lookup": (4, 2, 4),
    "embedding": (4, 2, 4),
    "normalise": (2, 1, 4),
    "shift_like": (2, 1, 4),
    "divide": (5, 1, 41),
}
"""Tables: 3 or 4 cycles in six syntheses of ELU and sigmoid. The others: none known."""

_MOVING = ("reshape", "transpose", "concat", "shift", "pad", "gather")


def timings(layer: StreamLayer) -> Timings:
    """By the rules of the estimator: adder trees, reuse factors, and what others synthesised."""
    if layer.matrix is not None and layer.allotment is not None:
        # Each output adds up the products of its group of channels.
        groups = layer.op.groups if isinstance(layer.op, Conv) else 1
        inputs = layer.matrix.inputs // groups
        if not layer.allotment.is_dense:
            return _alike(1, _tree(inputs))
        if layer.allotment.strategy == "resource":
            return _resource(layer, inputs)
        return _alike(layer.reuse, _tree(inputs))
    if isinstance(layer.op, MatMul):
        return _alike(layer.reuse, _tree(layer.arguments[0][-1]))
    if isinstance(layer.op, Pool):
        return _alike(1, _tree(prod(layer.kernel)))
    if isinstance(layer.op, ReduceSum | ReduceMax | ArgMax):
        return _alike(1, _tree(prod(layer.arguments[0]) // prod(layer.shape)))
    if layer.op is None or layer.op.name in _MOVING:
        return _alike(1, MOVES)
    return _alike(1, PIPELINES.get(layer.op.name, ELEMENTWISE))


def _tree(inputs: int) -> tuple[int, int, int]:
    constant, below, above = DENSE_CYCLES
    likely = adder_tree_depth(inputs) + constant
    return likely, max(likely + below, 1), likely + above


def _alike(interval: int, latency: tuple[int, int, int]) -> Timings:
    return Timings(*(Timing(interval, cycles) for cycles in latency))


def _resource(layer: StreamLayer, inputs: int) -> Timings:
    """reuse + 1 cycles a product in 830 of 871 syntheses of dense layers, reuse in the others.

    hls4ml's loop over an image is not pipelined: one position is done before the next begins.
    """
    reuse = layer.reuse
    latencies = (reuse + 1, reuse, reuse + 3) if reuse > 1 else _tree(inputs)
    return Timings(*(Timing(n + 1 if layer.kind == "line buffer" else 1, n) for n in latencies))


class _Loops(NamedTuple):
    """Firings of an actor: of its reads, argument by argument, and of its writes."""

    firings: int
    reads: tuple[Pattern, ...]
    writes: Pattern
    interval: int
    latency: int


def actor_name(layer: StreamLayer) -> str:
    """The number and the user's name of a process."""
    return f"{layer.index} {layer.origin}"


def actor_of(layer: StreamLayer, timing: Timing) -> Actor:
    """The actor of a process, with channels by the names that the layer has for them."""
    loops = _LOOPS[layer.kind](layer, timing)
    return Actor(
        actor_name(layer),
        loops.firings,
        loops.interval,
        loops.latency,
        dict(zip(layer.inputs, loops.reads, strict=True)),
        dict.fromkeys(layer.outputs, loops.writes),
    )


def _each(layer: StreamLayer, timing: Timing) -> _Loops:
    """A pack of each argument, a pack of every result, and again."""
    packs = np.arange(packs_of(layer.shape))
    reads = tuple(packs for _ in layer.inputs)
    return _Loops(len(packs), reads, packs, timing.interval, timing.latency)


def _pad(layer: StreamLayer, timing: Timing) -> _Loops:
    """A pack every time, from outside or zero."""
    inside = np.ones(layer.arguments[0][:-1], bool)
    image = np.pad(inside, layer.op.padding[:-1] or 0).reshape(-1)
    reads = np.flatnonzero(image)
    return _Loops(len(image), (reads,), np.arange(len(image)), timing.interval, timing.latency)


def _line_buffer(layer: StreamLayer, timing: Timing) -> _Loops:
    """A pack in every time; one out where a window is complete."""
    height, width, _ = layer.arguments[0]
    rows, columns = (
        np.arange(kernel - 1, size, stride)
        for kernel, size, stride in zip(layer.kernel, (height, width), layer.op.stride, strict=True)
    )
    complete = (rows[:, None] * width + columns).reshape(-1)
    count = height * width
    return _Loops(count, (np.arange(count),), complete, timing.interval, timing.latency)


def _tensor(layer: StreamLayer, timing: Timing) -> _Loops:
    """One argument after the other, what is computed of them, and then the result."""
    counts = [packs_of(shape) for shape in layer.arguments]
    starts = np.cumsum([0, *counts])
    reads = tuple(
        start + np.arange(count) for start, count in zip(starts[:-1], counts, strict=True)
    )
    last = int(starts[-1]) - 1
    writes = last + np.arange(packs_of(layer.shape))
    # Rows of a product follow each other in a pipeline of their own.
    rows = packs_of(layer.shape) if isinstance(layer.op, MatMul) else 1
    latency = timing.latency + (rows - 1) * timing.interval
    return _Loops(last + len(writes), reads, writes, 1, latency)


def _new_rows(layer: StreamLayer) -> Iterator[int]:
    """How many rows of an image each row of windows needs that no row before did; in the end, how
    many are left."""
    height = layer.arguments[0][0]
    dilation, stride, padding = layer.op.dilation[0], layer.op.stride[0], layer.op.padding[0]
    reach, have = (layer.kernel[0] - 1) * dilation + 1, 0
    for row in range(layer.shape[0]):
        end = min(row * stride - padding[0] + reach, height)
        yield max(end - have, 0)
        have = max(end, have)
    yield height - have


def _by_rows(layer: StreamLayer, timing: Timing, steps: Pattern) -> _Loops:
    """Rows of the image that the next windows need; then these windows, of which the last has left
    before more is read. steps: after which the results of a row are written."""
    width = layer.arguments[0][1]
    at, reads, writes = 0, [], []
    for new in _new_rows(layer):
        reads.append(at + np.arange(new * width))
        at += new * width
        if len(reads) <= layer.shape[0]:
            writes.append(at + steps)
            at += int(steps[-1]) + timing.latency + 1
    read, written = np.concatenate(reads), np.concatenate(writes)
    firings = int(max(read[-1], written[-1])) + 1
    return _Loops(firings, (read,), written, 1, timing.latency)


def _windows(layer: StreamLayer, timing: Timing) -> _Loops:
    return _by_rows(layer, timing, np.arange(layer.shape[1]) * timing.interval)


def _rhythm(layer: StreamLayer) -> Rhythm:
    matrix, given = layer.matrix, layer.allotment
    assert matrix is not None
    assert given is not None
    return KERNELS[given.kernel].rhythm(matrix, given)


def _lane_windows(layer: StreamLayer, timing: Timing) -> _Loops:
    rhythm = _rhythm(layer)
    steps = (rhythm.ahead + np.arange(layer.shape[1])) * rhythm.steps + rhythm.result
    return _by_rows(layer, timing, steps)


def _lane_packs(layer: StreamLayer, timing: Timing) -> _Loops:
    """A pack at the first step of each position."""
    rhythm = _rhythm(layer)
    begin = np.arange(packs_of(layer.shape)) * rhythm.steps
    end = begin + rhythm.result
    return _Loops(int(end[-1]) + 1, (begin,), end, 1, timing.latency)


_LOOPS: dict[str, Callable[[StreamLayer, Timing], _Loops]] = {
    "fork": _each,
    "packs": _each,
    "pad": _pad,
    "windows": _windows,
    "tensor": _tensor,
    "line buffer": _line_buffer,
    "lane packs": _lane_packs,
    "lane windows": _lane_windows,
}
