"""The user's samples: what passes calibrate and train on, and what results are checked with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fxloom.errors import DataError
from fxloom.npz import read_npz
from fxloom.samples import Inputs, Split, is_split, split_of
from fxloom.settings import did_you_mean
from fxloom.userfile import is_factory_spec, load_factory

SplitName = Literal["train", "test"]

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, eq=False)
class Data:
    """Training samples, and optionally labels and test samples, in the layout of the model.

    Each x is an array or a tensor with one sample per row, a tuple of those for a model with
    several inputs, or a torch Dataset or DataLoader that yields x, (x, y) or ((x1, x2), y).
    Raises DataError for what cannot be used.
    """

    x_train: object
    y_train: object = None
    x_test: object = None
    y_test: object = None
    _splits: dict[str, Split] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.x_test is None and self.y_test is not None:
            raise DataError("y_test: required x_test as well")
        self._splits["train"] = split_of(self.x_train, self.y_train, "train")
        if self.x_test is not None:
            self._splits["test"] = split_of(self.x_test, self.y_test, "test")

    @classmethod
    def load(cls, spec: str | Path) -> Data:
        """The data of FILE.npz, or of what FILE.py:FUNCTION returns (any form `of` accepts).

        An .npz has the keys x_train and, as wanted, y_train, x_test, y_test.
        """
        text = str(spec)
        if is_factory_spec(text):
            found = cls.of(load_factory(text, DataError), text)
            assert found is not None  # load_factory refuses None
            return found
        if text.endswith(".py"):
            raise DataError(
                f"{text}: required FILE.py:FUNCTION, the function that returns the data"
            )
        arrays = read_npz(text)
        known = {name: array for name, array in arrays.items() if name in _ARRAYS}
        # An unrelated array is no harm; one that was meant to be ours would vanish silently.
        doubtful = [n for n in arrays if n not in _ARRAYS and did_you_mean(n, _ARRAYS)]
        if "x_train" not in known or doubtful:
            problem = "" if "x_train" in known else " x_train is missing."
            hints = [f" {name}:{did_you_mean(name, _ARRAYS)}" for name in doubtful]
            raise DataError(
                f"{text}:{problem} Required x_train and, as wanted, y_train, x_test, y_test; "
                f"the file has {', '.join(arrays) or 'no arrays'}.{''.join(hints)}"
            )
        return cls._build(known, text)

    @classmethod
    def of(cls, value: object, source: str = "data") -> Data | None:
        """The data in any of the usual forms; None stays None.

        Data; x; (x, y); (x_train, y_train, x_test, y_test); a Dataset or DataLoader; two of them,
        for train and test; a dict with the keys x_train, y_train, x_test, y_test, or train and
        test. source: begins each message.
        """
        if value is None or isinstance(value, Data):
            return value
        return cls._build(_named(value, source), source)

    def batches(self, split: SplitName = "train", size: int = 256) -> Iterator[Inputs]:
        """The inputs in order: float32 [size or fewer, ...], a tuple of them for several inputs."""
        for x, _ in self.pairs(split, size):
            yield x

    def spread(self, count: int, size: int = 256) -> Iterator[Inputs]:
        """Batches of at most count training samples, evenly spaced over the data where it has a
        length, so that data sorted by class lose none; the first ones of a stream."""
        for inputs, _ in self._split("train").spread(count).batches(size):
            yield inputs[0] if len(inputs) == 1 else inputs

    def sampled(
        self, split: SplitName, count: int, size: int = 256
    ) -> Iterator[tuple[Inputs, Tensor | None]]:
        """Batches of at most count samples of a split with their labels, chosen like `spread`'s."""
        for inputs, labels in self._split(split).spread(count).batches(size):
            yield (inputs[0] if len(inputs) == 1 else inputs), labels

    def pairs(
        self, split: SplitName = "train", size: int = 256
    ) -> Iterator[tuple[Inputs, Tensor | None]]:
        """Inputs with their labels: int64 for whole numbers, float32 for others, None if none."""
        assert size >= 1
        for inputs, labels in self._split(split).batches(size):
            yield (inputs[0] if len(inputs) == 1 else inputs), labels

    def example(self, n: int = 1) -> Inputs:
        """The first n training samples, or all where there are fewer."""
        return next(self.batches("train", n))

    def labels(self, split: SplitName = "train") -> Tensor:
        """All labels of a split. Raises DataError where it has none."""
        found = [labels for _, labels in self.pairs(split) if labels is not None]
        if not found:
            raise DataError(f"y_{split}: required for this, but the data has no such labels")
        return torch.cat(found)

    def has(self, split: SplitName) -> bool:
        """Whether there are samples of a split."""
        return split in self._splits

    def _split(self, split: SplitName) -> Split:
        if split not in self._splits:
            raise DataError(f"x_{split}: required for this, but the data has no {split} samples")
        return self._splits[split]

    @classmethod
    def _build(cls, arrays: Mapping[str, object], source: str) -> Data:
        try:
            return cls(**arrays)
        except DataError as fault:
            raise DataError(f"{source}: {fault}") from fault.__cause__


def _named(value: object, source: str) -> dict[str, object]:
    """The value as keyword arguments of Data."""
    if isinstance(value, Mapping):
        return _from_mapping(value, source)
    if isinstance(value, TensorDataset) and len(value.tensors) <= 2:
        return dict(zip(_ARRAYS, value.tensors, strict=False))  # slices instead of single items
    if is_split(value):
        return {"x_train": value}
    if isinstance(value, tuple | list) and len(value) in (2, 4):
        if all(isinstance(each, Dataset | DataLoader) for each in value) and len(value) == 2:
            return {"x_train": value[0], "x_test": value[1]}
        return dict(zip(_ARRAYS, value, strict=False))
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    raise DataError(
        f"{source}: required an array, (x, y), (x_train, y_train, x_test, y_test), a Dataset, "
        f"a DataLoader, two of those, or a dict; got a {type(value).__name__}{size}"
    )


def _from_mapping(value: Mapping[object, object], source: str) -> dict[str, object]:
    renamed = {"train": "x_train", "test": "x_test"}
    arrays = {renamed.get(str(key), str(key)): item for key, item in value.items()}
    unknown = [name for name in arrays if name not in _ARRAYS]
    if unknown or arrays.get("x_train") is None or len(arrays) != len(value):
        raise DataError(
            f"{source}: required the keys x_train and, as wanted, y_train, x_test, y_test (or "
            f"train and test); got {', '.join(str(key) for key in value) or 'an empty dict'}"
        )
    return arrays
