"""Precompiled headers: what all C++ for AMD's tools begins with is read once a machine.

The types of ap_types are a third of the time that a small project takes to compile. g++ can keep
what it has read of them (80 MB) and go on from there. The source has the same text in either case:
what is kept is exactly its beginning. Whatever goes wrong leaves compilations as they were without.
"""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fxloom.children import wait
from fxloom.errors import ToolError

PREFIX = """\
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <string>
#include <vector>
#include <ap_fixed.h>
#include <ap_int.h>
"""
"""The first lines of every driver with ap_types."""
NAME = "prefix.h"
TIMEOUT_S = 120.0


def precompiled(command: Sequence[str], cache: Path) -> Path | None:
    """A header with PREFIX and what g++ made of it beside it; None where there is none.

    command: the compiler, its flags and the folders of headers. cache: a folder that is made where
    needed. Precompiling takes as long as four projects gain, so that the second one with the same
    headers does it. They are the same where the preprocessor gives the same text and macros, system
    headers included, and compiler and flags are the same.
    """
    try:
        version = _run([command[0], "--version"])
        if "Free Software Foundation" not in version:
            return None  # clang, under this name, compares times and places of headers
        flags = [part for part in command[1:] if not part.startswith("-I")]
        text = _run([*command, "-x", "c++", "-E", "-P", "-dD", "-"], PREFIX)
        key = hashlib.sha256("\0".join([version, *flags, text]).encode()).hexdigest()[:32]
        header = cache / key / NAME
        if not header.parent.is_dir():
            header.parent.mkdir(parents=True)
            return None
        if not header.exists():
            _precompile(command, header)
    except (OSError, subprocess.SubprocessError, ToolError, UnicodeError):
        return None
    return header if binary(header).is_file() else None


def binary(header: Path) -> Path:
    """Where g++ looks for what it made of a header."""
    return header.with_name(f"{header.name}.gch")


def _precompile(command: Sequence[str], header: Path) -> None:
    # One process alone makes it, once: others meanwhile, and all after a failure, do without.
    with open(header, "x", encoding="ascii") as file:
        file.write(PREFIX)
    partial = header.with_suffix(".part")
    try:
        line = [*command, "-x", "c++-header", str(header), "-o", str(partial)]
        with open(os.devnull, "wb") as nowhere:
            if wait(line, nowhere, TIMEOUT_S, None, None) == 0:
                partial.rename(binary(header))
    finally:
        partial.unlink(missing_ok=True)


def _run(command: Sequence[str], text: str = "") -> str:
    """What a command prints. Raises SubprocessError where it fails or takes too long."""
    return subprocess.run(
        command, input=text, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    ).stdout
