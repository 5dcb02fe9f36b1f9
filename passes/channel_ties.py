"""Which channels of a graph must be removed together, and which must stay.

Every entry along every dimension of a tensor has a number. Operations tie numbers together: a sum
ties the channels of its arguments, a layer its weights to what it reads and gives. What is tied is
one unit and shrinks together; a unit that reaches an input, an output or an operation that cannot
lose entries is pinned, with the reason. Numbers belong to stored tensors as well as to values, so
tied weights, shared modules and the steps of a recurrence need no rule of their own.

The idea of a dependency graph: Fang et al. 2023, arXiv 2301.12900.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.graph import BATCH, constant

Ids = NDArray[np.int64]
Value = tuple[Ids, ...]
"""The numbers along every dimension; FIXED where an entry must stay. A dimension that holds the
batch has the entries of one sample."""

FIXED = 0


def sizes_of(node: Node) -> list[int]:
    """The shape of a value for one sample: 4 * BATCH counts as 4."""
    value = node.meta["val"]
    return [n // BATCH if n and n % BATCH == 0 else n for n in map(int, value.shape)]


def fixed(size: int) -> Ids:
    """Entries of a dimension that must stay."""
    return np.full(size, FIXED, dtype=np.int64)


def storage_key(name: str, tensor: Tensor) -> Hashable:
    """The same for all names of one tensor."""
    if not tensor.numel() or tensor.is_meta:
        return name if not tensor.numel() else id(tensor)
    where = (tensor.data_ptr(), tensor.storage_offset(), tensor.dtype)
    return (*where, tuple(tensor.shape), tensor.stride())


class Ties:
    """Disjoint sets of numbers, with the reason why a set must stay."""

    def __init__(self) -> None:
        self._parents = [FIXED]
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Ids:
        """New numbers. A single entry cannot be removed, so it has none."""
        if count <= 1:
            return fixed(count)
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def root(self, number: int) -> int:
        """The number that stands for the whole set."""
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def roots(self, ids: Ids) -> Ids:
        """`root` of each number; FIXED where its set must stay."""
        found = (self.root(int(number)) for number in ids.flat)
        kept = (FIXED if root in self._reasons else root for root in found)
        return np.fromiter(kept, np.int64, ids.size).reshape(ids.shape)

    def tie(self, first: Ids, second: Ids, reason: str) -> None:
        """first[i] and second[i] go together. reason: why, where one of the two must stay."""
        assert first.shape == second.shape, (first.shape, second.shape)
        for a, b in zip(first.flat, second.flat, strict=True):
            if a == b:
                continue
            if a == FIXED or b == FIXED:
                self._pin(int(a or b), reason)
                continue
            one, other = self.root(int(a)), self.root(int(b))
            if one == other:
                continue
            low, high = min(one, other), max(one, other)
            self._parents[high] = low
            if (held := self._reasons.pop(high, None)) is not None:
                self._reasons.setdefault(low, held)

    def pin(self, ids: Ids, reason: str) -> None:
        """These numbers must stay."""
        for number in np.unique(ids):
            if number != FIXED:
                self._pin(int(number), reason)

    def _pin(self, number: int, reason: str) -> None:
        self._reasons.setdefault(self.root(number), reason)

    def is_fixed(self, ids: Ids) -> bool:
        """Whether all of these must stay."""
        return not self.roots(ids).any()

    def reason(self, ids: Ids) -> str:
        """Why the first of these that must stay does; "" where all may go."""
        for number in ids.flat:
            if number == FIXED:
                return "it has a single channel"
            root = self.root(int(number))
            if root in self._reasons:
                return self._reasons[root]
        return ""


@dataclass(frozen=True)
class Choice:
    """A reshape or a grouped convolution that can shrink in one of several ways.

    ids: the numbers that can be removed in the way that was taken. count: of ways.
    """

    node: Node
    part: int
    taken: int
    count: int
    ids: Ids


@dataclass
class Channels:
    """The numbers of every value of a graph, as far as rules have come.

    taken: for choices, which way; the first where nothing is said.
    """

    module: fx.GraphModule
    taken: Mapping[tuple[Node, int], int] = field(default_factory=dict)
    ties: Ties = field(default_factory=Ties)
    values: dict[Node, Value] = field(default_factory=dict)
    tensors: dict[Hashable, Value] = field(default_factory=dict)
    computed: set[Node] = field(default_factory=set)
    choices: list[Choice] = field(default_factory=list)
    ways: dict[Node, int] = field(default_factory=dict)
    """Of grouped convolutions: the way taken."""

    def of_tensor(self, node: Node) -> Value:
        """The numbers of a stored tensor, the same wherever it is read and whatever its name."""
        tensor = constant(self.module, node.target)
        key = storage_key(str(node.target), tensor)
        if key not in self.tensors:
            self.tensors[key] = tuple(self.ties.fresh(n) for n in tensor.shape)
        return self.tensors[key]

    def choose(self, node: Node, part: int, options: list[Ids]) -> int:
        """Which of several ways to shrink is taken. part: tells choices of one node apart."""
        taken = self.taken.get((node, part), 0)
        self.choices.append(Choice(node, part, taken, len(options), options[taken]))
        return taken
