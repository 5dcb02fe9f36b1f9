"""fxloom.json: the file by which a build directory is known to be ours, and to be whole.

It lists every file with size and SHA-256, and what the caller adds (tool versions, digests). No
time and no path of this machine is in it: the same build is the same bytes anywhere.
"""

import hashlib
import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fxloom.errors import FxloomError

NAME = "fxloom.json"
FORMAT = "fxloom-build"
VERSION = 1


def write_manifest(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write the manifest of a finished folder and give its files the modes 0644 or 0755.

    entries: what goes in besides format, version and files. Raises FxloomError for a link or
    device in the folder, which no other machine could reproduce.
    """
    assert not {"format", "version", "files"} & entries.keys()
    assert not (folder / NAME).exists()
    files = [_entry(folder, path) for path in _walk(folder)]
    manifest = {"format": FORMAT, "version": VERSION, **entries}
    manifest["files"] = sorted(files, key=lambda entry: str(entry["path"]))
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (folder / NAME).write_text(text, encoding="ascii")
    (folder / NAME).chmod(0o644)
    folder.chmod(0o755)


def read_manifest(path: str | Path, verify_files: bool = False) -> dict[str, Any]:
    """The manifest of a build directory.

    verify_files: compare every listed file as well. Files that are not listed are no fault: a
    vendor's tool puts its results beside ours. Raises FxloomError saying what is wrong.
    """
    folder = Path(path)
    if not folder.exists():
        raise FxloomError(f"{path}: no such directory; `fxloom compile` makes one")
    if not folder.is_dir():
        raise FxloomError(f"{path}: is not a directory; a build directory of fxloom is required")
    manifest = _parse(folder)
    if manifest["version"] > VERSION:
        raise FxloomError(
            f"{path}: was made by a newer fxloom: required format version {VERSION} or less, "
            f"got {manifest['version']}. Update fxloom or compile again"
        )
    faults = _faults(folder, manifest) if verify_files else []
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise FxloomError(f"{path}: damaged or edited; compile again:\n{listed}")
    return manifest


def is_ours(folder: Path) -> bool:
    """Whether a directory carries a manifest of fxloom, of any version."""
    try:
        _parse(folder)
    except FxloomError:
        return False
    return True


def _parse(folder: Path) -> dict[str, Any]:
    file = folder / NAME
    if file.is_symlink() or not file.is_file():
        raise FxloomError(f"{folder}: is not a build directory of fxloom: it has no {NAME}")
    try:
        manifest = json.loads(file.read_bytes())
    except OSError as fault:
        raise FxloomError(f"{file}: cannot be read: {fault.strerror}") from None
    except (ValueError, RecursionError) as fault:
        raise FxloomError(f"{file}: damaged: {fault}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FxloomError(f"{file}: is not a manifest of fxloom: required format {FORMAT!r}")
    version = manifest.get("version")
    if type(version) is not int or version < 1:
        raise FxloomError(f"{file}: damaged: required a version number, got {version!r}")
    files = manifest.get("files")
    if version <= VERSION and not (isinstance(files, list) and all(map(_is_entry, files))):
        raise FxloomError(f"{file}: damaged: required files as a list of path, sha256 and size")
    return manifest


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"path", "sha256", "size"}:
        return False
    if not isinstance(entry["path"], str) or not isinstance(entry["sha256"], str):
        return False
    inside = PurePosixPath(entry["path"])
    return type(entry["size"]) is int and not inside.is_absolute() and ".." not in inside.parts


def _faults(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    faults = []
    for entry in manifest["files"]:
        file = folder / entry["path"]
        if not file.is_file():
            faults.append(f"{entry['path']}: missing")
        elif file.stat().st_size != entry["size"]:
            faults.append(
                f"{entry['path']}: required {entry['size']} bytes, got {file.stat().st_size}"
            )
        elif _digest(file) != entry["sha256"]:
            faults.append(f"{entry['path']}: required SHA-256 {entry['sha256']}, got another")
    return faults


def _walk(folder: Path) -> Iterator[Path]:
    """All files below; folders get their mode on the way."""
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            path.chmod(0o755)
            yield from _walk(path)
        elif stat.S_ISREG(mode):
            path.chmod(0o755 if mode & stat.S_IXUSR else 0o644)
            yield path
        else:
            raise FxloomError(f"{path.name}: only files and folders can be in a build directory")


def _entry(folder: Path, file: Path) -> dict[str, object]:
    return {
        "path": file.relative_to(folder).as_posix(),
        "sha256": _digest(file),
        "size": file.stat().st_size,
    }


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
