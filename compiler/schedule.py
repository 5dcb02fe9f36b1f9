"""The schedule of a streamed network: when each token moves, or which actors wait for ever.

The rules are those of fxloom.dataflow. Without bounds on its FIFOs a network cannot get stuck and
every actor is done at once with whole arrays; with bounds, tokens are followed one by one.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from fxloom.dataflow import Dataflow
from fxloom.errors import FxloomError
from fxloom.token_times import Depths, Timeline, Times, TokenTimes


class Wait(NamedTuple):
    """What an actor waits for: a token of an empty channel, or room in a full one."""

    channel: str
    state: Literal["empty", "full"]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What became of some samples, one right behind the other.

    finished: the cycle, from 0, of the last step of each sample; written, read: cycles in which
    the tokens of each channel moved; stuck: of a deadlock, what each actor that is not done waits
    for. With a deadlock nothing is finished, and times end where all movement does.
    """

    finished: list[int]
    written: Mapping[str, Times]
    read: Mapping[str, Times]
    stuck: Mapping[str, Wait]

    def most_held(self, channel: str) -> int:
        """Tokens in a channel at the end of the cycle in which there are most."""
        written = self.written[channel]
        gone = np.searchsorted(self.read[channel], written, side="right")
        return int((np.arange(1, len(written) + 1) - gone).max())

    def require_end(self) -> "Run":
        """This run; FxloomError, naming actors and channels, where it is a deadlock."""
        if self.stuck:
            waiting = "; ".join(
                f"{name} waits for {'a token of' if wait.state == 'empty' else 'room in'} "
                f"{wait.channel}"
                for name, wait in self.stuck.items()
            )
            raise FxloomError(f"deadlock: {waiting}. Deeper FIFOs are required where there is none")
        return self


def simulate(graph: Dataflow, depths: Depths, samples: int = 1) -> Run:
    """A run of so many samples. depths: of channels, None or no entry for one without bound.

    Raises FxloomError for an unknown channel and for a depth below 1.
    """
    unknown = [name for name in depths if name not in graph.writer]
    senseless = [name for name, depth in depths.items() if depth is not None and depth < 1]
    if unknown or senseless:
        raise FxloomError(
            f"depths: required channels of the network and at least 1, got {unknown + senseless}"
        )
    if all(depth is None for depth in depths.values()):
        times = TokenTimes(graph, samples)
        return Run(times.finished.tolist(), times.written, times.read, {})
    return _follow(graph, depths, samples)


@dataclass(slots=True)
class _Port:
    """One end of a channel. own: cycles of what moved here; other: of what moved at the other end;
    ahead: token number j needs that number j + ahead has moved there."""

    channel: str
    reads: bool
    own: list[int]
    other: list[int]
    ahead: int

    @property
    def blocked(self) -> bool:
        return len(self.own) + self.ahead >= len(self.other)


class _Walker:
    """An actor on its way through its timeline.

    gaps: cycles from step to step; moves: for each step, the number of one of the few sets of
    ports that take part in one; times: cycles of the steps behind it; time: of the last.
    """

    def __init__(self, line: Timeline, ports: Sequence[_Port]) -> None:
        self.gaps: list[int] = np.diff(line.at, prepend=-1).tolist()
        taking_part = np.zeros((len(ports), len(line.at)), bool)
        for row, port in enumerate(ports):
            taking_part[row, (line.reads if port.reads else line.writes)[port.channel]] = True
        sets, moves = np.unique(taking_part, axis=1, return_inverse=True)
        self.moves: list[int] = moves.reshape(-1).tolist()
        self.ports = [
            tuple(port for port, is_in in zip(ports, column, strict=True) if is_in)
            for column in sets.T
        ]
        self.ends = line.ends
        self.times: list[int] = []
        self.time = -1

    @property
    def is_done(self) -> bool:
        return len(self.times) == len(self.gaps)

    def walk(self) -> bool:
        """Take all steps that can be dated now; whether there was one."""
        begin, time = len(self.times), self.time
        for step in range(begin, len(self.gaps)):
            at = time + self.gaps[step]
            ports = self.ports[self.moves[step]]
            for port in ports:
                token = len(port.own) + port.ahead
                if token < 0:
                    continue
                if token >= len(port.other):
                    break
                at = max(at, port.other[token] + 1)
            else:
                for port in ports:
                    port.own.append(at)
                self.times.append(at)
                self.time = time = at
                continue
            break
        return len(self.times) > begin

    def wait(self) -> Wait:
        """What its next step waits for."""
        ports = self.ports[self.moves[len(self.times)]]
        first = next(port for port in ports if port.blocked)
        return Wait(first.channel, "empty" if first.reads else "full")


def _follow(graph: Dataflow, depths: Depths, samples: int) -> Run:
    """Date tokens one by one, each actor as far as its FIFOs let it."""
    written: dict[str, list[int]] = {name: [] for name in graph.channels}
    read: dict[str, list[int]] = {name: [] for name in graph.channels}
    total = {name: graph.tokens(name) * samples for name in graph.channels}
    walkers = {}
    for actor in graph.actors:
        ports = [_Port(name, True, read[name], written[name], 0) for name in actor.reads]
        for name in actor.writes:
            depth = depths.get(name)
            ahead = -(total[name] if depth is None else depth)
            ports.append(_Port(name, False, written[name], read[name], ahead))
        walkers[actor.name] = _Walker(Timeline.of(actor, samples), ports)
    queue = deque(graph.actors)
    queued = {actor.name for actor in queue}
    while queue:
        actor = queue.popleft()
        queued.discard(actor.name)
        if not walkers[actor.name].walk():
            continue
        ends = [graph.reader[name] for name in actor.writes]
        for other in (*ends, *(graph.writer[name] for name in actor.reads)):
            if other.name not in queued:
                queued.add(other.name)
                queue.append(other)
    stuck = {name: walker.wait() for name, walker in walkers.items() if not walker.is_done}
    finished = []
    if not stuck:
        lasts = [np.array(walker.times)[walker.ends] for walker in walkers.values()]
        finished = np.max(lasts, axis=0).tolist()
    return Run(finished, _arrays(written), _arrays(read), stuck)


def _arrays(times: Mapping[str, list[int]]) -> dict[str, Times]:
    return {name: np.array(at, np.int64) for name, at in times.items()}
