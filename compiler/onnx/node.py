"""A node of the graph, as what builds its module sees it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxloom.onnx.values import Value


class Refused(Exception):
    """Why a node cannot be had; the text follows the node's name."""


@contextmanager
def fitting(*shapes: object) -> Iterator[None]:
    """What torch and Python raise where inputs and attributes do not fit together, as Refused."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as fault:
        reason = str(fault).strip().partition("\n")[0][:200] or type(fault).__name__
        what = f"inputs of {', '.join(map(str, shapes))}" if shapes else "its inputs and attributes"
        raise Refused(f"{what} do not fit it: {reason}") from None


@dataclass
class Node:
    """Attributes that nobody asks for are refused; so are constants that nobody uses.

    inputs: None for those left out. outputs: how many there are; read: of which the values are
    used. samples: the two batch sizes; fixed: the
    model was exported for the first one. version: of the operator set.
    """

    kind: str
    name: str
    attributes: Mapping[str, Any]
    inputs: Sequence[Value | None]
    read: Sequence[bool]
    version: int
    samples: tuple[int, int]
    fixed: bool
    asked: set[str] = field(default_factory=set)
    consumed: set[int] = field(default_factory=set)

    @property
    def label(self) -> str:
        """How errors name it."""
        return f"{self.name} ({self.kind})"

    def has(self, position: int) -> bool:
        """Whether an input is given."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def value(self, position: int) -> Value:
        """An input that must be there."""
        found = self.inputs[position] if position < len(self.inputs) else None
        if found is None:
            raise Refused(f"input {position} is missing")
        return found

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """The shape of an input at the first batch size."""
        return self.value(position).shapes[0]

    def rank(self, position: int = 0) -> int:
        return len(self.shape(position))

    def constant(self, position: int, what: str) -> Tensor:
        """A constant input, which the module then holds itself. what: its name in a refusal."""
        value = self.value(position)
        if not value.constant:
            raise Refused(f"its {what} must be constant, and are computed")
        self.consumed.add(position)
        return value.first

    def optional(self, position: int, what: str) -> Tensor | None:
        """A constant input that may be left out."""
        return self.constant(position, what) if self.has(position) else None

    def numbers(self, position: int, what: str) -> list[int]:
        """A constant input of one dimension, of integers."""
        return [int(each) for each in self.constant(position, what).reshape(-1).tolist()]

    def sizes(self, position: int, what: str) -> tuple[list[int], list[int]]:
        """An input of integers at both batch sizes."""
        value = self.value(position)
        if not value.known:
            raise Refused(f"its {what} depend on data")
        self.consumed.add(position)
        first, second = (value.at(place).reshape(-1).tolist() for place in (0, 1))
        if len(first) != len(second):
            raise Refused(f"its {what} depend on the batch size")
        return first, second

    def attribute(self, name: str, default: Any) -> Any:
        self.asked.add(name)
        return self.attributes.get(name, default)

    def integer(self, name: str, default: int | None = None) -> int:
        return int(self._typed(name, default, int))

    def number(self, name: str, default: float | None = None) -> float:
        return float(self._typed(name, default, int | float))

    def text(self, name: str, default: str | None = None) -> str:
        return str(self._typed(name, default, str))

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        found = self._typed(name, None if default is None else list(default), list)
        return [int(each) for each in found]

    def flag(self, name: str, default: bool = False) -> bool:
        found = self.integer(name, int(default))
        if found not in (0, 1):
            raise Refused(f"attribute {name} is {found}, neither 0 nor 1")
        return bool(found)

    def _typed(self, name: str, default: Any, kind: Any) -> Any:
        found = self.attribute(name, default)
        if found is None:
            raise Refused(f"attribute {name} is missing")
        if not isinstance(found, kind):
            raise Refused(f"attribute {name} is {found!r}, of another type than the operator's")
        return found

    def only(self, name: str, allowed: Any, default: Any) -> None:
        """Refuses an attribute with another value."""
        found = self.attribute(name, default)
        if found != allowed:
            raise Refused(f"{name}={found!r} is not supported, only {allowed!r} is")

    def axis(self, default: int | None = None, rank: int | None = None, name: str = "axis") -> int:
        """An axis, counted from the front. rank: of what it counts in, else the first input."""
        return self.counted(self.integer(name, default), self.rank() if rank is None else rank)

    @staticmethod
    def counted(axis: int, rank: int) -> int:
        if not -rank <= axis < rank:
            raise Refused(f"axis {axis} of {rank} dimensions")
        return axis % rank

    def refuse_outputs(self, first: int) -> None:
        """Refuses to compute outputs from `first` on that something reads."""
        if any(self.read[first:]):
            raise Refused(f"its outputs from number {first} on have no lowering")
