"""HDF5 read in a process of its own, and sent as JSON and plain numbers: see h5_file.py.

The HDF5 library loops or crashes on some damaged files, so that it gets a process with limits of
time and memory, which may end. Links to elsewhere, storage in other files, virtual datasets and
filters that would be loaded as plugins are refused; sizes are looked at before they are allocated.

python -m fxloom.keras.h5_process PATH [MEMBER]: MEMBER of a zip. Prints a line of JSON, and for
each array in it "ok" or why not, and its bytes.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from fxloom.errors import CaptureError
from fxloom.keras.archive import member_of
from fxloom.keras.h5_file import seconds

SPARE = 2**26
EXPANSION = 16
"""All arrays together may take SPARE bytes and EXPANSION times those of the file."""

MAX_OBJECTS = 100_000
MAX_DEPTH = 100
MEMORY = 2**29
"""Bytes beside those of the file and its arrays."""

ONE_TEXT = ("model_config", "keras_version")
TEXTS = ("layer_names", "weight_names")
_SKIPPED = ("optimizer", "optimizer_weights")
_FILTERS = {1, 2, 3, 32000}  # deflate, shuffle, checksums and LZF, which h5py itself contains
_FAULTS = (
    OSError,
    KeyError,
    RuntimeError,
    ValueError,
    TypeError,
    OverflowError,
    NotImplementedError,
    SystemError,
    MemoryError,
)


class _Found:
    """What a walk through a file has seen."""

    def __init__(self, size: int) -> None:
        self.groups: dict[str, list[str]] = {}
        self.texts: dict[str, dict[str, list[str]]] = {}
        self.arrays: dict[str, dict[str, Any]] = {}
        self.datasets: list[h5py.Dataset] = []
        self._limit = self._left = EXPANSION * size + SPARE

    def add(self, path: str, dataset: h5py.Dataset) -> None:
        """Note an array, or why it cannot be had."""
        said: dict[str, Any] = {"refused": _refusal(dataset)}
        self.arrays[path] = said
        if said["refused"]:
            return
        shape, kind = [int(size) for size in dataset.shape], dataset.dtype.newbyteorder("<")
        size = prod(shape) * kind.itemsize
        if size > self._left:
            raise CaptureError(
                f"{path}: declares {size:,} bytes; all arrays of this file together may have "
                f"{self._limit:,}, {EXPANSION} times the file and {SPARE:,}"
            )
        self._left -= size
        said.update(dtype=np.dtype(kind).str, shape=shape)
        self.datasets.append(dataset)


def _refusal(dataset: h5py.Dataset) -> str:
    """Why a dataset is no array that can be read; "" where it is one."""
    if dataset.external or dataset.is_virtual:
        return "its numbers lie in other files, which are not read"
    if "dtype" in dataset.attrs:  # Keras' mark of what HDF5 has no type for
        return f"required float32, got {str(dataset.attrs['dtype'])[:20]}. Save it in float32"
    if dataset.dtype.kind not in "fiub" or dataset.shape is None:
        return f"required numbers, got {dataset.dtype}"
    listed = dataset.id.get_create_plist()
    if not {listed.get_filter(i)[0] for i in range(listed.get_nfilters())} <= _FILTERS:
        return "it is compressed by a plugin of HDF5, none of which is loaded"
    size, stored = prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if dataset.chunks is None and size != stored:
        return f"damaged: it declares {size:,} bytes, {stored:,} are there"
    return ""


def walk(file: h5py.File, size: int) -> _Found:
    """All groups, names and arrays of a file of so many bytes, but those of optimizers."""
    found = _Found(size)
    with _faults(""):
        found.texts[""] = {
            name: _texts(file, name)
            for name in ("model_config", "keras_version")
            if name in file.attrs
        }
    pending: list[tuple[str, Any]] = [("", file)]
    while pending:
        path, group = pending.pop()
        with _faults(path):
            names = [name for name in group if name not in _SKIPPED]
            found.groups[path] = names
            kept = {name: _texts(group, name) for name in group.attrs if _is_list(name)}
            found.texts[path] = found.texts.get(path, {}) | kept
            if len(found.groups) + len(found.arrays) + len(names) > MAX_OBJECTS:
                raise CaptureError(f"it has more than {MAX_OBJECTS:,} groups and arrays")
            if path.count("/") >= MAX_DEPTH:
                raise CaptureError(f"its groups are nested more than {MAX_DEPTH} deep")
            for name in names:
                below = f"{path}/{name}" if path else name
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise CaptureError(f"{below}: a link to elsewhere, which is not read")
                held = group[name]
                if isinstance(held, h5py.Group):
                    pending.append((below, held))
                elif isinstance(held, h5py.Dataset):
                    with _faults(below):
                        found.add(below, held)
    return found


def _is_list(name: str) -> bool:
    return name.rstrip("0123456789") in TEXTS


def _texts(group: h5py.Group, name: str) -> list[str]:
    kept = group.attrs.get_id(name)
    if not prod(kept.shape or ()):
        return []
    if kept.dtype.kind not in "OS" or (
        kept.dtype.kind == "O" and not h5py.check_string_dtype(kept.dtype)
    ):
        raise CaptureError(f"{name}: required texts, got {kept.dtype}")
    listed = np.asarray(group.attrs[name], dtype=object).reshape(-1).tolist()
    return [each.decode() if isinstance(each, bytes) else str(each) for each in listed]


@contextmanager
def _faults(path: str) -> Iterator[None]:
    try:
        yield
    except _FAULTS as fault:
        place = f"{path}: " if path else ""
        raise CaptureError(f"{place}damaged: {fault}") from None


def send(path: Path, member: str | None, out: BinaryIO) -> None:
    """Write a file's contents; the line is {"error": text} where it cannot be read."""
    try:
        with _faults(""):
            stated = path.stat().st_size
            content = (
                None if member is None else member_of(path, member, EXPANSION * stated + SPARE)
            )
            size = stated if content is None else len(content)
            opened = path if content is None else BytesIO(content)
            file = h5py.File(opened, "r", **({"locking": False} if content is None else {}))
        found = walk(file, size)
    except CaptureError as fault:
        out.write(json.dumps({"error": str(fault)}).encode() + b"\n")
        return
    header = {"groups": found.groups, "texts": found.texts, "arrays": found.arrays}
    out.write(json.dumps(header).encode() + b"\n")
    for dataset in found.datasets:
        try:
            with _faults(""):
                values = np.ascontiguousarray(dataset[()], dataset.dtype.newbyteorder("<"))
        except CaptureError as fault:
            out.write(str(fault).replace("\n", " ").encode() + b"\n")
            return
        out.write(b"ok\n")
        out.write(values.reshape(-1).view(np.uint8).data)


def _limit(size: int) -> None:
    """Memory and time of this process, as far as the system knows such limits."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY + (EXPANSION + 2) * size
        for what, limit in ((resource.RLIMIT_AS, most), (resource.RLIMIT_CPU, seconds(size))):
            _, hard = resource.getrlimit(what)
            if hard == resource.RLIM_INFINITY or limit < hard:
                resource.setrlimit(what, (limit, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit(Path(sys.argv[1]).stat().st_size)
    send(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None, sys.stdout.buffer)
