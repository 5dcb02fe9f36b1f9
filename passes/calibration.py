"""Calibration: what values flow through a float graph, and which binary point fits them best.

Everything streams: one pass over the data for the ranges, a second for the squared errors of the
few candidate binary points, in memory that does not grow with the data. Batches are small enough
for the allocator to keep their memory, and what is done to them several times is done in blocks
that stay in the cache: on large models fresh pages cost more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.errors import DataError
from fxloom.fixed_point import FixedPoint
from fxloom.graph import BATCH, describe
from fxloom.quantized_ops import blocks, times_power

Batch = tuple[Tensor, ...]

CANDIDATES = 4
"""Binary points tried by MSE: the one that covers the range, and up to three that clip."""


BATCH_ELEMENTS = 2**22
"""Values of a batch's largest tensor, 16 MB: for larger ones the C library asks for fresh pages."""

SAMPLED_BLOCKS = 16
"""Blocks of a large tensor that say which candidate to try first."""

MOST_SAMPLES = 256
"""Samples of a batch of a small model."""

NEGLIGIBLE = 2.0**-200
"""Values that are zero for any format; a dead channel must not choose a binary point."""


@dataclass(slots=True)
class Range:
    """Smallest and largest value seen, and how many values."""

    low: float = float("inf")
    high: float = float("-inf")

    def see(self, x: Tensor) -> None:
        """Widen to the values of a tensor."""
        low, high = torch.aminmax(x)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))


@dataclass(slots=True)
class Means:
    """Mean of every channel in float64. axis: where the channels are."""

    axis: int
    total: Tensor | None = None
    count: int = 0

    def see(self, x: Tensor) -> None:
        """Add the values of a tensor."""
        axes = [axis for axis in range(x.dim()) if axis != self.axis]
        # torch sums a float64 copy: of some samples at a time, lest it takes fresh pages.
        size = max(BATCH_ELEMENTS // 8 * len(x) // x.numel(), 1)
        for start in range(0, len(x), size):
            channels = x[start : start + size].sum(dim=axes, dtype=torch.float64)
            self.total = channels if self.total is None else self.total + channels
        self.count += x.numel() // x.shape[self.axis]

    @property
    def mean(self) -> Tensor:
        """Mean of every channel, float64."""
        assert self.total is not None
        return self.total / self.count


@dataclass(slots=True)
class Errors:
    """Sum of squared rounding errors for each candidate format."""

    candidates: Sequence[FixedPoint]
    sums: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sums = [0.0] * len(self.candidates)

    def see(self, x: Tensor) -> None:
        """Add the errors of a tensor under every candidate."""
        for block in blocks(x):
            for index, candidate in enumerate(self.candidates):
                self.sums[index] += squared_error(block, candidate)

    @property
    def best(self) -> FixedPoint:
        """The candidate with the least error; the widest range on a tie."""
        return self.candidates[min(range(len(self.sums)), key=self.sums.__getitem__)]


def least_error(x: Tensor, shortlist: Sequence[FixedPoint]) -> FixedPoint:
    """The format that Errors would choose for x, without adding up what cannot win any more.

    Errors only grow, and one that exceeds the least total known is not added up to its end. The
    candidate that is best on a few blocks comes first, so that most others stop early: exact, and
    hardly slower for 16 candidates than for four.
    """
    parts = blocks(x)
    if len(parts) < 4 * SAMPLED_BLOCKS or len(shortlist) == 1:
        errors = Errors(shortlist)
        errors.see(x)
        return errors.best
    sample = parts[:: len(parts) // SAMPLED_BLOCKS]
    promise = [sum(squared_error(part, to) for part in sample) for to in shortlist]
    least, best = float("inf"), len(shortlist)
    for index in sorted(range(len(shortlist)), key=promise.__getitem__):
        total = 0.0
        for part in parts:  # in the order of Errors: the same sum, bit for bit
            total += squared_error(part, shortlist[index])
            if total > least:
                break
        else:
            least, best = min((least, best), (total, index))
    return shortlist[best]


def batch_size(module: fx.GraphModule) -> int:
    """Samples of a batch for which no tensor of the graph is larger than BATCH_ELEMENTS."""
    values = [node.meta.get("val") for node in module.graph.nodes if node.op != "get_attr"]
    largest = max((x.numel() for x in values if isinstance(x, Tensor)), default=1)
    return min(max(BATCH_ELEMENTS * BATCH // max(largest, 1), 1), MOST_SAMPLES)


def squared_error(x: Tensor, to: FixedPoint) -> float:
    """Sum of squared differences between x and x rounded to nearest and saturated."""
    scaled = times_power(x, to.fraction)
    error = torch.round(scaled).clamp_(to.lo, to.hi).sub_(scaled)
    # Squared in units of the step: the squares of very small and large values leave float32.
    return float(torch.sum(error.square_(), dtype=torch.float64)) * to.step**2


def covering(low: float, high: float, width: int, signed: bool) -> FixedPoint:
    """The finest format of that width whose range, rounded to nearest, covers low to high."""
    largest = max(abs(low), abs(high))
    if largest < NEGLIGIBLE:
        return FixedPoint(width, 1, signed)
    # Start where the largest value certainly fits and refine while it still does.
    fraction = width - 2 - _exponent(largest)
    while True:
        finer = FixedPoint(width, width - (fraction + 1), signed)
        if (
            round(low * 2.0**finer.fraction) < finer.lo
            or round(high * 2.0**finer.fraction) > finer.hi
        ):
            return FixedPoint(width, width - fraction, signed)
        fraction += 1


def _exponent(x: float) -> int:
    """Smallest e with x < 2**e."""
    return int(torch.frexp(torch.tensor(x, dtype=torch.float64)).exponent)


def candidates(low: float, high: float, width: int, signed: bool) -> list[FixedPoint]:
    """The covering format and finer ones that clip the largest values."""
    widest = covering(low, high, width, signed)
    return [FixedPoint(width, widest.integer - finer, signed) for finer in range(CANDIDATES)]


class Observer(fx.Interpreter):
    """Runs a graph and shows the value of every watched node to its observers."""

    def __init__(self, module: fx.GraphModule, watched: Mapping[Node, Sequence[Any]]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would add lines of the graph to our messages
        self._watched = watched

    def run_node(self, n: Node) -> Any:
        """The node's value, observed."""
        value = super().run_node(n)
        observers = self._watched.get(n)
        if observers:
            # The sum is finite wherever all values are, overflow aside, and needs no second array.
            if not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
                raise DataError(
                    f"{describe(n) if n.op == 'call_function' else n.target}: the float model "
                    "gives NaN or infinity on the calibration data. Check its weights and the data"
                )
            for observer in observers:
                observer.see(value)
        return value


def observe(
    module: fx.GraphModule, batches: Iterable[Batch], watched: Mapping[Node, Sequence[Any]]
) -> None:
    """Run all batches through the graph."""
    observer = Observer(module, watched)
    with torch.inference_mode():
        for batch in batches:
            observer.run(*batch)
