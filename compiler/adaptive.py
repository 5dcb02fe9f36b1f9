"""The windows of adaptive pools, which may differ in size, as windows of one size."""

from itertools import pairwise
from typing import NamedTuple


class Windows(NamedTuple):
    """Windows of `kernel` positions, `stride` apart, of an axis gathered at `indices`.

    indices: None where nothing has to be gathered.
    """

    kernel: int
    stride: int
    indices: list[int] | None


def windows(size: int, count: int, filler: int | None = None) -> Windows:
    """The count windows that PyTorch lays over size positions.

    Window i reaches from floor(i * size / count) to ceil((i + 1) * size / count). Where they are
    not equally long and far apart, they are laid side by side, and short ones are filled up with
    the position filler, or else with their own last one.
    """
    spans = [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    longest = max(map(len, spans))
    steps = {b.start - a.start for a, b in pairwise(spans)} or {longest}
    if len(steps) == 1 and {len(span) for span in spans} == {longest} and steps != {0}:
        return Windows(longest, steps.pop(), None)
    indices: list[int] = []
    for span in spans:
        last = span[-1] if filler is None else filler
        indices += [*span, *[last] * (longest - len(span))]
    return Windows(longest, longest, indices)
