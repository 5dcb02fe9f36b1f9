"""Data: every usual form, streamed as float32, and every fault named."""

import io
import pickle
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
)

from fxloom.data import Data
from fxloom.errors import DataError
from fxloom.npz import read_npz

X = np.arange(24, dtype=np.float64).reshape(6, 4) / 8
Y = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ((torch.tensor(row), int(label)) for row, label in zip(X, Y, strict=True))


def pairs() -> list[Any]:
    return [(torch.tensor(row), int(label)) for row, label in zip(X, Y, strict=True)]


def data(value: object) -> Data:
    made = Data.of(value)
    assert made is not None
    return made


def joined(made: Data) -> torch.Tensor:
    return torch.cat([b for b in made.batches("train", 4) if isinstance(b, torch.Tensor)])


FORMS = {
    "Data": Data(X, Y),
    "pair": (X, Y),
    "tensors": (torch.tensor(X), torch.tensor(Y)),
    "four": (X, Y, X[:2], Y[:2]),
    "dict": {"x_train": X, "y_train": Y},
    "train dict": {"train": Items(pairs()), "test": Items(pairs()[:1])},
    "dataset": Items(pairs()),
    "tensor dataset": TensorDataset(torch.tensor(X), torch.tensor(Y)),
    "two datasets": (Items(pairs()), Items(pairs()[:1])),
    "loader": DataLoader(Items(pairs()), batch_size=4),
    "shuffled loader": DataLoader(Items(pairs()), batch_size=4, shuffle=True, drop_last=True),
    "unbatched loader": DataLoader(Items(pairs()), batch_size=None),
    "stream": Stream(),
    "loaded stream": DataLoader(Stream(), batch_size=5),
    "fortran": (np.asfortranarray(X), Y),
    "big endian": (X.astype(">f8"), Y.astype(">i4")),
    "strided": (np.repeat(X, 2, 0)[::2], Y),
    "half": (torch.tensor(X, dtype=torch.float16), Y),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_batches(form: str) -> None:
    made = data(FORMS[form])
    sizes = [len(batch) for batch in made.batches("train", 4)]
    assert sizes == [4, 2]
    assert joined(made).dtype == torch.float32
    assert torch.equal(joined(made), torch.tensor(X, dtype=torch.float32))
    assert torch.equal(made.labels(), torch.tensor(Y, dtype=torch.int64))
    assert torch.equal(joined(made), joined(made))  # a second pass gives the same


def test_reading_a_loader_leaves_the_random_stream_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    joined(data(DataLoader(Items(pairs()), batch_size=4, shuffle=True)))
    assert torch.equal(torch.get_rng_state(), state)


def test_sampler_of_the_users_own_is_kept() -> None:
    loader = DataLoader(Items(pairs()), batch_size=1, sampler=SubsetRandomSampler([3]))
    assert torch.equal(joined(data(loader)), torch.tensor(X[3:4], dtype=torch.float32))


def test_none_stays_none() -> None:
    assert Data.of(None) is None


def test_several_inputs_come_as_tuples() -> None:
    for value in (
        {"x_train": (X, X[:, :1]), "y_train": Y},
        Items([((row, row[:1]), int(label)) for row, label in zip(X, Y, strict=True)]),
        DataLoader(Items([((row, row[:1]), 0) for row in X]), batch_size=2),
    ):
        first = next(data(value).batches("train", 4))
        assert isinstance(first, tuple)
        assert [tuple(x.shape) for x in first] == [(4, 4), (4, 1)]


def test_example_is_the_first_samples() -> None:
    assert torch.equal(data(X).example(2), torch.tensor(X[:2], dtype=torch.float32))  # type: ignore[arg-type]
    assert len(data(X).example(100)) == 6


def test_batches_are_copies() -> None:
    x = torch.ones(2, 2)
    made = data(x)
    made.example(1).zero_()  # type: ignore[union-attr]
    assert torch.equal(x, torch.ones(2, 2))


def test_missing_split_or_labels_is_an_error() -> None:
    made = data(X)
    assert made.has("train")
    assert not made.has("test")
    with pytest.raises(DataError, match="x_test: required for this"):
        next(made.batches("test"))
    with pytest.raises(DataError, match="y_train: required for this"):
        made.labels()
    with pytest.raises(DataError, match="y_test: required x_test"):
        Data(X, None, None, Y)


def test_float_labels_stay_fractional() -> None:
    assert data((X, X[:, 0] / 3)).labels().dtype == torch.float32


def spoiled(value: float) -> np.ndarray[Any, Any]:
    x = X.copy()
    x[4, 2] = value
    return x


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (spoiled(np.nan), r"x_train: sample 4 holds NaN at index \(2,\)"),
        (spoiled(-np.inf), r"x_train: sample 4 holds an infinite value"),
        (spoiled(1e300), r"x_train: sample 4 holds an infinite value \(in float32\)"),
        ((X, spoiled(np.nan)[:, 2]), r"y_train: sample 4 holds NaN$"),
        ((X, Y[:5]), r"same number of samples: x_train has 6, y_train has 5"),
        ({"x_train": (X, X[:3])}, r"x_train\[0\] has 6, x_train\[1\] has 3"),
        (X[:0], r"x_train: is empty, shape \(0, 4\)"),
        (X[:, :0], r"x_train: is empty, shape \(6, 0\)"),
        (np.array(3.0), r"required samples along the first axis"),
        (np.array(["a"]), r"required dense real numbers, got dtype <U1"),
        (np.array([object()]), r"required dense real numbers, got dtype object"),
        (X.astype(complex), r"got dtype complex128"),
        (torch.ones(2, 2).to_sparse(), r"required dense real numbers"),
        (torch.ones(2, 2, device="meta"), r"required dense real numbers"),
        (np.array(["2020-01-01"], dtype="M8[D]"), r"got dtype datetime64"),
        ([[1.0], [2.0], [3.0]], r"data: required an array.*got a list of 3"),
        (([1.0], [2]), r"x_train: required a NumPy array or a tensor, got list"),
        ("x.npz", r"got a str"),
        ({"x": X}, r"required the keys x_train .* got x$"),
        ({}, r"got an empty dict"),
        ({"train": X, "x_train": X}, r"required the keys"),
        ((Items(pairs()), Y), r"y_train: required nothing"),
        (Items([]), r"x_train: the data set is empty"),
        (DataLoader(Items([])), r"x_train: the data set is empty"),
        (Items([ValueError("no")]), r"x_train: sample 0: raised ValueError: no"),
        (Items([{"x": 1}]), r"sample 0: required x, \(x, y\) or .* got a dict"),
        (Items([(1, 2, 3)]), r"got a tuple of 3"),
        (Items([("a", 1)]), r"x_train: sample 0: required numbers, got str"),
        (Items([(torch.ones(0), 1)]), r"sample 0: is empty"),
        (Items([(torch.ones(2) + 1j, 1)]), r"got dtype torch.complex64"),
    ],
)
def test_fault_is_named(value: object, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        Data.of(value)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ((torch.tensor([1.0, np.nan]), 0), r"x_train: sample 5 holds NaN at index \(1,\)"),
        ((torch.ones(2), float("nan")), r"y_train: sample 5 holds NaN"),
        ((torch.ones(3), 0), r"x_train: sample 5: required shape \(2,\) as in sample 4"),
        (torch.ones(2), r"sample 5: required the form of sample 0, 1 input\(s\) with a label"),
        (KeyError("k"), r"sample 5: raised KeyError"),
    ],
)
def test_fault_in_a_stream_is_named_by_sample(item: object, expected: str) -> None:
    made = data(Items([(torch.ones(2), 1)] * 5 + [item]))
    with pytest.raises(DataError, match=expected):
        list(made.batches("train", 4))


def test_npz_is_mapped_and_streamed_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    x = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (40_000, 256), (0, 0))
    np.savez(path, x_train=x, y_train=np.zeros(40_000, np.int64))
    tracemalloc.start()
    made = Data.load(path)
    count = sum(len(batch) for batch in made.batches("train", 64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 40_000
    assert isinstance(made.x_train, np.memmap)
    assert peak < 20e6  # the array has 41e6 bytes


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_holds_what_was_saved(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "d.npz"
    arrays = {
        "a": X,
        "f": np.asfortranarray(X),
        "b": X.astype(">f4"),
        "e": X[:0],
        "i": np.int8(3),
        "u": np.arange(5, dtype=np.uint16),
    }
    save(path, **arrays)
    for name, array in read_npz(path).items():
        np.testing.assert_array_equal(array, arrays[name])


class Boom:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('ran')",))


def test_pickled_array_is_refused_by_name(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "d.npz", x_train=np.array([Boom()], dtype=object))
        with pytest.raises(DataError, match=r"d\.npz: x_train: is a pickled array"):
            Data.load(tmp_path / "d.npz")
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(DataError, match=r"not an \.npz file"):
        Data.load(tmp_path / "p.npz")


def test_missing_keys_list_what_is_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", X_train=X, labels=Y)
    with pytest.raises(
        DataError,
        match=r"x_train is missing.*the file has X_train, labels.*X_train: Did you mean x_train",
    ):
        Data.load(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x_train=X, x_tets=X)
    with pytest.raises(DataError, match=r"x_tets: Did you mean x_test"):
        Data.load(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x_train=X, classes=Y)
    assert torch.equal(joined(Data.load(tmp_path / "d.npz")), torch.tensor(X, dtype=torch.float32))


def test_files_that_are_not_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Data.load(tmp_path / "none.npz")
    with pytest.raises(DataError, match="is a directory"):
        Data.load(tmp_path)
    (tmp_path / "text.npz").write_text("x_train = 3")
    with pytest.raises(DataError, match=r"not an \.npz file, or damaged"):
        Data.load(tmp_path / "text.npz")
    (tmp_path / "d.py").write_text("def make(): return [1]\n")
    with pytest.raises(DataError, match=r"required FILE\.py:FUNCTION"):
        Data.load(tmp_path / "d.py")
    with pytest.raises(DataError, match=r"d\.py:make: required an array.*got a list of 1"):
        Data.load(f"{tmp_path}/d.py:make")


def test_damage_is_reported_at_every_cut(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x_train=X)
    whole = buffer.getvalue()
    path = tmp_path / "cut.npz"
    for cut in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            Data.load(path)


def member(path: Path, content: bytes, compression: int) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x_train.npy", content)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_crafted_headers_are_refused(tmp_path: Path, compression: int) -> None:
    buffer = io.BytesIO()
    np.save(buffer, X)
    good = buffer.getvalue()
    for bad in (
        b"",
        b"garbage",
        good[:-8],
        good + b"12345678",
        good.replace(b"(6, 4)", b"(6,99999999999)"[:6]),
        good.replace(b"'<f8'", b"'|O' "),
        good.replace(b"'<f8'", b"__i()"),
        good.replace(b"(6, 4)", b"(-6,4)"),
        b"\x93NUMPY\x03" + good[7:],
        b"\x93NUMPY\x09" + good[7:],
    ):
        with pytest.raises(DataError):
            Data.load(member(tmp_path / "bad.npz", bad, compression))


def test_factory_returns_any_form(tmp_path: Path) -> None:
    path = tmp_path / "d.py"
    path.write_text("import numpy\ndef make():\n    return numpy.ones((3, 2)), numpy.zeros(3)\n")
    assert Data.load(f"{path}:make").labels().tolist() == [0.0, 0.0, 0.0]


def test_fault_in_the_users_dataset_quotes_its_line(tmp_path: Path) -> None:
    path = tmp_path / "d.py"
    path.write_text(
        "import torch\nclass D(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 2\n"
        "    def __getitem__(self, i):\n        return [][i]\n"
        "def make(): return D()\n"
    )
    with pytest.raises(DataError, match=r"sample 0: raised IndexError.*\n.*d\.py:5"):
        Data.load(f"{path}:make")
