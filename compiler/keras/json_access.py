"""JSON from outside, read with limits and looked into with errors that say where."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fxloom.errors import CaptureError

MAX_JSON = 2**24
"""Bytes: a model of a thousand layers has a million; parsed, JSON takes up to 22 times its size."""

MAX_DEPTH = 128
"""Lists and dictionaries within one another; a nested model takes three."""


def parsed(text: bytes | str, place: str, limit: int = MAX_JSON) -> Any:
    """JSON of a bounded size and depth. Raises CaptureError naming the place."""
    if len(text) > limit:
        raise CaptureError(f"{place}: {len(text):,} bytes of JSON; at most {limit:,} are read")
    try:
        found = json.loads(text)
    except RecursionError:
        raise too_deep(place) from None
    except ValueError as fault:  # no JSON, no UTF-8, a number of too many digits
        raise CaptureError(f"{place}: damaged: {fault}") from None
    check_depth(found, place)
    return found


def check_depth(value: Any, place: str) -> None:
    """Raise CaptureError where lists and dictionaries are nested beyond MAX_DEPTH."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise too_deep(place)
        deeper: list[Any] = []
        for each in level:
            if isinstance(each, Mapping):
                deeper += [x for x in each.values() if isinstance(x, Mapping | list | tuple)]
            elif isinstance(each, list | tuple):
                deeper += [x for x in each if isinstance(x, Mapping | list | tuple)]
        level, depth = deeper, depth + 1


def too_deep(place: str) -> CaptureError:
    return CaptureError(f"{place}: lists and dictionaries are nested more than {MAX_DEPTH} deep")


def shown(value: Any) -> str:
    """A value as errors show it."""
    if isinstance(value, Mapping | list | tuple):
        return f"a {'dictionary' if isinstance(value, Mapping) else 'list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def mapping(value: Any, place: str) -> Mapping[str, Any]:
    """The value, a dictionary by texts. Raises CaptureError for anything else."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise CaptureError(f"{place}: required a dictionary, got {shown(value)}")
    return value


def sequence(value: Any, place: str) -> Sequence[Any]:
    """The value, a list. Raises CaptureError for anything else."""
    if not isinstance(value, list | tuple):
        raise CaptureError(f"{place}: required a list, got {shown(value)}")
    return value


def text(value: Any, place: str) -> str:
    """The value, a text that is not empty. Raises CaptureError for anything else."""
    if not isinstance(value, str) or not value or len(value) > 1000:
        raise CaptureError(f"{place}: required a name, got {shown(value)}")
    return value


def index(value: Any, place: str) -> int:
    """The value, an integer from 0 up. Raises CaptureError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise CaptureError(f"{place}: required an index, got {shown(value)}")
    return value
