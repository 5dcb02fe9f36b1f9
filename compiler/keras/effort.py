"""How much a model of Keras may compute for one sample, counted while it runs.

A few bytes of a config can ask for any number of steps: layers in a long row, a recurrence over a
long sequence, models that call models that call models. All of them are written out in the graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fxloom.errors import CaptureError

MAX_CALLS = 5_000
"""Calls of layers; a step of a recurrence counts as STEP_CALLS of them."""
STEP_CALLS = 5

_calls: ContextVar[int | None] = ContextVar("calls", default=None)


@contextmanager
def counted() -> Iterator[None]:
    """Begin to count, unless a model around this one has begun."""
    if _calls.get() is not None:
        yield
        return
    token = _calls.set(0)
    try:
        yield
    finally:
        _calls.reset(token)


def spend(calls: int) -> None:
    """Count calls of layers. Raises CaptureError beyond MAX_CALLS."""
    total = (_calls.get() or 0) + calls
    if total > MAX_CALLS:
        raise CaptureError(
            f"the model calls layers more than {MAX_CALLS:,} times for one sample (a step of a "
            f"recurrent layer is {STEP_CALLS} calls). All calls are written out in hardware: "
            "required fewer layers, or shorter sequences"
        )
    _calls.set(total)
