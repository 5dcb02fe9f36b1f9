"""Reading files of Keras, against reading their bytes: 100 MB, the layouts of Keras 2 and 3.

A file is read a first time, so that it is in the page cache; `fxloom` is the second, into arrays
that are checked against the config; `disk` is read() of the file.
"""

import json
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.table import Table

UNITS = 1024
LAYERS = {False: 25, True: 4}
"""Dense layers of UNITS x UNITS, 4 MiB each; fewer where --quick asks."""


def measure_all(cases: Sequence[str] | None, quick: bool) -> Iterator[dict[str, Any]]:
    """One record a file: bytes, and seconds of the clock."""
    from fxloom.keras.files import read_model

    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("h5", _h5), ("keras", _archive)):
            if cases and name not in cases:
                continue
            path = Path(folder) / f"net.{name}"
            write(path, LAYERS[quick])
            path.read_bytes()
            began = time.perf_counter()
            path.read_bytes()
            disk = time.perf_counter() - began
            began = time.perf_counter()
            model = read_model(str(path))
            taken = time.perf_counter() - began
            assert len(model["fc1"].weights) == 2
            size = path.stat().st_size
            yield {"case": name, "bytes": size, "fxloom_s": taken, "disk_s": disk}


def table(records: Sequence[dict[str, Any]]) -> Table:
    """As printed."""
    found = Table("file", "MB", "disk, s", "fxloom, s")
    for each in records:
        times = (f"{each[key]:.2f}" for key in ("disk_s", "fxloom_s"))
        found.add_row(each["case"], f"{each['bytes'] / 1e6:.0f}", *times)
    return found


def _config(layers: int) -> dict[str, Any]:
    first = {"batch_input_shape": [None, UNITS]}
    described = [
        {
            "class_name": "Dense",
            "config": {"name": f"fc{number}", "units": UNITS, "use_bias": True}
            | (first if number == 0 else {}),
        }
        for number in range(layers)
    ]
    return {"class_name": "Sequential", "config": {"name": "net", "layers": described}}


def _arrays() -> list[Any]:
    kernel = np.random.default_rng(0).random((UNITS, UNITS), np.float32)
    return [kernel, np.zeros(UNITS, np.float32)]


def _h5(path: Path, layers: int) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["model_config"] = json.dumps(_config(layers))
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [f"fc{number}".encode() for number in range(layers)]
        for number in range(layers):
            group = root.create_group(f"fc{number}")
            group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
            group["kernel:0"], group["bias:0"] = _arrays()


def _archive(path: Path, layers: int) -> None:
    inner = path.with_suffix(".h5")
    with h5py.File(inner, "w") as file:
        for number in range(layers):
            group = file.create_group(f"layers/dense{f'_{number}' if number else ''}/vars")
            group["0"], group["1"] = _arrays()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.9.0"}')
        archive.writestr("config.json", json.dumps(_config(layers)))
        archive.write(inner, "model.weights.h5")
    inner.unlink()
