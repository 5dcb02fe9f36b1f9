"""The schedule of a streamed project before any synthesis: latency, interval, depths of FIFOs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import networkx as nx

from fxloom.dataflow import Dataflow
from fxloom.errors import TargetError
from fxloom.fifo_depths import minimal_depths
from fxloom.matrices import RULED_BACKENDS
from fxloom.program import Program
from fxloom.report import Figure
from fxloom.stream_actors import Rule, Timings, actor_name, actor_of, timings
from fxloom.stream_layers import StreamLayer, stream_layers
from fxloom.target import Target
from fxloom.token_times import TokenTimes

LEAST_DEPTH = 2
"""What Vitis HLS gives a stream without a depth (AMD UG1399); no FIFO gets less."""

SCHEDULED = (
    "schedule: every pack through blocking FIFOs; pipelines as deep as fits and syntheses of "
    "others say (docs/estimation.md)"
)


@dataclass(frozen=True, slots=True)
class FifoDepth:
    """Of one channel. minimal: with one less, the others held, a sample would end later by the
    schedule; written: what the project declares; tokens: the whole tensor."""

    minimal: int
    written: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Passage:
    """The first sample in one process. begin, end: cycles of its first and its last step; busy: how
    many steps there are, after which the next sample may begin."""

    layer: StreamLayer
    begin: int
    end: int
    busy: int


def has_schedule(target: Target) -> bool:
    """Whether a project for the target is one of streams, in C++ whose loops are known."""
    return target.io == "stream" and target.backend in RULED_BACKENDS


class StreamSchedule:
    """The schedule of a program on a target; the rules are those of fxloom.dataflow.

    layers: all processes but inputs, which are ports; paces: their intervals and latencies, by
    `rule`; likely, least, most: the network with each of these. Channels have the names of the
    arrays in the C++. Raises TargetError where the target is not one of streams.
    """

    def __init__(self, program: Program, target: Target, rule: Rule = timings) -> None:
        if not has_schedule(target):
            raise TargetError(
                f"a schedule of streams requires io 'stream' and {' or '.join(RULED_BACKENDS)}, "
                f"got {target.io!r} and {target.backend}"
            )
        found = stream_layers(program, target)
        self.layers = tuple(layer for layer in found.layers if layer.kind != "input")
        self._ports = found.ports
        self.paces = tuple(rule(layer) for layer in self.layers)
        self.likely, self.least, self.most = (self._network(n) for n in range(len(Timings._fields)))

    def _network(self, bound: int) -> Dataflow:
        actors = []
        for layer, paces in zip(self.layers, self.paces, strict=True):
            actor = actor_of(layer, paces[bound])
            reads, writes = (
                {name: at for name, at in side.items() if name not in self._ports}
                for side in (actor.reads, actor.writes)
            )
            actors.append(replace(actor, reads=reads, writes=writes))
        return Dataflow(actors)

    @cached_property
    def times(self) -> tuple[TokenTimes, ...]:
        """Of one sample with likely, least and most latencies. FIFOs of the minimal depths do not
        change when it ends."""
        return tuple(TokenTimes(each, 1) for each in (self.likely, self.least, self.most))

    @property
    def latency(self) -> Figure:
        """Cycles until the first sample has left, 0 where that is the cycle in which it came."""
        return _figure([int(times.finished[0]) for times in self.times])

    @property
    def interval(self) -> Figure:
        """Cycles from one sample to the next when one follows right behind the other, in the long
        run: those of the slowest process. The first few may end closer together."""
        return _figure([_slowest(each) for each in (self.likely, self.least, self.most)])

    @property
    def limiting(self) -> StreamLayer:
        """The process that takes longest for a sample, so that none can follow faster."""
        return max(self.passages, key=lambda each: each.busy).layer

    @cached_property
    def passages(self) -> tuple[Passage, ...]:
        """The first sample in each process, in their order."""
        return self.bounds[0]

    @cached_property
    def bounds(self) -> tuple[tuple[Passage, ...], ...]:
        """The passages with likely, least and most latencies."""
        return tuple(map(self._passages, self.times))

    def _passages(self, times: TokenTimes) -> tuple[Passage, ...]:
        found = {}
        for name, line in times.lines.items():
            cycles = line.at + times.late[name]
            found[name] = (int(cycles[0]), int(cycles[line.ends[0]]), line.actor.steps)
        return tuple(
            Passage(layer, *found[name])
            for layer, name in zip(self.layers, map(actor_name, self.layers), strict=True)
        )

    @cached_property
    def depths(self) -> Mapping[str, FifoDepth]:
        """By channel, in the order of the layers. Takes many simulations.

        A pipeline that is deeper than was thought holds back more results until more comes in.
        Between a fork and a join a FIFO must hold what then waits for them, or all stop for ever.
        So what is written is also enough for pipelines as deep as they may be, and in front of a
        join has room for as many tokens more as all pipelines of its branches hold.

        A whole tensor is always enough: take the oldest sample that is not finished, and the first
        layer that is not finished with it. All layers after it are done with the sample before, so
        its results fit; all before it are done with this one, so its arguments are there. But a
        sample that is under way for several intervals takes room for several samples.
        """
        minimal, deeper = (
            minimal_depths(graph, _under_way(graph, times))
            for graph, times in ((self.likely, self.times[0]), (self.most, self.times[2]))
        )
        room = _room(self.most)
        found = {}
        for name in minimal:
            tokens = self.likely.tokens(name)
            least = max(minimal[name], deeper[name], LEAST_DEPTH)
            written = max(min(least + room[name], tokens), least)
            found[name] = FifoDepth(minimal[name], written, tokens)
        return found


def _slowest(graph: Dataflow) -> int:
    """Cycles that the slowest actor takes for a sample; none holds another one up for longer where
    FIFOs are deep enough."""
    return max(actor.steps for actor in graph.actors)


def _under_way(graph: Dataflow, times: TokenTimes) -> int:
    """How many samples there are in a network at most, and one more, right behind them."""
    return -(-int(times.finished[0] + 1) // _slowest(graph)) + 1


def _figure(values: Sequence[int]) -> Figure:
    """Of likely, least and most latencies. Nothing says that the order is kept."""
    low, high = min(values), max(values)
    ends = (None, None) if low == high else (low, high)
    return Figure(values[0], "cycles", "fitted", SCHEDULED, *ends)


def _room(graph: Dataflow) -> dict[str, int]:
    """By channel into a join, how many cycles all pipelines take that lie between the join and the
    forks before it; 0 for all others, each way to a join having one of these."""
    ways: nx.Graph = nx.Graph()
    for name, writer in graph.writer.items():
        ways.add_edge(("actor", writer.name), ("channel", name))
        ways.add_edge(("channel", name), ("actor", graph.reader[name].name))
    room = dict.fromkeys(graph.channels, 0)
    for nodes in nx.biconnected_components(ways):
        inside = [actor for actor in graph.actors if ("actor", actor.name) in nodes]
        total = sum(actor.latency for actor in inside)
        for actor in inside:
            joined = [name for name in actor.reads if ("channel", name) in nodes]
            if len(joined) > 1:
                room |= dict.fromkeys(joined, total)
    return room
