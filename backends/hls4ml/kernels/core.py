"""What the rules of kernels share: sites, and C++ text for types, constants and indices."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from fxloom.fixed_point import FixedPoint
from fxloom.ops import Operand, Shape
from fxloom.program import Value


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a kernel. name: its C++ array; constants are arrays of builtin integers."""

    name: str
    operand: Operand
    type: FixedPoint

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.operand.shape)

    @property
    def constant(self) -> bool:
        """Whether it is an array of its own instead of another layer's result."""
        return self.operand.data is not None


@dataclass(frozen=True, slots=True)
class Site:
    """One place where a kernel is called.

    result_name: the C++ array it fills; reuse: cycles from one position to the next, in which a
    multiplier can be used again; lines: how many rows of an image its argument holds, 0 for all.
    """

    index: int
    op: Any
    args: tuple[Argument, ...]
    result: Value
    result_name: str
    reuse: int = 1
    lines: int = 0

    @property
    def name(self) -> str:
        """Name of the operation; without one the site copies its argument."""
        return "copy" if self.op is None else str(self.op.name)

    @property
    def config(self) -> str:
        """Name of the configuration struct."""
        return f"config{self.index}"


@dataclass(frozen=True, slots=True)
class Kernel:
    """C++ text: declarations for parameters.h, and the call. repeats: pipelined iterations."""

    declarations: str
    call: str
    repeats: int = 1


Rule = Callable[[Site], Kernel]


def integer_type(kind: FixedPoint) -> str:
    """The C++ type of a format's mantissas, in fxloom_types.h."""
    return f"fxloom::{'' if kind.signed else 'u'}int_t<{kind.width}>"


def signed_width(lo: int, hi: int) -> int:
    """Bits of a signed integer that holds lo to hi."""
    below = (-lo - 1).bit_length() if lo < 0 else 0
    return 1 + max(below, hi.bit_length() if hi > 0 else 0)


def row_strides(shape: Shape) -> list[int]:
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def index_text(variable: str, shape: Shape, strides: Sequence[int]) -> str:
    """C expression: where element number `variable` of shape (row-major) lies by these strides."""
    if all(
        s == own or n == 1 for s, own, n in zip(strides, row_strides(shape), shape, strict=True)
    ):
        return variable
    terms = []
    for axis, (n, stride) in enumerate(zip(shape, strides, strict=True)):
        if n == 1 or stride == 0:
            continue
        after = prod(shape[axis + 1 :])
        text = variable if after == 1 else f"{variable} / {after}"
        if prod(shape[:axis]) > 1:
            text = f"{text} % {n}"
        terms.append(text if stride == 1 else f"{text} * {stride}")
    return " + ".join(terms) or "0"


def function(name: str, expression: str, parameters: str = "int i") -> str:
    return f"static int {name}({parameters}) {{ return {expression}; }}"


def constants(**values: int) -> list[str]:
    return [f"static const int {name} = {value};" for name, value in values.items()]


def struct(name: str, lines: Sequence[str]) -> str:
    return "\n".join([f"struct {name} {{", *(f"    {line}" for line in lines), "};"])


def typedef(name: str, text: str) -> str:
    return f"typedef {text} {name};"


def argument_type(letter: str, arg: Argument) -> str:
    return typedef(f"{letter}_t", integer_type(arg.type))


def call_of(site: Site, function: str) -> str:
    names = ", ".join([*(arg.name for arg in site.args), site.result_name])
    return f"fxloom::{function}<{site.config}>({names});"


def broadcast_index(arg: Argument, result: Shape) -> str:
    """Index expression of an argument that broadcasts to result's shape."""
    shape = (1,) * (len(result) - len(arg.operand.shape)) + arg.operand.shape
    strides = [0 if n == 1 else s for n, s in zip(shape, row_strides(shape), strict=True)]
    return index_text("i", result, strides)
