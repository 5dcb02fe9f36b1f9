"""The members of a `.pt2` archive, read as data and checked before anything else looks at them.

torch.export writes a zip of uncompressed members: models/model.json (the graph), raw tensors with
a JSON index each for weights and constants, and example inputs as a pickle, which is never read.
torch's own reader unpickles some of them and falls back to unrestricted pickles; it is not used.
"""

import json
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fxloom.errors import CaptureError

FORMAT, VERSION = b"pt2", b"0"
GRAPH = "models/model.json"
WEIGHTS = "data/weights/"
CONSTANTS = "data/constants/"
MAX_JSON = 2**28
"""Bytes of one JSON member: a graph of 100,000 nodes has 100 MB."""

_MEMBERS = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)|extra/.*",
    re.DOTALL,
)
_REFUSED = (
    ("data/constants/custom_obj_", "a pickled object"),
    ("data/constants/opaque_obj_", "a pickled object"),
    ("data/constants/model.pt", "pickled constants of an old torch"),
    ("data/weights/model.pt", "pickled weights of an old torch"),
    ("data/aotinductor/", "compiled code"),
    ("models/", "a second model"),
)
_FAULTS = (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, struct.error)


class Archive:
    """An open archive: its JSON and its raw bytes by member name, without the root folder."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._members = _checked_members(archive.infolist(), size)
        required = ("archive_format", "archive_version", GRAPH)
        missing = [name for name in required if name not in self._members]
        if "serialized_exported_program.json" in archive.namelist():
            raise CaptureError("it was written by torch 2.7 or older. Export it again")
        if missing:
            raise CaptureError(f"not a program of torch.export.save: it has no {missing[0]}")
        unknown = [name for name in self._members if not _MEMBERS.fullmatch(name)]
        if unknown:
            kinds = [kind for start, kind in _REFUSED if unknown[0].startswith(start)]
            raise CaptureError(
                f"member {unknown[0]!r}: {(kinds or ['unknown'])[0]}, which could run code when "
                "loaded, or cannot be understood. Export the model without it"
            )
        if self._small("archive_format") != FORMAT or self._small("archive_version") != VERSION:
            raise CaptureError(f"required archive format {FORMAT!r} of version {VERSION!r}")
        if "byteorder" in self._members and self._small("byteorder") != b"little":
            raise CaptureError("required little-endian tensors")

    def document(self, name: str) -> Any:
        """A member as JSON; {} where it is absent."""
        if name not in self._members:
            return {}
        if self._members[name].file_size > MAX_JSON:
            raise CaptureError(f"{name}: required at most {MAX_JSON} bytes")
        try:
            return json.loads(self._archive.read(self._members[name]))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as fault:
            raise CaptureError(f"{name}: damaged: {fault}") from None

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """A member as it lies in the file, in writable memory of its own."""
        if name not in self._members:
            raise CaptureError(f"{name}: is missing from the archive")
        info = self._members[name]
        data = np.empty(info.file_size, np.uint8)
        with self._archive.open(info) as stream:
            filled = 0
            while piece := stream.read(2**22):
                if filled + len(piece) > len(data):
                    raise CaptureError(f"{name}: damaged: it is longer than it says")
                data[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
                filled += len(piece)
        if filled != len(data):
            raise CaptureError(f"{name}: damaged: required {len(data)} bytes, got {filled}")
        return data

    def _small(self, name: str) -> bytes:
        info = self._members[name]
        return self._archive.read(info) if info.file_size <= 16 else b""


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The archive for a while; whatever is wrong with it, then or later, is a CaptureError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield Archive(archive, path.stat().st_size)
    except CaptureError as fault:
        raise CaptureError(f"{path}: {fault}") from None
    except FileNotFoundError:
        raise CaptureError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CaptureError(f"{path}: is a directory; a .pt2 file is required") from None
    except (*_FAULTS, NotImplementedError) as fault:
        raise CaptureError(
            f"{path}: not a .pt2 archive, or damaged: {fault or type(fault).__name__}"
        ) from None


def _checked_members(infos: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """Members without their root folder: unique, uncompressed, no larger than the file itself.

    Uncompressed members that fit into the file together cannot be a bomb.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    roots = {info.filename.split("/")[0] for info in infos}
    if len(roots) != 1:
        raise CaptureError(f"required one folder with everything in it, got {len(roots)} names")
    for info in infos:
        name = info.filename.partition("/")[2]
        parts = info.filename.split("/")
        if name in members:
            raise CaptureError(f"member {name!r} is there twice")
        if ".." in parts or "" in parts[:-1] or "\\" in info.filename or "\0" in info.filename:
            raise CaptureError(f"member {info.filename!r}: its path leads out of the archive")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CaptureError(f"member {name!r}: is compressed; torch.export.save stores them")
        if info.flag_bits & 1:
            raise CaptureError(f"member {name!r}: is encrypted")
        if info.header_offset < 0 or info.header_offset + info.file_size > size:
            raise CaptureError(f"member {name!r}: damaged: it ends after the file")
        members[name] = info
    if sum(info.file_size for info in infos) > size:
        raise CaptureError("damaged: its members are larger than the file")
    return members
