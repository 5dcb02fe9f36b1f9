"""What a kernel for products with a constant matrix says of itself.

A kernel is chosen, built and counted by one object, so that choice, project and estimate cannot
disagree: what it would take (`offer`), what it costs (`cost`), when it reads and writes a stream
(`rhythm`). The C++ of each is in hw_templates, the text that configures it in
backends/hls4ml/kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from fxloom.allotment import Allotment
from fxloom.matrices import Matrix
from fxloom.target import LayerSettings

if TYPE_CHECKING:
    from fxloom.costs import Cost
    from fxloom.product_costs import Product


@dataclass(frozen=True, slots=True)
class Offer:
    """What a kernel would make of a product.

    multipliers: side by side; reuse: steps from one position to the next; bits: that it keeps in
    memory; products: multiplications for one position; luts: with which it is weighed against the
    dense kernel, the fewest of the estimate or the likely ones; lanes: how many parts work side by
    side; what: all that for people, who compare it with the dense kernel; note: why the reuse
    factor is not the one asked for; form: which of the kernel's forms, where it has several.
    """

    multipliers: int
    reuse: int
    bits: int
    products: int
    luts: float
    lanes: int
    what: str
    note: str = ""
    form: str = ""


def counted(multipliers: int) -> str:
    """For people."""
    return f"{multipliers:,} multiplier{'s' if multipliers != 1 else ''}"


def enough(reuse: int, wanted: int, multipliers: int) -> str:
    """The note of an offer: why its reuse factor is not the one asked for; empty if it is."""
    if reuse == wanted:
        return ""
    return f"reuse {wanted} asked for, {reuse} is enough for {counted(multipliers)}"


@dataclass(frozen=True, slots=True)
class Declined:
    """That a kernel cannot compute a product, and why.

    required: what it needs, after "requires"; got: what there is.
    """

    required: str
    got: str


class Rhythm(NamedTuple):
    """When the first step of a position is, and its result: in steps.

    steps: from one position to the next; result: that after which the result of a position is
    written, counted from its first; ahead: positions before the first of a row of windows, in which
    that row's first window comes in.
    """

    steps: int
    result: int
    ahead: int


class MatrixKernel(Protocol):
    """A kernel of fxloom for products with a constant matrix."""

    name: ClassVar[str]

    def offer(self, matrix: Matrix, wanted: LayerSettings) -> Offer | Declined:
        """What it would make of a product, or why it cannot."""

    def dense_is_better(
        self, matrix: Matrix, wanted: LayerSettings, dense: Allotment
    ) -> str | None:
        """Why this kernel is not even considered where nobody asked for it; empty if it is, None
        where the weights are nothing for it, so that there is nothing to say.

        Must be quick: it is asked before `offer` for every layer of every target.
        """

    def cost(self, product: Product) -> Cost:
        """Resources, latency and interval of a product that it was allotted."""

    def rhythm(self, matrix: Matrix, given: Allotment) -> Rhythm:
        """When it reads and writes a stream."""
