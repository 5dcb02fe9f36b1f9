"""A dataflow graph cycle by cycle, for comparison with fxloom.schedule: `make schedules`.

Written from one paragraph: an actor is a consume/produce pattern, an interval and a latency; a FIFO
blocks, one read and one write per cycle, no same-cycle bypass. So in every cycle each actor looks
at its FIFOs as the cycle before left them, and takes the next step of its pipeline, with all reads
and writes of that step, or waits. Nothing here knows of token times.

    python -m tests.cycle_simulation 200 [--seed S]
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fxloom.dataflow import Actor, Dataflow
from fxloom.fifo_depths import minimal_depths
from fxloom.schedule import simulate

SAMPLES = 3


@dataclass
class Fifo:
    """Tokens of a channel, and in which cycles they came and went."""

    depth: float
    held: int = 0
    written: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)


@dataclass
class Process:
    """An actor at work: the sample it is at, and the step of its pipeline that comes next."""

    actor: Actor
    reads: Mapping[str, set[int]]
    writes: Mapping[str, set[int]]
    sample: int = 0
    step: int = 0
    finished: list[int] = field(default_factory=list)

    def wanted(self, pattern: Mapping[str, set[int]], step: int) -> list[str]:
        """The channels that the firing which begins at that step has in its pattern."""
        firing, between = divmod(step, self.actor.interval)
        if between or step < 0:
            return []
        return [channel for channel, firings in pattern.items() if firing in firings]


@dataclass
class Outcome:
    """What the cycles showed. finished: the cycle in which each sample left the last actor."""

    finished: list[int]
    fifos: dict[str, Fifo]
    stuck: list[str]


def cycle_by_cycle(
    graph: Dataflow, depths: Mapping[str, int | None], samples: int = SAMPLES
) -> Outcome:
    """Run until all is done or nothing moves any more."""
    fifos = {name: Fifo(float("inf")) for actor in graph.actors for name in actor.writes}
    for name, fifo in fifos.items():
        depth = depths.get(name)
        if depth is not None:
            fifo.depth = depth
    processes = [
        Process(
            actor,
            {name: set(map(int, firings)) for name, firings in actor.reads.items()},
            {name: set(map(int, firings)) for name, firings in actor.writes.items()},
        )
        for actor in graph.actors
    ]
    cycle = 0
    while any(process.sample < samples for process in processes):
        moves = []
        for process in processes:
            if process.sample == samples:
                continue
            ins = process.wanted(process.reads, process.step)
            outs = process.wanted(process.writes, process.step - process.actor.latency)
            if all(fifos[name].held > 0 for name in ins) and all(
                fifos[name].held < fifos[name].depth for name in outs
            ):
                moves.append((process, ins, outs))
        if not moves:
            stuck = [p.actor.name for p in processes if p.sample < samples]
            return Outcome([], fifos, stuck)
        for process, ins, outs in moves:
            for name in ins:
                fifos[name].held -= 1
                fifos[name].read.append(cycle)
            for name in outs:
                fifos[name].held += 1
                fifos[name].written.append(cycle)
            last = (process.actor.firings - 1) * process.actor.interval + process.actor.latency
            process.step += 1
            if process.step > last:
                process.sample, process.step = process.sample + 1, 0
                process.finished.append(cycle)
        cycle += 1
    finished = [max(p.finished[sample] for p in processes) for sample in range(samples)]
    return Outcome(finished, fifos, [])


# ---- random graphs -------------------------------------------------------------------------------


@dataclass
class Stream:
    """A channel without a reader yet: an image of so many tokens."""

    channel: str
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.height * self.width


class Maker:
    """A random streamed network, layer by layer."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.actors: list[Actor] = []

    def actor(
        self,
        kind: str,
        firings: int,
        ins: Sequence[tuple[Stream, Sequence[int]]],
        outs: Sequence[tuple[int, int, Sequence[int]]],
    ) -> list[Stream]:
        """An actor of random interval and latency; outs: height, width and pattern of each."""
        name = f"{kind}{len(self.actors)}"
        made = [
            Stream(f"{name}_{number}", height, width)
            for number, (height, width, _) in enumerate(outs)
        ]
        self.actors.append(
            Actor(
                name,
                firings,
                self.random.choice([1, 1, 1, 2, 3]),
                self.random.choice([0, 1, 1, 2, 3, 5, 9, 14]),
                {stream.channel: pattern for stream, pattern in ins},
                {
                    stream.channel: pattern
                    for stream, (_, _, pattern) in zip(made, outs, strict=True)
                },
            )
        )
        return made

    def source(self, height: int, width: int) -> Stream:
        count = height * width
        return self.actor("input", count, [], [(height, width, range(count))])[0]

    def elementwise(self, x: Stream) -> Stream:
        return self.join([x])

    def join(self, streams: Sequence[Stream]) -> Stream:
        """One token of each argument a firing."""
        first, pattern = streams[0], range(streams[0].tokens)
        ins = [(stream, pattern) for stream in streams]
        return self.actor("join", first.tokens, ins, [(first.height, first.width, pattern)])[0]

    def fork(self, x: Stream, copies: int) -> list[Stream]:
        pattern = range(x.tokens)
        outs = [(x.height, x.width, pattern)] * copies
        return self.actor("fork", x.tokens, [(x, pattern)], outs)

    def pad(self, x: Stream, below: int, right: int) -> Stream:
        """Tokens of zeros behind rows and image."""
        height, width = x.height + below, x.width + right
        inside = [row * width + column for row in range(x.height) for column in range(x.width)]
        count = height * width
        return self.actor("pad", count, [(x, inside)], [(height, width, range(count))])[0]

    def window(self, x: Stream, kernel: int, stride: int) -> Stream:
        """As a line buffer: a token is read a firing, and written where a window is complete."""
        complete = [
            row * x.width + column
            for row in range(kernel - 1, x.height, stride)
            for column in range(kernel - 1, x.width, stride)
        ]
        height, width = ((n - kernel) // stride + 1 for n in (x.height, x.width))
        return self.actor("window", x.tokens, [(x, range(x.tokens))], [(height, width, complete)])[
            0
        ]

    def rows(self, x: Stream, cycles: int) -> Stream:
        """A whole row is read, then one is written."""
        block = x.width * (1 + cycles)
        reads = [row * block + column for row in range(x.height) for column in range(x.width)]
        writes = [
            row * block + x.width + column * cycles
            for row in range(x.height)
            for column in range(x.width)
        ]
        return self.actor("rows", x.height * block, [(x, reads)], [(x.height, x.width, writes)])[0]

    def collect(self, streams: Sequence[Stream], height: int, width: int) -> Stream:
        """All of one argument, all of the next, then the result."""
        ins, at = [], 0
        for stream in streams:
            ins.append((stream, range(at, at + stream.tokens)))
            at += stream.tokens
        pattern = range(at - 1, at - 1 + height * width)
        return self.actor("collect", pattern[-1] + 1, ins, [(height, width, pattern)])[0]

    def free(self, x: Stream) -> Stream:
        """Any pattern at all."""
        firings = self.random.randint(x.tokens, 2 * x.tokens + 2)
        reads = sorted(self.random.sample(range(firings), x.tokens))
        height, width = self.random.randint(1, 3), self.random.randint(1, 3)
        writes = sorted(self.random.sample(range(firings), min(height * width, firings)))
        return self.actor("free", firings, [(x, reads)], [(1, len(writes), writes)])[0]

    def layers(self, x: Stream, count: int) -> Stream:
        for _ in range(count):
            kind = self.random.choice(["elementwise", "pad", "window", "window", "rows", "free"])
            if kind == "elementwise":
                x = self.elementwise(x)
            elif kind == "pad":
                x = self.pad(x, self.random.randint(0, 1), self.random.randint(0, 2))
            elif kind == "window" and min(x.height, x.width) > 1:
                kernel = self.random.randint(1, min(x.height, x.width, 3))
                x = self.window(x, kernel, self.random.randint(1, 2))
            elif kind == "rows":
                x = self.rows(x, self.random.randint(1, 2))
            elif kind == "free":
                x = self.free(x)
        return x

    def same_size(self, x: Stream) -> Stream:
        """A branch of a residual block: what comes out is as large as what went in."""
        for _ in range(self.random.randint(0, 2)):
            kernel = self.random.randint(1, 3)
            kind = self.random.choice(["elementwise", "window", "rows", "collect"])
            if kind == "window":
                x = self.window(self.pad(x, kernel - 1, kernel - 1), kernel, 1)
            elif kind == "rows":
                x = self.rows(x, self.random.randint(1, 2))
            elif kind == "collect":
                x = self.collect([x], x.height, x.width)
            else:
                x = self.elementwise(x)
        return x

    def graph(self) -> Dataflow:
        """Inputs, layers, residual blocks of two or three branches; some values are read twice."""
        inputs = [
            self.source(self.random.randint(1, 4), self.random.randint(1, 5))
            for _ in range(self.random.choice([1, 1, 2, 3]))
        ]
        streams = [self.layers(x, self.random.randint(0, 2)) for x in inputs]
        for _ in range(self.random.randint(1, 3)):
            place = self.random.randrange(len(streams))
            branches = self.fork(streams[place], self.random.choice([2, 2, 3]))
            if self.random.random() < 0.8:
                x = self.join([self.same_size(branch) for branch in branches])
            else:  # branches of any size, one after the other
                ends = [self.layers(branch, self.random.randint(0, 2)) for branch in branches]
                x = self.collect(ends, 1, self.random.randint(1, 4))
            streams[place] = self.layers(x, self.random.randint(0, 1))
        if len(streams) > 1 and self.random.random() < 0.7:
            streams = [self.collect(streams, 1, 2)]
        for x in streams:  # a drain each, now and then none of its own
            self.actor("output", x.tokens, [(x, range(x.tokens))], [])
        return Dataflow(self.actors)


def random_graph(seed: int) -> Dataflow:
    """A random streamed network with forks, joins, residuals and changes of rate."""
    return Maker(seed).graph()


# ---- comparison ----------------------------------------------------------------------------------


def compare(graph: Dataflow, depths: Mapping[str, int | None], samples: int = SAMPLES) -> bool:
    """Require that both say the same of a run; whether it ended."""
    naive, fast = cycle_by_cycle(graph, depths, samples), simulate(graph, depths, samples)
    assert sorted(fast.stuck) == sorted(naive.stuck), (fast.stuck, naive.stuck)
    if naive.stuck:
        return False
    assert fast.finished == naive.finished, (fast.finished, naive.finished)
    for name, fifo in naive.fifos.items():
        assert fast.written[name].tolist() == fifo.written, name
        assert fast.read[name].tolist() == fifo.read, name
        assert fast.most_held(name) == most_held(fifo), name
    return True


def most_held(fifo: Fifo) -> int:
    """Tokens in a FIFO at the end of the cycle in which there are most."""
    return max(
        sum(at <= cycle for at in fifo.written) - sum(at <= cycle for at in fifo.read)
        for cycle in fifo.written
    )


def check(seed: int) -> tuple[int, int]:
    """One random graph, under several depths; how many runs ended and how many got stuck."""
    graph, rng = random_graph(seed), random.Random(seed)
    free = cycle_by_cycle(graph, {})
    ended = compare(graph, {})
    tried: list[dict[str, int | None]] = [dict.fromkeys(graph.channels, 1)]
    tried.append({name: rng.choice([1, 2, 4, 8, None, None]) for name in graph.channels})
    found = minimal_depths(graph, SAMPLES)
    tried += [{name: max(depth - less, 1) for name, depth in found.items()} for less in (0, 1)]
    verdicts = [ended, *(compare(graph, depths, 2) for depths in tried)]
    assert set(found) == set(graph.channels)
    assert cycle_by_cycle(graph, found).finished == free.finished, "the run became longer"
    for name, depth in found.items():
        if depth > 1:
            less = cycle_by_cycle(graph, {**found, name: depth - 1})
            assert less.finished != free.finished, f"{name}: {depth - 1} would do"
    return sum(verdicts), len(verdicts) - sum(verdicts)


def main() -> None:
    """Compare as many random graphs as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    ended = stuck = 0
    for seed in range(wanted.seed, wanted.seed + wanted.count):
        try:
            a, b = check(seed)
        except AssertionError as fault:
            raise SystemExit(f"seed {seed}: {fault}") from fault
        ended, stuck = ended + a, stuck + b
    print(f"{wanted.count} graphs: {ended} runs equal, {stuck} deadlocks found by both")


if __name__ == "__main__":
    main()
