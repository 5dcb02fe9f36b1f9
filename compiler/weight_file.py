"""Files of coded weights: a safetensors archive of bytes, and what they mean as JSON in its header.

Data only, so reading runs nothing from the file. Nothing in it is believed: the header must be of
this format and version, each tensor must have just the parts that its coding needs and decode to
values with its checksum, and the digest of all of it must be that of the header. Whatever is
wrong is a WeightsError that says which tensor, what was required and what arrived.

Keys of the archive: the tensor's own name where it is stored as it is, else "name:kind".
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxloom.coded_tensors import Coded, decode
from fxloom.errors import WeightsError
from fxloom.swap import sync
from fxloom.tensor_bits import of_tensor, to_tensor
from fxloom.weight_entries import VALUES, Entry, Weights, Written, require_entry, restore

FORMAT = "fxloom-weights"
VERSION = 1


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: str
    version: int
    digest: str
    tensors: list[Entry]


def write_weights(path: str | os.PathLike[str], written: Sequence[Written]) -> None:
    """Write a file, whole or not at all; the same weights give the same bytes.

    Raises WeightsError where it cannot be written, or two tensors would have one name.
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for each in written:
        for kind, coded in each.coded.items():
            key = _key(each.entry, kind)
            if key in tensors:
                raise WeightsError(f"{key}: two tensors would have this name in the file")
            tensor = to_tensor(coded.data)
            memory = tensor.untyped_storage().data_ptr()
            # The archive has no room for tensors that overlap.
            tensors[key] = tensor.clone() if memory in storages else tensor
            storages.add(memory)
    entries = [each.entry for each in written]
    digest = _digest(entries, lambda key: tensors[key])
    header = _Header(format=FORMAT, version=VERSION, digest=digest, tensors=entries)
    text = json.dumps(header.model_dump(mode="json", exclude_defaults=True), separators=(",", ":"))
    file = Path(path)
    try:
        partial = file.with_name(f".{file.name}.{uuid4().hex}")
        try:
            save_file(tensors, partial, {"fxloom": text})
            sync(partial)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, ValueError, SafetensorError) as fault:
        raise WeightsError(f"{path}: cannot be written: {fault}") from None


def read_weights(
    path: str | os.PathLike[str], accept: Callable[[Entry], None] = lambda entry: None
) -> list[Weights]:
    """The tensors of a file, each compared with its checksum.

    accept: called with each entry before anything of it is decoded, and may raise WeightsError.
    Raises WeightsError where the file is absent, damaged, of another format or a newer version.
    """
    return [weights for weights, _ in _read_all(path, accept)]


def read_coded(path: str | os.PathLike[str]) -> list[Written]:
    """What is stored of every tensor of a file; raises WeightsError as `read_weights` does."""
    return [written for _, written in _read_all(path, lambda entry: None)]


def _read_all(
    path: str | os.PathLike[str], accept: Callable[[Entry], None]
) -> Iterator[tuple[Weights, Written]]:
    with _archive(path) as archive:
        header = _header_of(archive, path)
        _require_keys(header, set(archive.keys()), path)
        for entry in header.tensors:
            with _located(f"{path}: {entry.name}"):
                accept(entry)
                found = _read(archive, entry)
            yield found
        if _digest(header.tensors, archive.get_tensor) != header.digest:
            raise WeightsError(f"{path}: its digest is not that of its contents; it is damaged")


def _read(archive: Any, entry: Entry) -> tuple[Weights, Written]:
    coded = {
        kind: Coded(stored, of_tensor(archive.get_tensor(_key(entry, kind)), _key(entry, kind)))
        for kind, stored in entry.coded.items()
    }
    require_entry(entry, sum(each.nbytes for each in coded.values()))
    patterns = {kind: decode(each.stored, each.data) for kind, each in coded.items()}
    return restore(entry, patterns), Written(entry, coded, patterns)


@contextmanager
def _archive(path: str | os.PathLike[str]) -> Iterator[Any]:
    if not Path(path).exists():
        raise WeightsError(f"{path}: no such file of weights")
    try:
        with safe_open(path, framework="pt") as archive:
            yield archive
    except (SafetensorError, OSError, ValueError) as fault:
        raise WeightsError(
            f"{path}: required a safetensors file of fxloom weights, got another file or a damaged "
            f"one: {fault}"
        ) from None
    except MemoryError:
        raise WeightsError(f"{path}: required more memory than is free") from None


@contextmanager
def _located(place: str) -> Iterator[None]:
    try:
        yield
    except WeightsError as fault:
        raise WeightsError(f"{place}: {fault}") from None


def _header_of(archive: Any, path: str | os.PathLike[str]) -> _Header:
    text = (archive.metadata() or {}).get("fxloom")
    if text is None:
        raise WeightsError(
            f"{path}: required weights that fxloom wrote, got another safetensors file, which "
            "safetensors.torch.load_file reads"
        )
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            kind = raw.get("format") if isinstance(raw, dict) else raw
            raise WeightsError(f"{path}: required the format {FORMAT!r}, got {kind!r}")
        if raw.get("version") != VERSION:
            raise WeightsError(
                f"{path}: required version {VERSION} of the format, got {raw.get('version')!r}. "
                "Another fxloom wrote it: update this one, or write the file again"
            )
        return _Header.model_validate_json(text)
    except (ValueError, RecursionError) as fault:
        raise WeightsError(f"{path}: malformed header: {first_line(fault)}") from None


def first_line(error: Exception) -> str:
    """What is wrong with a header, and where."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).split("\n", 1)[0]


def _require_keys(header: _Header, held: set[str], path: str | os.PathLike[str]) -> None:
    """Raise WeightsError unless every tensor has its parts, and nothing else is there."""
    names = list(chain.from_iterable(entry.names for entry in header.tensors))
    twice = (
        {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    )
    if twice:
        raise WeightsError(f"{path}: {min(twice)}: is there twice")
    required: set[str] = set()
    for entry in header.tensors:
        keys = {_key(entry, kind) for kind in entry.coded}
        if missing := sorted(keys - held):
            raise WeightsError(
                f"{path}: {entry.name}: required {missing[0]!r} in the file, got none"
            )
        if keys & required:
            raise WeightsError(f"{path}: {entry.name}: shares {min(keys & required)!r}")
        required |= keys
    if unknown := sorted(held - required):
        raise WeightsError(f"{path}: required no {unknown[0]!r}, which belongs to no tensor")


def _key(entry: Entry, kind: str) -> str:
    is_plain = kind == VALUES and entry.coded[kind].coding == "raw" and not entry.steps
    return entry.name if is_plain else f"{entry.name}:{kind}"


def _digest(entries: Sequence[Entry], tensor: Callable[[str], Tensor]) -> str:
    """SHA-256 of the description and of the bytes of all that is stored."""
    described = [entry.model_dump(mode="json", exclude_defaults=True) for entry in entries]
    total = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for entry in entries:
        for kind in entry.coded:
            data = tensor(_key(entry, kind))
            total.update(f"{kind} {data.dtype} {list(data.shape)}".encode())
            flat = data.contiguous().reshape(-1).view(torch.uint8)
            total.update(flat.numpy().data)
    return total.hexdigest()
