"""`.keras` files: a zip of config.json, metadata.json and model.weights.h5, read as data."""

import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxloom.errors import CaptureError
from fxloom.keras.json_access import MAX_JSON, mapping, parsed

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    struct.error,
)


@dataclass(frozen=True)
class Archived:
    """What is in an archive beside the weights. version: of the Keras that wrote it."""

    config: Any
    version: Any


def read_archive(path: Path) -> Archived:
    """The members of a `.keras` file. Raises CaptureError for what is damaged, too large for the
    file, named as if it lay outside of it, or missing."""
    with _opened(path) as (archive, members):
        config = parsed(_content(archive, members, CONFIG, MAX_JSON), CONFIG)
        metadata = parsed(_content(archive, members, METADATA, MAX_JSON), METADATA)
        if WEIGHTS not in members:
            raise _missing(WEIGHTS, members)
    return Archived(config, mapping(metadata, METADATA).get("keras_version"))


def member_of(path: Path, name: str, limit: int) -> bytes:
    """A member of at most so many bytes. Raises CaptureError as read_archive does."""
    with _opened(path) as (archive, members):
        return _content(archive, members, name, limit)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive, _checked(archive.infolist(), path.stat().st_size)
    except _FAULTS as fault:
        raise CaptureError(f"damaged: {fault}") from None


def _checked(infos: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """Members by name. Raises CaptureError for what Keras would not write."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        if name in members:
            raise CaptureError(f"member {name!r} is in it twice")
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            raise CaptureError(f"member {name!r}: its path leads out of the archive")
        if info.flag_bits & 1:
            raise CaptureError(f"member {name!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CaptureError(f"member {name!r} is compressed in a way that Keras does not use")
        if info.header_offset < 0 or info.header_offset + info.compress_size > size:
            raise CaptureError(f"member {name!r}: damaged: it ends after the file")
        members[name] = info
    return members


def _content(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, limit: int
) -> bytes:
    if name not in members:
        raise _missing(name, members)
    info = members[name]
    if info.file_size > limit:
        raise CaptureError(
            f"member {name}: {info.file_size:,} bytes; at most {limit:,} are read of this file"
        )
    content = archive.read(info)
    if len(content) != info.file_size:
        raise CaptureError(f"member {name}: required {info.file_size} bytes, got {len(content)}")
    return content


def _missing(name: str, members: Collection[str]) -> CaptureError:
    held = ", ".join(sorted(members)[:5]) or "nothing"
    return CaptureError(f"required {name}, got {held}. Is it a model that Keras saved?")
