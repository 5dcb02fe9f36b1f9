"""Weights that are one number, in files: what says which of them are, and back.

A file says the kind and the sizes of a structure (see `sharing`) in its header; the indices of
codebooks and codewords are a tensor of their own, and so are the numbers of the classes.
"""

from math import prod
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fxloom.errors import WeightsError
from fxloom.sharing import BLOCK, Circulant, Codebook, Hashed, Products, Shared

MOST_CLASSES = 2**20
"""Of shared weights, besides 16 for each: a number for each class must not fill a memory."""

Positive = Annotated[int, Field(ge=1, lt=2**31)]


class Structure(BaseModel):
    """Which weights are one number, less what is stored beside it. kind: of `sharing`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    kind: Literal["codebook", "hashed", "products", "circulant"]
    size: Positive = 1
    books: Positive = 1
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    dim: Positive = 1
    positions: Positive = 1

    @property
    def has_indices(self) -> bool:
        """Whether indices are stored."""
        return self.kind in ("codebook", "products")

    @property
    def indices_say_kept(self) -> bool:
        """Whether an index says that a weight is pruned."""
        return self.kind == "codebook"

    def shape_of_indices(self, shape: list[int]) -> list[int]:
        """Of the indices of a tensor."""
        if self.kind == "codebook":
            return shape
        return [shape[0], -(-prod(shape[1:]) // self.dim)]


def structure_of(shared: Shared | None) -> Structure | None:
    match shared:
        case None:
            return None
        case Codebook():
            return Structure(kind="codebook", size=shared.size, books=shared.books)
        case Hashed():
            return Structure(kind="hashed", size=shared.buckets, seed=shared.seed)
        case Products():
            return Structure(kind="products", size=shared.size, dim=shared.dim)
        case Circulant():
            return Structure(kind="circulant", size=shared.block, positions=shared.positions)
    raise AssertionError(type(shared).__name__)


def indices_of(shared: Shared | None, kept: Tensor | None) -> Tensor | None:
    """What must be stored beside a structure: of codebooks one more than the index, 0 for pruned
    weights, where there are any; None where all is computed."""
    if not isinstance(shared, Codebook | Products):
        return None
    indices = _computable(shared.indices, shared.size + 1)
    if isinstance(shared, Codebook) and kept is not None:
        indices = (indices + 1) * kept.cpu()
    most = int(indices.max()) if indices.numel() else 0
    kinds = (torch.uint8, torch.uint16, torch.uint32)
    return indices.to(next(kind for kind in kinds if most < 256**kind.itemsize))


def _computable(indices: Tensor, below: int) -> Tensor:
    """Indices in a type that torch calculates with; bytes where all numbers below fit."""
    is_small = indices.dtype == torch.uint8 and below <= 256
    return indices if is_small else indices.to(torch.int32)


def numbers_of(shared: Shared, values: Tensor, kept: Tensor | None) -> Tensor:
    """The number of each class, 0 where no weight has it."""
    numbers = torch.zeros(shared.classes, dtype=values.dtype)
    flat = values.reshape(-1)
    present = None if kept is None else kept.cpu().reshape(-1)
    for start in range(0, flat.numel(), BLOCK):
        stop = min(start + BLOCK, flat.numel())
        classes, signs = shared.part(start, stop)
        part = flat[start:stop] if signs is None else flat[start:stop] * signs
        if present is not None:
            part, classes = part[present[start:stop]], classes[present[start:stop]]
        numbers[classes] = part.to(values.dtype)
    return numbers


def shared_of(
    structure: Structure, shape: tuple[int, ...], indices: Tensor | None, has_zeros: bool
) -> tuple[Shared, Tensor | None]:
    """The classes of weights, and which are kept where the indices say so.

    Raises WeightsError for what no structure of a tensor of that shape is.
    """
    if not shape:
        raise WeightsError("required more than one number for shared weights, got shape []")
    kept: Tensor | None = None
    shared: Shared
    if structure.kind == "hashed":
        shared = Hashed(shape, structure.size, structure.seed)
    elif structure.kind == "circulant":
        if len(shape) < 2 or shape[1] % structure.positions:
            raise WeightsError(
                f"required a matrix for circulant blocks at {structure.positions} positions, got "
                f"shape {list(shape)}"
            )
        shared = Circulant(shape, structure.size, structure.positions)
    else:
        assert indices is not None
        indices = _computable(indices, structure.size)
        if structure.kind == "codebook" and has_zeros:
            kept = indices > 0
            indices = indices - kept.to(indices.dtype)
        if indices.numel() and int(indices.max()) >= structure.size:
            raise WeightsError(
                f"indices: required less than {structure.size}, got {int(indices.max())}"
            )
        if structure.kind == "codebook":
            shared = Codebook.of(indices, structure.size, structure.books)
        else:
            shared = Products.of(shape, indices, structure.size, structure.dim)
    require_classes(shared)
    return shared, kept


def require_classes(shared: Shared) -> None:
    """Raise WeightsError where there are far more classes than weights."""
    most = MOST_CLASSES + 16 * prod(shared.shape)
    if shared.classes > most:
        raise WeightsError(
            f"required at most {most:,} classes of shared weights, got {shared.classes:,}: "
            f"{shared.identity[0]}"
        )
