"""One split of a data set as a stream of float32 batches, whatever it is stored in.

Arrays are sliced, torch data sets are read item by item: memory holds one batch. Order is that of
the storage; a loader's shuffling is left out, since the same input must give the same output.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from fxloom.errors import DataError
from fxloom.userfile import describe

Array = np.ndarray[Any, np.dtype[Any]] | Tensor
Inputs = Tensor | tuple[Tensor, ...]
Item = tuple[tuple[object, ...], object]

_SCAN_ELEMENTS = 2**22  # values looked at together while searching for NaN


class Split(Protocol):
    """Samples in a fixed order. A batch: one tensor per input, and labels or None."""

    def batches(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]: ...

    def spread(self, count: int) -> "Split":
        """At most count samples, evenly spaced; the first ones of a stream without a length."""
        ...


def split_of(x: object, y: object, name: str) -> Split:
    """The samples in arrays, a tuple of arrays (several inputs), a Dataset or a DataLoader.

    name: "train" or "test", for messages. Raises DataError for anything that is not numbers, is
    empty, holds NaN or infinity, or where x and y differ in length. Of a Dataset only the first
    item is read here; the rest is checked as it streams.
    """
    if isinstance(x, Dataset | DataLoader):
        if y is not None:
            raise DataError(f"y_{name}: required nothing: the data set x_{name} has its own labels")
        split = _StreamSplit(x, name)
        next(split.batches(1))
        return split
    inputs = x if isinstance(x, tuple) else (x,)
    names = (
        [f"x_{name}[{i}]" for i in range(len(inputs))] if isinstance(x, tuple) else [f"x_{name}"]
    )
    arrays = tuple(_array(each, label) for each, label in zip(inputs, names, strict=True))
    labels = None if y is None else _array(y, f"y_{name}")
    _check_lengths(dict(zip(names, arrays, strict=True)), labels, name)
    for array, label in zip(arrays, names, strict=True):
        _scan(array, label)
    if labels is not None:
        _scan(labels, f"y_{name}")
    return _ArraySplit(arrays, labels)


def is_split(value: object) -> bool:
    """Whether a value is one of the forms that hold the samples of one input or data set."""
    return isinstance(value, np.ndarray | Tensor | Dataset | DataLoader)


@dataclass(frozen=True, slots=True)
class _ArraySplit:
    inputs: tuple[Array, ...]
    labels: Array | None

    def batches(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        for begin in range(0, len(self.inputs[0]), size):
            part = slice(begin, begin + size)
            y = None if self.labels is None else _labels(self.labels[part])
            yield tuple(_floats(x[part]) for x in self.inputs), y

    def spread(self, count: int) -> "_ArraySplit":
        chosen = _evenly_spaced(len(self.inputs[0]), count)
        labels = None if self.labels is None else self.labels[chosen]
        return _ArraySplit(tuple(x[chosen] for x in self.inputs), labels)


def _evenly_spaced(length: int, count: int) -> list[int]:
    """Indices of at most count of length samples: data sorted by class must not lose classes."""
    count = min(count, length)
    return [index * length // count for index in range(count)]


@dataclass(frozen=True, slots=True)
class _FirstSamples:
    source: Split
    count: int

    def batches(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        left = self.count
        for inputs, labels in self.source.batches(min(size, left)):
            yield tuple(x[:left] for x in inputs), None if labels is None else labels[:left]
            left -= len(inputs[0])
            if left <= 0:
                return

    def spread(self, count: int) -> Split:
        return _FirstSamples(self.source, min(count, self.count))


@dataclass(frozen=True, slots=True)
class _StreamSplit:
    source: Dataset[Any] | DataLoader[Any]
    name: str

    def batches(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        items = self._numbered()
        begin = 0
        while chunk := list(islice(items, size)):
            columns = zip(*(inputs for inputs, _ in chunk), strict=True)
            inputs = tuple(_floats(self._stack(list(column), begin, "x")) for column in columns)
            for x in inputs:
                _check_finite(x, f"x_{self.name}", begin)
            labels = [label for _, label in chunk if label is not None]
            y = None
            if labels:
                y = _labels(self._stack(labels, begin, "y"))
                _check_finite(y, f"y_{self.name}", begin)
            yield inputs, y
            begin += len(chunk)
        if begin == 0:
            raise DataError(
                f"x_{self.name}: the data set is empty; at least one sample is required"
            )

    def spread(self, count: int) -> Split:
        loader = self.source if isinstance(self.source, DataLoader) else None
        dataset = self.source if loader is None else loader.dataset
        sized = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
        if not sized or (loader is not None and not _is_ordinary(loader)):
            return _FirstSamples(self, count)
        part = Subset(dataset, _evenly_spaced(len(dataset), count))  # type: ignore[arg-type]
        return _StreamSplit(part if loader is None else _reloaded(loader, part), self.name)

    def _numbered(self) -> Iterator[Item]:
        """The items, each with its faults reported by number."""
        items = _items(self.source)
        number = 0
        arity: tuple[int, bool] | None = None
        while True:
            try:
                inputs, label = next(items)
            except StopIteration:
                return
            except DataError as fault:
                raise DataError(f"x_{self.name}: sample {number}: {fault}") from None
            except Exception as fault:
                text = describe(fault, _source_file(self.source))
                raise DataError(f"x_{self.name}: sample {number}: raised {text}") from fault
            if arity not in (None, (len(inputs), label is None)):
                raise DataError(
                    f"x_{self.name}: sample {number}: required the form of sample 0, "
                    f"{_form(arity)}, got {_form((len(inputs), label is None))}"
                )
            arity = (len(inputs), label is None)
            yield inputs, label
            number += 1

    def _stack(self, values: list[object], begin: int, kind: str) -> Tensor:
        tensors: list[Tensor] = []
        for number, value in enumerate(values, begin):
            place = f"{kind}_{self.name}: sample {number}"
            try:
                tensor = torch.as_tensor(value)
            except Exception as fault:
                raise DataError(
                    f"{place}: required numbers, got {type(value).__name__}: {describe(fault)}"
                ) from None
            if tensors and tensor.shape != tensors[0].shape:
                raise DataError(
                    f"{place}: required shape {tuple(tensors[0].shape)} as in sample {begin}, "
                    f"got {tuple(tensor.shape)}"
                )
            if kind == "x":
                _check_dtype(tensor, place)
                if tensor.numel() == 0:
                    raise DataError(f"{place}: is empty, shape {tuple(tensor.shape)}")
            tensors.append(tensor.detach().cpu())
        return torch.stack(tensors)


def _form(arity: tuple[int, bool] | None) -> str:
    assert arity is not None
    inputs, unlabelled = arity
    return f"{inputs} input(s) {'without' if unlabelled else 'with'} a label"


def _source_file(source: Dataset[Any] | DataLoader[Any]) -> str | None:
    """The file that the user wrote the data set in, where there is one."""
    dataset = source.dataset if isinstance(source, DataLoader) else source
    try:
        return inspect.getsourcefile(type(dataset))
    except TypeError:  # a class from the interactive prompt
        return None


def _items(source: Dataset[Any] | DataLoader[Any]) -> Iterator[Item]:
    """(inputs, label) one sample at a time."""
    if isinstance(source, DataLoader):
        for batch in _in_order(source):
            inputs, label = _pair(batch)
            if source.batch_size is None and source.batch_sampler is None:
                yield inputs, label
                continue
            columns: list[Iterable[object]] = [*inputs, *([] if label is None else [label])]  # type: ignore[list-item]
            for row in zip(*columns, strict=True):
                yield row[: len(inputs)], (None if label is None else row[-1])
    elif isinstance(source, IterableDataset):
        yield from map(_pair, source)
    else:
        read: Callable[[int], object] = source.__getitem__
        yield from (_pair(read(i)) for i in range(len(source)))  # type: ignore[arg-type]


def _in_order(loader: DataLoader[Any]) -> Iterable[object]:
    """The loader's batches in the order of its data set, where it has one."""
    return _reloaded(loader, loader.dataset) if _is_ordinary(loader) else loader


def _is_ordinary(loader: DataLoader[Any]) -> bool:
    """Whether a loader makes batches of a data set that has an order."""
    ordinary = isinstance(loader.sampler, SequentialSampler | RandomSampler)
    streams = isinstance(loader.dataset, IterableDataset)
    return ordinary and not streams and loader.batch_size is not None


def _reloaded(loader: DataLoader[Any], dataset: Dataset[Any]) -> DataLoader[Any]:
    """The same batches of another data set, in its order."""
    # A generator of its own: a loader otherwise draws a seed from the user's random stream.
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        generator=torch.Generator(),
    )


def _pair(item: object) -> Item:
    if isinstance(item, tuple | list) and len(item) in (1, 2):
        x, y = item if len(item) == 2 else (item[0], None)
        return (tuple(x) if isinstance(x, tuple | list) else (x,)), y
    if isinstance(item, Tensor | np.ndarray):
        return (item,), None
    size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    raise DataError(f"required x, (x, y) or ((x1, x2, ...), y), got a {type(item).__name__}{size}")


def _array(value: object, name: str) -> Array:
    if not isinstance(value, np.ndarray | Tensor):
        raise DataError(f"{name}: required a NumPy array or a tensor, got {type(value).__name__}")
    _check_dtype(value, name)
    if value.ndim == 0:
        raise DataError(f"{name}: required samples along the first axis, got a single number")
    if 0 in value.shape:
        raise DataError(
            f"{name}: is empty, shape {tuple(value.shape)}; at least one sample is required"
        )
    return value


def _check_dtype(value: Array, place: str) -> None:
    if isinstance(value, Tensor):
        numeric = not value.dtype.is_complex and not value.is_quantized
        numeric = numeric and value.layout == torch.strided and not value.is_meta
    else:
        numeric = value.dtype.kind in "fiub"
    if not numeric:
        raise DataError(f"{place}: required dense real numbers, got dtype {value.dtype}")


def _check_lengths(arrays: dict[str, Array], labels: Array | None, name: str) -> None:
    columns = arrays if labels is None else arrays | {f"y_{name}": labels}
    lengths = {label: len(array) for label, array in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{label} has {length}" for label, length in lengths.items())
        raise DataError(f"required the same number of samples: {listed}")


def _scan(array: Array, name: str) -> None:
    rows = max(1, _SCAN_ELEMENTS // max(1, array[0:1].nbytes // array.dtype.itemsize))
    for begin in range(0, len(array), rows):
        _check_finite(_floats(array[begin : begin + rows]), name, begin)


def _check_finite(values: Tensor, name: str, begin: int) -> None:
    if bool(torch.isfinite(values).all()):
        return
    first = (~torch.isfinite(values)).nonzero()[0].tolist()
    what = "NaN" if bool(torch.isnan(values[tuple(first)])) else "an infinite value (in float32)"
    where = f" at index {tuple(first[1:])}" if len(first) > 1 else ""
    raise DataError(f"{name}: sample {begin + first[0]} holds {what}{where}")


def _floats(array: Array) -> Tensor:
    """A float32 copy."""
    if isinstance(array, Tensor):
        return array.detach().to("cpu", torch.float32, copy=True)
    with np.errstate(over="ignore"):  # what overflows is infinite and gets reported
        return torch.from_numpy(np.array(array, dtype=np.float32))


def _labels(array: Array) -> Tensor:
    """Class numbers as int64, anything else as float32."""
    if isinstance(array, Tensor):
        fractional = array.is_floating_point()
        return _floats(array) if fractional else array.detach().to("cpu", torch.int64, copy=True)
    if array.dtype.kind == "f":
        return _floats(array)
    return torch.from_numpy(np.array(array, dtype=np.int64))
