"""Program: the integer program that every reader (simulator, hardware, estimator) starts from.

Static single assignment: inputs and constants, then instructions, each naming one new value. Every
value has a shape (channels-last, no batch), a FixedPoint type and the proven interval of its
mantissas. Types of results are not choices: they follow from the arguments (interval arithmetic
with the actual weights), except for Requantize and Divide, which declare theirs.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any

import numpy as np

from fxloom.errors import VerifyError
from fxloom.fixed_point import FixedPoint, IntArray, Overflow, Rounding
from fxloom.ops import Op, Operand, Shape

MAX_ELEMENTS = 2**31
"""Largest tensor: a bound on what a file from elsewhere can make a reader allocate."""

_DIGESTED = 2**16


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor: its mantissas lie between lo and hi and fit type, proven."""

    name: str
    shape: Shape
    type: FixedPoint
    lo: int
    hi: int

    @property
    def size(self) -> int:
        """Number of elements of one sample."""
        return prod(self.shape)

    def __str__(self) -> str:
        return f"%{self.name} : {self.type}{list(self.shape)} in [{self.lo}, {self.hi}]"


@dataclass(frozen=True, slots=True)
class Constant:
    """Constant mantissas, in the narrowest integer array that holds them."""

    value: Value
    data: IntArray


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor from outside, and how its real values become mantissas.

    axes: the value is the user's tensor (without batch) transposed by these axes.
    """

    value: Value
    axes: tuple[int, ...]
    rounding: Rounding
    overflow: Overflow


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor handed out: the user's tensor is the value transposed by axes."""

    name: str
    value: str
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instr:
    """result = op(args). origin: the layer of the user's model that it computes."""

    op: Op
    args: tuple[str, ...]
    result: Value
    origin: str


@dataclass(frozen=True)
class Program:
    """A verified sequence of instructions; make one with ProgramBuilder or load one."""

    inputs: tuple[Input, ...]
    constants: Mapping[str, Constant]
    instrs: tuple[Instr, ...]
    outputs: tuple[Output, ...]
    _values: dict[str, Value] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = {port.value.name: port.value for port in self.inputs}
        values |= {name: constant.value for name, constant in self.constants.items()}
        values |= {instr.result.name: instr.result for instr in self.instrs}
        object.__setattr__(self, "_values", values)

    def value(self, name: str) -> Value:
        """The value of that name."""
        return self._values[name]

    def operand(self, name: str) -> Operand:
        """What operations need to know about a value."""
        value = self._values[name]
        constant = self.constants.get(name)
        data = None if constant is None else constant.data
        return Operand(value.shape, value.type.fraction, value.lo, value.hi, data)

    def operands(self, instr: Instr) -> list[Operand]:
        """The arguments of an instruction, as operations see them."""
        return [self.operand(name) for name in instr.args]

    def verify(self) -> None:
        """Raise VerifyError unless every invariant holds.

        Names are unique and defined before use; every type and interval is what the operation
        infers from its arguments; constants lie within their types; ports refer to values; nothing
        needs more than 63 bits.
        """
        seen: dict[str, Operand] = {}

        def define(value: Value, data: IntArray | None, where: str) -> None:
            if value.name in seen:
                raise VerifyError(f"{where}: %{value.name} is defined twice")
            _check_value(value, where)
            seen[value.name] = Operand(value.shape, value.type.fraction, value.lo, value.hi, data)

        for port in self.inputs:
            where = f"input {port.value.name}"
            define(port.value, None, where)
            _check_axes(port.axes, port.value, where)
            if (port.value.lo, port.value.hi) != (port.value.type.lo, port.value.type.hi):
                raise VerifyError(f"{where}: its interval must be the whole range of its type")
        for name, constant in self.constants.items():
            where = f"constant {name}"
            if name != constant.value.name or constant.data.shape != constant.value.shape:
                raise VerifyError(f"{where}: name or shape differs from its data's")
            bounds = (int(constant.data.min()), int(constant.data.max()))
            if bounds != (constant.value.lo, constant.value.hi):
                raise VerifyError(
                    f"{where}: its interval must be {list(bounds)}, "
                    f"got [{constant.value.lo}, {constant.value.hi}]"
                )
            define(constant.value, constant.data, where)
        for instr in self.instrs:
            where = f"{instr.origin} (%{instr.result.name})"
            missing = [name for name in instr.args if name not in seen]
            if missing:
                raise VerifyError(f"{where}: %{missing[0]} is used before it is defined")
            expected = infer(
                instr.op, [seen[name] for name in instr.args], instr.result.name, instr.origin
            )
            if expected != instr.result:
                raise VerifyError(f"{where}: expected {expected}, got {instr.result}")
            define(instr.result, None, where)
        if not self.inputs or not self.outputs:
            raise VerifyError("a program needs at least one input and one output")
        if len({port.name for port in self.outputs}) != len(self.outputs):
            raise VerifyError("two outputs have the same name")
        for output in self.outputs:
            if output.value not in seen or output.value in self.constants:
                raise VerifyError(f"output {output.name}: %{output.value} is not computed")
            _check_axes(output.axes, self._values[output.value], f"output {output.name}")

    def to_text(self) -> str:
        """The whole program, one line a value; stable, meant for reading and golden tests."""
        return "".join(line + "\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield "program"
        for port in self.inputs:
            yield (
                f"  input {port.value} from axes {list(port.axes)}, "
                f"{port.rounding}, {port.overflow}"
            )
        for constant in self.constants.values():
            yield f"  const {constant.value} #{data_digest(constant.data)[:12]}"
        for instr in self.instrs:
            attributes = "".join(
                f" {f.name}={_attribute_text(getattr(instr.op, f.name))}"
                for f in fields(instr.op)  # type: ignore[arg-type]
            )
            args = ", ".join(f"%{name}" for name in instr.args)
            yield f"  {instr.result} = {instr.op.name}({args}){attributes}  # {instr.origin}"
        for output in self.outputs:
            yield f"  output {output.name} = %{output.value} to axes {list(output.axes)}"

    def digest(self) -> str:
        """sha256 of everything that determines what the program computes and its names."""
        text = self.to_text() + json.dumps(
            {name: data_digest(constant.data) for name, constant in self.constants.items()}
        )
        return hashlib.sha256(text.encode()).hexdigest()


def data_digest(data: IntArray) -> str:
    """sha256 of the shape and of the integers as int64, of which only a part exists at a time."""
    digest = hashlib.sha256(repr(data.shape).encode())
    flat = np.ascontiguousarray(data).reshape(-1)
    for start in range(0, flat.size, _DIGESTED):
        digest.update(flat[start : start + _DIGESTED].astype("<i8").tobytes())
    return digest.hexdigest()


def _attribute_text(attribute: Any) -> str:
    return str(attribute).replace(" ", "")


def _check_value(value: Value, where: str) -> None:
    if any(n < 1 for n in value.shape) or value.size > MAX_ELEMENTS:
        raise VerifyError(f"{where}: shape {value.shape} is empty or has over 2**31 elements")
    if not value.type.lo <= value.lo <= value.hi <= value.type.hi:
        raise VerifyError(
            f"{where}: interval [{value.lo}, {value.hi}] does not lie within {value.type}"
        )


def _check_axes(axes: Sequence[int], value: Value, where: str) -> None:
    if sorted(axes) != list(range(len(value.shape))):
        raise VerifyError(f"{where}: axes {tuple(axes)} do not permute shape {value.shape}")


def infer(op: Op, args: Sequence[Operand], name: str, origin: str) -> Value:
    """The value that an operation gives; VerifyError, naming origin, where it is not allowed."""
    try:
        if op.arity is not None and len(args) != op.arity:
            raise VerifyError(f"needs {op.arity} arguments, got {len(args)}")
        inferred = op.infer(args)
        kind = inferred.declared or FixedPoint.holding(inferred.lo, inferred.hi, inferred.fraction)
        value = Value(name, inferred.shape, kind, inferred.lo, inferred.hi)
        _check_value(value, op.name)
    except VerifyError as error:
        raise VerifyError(f"{origin} ({op.name}): {error}") from None
    return value


def narrowest(data: IntArray) -> IntArray:
    """The same integers in the narrowest signed integer array that holds them."""
    lo, hi = int(data.min(initial=0)), int(data.max(initial=0))
    for dtype in (np.int8, np.int16, np.int32):
        info = np.iinfo(dtype)
        if info.min <= lo and hi <= info.max:
            return np.asarray(data, dtype=dtype, order="C")
    return np.asarray(data, dtype=np.int64, order="C")


class ProgramBuilder:
    """Builds a Program line by line; names are made unique, types are inferred."""

    def __init__(self) -> None:
        self._inputs: list[Input] = []
        self._constants: dict[str, Constant] = {}
        self._instrs: list[Instr] = []
        self._outputs: list[Output] = []
        self._operands: dict[str, Operand] = {}
        self._values: dict[str, Value] = {}

    def unique(self, name: str) -> str:
        """name, or name_1, name_2, ... where it is taken."""
        candidate, count = name, 0
        while candidate in self._values:
            count += 1
            candidate = f"{name}_{count}"
        return candidate

    def _define(self, value: Value, data: IntArray | None = None) -> Value:
        self._values[value.name] = value
        self._operands[value.name] = Operand(
            value.shape, value.type.fraction, value.lo, value.hi, data
        )
        return value

    def input(
        self,
        name: str,
        shape: Shape,
        kind: FixedPoint,
        *,
        axes: Sequence[int] | None = None,
        rounding: Rounding = Rounding.RND,
        overflow: Overflow = Overflow.SAT,
    ) -> Value:
        """Add an input; shape is that of the value (channels-last)."""
        value = Value(self.unique(name), shape, kind, kind.lo, kind.hi)
        order = tuple(range(len(shape))) if axes is None else tuple(axes)
        self._inputs.append(Input(value, order, rounding, overflow))
        return self._define(value)

    def constant(self, name: str, data: IntArray, kind: FixedPoint) -> Value:
        """Add constant mantissas; VerifyError where they do not fit kind."""
        data = narrowest(np.asarray(data))
        if data.size == 0:
            raise VerifyError(f"constant {name}: it has no elements")
        value = Value(self.unique(name), tuple(data.shape), kind, int(data.min()), int(data.max()))
        _check_value(value, f"constant {name}")
        self._constants[value.name] = Constant(value, data)
        return self._define(value, data)

    def emit(self, op: Op, args: Sequence[Value], origin: str, name: str | None = None) -> Value:
        """Add an instruction and return its result."""
        operands = [self._operands[arg.name] for arg in args]
        result = infer(op, operands, self.unique(name or origin), origin)
        self._instrs.append(Instr(op, tuple(arg.name for arg in args), result, origin))
        return self._define(result)

    def output(self, value: Value, name: str, axes: Sequence[int] | None = None) -> None:
        """Hand out a value."""
        order = tuple(range(len(value.shape))) if axes is None else tuple(axes)
        self._outputs.append(Output(name, value.name, order))

    def is_constant(self, value: Value) -> bool:
        """Whether the value is one of the constants."""
        return value.name in self._constants

    def data(self, value: Value) -> IntArray:
        """Mantissas of a constant."""
        return self._constants[value.name].data

    def build(self) -> Program:
        """The verified program; constants that nothing uses are left out."""
        used = {arg for instr in self._instrs for arg in instr.args}
        constants = {name: c for name, c in self._constants.items() if name in used}
        program = Program(tuple(self._inputs), constants, tuple(self._instrs), tuple(self._outputs))
        program.verify()
        return program
