"""From a table of a TOML file to a frozen dataclass, or to sentences that say what is wrong in it.

Recipes and targets are written by hand. Their keys are the fields of plain dataclasses, so the
annotations of those are the only schema. Values are judged strictly, as TOML means them: "8" is
not a number and true is not 1; an array may become a tuple.
"""

import difflib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from fnmatch import fnmatchcase
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import is_typeddict

from fxloom.errors import FxloomError

T = TypeVar("T")

_WORDS = {
    "a valid dictionary": "a table",
    "a valid integer": "an integer",
    "a valid array": "an array",
    "an object": "a table",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid ": "a ",
}


def read_text(path: str | Path, error: type[FxloomError]) -> str:
    """The text of a UTF-8 file. Raises `error` naming the path."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except IsADirectoryError:
        raise error(f"{path}: is a directory; a TOML file is required") from None
    except UnicodeDecodeError as fault:
        raise error(
            f"{path}: is not UTF-8 text (byte {fault.start}); a TOML file is required"
        ) from None
    except (OSError, ValueError) as fault:  # ValueError: a null byte in the path
        raise error(f"{path}: cannot be read: {fault}") from None


def parse_toml(text: str, source: str, error: type[FxloomError]) -> dict[str, Any]:
    """The tables of a TOML text. Raises `error` naming source, line and column."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as fault:
        raise error(f"{source}: not valid TOML: {fault}") from None


def toml_line(key: str, value: Any) -> str:
    """'key = value' and a line end, with tables and lists of numbers in one line. Raises
    TypeError, as tomli_w."""
    quoted = tomli_w.dumps({key: 0}).removesuffix(" = 0\n")
    if isinstance(value, list | tuple) and all(type(each) in (int, float) for each in value):
        numbers = (tomli_w.dumps({"x": each}).strip().removeprefix("x = ") for each in value)
        return f"{quoted} = [{', '.join(numbers)}]\n"
    if not isinstance(value, Mapping):
        return tomli_w.dumps({key: value})
    entries = [toml_line(inner, item).rstrip("\n") for inner, item in value.items()]
    return f"{quoted} = {{ {', '.join(entries)} }}\n" if entries else f"{quoted} = {{}}\n"


def build(
    cls: type[T], table: Mapping[str, Any], further: Iterable[str] = ()
) -> tuple[T | None, list[str]]:
    """An instance of a dataclass and no problems, or None and every problem.

    table: keys and values as TOML gives them. further: more allowed keys, which
    somebody else reads. Whatever the class's own __post_init__ refuses is a problem as well.
    """
    settable = {field.name: field for field in fields(cls) if field.init}  # type: ignore[arg-type]
    allowed = [*further, *settable]
    problems = [unknown(key, allowed, "key") for key in table if key not in allowed]
    problems += [
        f"{name}: required, but missing"
        for name, field in settable.items()
        if name not in table and not _has_default(field)
    ]
    values = {name: value for name, value in table.items() if name in settable}
    converted, wrong = convert(cls, values)
    problems += wrong
    if problems:
        return None, problems
    try:
        return cls(**converted), []
    except (FxloomError, ValueError, TypeError) as fault:
        return None, [line for line in str(fault).splitlines() if line.strip()]


def convert(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values as the fields of `cls` are annotated, and what cannot be converted."""
    converted: dict[str, Any] = {}
    problems: list[str] = []
    hints = _hints(cls)
    for name, value in values.items():
        try:
            converted[name] = _validate(hints[name], value)
        except ValidationError as fault:
            problems += _explain(name, value, hints[name], fault)
    return converted, problems


def typed_keys(error: type[FxloomError]) -> Callable[[type[T]], type[T]]:
    """For dataclasses: every keyword is a field, and every value of the type that it is annotated
    with, converted as those of a TOML file are.

    A keyword that is no field is an `error` that names close ones (Python's own TypeError names
    none, and is no error of ours), as is a value of another type. Defaults are taken as they are.
    """

    def decorate(cls: type[T]) -> type[T]:
        settable = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
        construct = cls.__init__

        @wraps(construct)
        def checked(self: T, *args: Any, **keywords: Any) -> None:
            problems = [unknown(key, settable, "key") for key in keywords if key not in settable]
            given = dict(zip(settable, args, strict=False))
            if problems or len(args) > len(settable) or given.keys() & keywords.keys():
                converted: dict[str, Any] = {}
            else:
                converted, problems = convert(cls, given | keywords)
            if problems:
                raise error("\n".join(problems))
            if converted:
                construct(self, **converted)
            else:  # nothing is given, or Python says what is wrong with the call
                construct(self, *args, **keywords)

        cls.__init__ = checked  # type: ignore[method-assign, assignment]
        return cls

    return decorate


def unknown(name: str, known: Iterable[str], kind: str) -> str:
    """'NAME: unknown KIND. Did you mean ...? Allowed: ...'"""
    names = list(known)
    listed = ", ".join(names) if names else "none"
    return f"{name}: unknown {kind}.{did_you_mean(name, names)} Allowed: {listed}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' where something known is close, else nothing."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f" Did you mean {by_folded[close[0]]}?" if close else ""


def overrides(layers: Mapping[str, Mapping[str, Any]], layer: str) -> dict[str, Any]:
    """What a `layers` table sets for one layer; where patterns overlap, the later one wins."""
    settings: dict[str, Any] = {}
    for pattern, table in layers.items():
        if fnmatchcase(layer, pattern):
            settings.update(table)
    return settings


def unmatched(patterns: Iterable[str], layers: Iterable[str]) -> list[str]:
    """The patterns that name no layer: almost always a typing error that would go unnoticed."""
    names = list(layers)
    return [pattern for pattern in patterns if not any(fnmatchcase(n, pattern) for n in names)]


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _validate(hint: Any, value: Any) -> Any:
    adapter: TypeAdapter[Any] = TypeAdapter(hint)
    try:
        # Strict JSON is strict about scalars and lets an array become a tuple, as TOML needs.
        text = json.dumps(value)
    except (TypeError, ValueError):
        return adapter.validate_python(value, strict=True, extra="forbid")
    return adapter.validate_json(text, strict=True, extra="forbid")


def _explain(name: str, value: Any, hint: Any, fault: ValidationError) -> list[str]:
    """One sentence for every place; the members of a union share one."""
    demands: dict[tuple[str, ...], list[str]] = {}
    arrived: dict[tuple[str, ...], Any] = {}
    problems = []
    for detail in fault.errors(include_url=False):
        path, found = _walk(value, detail["loc"])
        if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            key = path[-1]
            place = ".".join(_quote(part) for part in (name, *path[:-1]))
            problems.append(f"{place}: {unknown(key, _nested_keys(hint), 'key')}")
            continue
        demands.setdefault(path, []).append(_demand(detail))
        arrived[path] = found
    for path, required in demands.items():
        place = ".".join(_quote(part) for part in (name, *path))
        either = " or ".join(dict.fromkeys(required))
        problems.append(f"{place}: required {either}, got {_show(arrived[path])}")
    return problems


def _walk(value: Any, location: Iterable[int | str]) -> tuple[tuple[str, ...], Any]:
    """The keys of `location` that lead into the value, and what lies there.

    pydantic mixes in names of union members, which lead nowhere.
    """
    path: list[str] = []
    for step in location:
        indexed = isinstance(value, list | tuple) and isinstance(step, int) and step < len(value)
        if not indexed and not (isinstance(value, Mapping) and step in value):
            continue
        value = value[step]
        path.append(str(step))
    return tuple(path), value


def _demand(detail: ErrorDetails) -> str:
    message = detail["msg"]
    for prefix in ("Input should be ", "Value error, ", "Input should "):
        message = message.removeprefix(prefix)
    if detail["type"] == "missing":
        return f"{detail['loc'][-1]}"
    for pydantic, ours in _WORDS.items():
        message = message.replace(pydantic, ours)
    return message


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    kinds = {bool: "a truth value", str: "text", int: "an integer", float: "a number"}
    kind = kinds.get(type(value))
    short = text if len(text) <= 60 else text[:57] + "..."
    return f"{short} ({kind})" if kind else short


def _quote(part: str) -> str:
    bare = part.replace("_", "").replace("-", "")
    return part if bare.isalnum() and bare.isascii() else json.dumps(part, ensure_ascii=False)


def _nested_keys(hint: Any) -> list[str]:
    """The keys of every table type inside an annotation."""
    if is_typeddict(hint):
        return list(get_type_hints(hint))
    if isinstance(hint, type) and is_dataclass(hint):
        return [field.name for field in fields(hint)]
    return [key for inner in get_args(hint) for key in _nested_keys(inner)]
