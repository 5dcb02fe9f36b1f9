"""`.keras` files: a zip of config.json, metadata.json and model.weights.h5, read as data."""

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxloom.errors import CaptureError
from fxloom.keras.h5_file import EXPANSION, SPARE
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
    """What is in an archive. version: of the Keras that wrote it. weights: an HDF5 file."""

    config: Any
    version: Any
    weights: bytes


def read_archive(path: Path) -> Archived:
    """The members of a `.keras` file. Raises CaptureError for what is damaged, too large for the
    file, named as if it lay outside of it, or missing."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _checked(archive.infolist(), path.stat().st_size)
            config = parsed(_content(archive, members, CONFIG, MAX_JSON), CONFIG)
            metadata = parsed(_content(archive, members, METADATA, MAX_JSON), METADATA)
            limit = EXPANSION * path.stat().st_size + SPARE
            weights = _content(archive, members, WEIGHTS, limit)
    except _FAULTS as fault:
        raise CaptureError(f"damaged: {fault}") from None
    return Archived(config, mapping(metadata, METADATA).get("keras_version"), weights)


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
        held = ", ".join(sorted(members)[:5]) or "nothing"
        raise CaptureError(f"required {name}, got {held}. Is it a model that Keras saved?")
    info = members[name]
    if info.file_size > limit:
        raise CaptureError(
            f"member {name}: {info.file_size:,} bytes; at most {limit:,} are read of this file"
        )
    content = archive.read(info)
    if len(content) != info.file_size:
        raise CaptureError(f"member {name}: required {info.file_size} bytes, got {len(content)}")
    return content
