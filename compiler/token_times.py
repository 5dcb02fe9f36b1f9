"""When each token of a streamed network moves, as the least solution of inequalities.

An actor's steps follow each other by at least their distance, a token is read a cycle after it was
written at the earliest, and token number j of a channel of depth d is written a cycle after number
j - d was read. The earliest times are the least ones that fulfil all of these; each actor's are a
running maximum over its steps, so that actors are settled one by one, with whole arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxloom.dataflow import Actor, Dataflow

Depths = Mapping[str, int | None]
"""By channel; None, or no entry, is as deep as it takes."""

Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """The steps of an actor in which it reads, writes, begins or ends a sample.

    at: their numbers over all samples; ends: positions in `at` of the samples' last steps; reads,
    writes: positions of the tokens of each channel.
    """

    actor: Actor
    at: Times
    ends: Times
    reads: Mapping[str, Times]
    writes: Mapping[str, Times]

    @classmethod
    def of(cls, actor: Actor, samples: int) -> "Timeline":
        """Of so many samples, one behind the other."""
        reads = {name: np.asarray(at) * actor.interval for name, at in actor.reads.items()}
        writes = {
            name: np.asarray(at) * actor.interval + actor.latency
            for name, at in actor.writes.items()
        }
        first, last = np.array([0]), np.array([actor.steps - 1])
        at = np.unique(np.concatenate([first, *reads.values(), *writes.values(), last]))
        numbers = np.arange(samples)[:, None]

        def positions(steps: Times) -> Times:
            return (np.searchsorted(at, steps) + numbers * len(at)).reshape(-1)

        return cls(
            actor,
            (at + numbers * actor.steps).reshape(-1),
            positions(last),
            {name: positions(steps) for name, steps in reads.items()},
            {name: positions(steps) for name, steps in writes.items()},
        )


class TokenTimes:
    """Lower bounds of the times of all steps that become the times themselves.

    late: by actor, how many cycles each step of its timeline is behind its number. A copy shares
    arrays, none of which is ever changed.
    """

    def __init__(self, graph: Dataflow, samples: int) -> None:
        self.graph = graph
        self.samples = samples
        self.lines = {actor.name: Timeline.of(actor, samples) for actor in graph.actors}
        self.place = {actor.name: place for place, actor in enumerate(graph.actors)}
        self.late = {name: np.zeros(len(line.at), np.int64) for name, line in self.lines.items()}
        self.written: dict[str, Times] = {}
        self.read: dict[str, Times] = {}
        for actor in graph.actors:
            self._settle(actor, {})

    def copy(self) -> "TokenTimes":
        """The same times, to go on from."""
        other = object.__new__(TokenTimes)
        other.__dict__ = {**self.__dict__}
        other.late, other.written, other.read = {**self.late}, {**self.written}, {**self.read}
        return other

    @property
    def finished(self) -> Times:
        """The cycle of the last step of each sample."""
        ends = [(line.at + self.late[name])[line.ends] for name, line in self.lines.items()]
        result: Times = np.max(ends, axis=0)
        return result

    def high_water(self, channel: str) -> int:
        """The least depth that changes none of these times."""
        read_before = np.searchsorted(self.read[channel], self.written[channel])
        return int((np.arange(len(read_before)) - read_before).max()) + 1

    def settle(self, depths: Depths, changed: str, ends: Times, effort: int) -> bool | None:
        """Raise times until they fulfil everything; whether no sample ends later than in `ends`.

        changed: the channel that became less deep, all else was settled. None where it takes more
        than `effort` actors: circles of full channels may raise times a cycle at a time.
        """
        dirty = {self.graph.writer[changed].name}
        backwards = True
        while dirty:
            for actor in reversed(self.graph.actors) if backwards else self.graph.actors:
                if actor.name not in dirty:
                    continue
                if effort == 0:
                    return None
                effort -= 1
                dirty.discard(actor.name)
                dirty |= self._settle(actor, depths)
                line = self.lines[actor.name]
                if ((line.at + self.late[actor.name])[line.ends] > ends).any():
                    return False
            backwards = not backwards
        return True

    def adopt(
        self, depths: Depths, written: Mapping[str, Times], read: Mapping[str, Times]
    ) -> None:
        """Take the times of a run."""
        self.written, self.read = {**written}, {**read}
        for actor in self.graph.actors:
            self._settle(actor, depths)

    def _settle(self, actor: Actor, depths: Depths) -> set[str]:
        """Raise the times of one actor; the names of those whose times no longer fit."""
        line = self.lines[actor.name]
        late = self.late[actor.name].copy()
        for name, at in line.reads.items():
            late[at] = np.maximum(late[at], self.written[name] + 1 - line.at[at])
        for name, at in line.writes.items():
            depth = depths.get(name)
            if depth is not None and depth < len(at) and name in self.read:
                later = at[depth:]
                room = self.read[name][:-depth] + 1
                late[later] = np.maximum(late[later], room - line.at[later])
        np.maximum.accumulate(late, out=late)
        self.late[actor.name] = late
        times = line.at + late
        wrong = set()
        for name, at in line.writes.items():
            self.written[name] = times[at]
            if name in self.read and (self.read[name] <= self.written[name]).any():
                wrong.add(self.graph.reader[name].name)
        for name, at in line.reads.items():
            self.read[name] = times[at]
            depth = depths.get(name)
            if (
                depth is not None
                and depth < len(at)
                and (self.written[name][depth:] <= self.read[name][:-depth]).any()
            ):
                wrong.add(self.graph.writer[name].name)
        return wrong
