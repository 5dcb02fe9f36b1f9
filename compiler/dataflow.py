"""A streamed network as actors that pass tokens through FIFOs.

Time is in cycles. An actor fires `firings` times a sample. Firing number k belongs to step
k * interval of the actor's pipeline, in which it reads one token of every channel whose pattern in
`reads` has k; `latency` steps later it writes one token to every channel whose pattern in `writes`
has k. In every cycle an actor takes its next step, with all reads and writes of that step, or it
waits:

- an empty FIFO blocks its reader, a full one its writer; the whole pipeline waits, so that tokens
  further on in it wait as well: a stalled pipeline (AMD UG1399). One that drains waits for less: it
  is not slower, and where this one does not get stuck it does not either
- what is written in one cycle can be read in the next, and what is read in one cycle makes room in
  the next: nothing passes a FIFO in the same cycle
- a FIFO is read once and written once a cycle, for a pattern has each firing once
- a sample takes an actor (firings - 1) * interval + latency + 1 steps; the next one begins after
  the last of them, as a loop ends before its function is called again

Inputs and outputs of the network are no channels: outside there is always a token and always room.
When each token moves does not depend on the order in which actors are looked at: nobody can take
away what another one waits for, so every step happens as early as it can.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import numpy.typing as npt

from fxloom.errors import FxloomError

Pattern = npt.NDArray[np.int64]
"""Numbers of firings, rising."""


@dataclass(frozen=True, slots=True, eq=False)
class Actor:
    """A process. reads, writes: patterns by the names of channels.

    Raises FxloomError for a senseless number or pattern.
    """

    name: str
    firings: int
    interval: int
    latency: int
    reads: Mapping[str, Sequence[int] | Pattern] = field(default_factory=dict)
    writes: Mapping[str, Sequence[int] | Pattern] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.firings < 1 or self.interval < 1 or self.latency < 0:
            raise FxloomError(
                f"actor {self.name}: required at least one firing, an interval of at least 1 and a "
                f"latency of at least 0, got {self.firings}, {self.interval} and {self.latency}"
            )
        for side in ("reads", "writes"):
            patterns = {name: _pattern(at) for name, at in getattr(self, side).items()}
            object.__setattr__(self, side, patterns)
            for name, at in patterns.items():
                inside = len(at) and at[0] >= 0 and at[-1] < self.firings
                if not inside or (np.diff(at) <= 0).any():
                    raise FxloomError(
                        f"actor {self.name}, channel {name}: required rising numbers of its "
                        f"{self.firings} firings, at least one"
                    )

    @property
    def steps(self) -> int:
        """Cycles that a sample takes where nothing has to wait."""
        return (self.firings - 1) * self.interval + self.latency + 1


def _pattern(at: Sequence[int] | Pattern) -> Pattern:
    return np.asarray(at, np.int64)


class Dataflow:
    """Actors, in an order in which tokens flow, and who writes and reads each channel.

    Raises FxloomError where a channel has not one writer and one reader that move equally many
    tokens a sample, and where tokens go round in a circle.
    """

    def __init__(self, actors: Sequence[Actor]) -> None:
        self.writer = {name: actor for actor in actors for name in actor.writes}
        self.reader = {name: actor for actor in actors for name in actor.reads}
        self._check(actors)
        graph: nx.DiGraph = nx.DiGraph()
        graph.add_nodes_from(actor.name for actor in actors)
        graph.add_edges_from(
            (writer.name, self.reader[name].name) for name, writer in self.writer.items()
        )
        by_name = {actor.name: actor for actor in actors}
        try:
            self.actors = tuple(by_name[name] for name in nx.topological_sort(graph))
        except nx.NetworkXUnfeasible:
            circle = " to ".join(edge[0] for edge in nx.find_cycle(graph))
            raise FxloomError(
                f"dataflow: required a network without feedback, got a circle: {circle}"
            ) from None
        self.channels = tuple(name for actor in self.actors for name in actor.writes)

    def tokens(self, channel: str) -> int:
        """How many go through a channel for one sample."""
        return len(self.writer[channel].writes[channel])

    def _check(self, actors: Sequence[Actor]) -> None:
        names = Counter(actor.name for actor in actors)
        writers = Counter(name for actor in actors for name in actor.writes)
        readers = Counter(name for actor in actors for name in actor.reads)
        problems = [f"two actors are named {name}" for name, count in names.items() if count > 1]
        for name in dict.fromkeys([*writers, *readers]):
            if (writers[name], readers[name]) != (1, 1):
                problems.append(
                    f"channel {name}: required one writer and one reader, got {writers[name]} and "
                    f"{readers[name]}"
                )
            elif self.tokens(name) != len(self.reader[name].reads[name]):
                problems.append(
                    f"channel {name}: {self.tokens(name)} tokens are written, "
                    f"{len(self.reader[name].reads[name])} are read"
                )
        if problems:
            raise FxloomError("dataflow: " + "; ".join(problems))
