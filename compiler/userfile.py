"""Run a function of the user's own Python file: FILE.py:NAME.

The file is the user's, like a script they would start themselves, so it is run. What it raises is
reported with the line of that file which raised it.
"""

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from types import ModuleType

from fxloom.errors import FxloomError
from fxloom.settings import did_you_mean


def is_factory_spec(text: str) -> bool:
    """Whether the text has the form FILE.py:NAME."""
    path, colon, name = text.rpartition(":")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def load_factory(spec: str, error: type[FxloomError]) -> object:
    """What the function NAME of FILE.py returns, called without arguments; never None.

    Raises `error` for a missing file or name, a fault in the file, or a function that raises,
    wants arguments or returns nothing.
    """
    if not is_factory_spec(spec):
        raise error(f"{spec}: required FILE.py:NAME, the name of a function in a Python file")
    path, _, name = spec.rpartition(":")
    module = _prepare(path, error)
    with _importing_from(Path(path).resolve().parent):
        _execute(path, module, error)
        factory = _factory(spec, name, module, error)
        try:
            result = factory()
        except (Exception, SystemExit) as fault:
            raise error(f"{spec} raised {describe(fault, path)}") from fault
    if result is None:
        raise error(f"{spec}: returned nothing (None); does {name}() end with a return?")
    return result


def describe(fault: BaseException, path: str | None = None) -> str:
    """'ValueError: text', and the innermost line of the file `path` that took part in it."""
    text = f"{type(fault).__name__}: {fault}" if str(fault) else type(fault).__name__
    if isinstance(fault, SyntaxError) and fault.filename == path and fault.lineno is not None:
        line = (fault.text or "").strip()
        return f"{type(fault).__name__}: {fault.msg}\n  {path}:{fault.lineno}: {line}"
    frames = [f for f in traceback.extract_tb(fault.__traceback__) if f.filename == path]
    if not frames:
        return text
    where = frames[-1]
    return f"{text}\n  {path}:{where.lineno} in {where.name}: {where.line}"


def _prepare(path: str, error: type[FxloomError]) -> ModuleType:
    """An empty module for the file, registered so that its classes can be found by name."""
    if Path(path).is_dir():
        raise error(f"{path}: is a directory; a Python file is required")
    if not Path(path).exists():
        raise error(f"{path}: no such file")
    module = ModuleType(f"fxloom_user_{Path(path).stem}")
    module.__file__ = path
    sys.modules[module.__name__] = module
    return module


def _execute(path: str, module: ModuleType, error: type[FxloomError]) -> None:
    try:
        # Compiled here: importing it would leave a __pycache__ beside the user's file.
        code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except (Exception, SystemExit) as fault:
        raise error(f"{path}: cannot be run: {describe(fault, path)}") from fault


def _factory(
    spec: str, name: str, module: ModuleType, error: type[FxloomError]
) -> Callable[[], object]:
    found = module.__dict__.get(name)
    if found is None:
        own = [key for key, value in module.__dict__.items() if _is_own(value, module)]
        listed = ", ".join(own) if own else "none"
        raise error(
            f"{spec}: the file has no function {name}.{did_you_mean(name, own)} It has: {listed}"
        )
    if not (inspect.isroutine(found) or isinstance(found, type | functools.partial)):
        kind = type(found).__name__
        raise error(
            f"{spec}: required a function, got an object of type {kind}. "
            f"Write one that returns it: def make_{name}(): return {name}"
        )
    factory: Callable[[], object] = found
    try:
        inspect.signature(factory).bind()
    except TypeError as fault:
        raise error(f"{spec}: required a function callable without arguments: {fault}") from None
    except ValueError:  # some built-in callables have no signature
        pass
    return factory


def _is_own(value: object, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let the file import its neighbours, as `python FILE.py` would.

    Should it change the current directory, ours stays: other paths of the user are relative to it.
    """
    sys.path.insert(0, str(folder))
    try:
        with chdir("."):
            yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
