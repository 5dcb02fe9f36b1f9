"""Reading other people's files: limits, numbers and XML that can do nothing but be data.

A report is read whole or refused. Faults are FxloomErrors without the file's name, which the
reader of the file puts in front.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from fxloom.errors import FxloomError

MAX_BYTES = 2**26
"""A csynth.xml of 2,000 modules has 4 MB."""

MAX_COUNT = 10**9
"""More resources or cycles than any device has or anybody waits for."""

MAX_DEPTH = 200
MAX_NS = 1e6

ABSENT = frozenset({"", "-", "?", "undef", "inf", "NA", "N/A", "None"})
"""What the tools write where they have no number."""

_COUNT = re.compile(r"\d{1,3}(,\d{3})+|\d+", re.ASCII)
_DECIMAL = re.compile(r"\d+(\.\d*)?([eE][-+]?\d{1,3})?", re.ASCII)


def read_text(path: Path) -> str:
    """A file as text; what is no UTF-8 becomes a replacement character. Raises FxloomError."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as fault:
        raise FxloomError(f"cannot be read: {fault.strerror}") from None
    if len(data) > MAX_BYTES:
        raise FxloomError(f"required at most {MAX_BYTES:,} bytes, which no report exceeds")
    return data.decode("utf-8-sig", errors="replace")


def whole_lines(text: str) -> list[str]:
    """The lines that were written to their end."""
    return [line.rstrip("\r") for line in text.split("\n")[:-1]]


def count(text: str | None, what: str) -> int | None:
    """A count of 0 to MAX_COUNT; None where the tool had none. Raises FxloomError for all else."""
    stripped = (text or "").strip()
    if stripped in ABSENT:
        return None
    digits = stripped.replace(",", "") if _COUNT.fullmatch(stripped) else ""
    if not digits or len(digits) > 12 or int(digits) > MAX_COUNT:
        raise FxloomError(f"{what}: required a count of 0 to {MAX_COUNT:,}, got {shown(stripped)}")
    return int(digits)


def known(text: str | None, what: str) -> int:
    """A count that must be there. Raises FxloomError."""
    value = count(text, what)
    if value is None:
        raise FxloomError(f"{what}: required a count, got {shown((text or '').strip())}")
    return value


def decimal(text: str | None, what: str, most: float) -> float | None:
    """A positive number up to `most`; None where the tool had none. Raises FxloomError."""
    stripped = (text or "").strip()
    if stripped in ABSENT:
        return None
    value = float(stripped) if _DECIMAL.fullmatch(stripped) and len(stripped) < 40 else 0.0
    if not 0 < value <= most:
        raise FxloomError(f"{what}: required a number from 0 to {most:g}, got {shown(text)}")
    return value


def cycles(least: int | None, most: int | None, what: str) -> tuple[int, int] | None:
    """Fewest and most cycles; None where either is unknown. Raises FxloomError."""
    if least is None or most is None:
        return None
    if least > most:
        raise FxloomError(f"{what}: required the fewest before the most, got {least} and {most}")
    return least, most


def shown(value: object) -> str:
    """A value in a message: not longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_xml(text: str) -> Element:
    """The root element of a document without a document type.

    Entities, which could expand without end or name other files, need a document type: it is
    refused where it begins. Raises FxloomError, also for what is not well-formed.
    """
    depth = 0
    builder = TreeBuilder()

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise FxloomError(f"required at most {MAX_DEPTH} elements inside each other")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: object) -> NoReturn:
        raise FxloomError("has a document type or entities, which no vendor's report has; refused")

    parser = expat.ParserCreate("UTF-8")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = parser.SkippedEntityHandler = refuse
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    try:
        parser.Parse(text.encode("utf-8"), True)
    except expat.ExpatError as fault:
        raise FxloomError(f"truncated or damaged: {fault}") from None
    root: Element = builder.close()
    return root


def require_all(found: Iterable[str], wanted: Iterable[str], what: str) -> None:
    """Raise FxloomError naming what a report lacks."""
    have = set(found)
    missing = [each for each in wanted if each not in have]
    if missing:
        raise FxloomError(f"truncated, or not {what}: it has no {', '.join(map(repr, missing))}")
