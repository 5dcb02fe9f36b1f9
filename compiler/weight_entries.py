"""One weight tensor of a file: its numbers and what is known of them, coded and restored.

Weights that are shared are stored as the structure says: an index for each that is not pruned, and
a number for each class; of hashed and block-circulant weights the numbers alone. All others are
stored value by value. Of a quantized graph the integers that it rounds to are stored.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fxloom.coded_tensors import (
    Coded,
    Pattern,
    Shape,
    Stored,
    decode,
    encode,
    of_integers,
    require,
    sha256_of,
    to_integers,
)
from fxloom.errors import WeightsError
from fxloom.sharing import Codebook, Shared, expanded, holds
from fxloom.tensor_bits import DTYPES, of_tensor, to_tensor
from fxloom.weight_structures import (
    Structure,
    indices_of,
    numbers_of,
    require_classes,
    shared_of,
    structure_of,
)

VALUES, NUMBERS, INDICES, KEPT = "values", "numbers", "indices", "kept"
"""What may be stored of a tensor: a value for each weight, or a number for each class; the indices
of a codebook, where 0 is a pruned weight if any may be; which weights are not pruned, where nothing
else says so."""

_KNOWABLE = ("I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64")
"""Types of weights that may be pruned or shared."""

_BLOCK = 1 << 18

Exponent = Annotated[int, Field(ge=-1100, le=1100)]
Integers = np.ndarray[Any, np.dtype[np.integer[Any]]]


class Entry(BaseModel):
    """What a file says of a tensor.

    names: of all tensors that are this one; tied weights have several. dtype, shape, sha256: of the
    tensor, see `Pattern`. steps: where integers are stored, they count steps of 2**-steps, one
    number for all or one for each first index. zeros: whether weights are pruned. shared: which
    weights are one number. coded: what is stored, by kind.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    names: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    dtype: str
    shape: Shape
    sha256: str
    steps: list[Exponent] = []
    zeros: bool = False
    shared: Structure | None = None
    coded: dict[str, Stored]

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Weights:
    """A tensor of a graph, and what is known of it.

    integers: what the graph rounds it to, which is stored in its place: in steps of 2**-steps, one
    number for all or one for each first index; None where it does not. kept: which weights are not
    pruned, of bool; None where none are.
    """

    names: tuple[str, ...]
    tensor: Tensor
    integers: Integers | None = None
    steps: tuple[int, ...] = ()
    kept: Tensor | None = None
    shared: Shared | None = None

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Written:
    """An entry and what it speaks of, coded and not."""

    entry: Entry
    coded: Mapping[str, Coded]
    patterns: Mapping[str, Pattern]

    @property
    def nbytes(self) -> int:
        """Of all that is stored."""
        return sum(coded.nbytes for coded in self.coded.values())


def coded(weights: Weights, how: Callable[[Pattern], Coded] = encode) -> Written:
    """How a tensor is stored, decoded and compared once.

    how: what is done with each part. Raises WeightsError, naming it, for a type that no file has.
    """
    pattern = of_tensor(weights.tensor, weights.name)
    stored = pattern if weights.integers is None else of_integers(weights.integers)
    entry = Entry(
        names=list(weights.names),
        dtype=pattern.dtype,
        shape=list(pattern.shape),
        sha256=_sha256(pattern.dtype, stored, weights.steps),
        steps=list(weights.steps),
        zeros=weights.kept is not None,
        shared=structure_of(weights.shared),
        coded={},
    )
    if weights.shared is not None:
        require_classes(weights.shared)
    reason = ""
    for patterns in _ways(weights, stored):
        found = {kind: how(each) for kind, each in patterns.items()}
        whole = entry.model_copy(update={"coded": {k: each.stored for k, each in found.items()}})
        written = Written(whole, found, patterns)
        try:
            require_entry(whole, written.nbytes)
            _checked(whole, {kind: decode(c.stored, c.data) for kind, c in found.items()})
        except WeightsError as fault:  # too small to be believed, or the sign of a zero is lost
            reason = str(fault)
            continue
        return written
    raise WeightsError(f"{weights.name}: {reason}")  # what is known of it is not true


def _ways(weights: Weights, stored: Pattern) -> list[dict[str, Pattern]]:
    """What may be stored, the best first; the last can always be restored."""
    values = to_tensor(stored)
    indices = indices_of(weights.shared, weights.kept)
    known = {} if indices is None else {INDICES: of_tensor(indices, weights.name)}
    ways = []
    if weights.shared is not None:
        numbers = numbers_of(weights.shared, values, weights.kept)
        ways.append({NUMBERS: of_tensor(numbers, weights.name), **known})
    if weights.kept is not None and not isinstance(weights.shared, Codebook):
        extra = {**known, KEPT: of_tensor(weights.kept.cpu(), weights.name)}
        ways = [{**way, KEPT: extra[KEPT]} for way in ways]
        # Where just the zeros are pruned, the values say which.
        known = known if torch.equal(weights.kept.cpu(), values != 0) else extra
    return [*ways, {VALUES: stored, **known}]


def _restored_as(entry: Entry) -> Stored:
    return Stored(dtype=entry.dtype, shape=entry.shape, coding="raw")


def require_entry(entry: Entry, given: int) -> None:
    """Raise WeightsError for an entry that no encoder makes: kinds that do not belong together,
    shapes that are not the tensor's, or far more than `given` bytes can say."""
    require(_restored_as(entry), given)
    shared, kinds = entry.shared, set(entry.coded)
    allowed = {VALUES} if shared is None else {VALUES, NUMBERS}
    if len(kinds & allowed) != 1:
        raise WeightsError(f"required one of {sorted(allowed)}, got {sorted(kinds)}")
    if (entry.zeros or shared is not None) and entry.dtype not in _KNOWABLE:
        raise WeightsError(
            f"required one of {', '.join(_KNOWABLE)} for pruned or shared weights, got "
            f"{entry.dtype}"
        )
    has_kept = entry.zeros and (shared is None or not shared.indices_say_kept)
    further = {KEPT} if has_kept else set()
    shapes = {VALUES: entry.shape, KEPT: entry.shape}
    if shared is not None and shared.has_indices and entry.shape:
        further |= {INDICES}
        shapes[INDICES] = shared.shape_of_indices(entry.shape)
    needed = further - ({KEPT} if VALUES in kinds else set())
    if not needed <= kinds - allowed <= further:
        raise WeightsError(f"required {sorted(needed)} besides, got {sorted(kinds - allowed)}")
    if len(entry.steps) not in (0, 1, *entry.shape[:1]):
        raise WeightsError(
            f"required one binary point, or {entry.shape[:1]}, got {len(entry.steps)}"
        )
    if entry.steps and not DTYPES[entry.dtype].is_floating_point:
        raise WeightsError(f"required a type of floats for integers in steps, got {entry.dtype}")
    for kind, stored in entry.coded.items():
        if kind in shapes and stored.shape != shapes[kind]:
            raise WeightsError(f"{kind}: required shape {shapes[kind]}, got {stored.shape}")
        types = {KEPT: ("BOOL",), INDICES: ("U8", "U16", "U32")}
        numbers = ("I8", "I16", "I32", "I64") if entry.steps else (entry.dtype,)
        if stored.dtype not in types.get(kind, numbers):
            wanted = " or ".join(types.get(kind, numbers))
            raise WeightsError(f"{kind}: required {wanted}, got {stored.dtype}")


def restore(entry: Entry, patterns: Mapping[str, Pattern]) -> Weights:
    """The tensor and what is known of it, from what was stored of it.

    Raises WeightsError where the parts do not fit each other or the tensor has another checksum.
    """
    values, kept, shared = _checked(entry, patterns)
    integers = to_integers(of_tensor(values, entry.name)) if entry.steps else None
    tensor = values if integers is None else scaled(integers, entry.steps, DTYPES[entry.dtype])
    return Weights(tuple(entry.names), tensor, integers, tuple(entry.steps), kept, shared)


def _checked(
    entry: Entry, patterns: Mapping[str, Pattern]
) -> tuple[Tensor, Tensor | None, Shared | None]:
    """The stored numbers of all weights, which are not pruned, and which are one number."""
    kept = None if KEPT not in patterns else to_tensor(patterns[KEPT])
    shared = None
    if entry.shared is not None:
        indices = to_tensor(patterns[INDICES]) if INDICES in patterns else None
        shared, said = shared_of(entry.shared, tuple(entry.shape), indices, entry.zeros)
        kept = kept if said is None else said
    if VALUES in patterns:
        values = to_tensor(patterns[VALUES])
    else:
        assert shared is not None
        numbers = to_tensor(patterns[NUMBERS])
        if list(numbers.shape) != [shared.classes]:
            raise WeightsError(
                f"{NUMBERS}: required {shared.classes} of {shared.identity[0]}, got shape "
                f"{list(numbers.shape)}"
            )
        values = expanded(shared, numbers, kept)
    if entry.zeros and kept is None:
        kept = values != 0
    found = _sha256(entry.dtype, of_tensor(values, entry.name), entry.steps)
    if found != entry.sha256:
        raise WeightsError(
            f"damaged: required values with SHA-256 {entry.sha256[:16]}..., got {found[:16]}..."
        )
    if kept is not None and _is_revived(values, kept):
        raise WeightsError("required zeros where weights are pruned, got others")
    if shared is not None and not holds(shared, values, kept):
        raise WeightsError(f"required one number a class of {shared.identity[0]}, got several")
    return values, kept, shared


def _sha256(dtype: str, stored: Pattern, steps: Sequence[int]) -> str:
    """The checksum of the tensor that numbers stand for, of which only a part exists at a time."""
    if not steps:
        return stored.sha256()
    blocks = _scaled_blocks(to_integers(stored), steps, DTYPES[dtype])
    return sha256_of(dtype, stored.shape, (of_tensor(block, dtype).bits for block in blocks))


def _is_revived(values: Tensor, kept: Tensor) -> bool:
    """Whether a weight that is pruned is not zero; without copies of large tensors."""
    parts = (torch.split(each.reshape(-1), _BLOCK) for each in (values, kept))
    return any(bool(((part != 0) & ~there).any()) for part, there in zip(*parts, strict=True))


def scaled(integers: Integers, steps: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Integers in steps of 2**-steps as a tensor of floats."""
    real = torch.empty(integers.shape, dtype=dtype)
    flat, start = real.view(-1), 0
    for block in _scaled_blocks(integers, steps, dtype):
        flat[start : start + len(block)] = block
        start += len(block)
    return real


def _scaled_blocks(
    integers: Integers, steps: Sequence[int], dtype: torch.dtype
) -> Iterator[Tensor]:
    """The same a part at a time, flat."""
    rows = [integers] if len(steps) == 1 else integers
    for row, step in zip(rows, steps, strict=True):
        flat = row.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            with np.errstate(over="ignore"):
                part = np.ldexp(flat[start : start + _BLOCK].astype(np.float64), -step)
            yield torch.from_numpy(part).to(dtype)
