"""The smallest FIFOs with which a streamed network is as fast as with unbounded ones.

Channels are taken one after another, from the outputs to the inputs: what waits at the slow end
then already holds back what comes from the fast one. Each gets the least depth with which no
sample ends later, the others held. Later ones only become less deep, which never makes a run
shorter, so what was too little for a channel still is when all are done: each depth is minimal.
"""

from collections.abc import Mapping

import numpy as np

from fxloom.dataflow import Dataflow
from fxloom.schedule import simulate
from fxloom.token_times import Times, TokenTimes

EFFORT = 8
"""After settling every actor that often, on average, tokens are followed one by one instead."""


def minimal_depths(graph: Dataflow, samples: int = 2) -> dict[str, int]:
    """By channel: with one less, and the others as they are, a sample would end later.

    samples: how many follow each other without a pause. All end when they would with FIFOs of any
    depth. Whether a network gets stuck is decided within one sample: only tokens of the same
    sample can wait for each other in a circle, and each sample is like the first.
    """
    times = TokenTimes(graph, samples)
    ends, latest = times.finished, _latest_writes(times)
    depths = {name: times.high_water(name) for name in graph.channels}
    for name in reversed(graph.channels):
        high = times.high_water(name)
        # Were this the only bound, less would still end a sample too late.
        least = _least_depth(latest[name], times.read[name])
        depth = least
        while least < high:
            tried = _tried(times, {**depths, name: depth}, name, ends)
            if tried is None:
                least = depth + 1
            else:
                times, high = tried, tried.high_water(name)
            depth = (least + high) // 2
        depths[name] = high
    return depths


def _tried(
    times: TokenTimes, depths: Mapping[str, int], changed: str, ends: Times
) -> TokenTimes | None:
    """The times under these depths, None where a sample ends later."""
    tried = times.copy()
    in_time = tried.settle(depths, changed, ends, EFFORT * len(times.graph.actors))
    if in_time is None:
        run = simulate(times.graph, depths, times.samples)
        in_time = not run.stuck and bool((np.array(run.finished) <= ends).all())
        if in_time:
            tried.adopt(depths, run.written, run.read)
    return tried if in_time else None


def _latest_writes(times: TokenTimes) -> dict[str, Times]:
    """By channel, when its tokens are written at the latest for all samples to end in time, were
    FIFOs unbounded."""
    written: dict[str, Times] = {}
    read: dict[str, Times] = {}
    ends = times.finished
    for actor in reversed(times.graph.actors):
        line = times.lines[actor.name]
        slack = np.full(len(line.at), ends[-1])
        slack[line.ends] = ends - line.at[line.ends]
        for name, at in line.writes.items():
            slack[at] = np.minimum(slack[at], read[name] - 1 - line.at[at])
        latest = line.at + np.minimum.accumulate(slack[::-1])[::-1]
        read |= {name: latest[at] for name, at in line.reads.items()}
        written |= {name: latest[at] for name, at in line.writes.items()}
    return written


def _least_depth(written: Times, read: Times) -> int:
    """The least depth with which tokens could be written then, were they read then."""
    read_before = np.searchsorted(read, written)
    return max(int((np.arange(len(written)) - read_before).max()) + 1, 1)
