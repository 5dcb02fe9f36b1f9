"""What all commands say things with.

Results go to standard output, everything else to standard error.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.text import Text

from fxloom.errors import FxloomError

MISMATCH, INPUT_FAULT, OWN_FAULT = 1, 2, 70
"""Exit codes: a difference was found, the input's fault, a fault of fxloom's own."""


def complain(text: str) -> None:
    """An error message, without colours unless a person reads it."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text("error: ", style="bold red") + Text(text))


def close_output() -> None:
    """Nobody reads any more: keep the interpreter from flushing into a closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that is told what begins: a spinner for people, lines for files."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield lambda text: console.print(Text(f"{text} ..."))
        return
    with Status("", console=console) as status:
        yield lambda text: status.update(Text(text))


def show(*renderables: Any) -> None:
    """To standard output; not cut to a width unless a person reads it."""
    wide = None if sys.stdout.isatty() else 240
    console = Console(highlight=False, width=wide)
    for each in renderables:
        console.print(each)


def width() -> int | None:
    """Columns of the terminal; None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write(path: Path, text: str) -> None:
    """Write a text file. Raises FxloomError naming it."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise FxloomError(f"{path}: cannot be written: {fault.strerror}") from None
