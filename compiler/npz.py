"""Read an .npz: as data only, and without loading what can be mapped.

`np.savez` stores its arrays uncompressed, so each lies in the file as it would in memory and is
mapped from there: a data set larger than memory can be streamed. Compressed arrays are loaded.
Format: numpy.lib.format (NEP 1) and APPNOTE.TXT 4.3.7 (local file header).
"""

import struct
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np

from fxloom.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field


def read_npz(path: str | Path) -> dict[str, Array]:
    """The arrays by name, read-only where they are mapped.

    Raises DataError for a missing or damaged file and for pickled arrays, which could run code.
    """
    file = Path(path)
    if file.is_dir():
        raise DataError(f"{path}: is a directory; an .npz file is required")
    if not file.exists():
        raise DataError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(file) as archive:
            return {
                info.filename.removesuffix(".npy"): _read_member(file, archive, info)
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
    except DataError:
        raise
    except zipfile.BadZipFile as fault:
        raise DataError(f"{path}: not an .npz file, or damaged: {fault}") from None
    except (OSError, ValueError, EOFError, MemoryError, RuntimeError, zlib.error) as fault:
        raise DataError(f"{path}: cannot be read: {fault or type(fault).__name__}") from None


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as stream:
        shape, fortran, dtype = _read_header(stream, f"{path}: {name}")
        if dtype.hasobject:
            raise DataError(
                f"{path}: {name}: is a pickled array of Python objects, which could run code when "
                "read. Save numbers: an array of one numeric dtype, all rows of one length"
            )
        begin = stream.tell()
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if info.file_size != begin + size:
            raise DataError(
                f"{path}: {name}: damaged: required {size} bytes, got {info.file_size - begin}"
            )
        if info.compress_type != zipfile.ZIP_STORED or size == 0:
            stream.seek(0)
            loaded: Array = np.lib.format.read_array(stream, allow_pickle=False)
            return loaded
    with open(path, "rb") as raw:
        raw.seek(info.header_offset)
        name_length, extra_length = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
    offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length + begin
    order: Literal["F", "C"] = "F" if fortran else "C"
    if offset + size > path.stat().st_size:
        raise DataError(f"{path}: {name}: damaged: the file ends early")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)


def _read_header(stream: IO[bytes], place: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(stream)
        if version in readers:
            shape, fortran, dtype = readers[version](stream)
            if all(length >= 0 for length in shape):
                return shape, fortran, dtype
            raise ValueError(f"negative length in shape {shape}")
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError) as fault:
        raise DataError(f"{place}: damaged header: {fault}") from None
    # Version (3, 0) is for structured types with non-Latin field names.
    raise DataError(f"{place}: required a plain numeric array, got .npy version {version}")
