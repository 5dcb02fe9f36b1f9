"""What all operations share: what is known of arguments, the registry, broadcasting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, dataclass_transform

import numpy as np

from fxloom.errors import VerifyError
from fxloom.fixed_point import (
    FixedPoint,
    Int64Array,
    IntArray,
    shift_left,
)

Shape = tuple[int, ...]


T = TypeVar("T")


Pads = tuple[tuple[int, int], ...]


class Operand(NamedTuple):
    """What is known about an argument: shape, binary point, interval of mantissas, and its data
    where it is a constant (mantissas of that shape, any integer dtype)."""

    shape: Shape
    fraction: int
    lo: int
    hi: int
    data: IntArray | None = None


class Inferred(NamedTuple):
    """What an operation guarantees of its result. declared is the format of a lossy operation;
    None means the narrowest format that holds lo to hi."""

    shape: Shape
    fraction: int
    lo: int
    hi: int
    declared: FixedPoint | None = None


class Op(Protocol):
    """One operation; implementations are frozen dataclasses registered in OPS."""

    name: ClassVar[str]
    arity: ClassVar[int | None]

    def infer(self, args: Sequence[Operand]) -> Inferred: ...

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array: ...


OPS: dict[str, type[Any]] = {}


@dataclass_transform(frozen_default=True)
def operation(cls: type[T]) -> type[T]:
    """Register a class as an operation under its name, as an immutable dataclass."""
    frozen = dataclass(frozen=True, slots=True)(cls)
    OPS[frozen.name] = frozen  # type: ignore[attr-defined]
    return frozen


def require(condition: bool, requirement: str) -> None:
    """Raise VerifyError with the requirement where it does not hold."""
    if not condition:
        raise VerifyError(requirement)


def align(args: Sequence[Operand]) -> tuple[int, list[tuple[int, int]]]:
    """Common fraction of the arguments and their intervals in it."""
    fraction = max(arg.fraction for arg in args)
    return fraction, [
        (arg.lo << (fraction - arg.fraction), arg.hi << (fraction - arg.fraction)) for arg in args
    ]


def aligned(args: Sequence[Operand], arrays: Sequence[Int64Array]) -> list[Int64Array]:
    """Arrays brought to the common fraction and, constants too, to the rank of the result.

    A computed array has its batch axis first; axes that the shape lacks come right behind it, so
    that broadcasting aligns from the last axis as the shapes say.
    """
    fraction = max(arg.fraction for arg in args)
    rank = max(len(arg.shape) for arg in args)
    result = []
    for arg, array in zip(args, arrays, strict=True):
        shifted = shift_left(array, fraction - arg.fraction)
        if arg.data is None and array.ndim - 1 < rank:
            missing = (1,) * (rank + 1 - array.ndim)
            shifted = shifted.reshape(array.shape[0], *missing, *array.shape[1:])
        result.append(shifted)
    return result


def broadcast_shape(args: Sequence[Operand]) -> Shape:
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*(arg.shape for arg in args)))
    except ValueError:
        shapes = " and ".join(str(arg.shape) for arg in args)
        raise VerifyError(f"shapes must broadcast, got {shapes}") from None


def check_axes(axes: Sequence[int], rank: int) -> None:
    require(
        len(set(axes)) == len(axes) and all(0 <= axis < rank for axis in axes),
        f"axes must be distinct and within a rank of {rank}, got {tuple(axes)}",
    )


def require_int64(lo: int, hi: int, what: str) -> None:
    require(
        max(-lo, hi).bit_length() <= 62,
        f"{what}: the shifted value needs {max(-lo, hi).bit_length()} bits, 62 are possible. "
        "Choose formats whose binary points lie closer together.",
    )
