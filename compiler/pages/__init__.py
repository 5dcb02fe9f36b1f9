"""Pages of HTML that need nothing else: one shell, one style, every text escaped."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_PLACES = re.compile(r"([._/])(?=.)")
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("fxloom.pages", "."),
        autoescape=True,  # names of layers are whatever a user's model says
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["breaking"] = _breaking
    return found


def _visible(value: object) -> object:
    """Text without characters that only steer: the direction of what follows, or a terminal."""
    if not isinstance(value, str):
        return value
    return type(value)(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", value))


def _breaking(name: str) -> Markup:
    """A name that may be broken behind its dots and underscores."""
    return Markup(_PLACES.sub(r"\1<wbr>", str(escape(name))))


def render(template: str, **values: object) -> str:
    """A page from a template of this folder. Only what is Markup already is not escaped."""
    style = Markup(files(__package__).joinpath("page.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(style=style, **values) + "\n"
