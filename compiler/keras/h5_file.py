"""What an HDF5 file holds, read by another process (h5_process.py) that damaged files may hang."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Timer
from typing import IO, Any

import numpy as np

from fxloom.errors import CaptureError
from fxloom.keras.description import Array
from fxloom.keras.json_access import mapping, parsed, sequence

MAX_HEADER = 2**26
"""Bytes of JSON that name groups and arrays."""

SECONDS = 5
BYTES_A_SECOND = 10_000_000
"""A file may take SECONDS of a processor and one more for each BYTES_A_SECOND."""

PATIENCE = 20
"""How many times longer it may take by the clock."""

_TYPES = frozenset(
    [f"<{kind}{size}" for kind in "iu" for size in (2, 4, 8)]
    + ["|i1", "|u1", "|b1", "<f2", "<f4", "<f8"]
)


@dataclass(frozen=True)
class H5:
    """Groups by their paths from the root, which is "", as "model_weights/dense"."""

    _groups: Mapping[str, Sequence[str]]
    _texts: Mapping[str, Mapping[str, Sequence[str]]]
    _arrays: Mapping[str, Array | str]

    def is_group(self, path: str) -> bool:
        """Whether there is a group of that path."""
        return path in self._groups

    def names(self, group: str) -> Sequence[str]:
        """What lies in a group."""
        return self._groups.get(group, ())

    def has(self, group: str, attribute: str) -> bool:
        """Whether a group has an attribute of texts."""
        return attribute in self._texts.get(group, {})

    def texts(self, group: str, attribute: str) -> list[str]:
        """An attribute that is a list of texts, in pieces where it was too long for one
        ("weight_names0", ...); [] where it is absent."""
        kept = self._texts.get(group, {})
        if attribute in kept:
            return list(kept[attribute])
        pieces = sorted((name for name in kept if name.startswith(attribute)), key=_number)
        return [text for piece in pieces for text in kept[piece]]

    def text(self, attribute: str) -> str | None:
        """An attribute of the root that is one text; None where it is absent."""
        if not self.has("", attribute):
            return None
        found = self._texts[""][attribute]
        if len(found) != 1:
            raise CaptureError(f"{attribute}: required one text, got {len(found)}")
        return found[0]

    def array(self, path: str) -> Array:
        """An array of numbers. Raises CaptureError where there is none, or none that is read."""
        if path not in self._arrays:
            raise CaptureError(f"{path}: there is no such array")
        found = self._arrays[path]
        if isinstance(found, str):
            raise CaptureError(f"{path}: {found}")
        return found


def _number(piece: str) -> int:
    digits = piece[len(piece.rstrip("0123456789")) :]
    return int(digits) if digits and len(digits) < 9 else -1


def read_h5(path: Path, member: str | None = None) -> H5:
    """The contents of a file, or of a member of a zip. Raises CaptureError where it cannot be read,
    takes too long, or says that it is larger than it can be."""
    limit = seconds(path.stat().st_size)
    command = [sys.executable, "-m", "fxloom.keras.h5_process", str(path.absolute())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    with subprocess.Popen(
        [*command, *([member] if member else [])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        timer = Timer(PATIENCE * limit, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            return _received(process.stdout)
        except EOFError:
            raise CaptureError(
                f"damaged: the HDF5 library failed on it, or took more than {limit} s"
            ) from None
        finally:
            timer.cancel()
            process.kill()


def seconds(size: int) -> int:
    """Seconds of a processor that a file of so many bytes may take."""
    return SECONDS + size // BYTES_A_SECOND


def _received(stream: IO[bytes]) -> H5:
    line = stream.readline(MAX_HEADER)
    if not line.endswith(b"\n"):
        raise EOFError
    header = mapping(parsed(line, "its contents", MAX_HEADER), "its contents")
    if "error" in header:
        raise CaptureError(str(header["error"]))
    arrays: dict[str, Array | str] = {}
    failed = ""
    for path, said in mapping(header["arrays"], "arrays").items():
        if said["refused"] or failed:
            arrays[path] = str(said["refused"] or failed)
            continue
        status = stream.readline(1000)
        if status != b"ok\n":
            if not status:
                raise EOFError
            failed = status.decode(errors="replace").strip()
            arrays[path], failed = failed, f"not read, {path} is {failed}"
            continue
        arrays[path] = _array(stream, said)
    return H5(header["groups"], header["texts"], arrays)


def _array(stream: IO[bytes], said: Mapping[str, Any]) -> Array:
    if said["dtype"] not in _TYPES:
        raise CaptureError(f"required numbers, got {said['dtype']}")
    shape = tuple(int(size) for size in sequence(said["shape"], "shape"))
    values = np.empty(prod(shape), said["dtype"])
    view = values.view(np.uint8).data
    filled = 0
    while filled < len(view):
        got = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        filled += got
    return values.reshape(shape)
