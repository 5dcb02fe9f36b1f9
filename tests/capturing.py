"""Captures that tests share, and capture without asking what can be lowered."""

from functools import cache, partial

from torch.fx import GraphModule

from fxloom.frontend import capture
from tests.models import make

capture_anything = partial(capture, supported=lambda node: None)


@cache
def captured(name: str) -> GraphModule:
    """The graph of a case of tests/models.py, for whoever leaves it as it is, as passes do.

    Random numbers go on from where `make(name)` left them, whether or not it was captured before.
    """
    model, x = make(name)
    return capture(model, tuple(t[:2] for t in x))
