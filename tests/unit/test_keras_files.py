"""Files of Keras are data: good ones load without TensorFlow, crafted ones are named errors."""

import base64
import io
import json
import marshal
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from fxloom import CaptureError, UnsupportedLayer, capture, load_model
from fxloom.errors import FxloomError
from fxloom.keras.h5_process import send
from fxloom.keras.model import Network
from tests.keras_files import (
    Arrays,
    dense,
    functional,
    inputs,
    layer,
    newer,
    ramp,
    small,
    small_arrays,
    small_tree,
    tree,
    write_h5,
    write_keras,
    write_weights,
)

X = torch.linspace(-1, 1, 6).reshape(2, 3)


def expected() -> torch.Tensor:
    (a, b), (c, d) = ((torch.from_numpy(x) for x in kept) for kept in small_arrays().values())
    return torch.relu(X @ a + b) @ c + d


def test_a_keras_2_file_computes_what_its_weights_say(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "net.h5", small(), small_arrays())
    torch.testing.assert_close(capture(path, X)(X), expected())
    model = load_model(str(path))
    assert isinstance(model, Network)
    assert [tuple(x.shape) for x in model.example_inputs()] == [(2, 3)]
    assert len(capture(str(path)).graph.find_nodes(op="placeholder")) == 1


def test_a_keras_archive_does_too(tmp_path: Path) -> None:
    path = write_keras(tmp_path / "net.keras")
    torch.testing.assert_close(capture(path)(X), expected())


def test_json_with_weights_of_either_layout(tmp_path: Path) -> None:
    model = tmp_path / "net.json"
    model.write_text(json.dumps(newer(small())))
    (tmp_path / "net.weights.h5").write_bytes(small_tree())
    torch.testing.assert_close(capture(model)(X), expected())
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        write_weights(file, small_arrays())
    torch.testing.assert_close(capture(f"{model}:{tmp_path}/other.hdf5")(X), expected())
    (tmp_path / "net.h5").write_bytes(small_tree())
    with pytest.raises(
        CaptureError, match=r"several weights are beside it \(net.weights.h5, net.h5"
    ):
        load_model(str(model))


def test_what_a_file_is_its_bytes_say(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "net.keras", small(), small_arrays())
    torch.testing.assert_close(capture(path)(X), expected())


def test_arrays_of_nested_models_are_those_that_train_and_then_the_others(tmp_path: Path) -> None:
    def norm(name: str, inbound: str, trainable: bool) -> Any:
        more = {"axis": [1], "epsilon": 0.001, "center": True, "scale": False}
        return layer("BatchNormalization", name, [[[inbound, 0, 0]]], trainable=trainable, **more)

    parts = [
        inputs("x", 2),
        norm("frozen", "x", False),
        dense("fc", [[["frozen", 0, 0]]], 2),
        norm("last", "fc", True),
    ]
    inner = functional(parts, [["x", 0, 0]], [["last", 0, 0]], "inner")
    inner = {**inner, "name": "inner", "inbound_nodes": [[["y", 0, 0]]]}
    model = functional([inputs("y", 2), inner], [["y", 0, 0]], [["inner", 1, 0]])
    arrays = {
        "fc": [ramp(2, 2), ramp(2)],
        "last": [np.float32([1, 2]), np.float32([3, 4]), np.float32([5, 6])],
        "frozen": [np.float32([7, 8]), np.float32([9, 10]), np.float32([11, 12])],
    }
    order = [*arrays["fc"], arrays["last"][0], *arrays["frozen"], *arrays["last"][1:]]
    path = write_h5(tmp_path / "net.h5", model, {"inner": order})
    found = load_model(str(path)).get_submodule("inner")._model  # type: ignore[union-attr]
    for name, kept in arrays.items():
        assert all(map(np.array_equal, found[name].weights, kept)), name


def refused(spec: object) -> str:
    with pytest.raises(FxloomError) as fault:
        capture(str(spec))
    return str(fault.value)


WEIGHTS: dict[str, tuple[Arrays, str]] = {
    "none": ({}, "fc1 (Dense): required 2 arrays (kernel, bias), got 0"),
    "too many": ({"fc1": [ramp(3, 4), ramp(4), ramp(4)]}, "required 2 arrays"),
    "another shape": ({"fc1": [ramp(3, 5), ramp(4)]}, "required shape any x 4, got 3 x 5"),
    "of other layers": ({"fc9": [ramp(3, 4)]}, "layers that are not in the config: fc9"),
    "half precision": ({"fc1": [ramp(3, 4).astype(np.float16), ramp(4)]}, "got float16"),
    "not in float32": ({"fc1": [np.full((3, 4), 0.1), ramp(4)]}, "got float64"),
    "texts": ({"fc1": [np.array([b"abc"]), ramp(4)]}, "required numbers"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_another_model_are_refused(name: str, tmp_path: Path) -> None:
    arrays, reason = WEIGHTS[name]
    kept = small_arrays() | dict(arrays) if arrays else {}
    text = refused(write_h5(tmp_path / "net.h5", small(), kept))
    assert "net.h5" in text
    assert reason in text


def test_a_kernel_is_compared_with_the_input_that_keras_3_tells(tmp_path: Path) -> None:
    model = newer(small())
    model["config"]["layers"][1]["build_config"] = {"input_shape": [None, 5]}
    path = write_keras(tmp_path / "net.keras", {"config.json": json.dumps(model)})
    assert "fc1 (Dense), kernel: required shape 5 x 4, got 3 x 4" in refused(path)


def test_doubles_that_are_singles_are_read(tmp_path: Path) -> None:
    arrays = {name: [x.astype(">f8") for x in kept] for name, kept in small_arrays().items()}
    path = write_h5(tmp_path / "net.h5", small(), arrays)
    torch.testing.assert_close(capture(path)(X), expected())


ARCHIVES: dict[str, tuple[dict[str, bytes | str], str]] = {
    "no config": ({"config.json": ""}, "required config.json, got metadata.json, model.weights.h5"),
    "no weights": ({"model.weights.h5": ""}, "required model.weights.h5"),
    "path": ({"../../x": "y"}, "member '../../x': its path leads out of the archive"),
    "absolute path": ({"/etc/x": "y"}, "leads out of the archive"),
    "old version": ({"metadata.json": '{"keras_version": "1.2.2"}'}, "got version '1.2.2'"),
    "new version": ({"metadata.json": '{"keras_version": "4.0.0"}'}, "got version '4.0.0'"),
    "no JSON": ({"config.json": "{"}, "config.json: damaged"),
    "deep": ({"config.json": "[" * 100_000}, "nested more than"),
    "no model": ({"config.json": '{"class_name": "Dense", "config": {}}'}, "got the class Dense"),
    "no HDF5": ({"model.weights.h5": "x" * 100}, "damaged"),
    "strangers": (
        {"model.weights.h5": tree({"dense": small_arrays()["fc1"], "lstm": []})},
        "layers that are not in the config: lstm",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_keras_would_not_write(name: str, tmp_path: Path) -> None:
    members, reason = ARCHIVES[name]
    text = refused(write_keras(tmp_path / "net.keras", members))
    assert "net.keras: " in text
    assert reason in text


def test_a_member_that_is_compressed_beyond_reason_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(
        tmp_path / "net.keras", "w", zipfile.ZIP_DEFLATED, compresslevel=9
    ) as file:
        file.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        file.writestr("config.json", json.dumps(newer(small())))
        file.writestr("model.weights.h5", bytes(2**27))
    assert "member model.weights.h5: 134,217,728 bytes; at most" in refused(tmp_path / "net.keras")
    with zipfile.ZipFile(tmp_path / "net.keras", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        file.writestr("config.json", b" " * (2**24 + 1))
    assert "member config.json: 16,777,217 bytes; at most" in refused(tmp_path / "net.keras")


def sent(path: Path) -> str:
    """What the process that reads HDF5 says, asked without one."""
    out = io.BytesIO()
    send(path, None, out)
    return out.getvalue().partition(b"\n")[0].decode()


def with_array(edit: Callable[[h5py.Group], None], path: Path) -> Path:
    """A file whose first array is made by edit."""
    write_h5(path, small(), small_arrays())
    with h5py.File(path, "a") as file:
        below = file["model_weights/fc1/fc1"]
        del below["array_0:0"]
        edit(below)
    return path


def of_other_files(folder: h5py.Group) -> None:
    folder.create_dataset("array_0:0", (3, 4), "f4", external=[("/etc/passwd", 0, 48)])


def virtual(folder: h5py.Group) -> None:
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (3, 4))
    folder.create_virtual_dataset("array_0:0", layout)


ARRAYS: dict[str, tuple[Callable[[h5py.Group], object], str]] = {
    "external": (of_other_files, "its numbers lie in other files"),
    "virtual": (virtual, "its numbers lie in other files"),
    "declared": (lambda f: f.create_dataset("array_0:0", (2**20, 2**20), "f4"), "declares 4,398"),
    "chunks": (
        lambda f: f.create_dataset("array_0:0", (2**20, 2**16), "f4", chunks=(64, 64)),
        "all arrays of this file together",
    ),
    "soft link": (
        lambda f: f.__setitem__("array_0:0", h5py.SoftLink("/model_weights/fc2")),
        "a link to elsewhere",
    ),
    "external link": (
        lambda f: f.__setitem__("array_0:0", h5py.ExternalLink("/etc/x.h5", "/x")),
        "a link to elsewhere",
    ),
    "itself": (lambda f: f.__setitem__("array_0:0", f), "nested more than 100 deep"),
    "bfloat16": (
        lambda f: f.create_dataset("array_0:0", data=np.zeros((3, 4), "u2")).attrs.__setitem__(
            "dtype", "bfloat16"
        ),
        "got bfloat16",
    ),
    "texts": (lambda f: f.create_dataset("array_0:0", data=["a", "b"]), "required numbers"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_not_in_the_file_are_not_read(name: str, tmp_path: Path) -> None:
    make, reason = ARRAYS[name]
    path = with_array(lambda folder: make(folder) and None, tmp_path / "net.h5")  # type: ignore[func-returns-value]
    assert reason in sent(path)
    if name in ("external", "external link", "declared"):
        assert reason in refused(path)


def test_numbers_out_of_nothing_take_no_memory(tmp_path: Path) -> None:
    """A compressed array of zeros of 10 GB, and a text of 8 MB that is named 3,000 times."""

    def zeros(folder: h5py.Group) -> None:
        folder.create_dataset("array_0:0", (2**31,), "f4", chunks=(2**20,), compression="gzip")

    assert "all arrays of this file together" in sent(with_array(zeros, tmp_path / "a.h5"))
    write_h5(tmp_path / "b.h5", small(), small_arrays())
    with h5py.File(tmp_path / "b.h5", "a") as file:
        names = np.array(["x" * 2**23] + ["y"] * 2999, dtype=object)
        file["model_weights/fc1"].attrs.create("weight_names", names, dtype=h5py.string_dtype())
    content = (tmp_path / "b.h5").read_bytes()
    at = content.index(b"x" * 100) - 16  # the heap that holds the text
    heap = content.rindex(b"GCOL", 0, at + 16)
    own = (2**23).to_bytes(4, "little") + heap.to_bytes(8, "little")
    start = content.index(own)
    content = content[:start] + content[start : start + 16] * 3000 + content[start + 48_000 :]
    (tmp_path / "b.h5").write_bytes(content)
    code = (
        "import pathlib, resource, sys\n"
        "from fxloom.errors import CaptureError\n"
        "from fxloom.keras.h5_file import read_h5\n"
        "try: read_h5(pathlib.Path(sys.argv[1]))\n"
        "except CaptureError as fault: print(fault)\n"
        # Not ru_maxrss of itself: that begins with what the process had that started this one.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "own = int(status.partition('VmHWM:')[2].split()[0])\n"
        "print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b.h5")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    *text, kilobytes = run.stdout.splitlines()
    assert "fc1: damaged: " in text[0]
    assert int(kilobytes) < 2**20


def test_a_file_that_hangs_the_library_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxloom.keras.h5_file.SECONDS", 0)
    monkeypatch.setattr("fxloom.keras.h5_file.BYTES_A_SECOND", 2**40)
    path = write_h5(tmp_path / "net.h5", small(), small_arrays())
    assert "the HDF5 library failed on it, or took more than 0 s" in refused(path)


def test_truncated_files_are_named(tmp_path: Path) -> None:
    for path in (
        write_h5(tmp_path / "net.h5", small(), small_arrays()),
        write_keras(tmp_path / "net.keras"),
    ):
        content = path.read_bytes()
        for share in (0, 4, 100, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:share])
            assert path.name in refused(path)


def test_weights_alone_and_directories_say_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "net.h5").write_bytes(small_tree())
    assert "MODEL.json:WEIGHTS.h5" in refused(tmp_path / "net.h5")
    (tmp_path / "saved.keras").mkdir()
    (tmp_path / "saved.keras" / "saved_model.pb").touch()
    assert "a SavedModel" in refused(tmp_path / "saved.keras")


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    code = marshal.dumps(compile(f"open({str(tmp_path / 'made')!r}, 'w')", "x", "exec"))
    function = [base64.b64encode(code).decode(), None, None]
    run = layer("Lambda", "run", [[["x", 0, 0]]], function=function, function_type="lambda")
    model = functional([inputs("x", 3), run], [["x", 0, 0]], [["run", 0, 0]])
    path = write_h5(tmp_path / "net.h5", model, {})
    with pytest.raises(UnsupportedLayer, match=r"net.h5: run \(Lambda\): it holds Python code"):
        capture(path)
    assert not (tmp_path / "made").exists()


def test_names_with_slashes_stay_in_the_file(tmp_path: Path) -> None:
    model = json.loads(json.dumps(small()).replace("fc1", "block/fc"))
    arrays = {"block/fc": small_arrays()["fc1"], "fc2": small_arrays()["fc2"]}
    path = write_h5(tmp_path / "net.h5", model, arrays)
    torch.testing.assert_close(capture(path)(X), expected())
