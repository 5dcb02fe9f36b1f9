"""Models of Keras and QKeras in files: `.keras`, `.h5`, JSON with weights; TensorFlow not needed.

What a file is, its first bytes say. Nothing in it is executed, and no memory is taken for what is
not there: the limits are in h5_file.py, archive.py and json_access.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxloom.errors import CaptureError
from fxloom.keras.archive import WEIGHTS, read_archive
from fxloom.keras.config import model_of
from fxloom.keras.description import Model
from fxloom.keras.h5_file import H5, read_h5
from fxloom.keras.h5_weights import source_of
from fxloom.keras.json_access import MAX_JSON, mapping, parsed, shown
from fxloom.keras.weights import attached

BESIDE = (".weights.h5", "_weights.h5", ".h5", ".hdf5")
"""What follows the stem of a JSON file in the name of its weights."""

_ZIP, _HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"


def read_model(spec: str) -> Model:
    """The model in a file, with its arrays.

    spec: a `.keras` or full `.h5` file; a JSON file with its weights beside it (net.json and
    net.weights.h5, net_weights.h5 or net.h5); or both, as MODEL.json:WEIGHTS.h5. Raises
    CaptureError naming the file.
    """
    model, colon, weights = spec.rpartition(":")
    both = bool(colon) and model.lower().endswith(".json")
    path = Path(model if both else spec)
    try:
        start = _start(path)
        if path.suffix.lower() == ".json":
            return _from_json(path, Path(weights) if both else None)
        if start.startswith(_ZIP):
            return _from_archive(path)
        if start == _HDF5:
            return _from_h5(path)
        raise CaptureError("neither a `.keras` archive nor HDF5")
    except CaptureError as fault:
        raise CaptureError(f"{path}: {fault}") from None
    except MemoryError:
        raise CaptureError(f"{path}: its arrays need more memory than is free") from None


def _start(path: Path) -> bytes:
    if path.is_dir():
        kind = (
            "a SavedModel: its graph is TensorFlow's. "
            if (path / "saved_model.pb").exists()
            else ""
        )
        raise CaptureError(f"a directory. {kind}Save the model as one `.keras` or `.h5` file")
    try:
        with path.open("rb") as file:
            return file.read(len(_HDF5))
    except FileNotFoundError:
        raise CaptureError("no such file") from None
    except OSError as fault:
        raise CaptureError(f"cannot be read: {fault.strerror or fault}") from None


def _from_archive(path: Path) -> Model:
    found = read_archive(path)
    model = model_of(found.config, generation_of(found.version, found.config))
    return attached(model, source_of(read_h5(path, WEIGHTS), "", model))


def _from_h5(path: Path) -> Model:
    file = read_h5(path)
    text = file.text("model_config")
    if text is None:
        raise CaptureError(
            "it has weights and no model. Give the model's JSON too: MODEL.json:WEIGHTS.h5, "
            "where model.to_json() wrote the first"
        )
    config = parsed(text, "model_config")
    model = model_of(config, generation_of(file.text("keras_version"), config))
    return _with_weights(model, file)


def _from_json(path: Path, weights: Path | None) -> Model:
    if path.stat().st_size > MAX_JSON:
        raise CaptureError(f"{path.stat().st_size:,} bytes; at most {MAX_JSON:,} of JSON are read")
    config = mapping(parsed(path.read_bytes(), "the file"), "the file")
    model = model_of(config, generation_of(config.get("keras_version"), config))
    weights = weights or _beside(path)
    if _start(weights) != _HDF5:
        raise CaptureError(f"its weights, {weights}: not HDF5")
    try:
        return _with_weights(model, read_h5(weights))
    except CaptureError as fault:
        raise CaptureError(f"with the weights of {weights}: {fault}") from None


def _beside(path: Path) -> Path:
    found = [path.with_name(path.stem + end) for end in BESIDE]
    there = [each for each in found if each.exists()]
    if len(there) == 1:
        return there[0]
    kind = "no weights are beside it" if not there else "several weights are beside it"
    listed = ", ".join(each.name for each in (there or found))
    raise CaptureError(f"{kind} ({listed}). Name them: {path}:WEIGHTS.h5")


def _with_weights(model: Model, file: H5) -> Model:
    root = "model_weights" if file.is_group("model_weights") else ""
    return attached(model, source_of(file, root, model))


def generation_of(version: Any, config: Any) -> int:
    """2 or 3, of the Keras that wrote a config. Raises CaptureError for another.

    version: as the file has it; where it has none, Keras 3 is known by its modules.
    """
    if version is None:
        newer = isinstance(config, Mapping) and config.get("module") is not None
        return 3 if newer else 2
    number = version.partition(".")[0] if isinstance(version, str) else ""
    if number not in ("2", "3"):
        raise CaptureError(f"required a model of Keras 2 or 3, got version {shown(version)}")
    return int(number)
