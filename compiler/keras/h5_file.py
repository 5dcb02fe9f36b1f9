"""HDF5 read as data from a file that may mean harm: what is read is within it, and bounded.

Links to elsewhere, storage in other files, virtual datasets and filters that would be loaded as
plugins are refused; sizes are looked at before anything of theirs is allocated.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from math import prod
from pathlib import Path

import h5py
import numpy as np

from fxloom.errors import CaptureError
from fxloom.keras.description import Array
from fxloom.keras.json_access import MAX_JSON

SPARE = 2**26
EXPANSION = 16
"""All arrays together may take SPARE bytes and EXPANSION times those of the file."""

MAX_ATTRIBUTE = 2**24
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
)


class H5:
    """An open file."""

    def __init__(self, file: h5py.File, size: int, heap: int) -> None:
        """size: bytes of the file. heap: those of the longest text that it can hold."""
        self._file, self._left, self._heap = file, EXPANSION * size + SPARE, heap
        self._limit = self._left

    @property
    def root(self) -> h5py.Group:
        """Where all names begin."""
        return self._file

    def group(self, parent: h5py.Group, path: str) -> h5py.Group | None:
        """The group of that name within the file; None where there is none."""
        found = self._found(parent, path)
        if found is not None and not isinstance(found, h5py.Group):
            raise CaptureError(f"{_place(parent, path)}: required a group")
        return found

    def names(self, group: h5py.Group) -> Sequence[str]:
        """What lies in a group."""
        with _faults(group.name):
            return list(group)

    def has(self, group: h5py.Group, attribute: str) -> bool:
        """Whether a group has an attribute."""
        with _faults(_place(group, attribute)):
            return attribute in group.attrs

    def texts(self, group: h5py.Group, attribute: str) -> list[str]:
        """An attribute that is a list of texts, in pieces where it was too long for one
        ("weight_names0", ...); [] where it is absent."""
        if self.has(group, attribute):
            return self._texts(group, attribute)
        found: list[str] = []
        piece = 0
        while self.has(group, f"{attribute}{piece}"):
            found += self._texts(group, f"{attribute}{piece}")
            piece += 1
        return found

    def text(self, group: h5py.Group, attribute: str) -> str | None:
        """An attribute that is one text; None where it is absent."""
        if not self.has(group, attribute):
            return None
        found = self._texts(group, attribute)
        if len(found) != 1:
            raise CaptureError(f"{_place(group, attribute)}: required one text, got {len(found)}")
        return found[0]

    def _texts(self, group: h5py.Group, attribute: str) -> list[str]:
        place = _place(group, attribute)
        with _faults(place):
            kept = group.attrs.get_id(attribute)
            count, kind = prod(kept.shape or ()), kept.dtype
            long = kind.kind == "O"  # of any length; several may be the same piece of the file
            size = count * (min(self._heap, MAX_JSON + 1) if long else kind.itemsize)
            if size > (max(SPARE * 8, self._limit) if long else MAX_ATTRIBUTE):
                raise CaptureError(f"{place}: {count:,} texts of {size:,} bytes are too much")
            if (long and h5py.check_string_dtype(kind) is None) or kind.kind not in "OSU":
                if count == 0:
                    return []
                raise CaptureError(f"{place}: required texts, got {kind}")
            value = group.attrs[attribute]
        listed = np.asarray(value, dtype=object).reshape(-1).tolist()
        try:
            return [x.decode() if isinstance(x, bytes) else str(x) for x in listed]
        except UnicodeDecodeError as fault:
            raise CaptureError(f"{place}: damaged: {fault}") from None

    def array(self, parent: h5py.Group, path: str) -> Array:
        """A dataset of numbers. Raises CaptureError where it is none, absent, or more than the
        file has bytes for."""
        place, found = _place(parent, path), self._found(parent, path)
        if not isinstance(found, h5py.Dataset):
            raise CaptureError(f"{place}: required an array, got {_kind(found)}")
        with _faults(place):
            if found.external or found.is_virtual:
                raise CaptureError(f"{place}: its numbers lie in other files, which are not read")
            if "dtype" in found.attrs:  # Keras' mark of what HDF5 has no type for
                raise CaptureError(f"{place}: required float32, got another type, marked so")
            if found.dtype.kind not in "fiub" or found.shape is None:
                raise CaptureError(f"{place}: required numbers, got {found.dtype}")
            _check_filters(found, place)
            size = prod(found.shape) * found.dtype.itemsize
            stored = found.id.get_storage_size()
            if found.chunks is None and size != stored:
                raise CaptureError(f"{place}: declares {size:,} bytes, {stored:,} are there")
            if size > self._left:
                raise CaptureError(
                    f"{place}: {size:,} bytes; all arrays together may have {self._limit:,}, "
                    f"{EXPANSION} times those of the file and {SPARE:,}"
                )
            self._left -= size
            values: Array = found[()]
        return np.asarray(values)

    def _found(self, parent: h5py.Group, path: str) -> object:
        """What lies at a path, reached by what is in the file alone."""
        place, current = _place(parent, path), parent
        with _faults(place):
            for name in path.split("/"):
                if name in ("", ".", ".."):
                    raise CaptureError(f"{place}: is no path of a file of Keras")
                if not isinstance(current, h5py.Group) or name not in current:
                    return None
                link = current.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise CaptureError(f"{place}: {name} is a link to elsewhere, which is not read")
                current = current[name]
        return current


@contextmanager
def open_h5(source: Path | bytes) -> Iterator[H5]:
    """A file, or the bytes of one. Raises CaptureError where it cannot be read."""
    with _faults("HDF5"):
        if isinstance(source, Path):
            size, file = source.stat().st_size, h5py.File(source, "r", locking=False)
        else:
            size, file = len(source), h5py.File(BytesIO(source), "r")
    try:
        yield H5(file, size, _heap(source))
    finally:
        file.close()


def _heap(source: Path | bytes) -> int:
    """Bytes of the largest collection of texts (HDF5 file format, III.E: "GCOL", size at 8)."""
    if isinstance(source, bytes):
        return _largest(source)
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _largest(mapped)


def _largest(content: bytes | mmap.mmap) -> int:
    largest, place = 0, content.find(b"GCOL")
    while place >= 0:
        size = int.from_bytes(content[place + 8 : place + 16], "little")
        largest = max(largest, min(size, len(content)))
        place = content.find(b"GCOL", place + 4)
    return largest


def _check_filters(dataset: h5py.Dataset, place: str) -> None:
    listed = dataset.id.get_create_plist()
    filters = {listed.get_filter(position)[0] for position in range(listed.get_nfilters())}
    if not filters <= _FILTERS:
        raise CaptureError(f"{place}: compressed by a plugin of HDF5, none of which is loaded")


@contextmanager
def _faults(place: object) -> Iterator[None]:
    try:
        yield
    except _FAULTS as fault:
        raise CaptureError(f"{place}: damaged: {fault}") from None


def _place(parent: h5py.Group, name: str) -> str:
    return f"{str(parent.name).rstrip('/')}/{name}"


def _kind(found: object) -> str:
    return "nothing" if found is None else f"a {type(found).__name__.lower()}"
