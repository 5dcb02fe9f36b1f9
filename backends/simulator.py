"""Simulation of a Program: the integers the hardware will give, at the speed of float inference.

Two ways to the same bits. ``reference`` evaluates every operation on int64 as fxloom.ops defines
it. ``Simulator`` plans the program once and carries mantissas in float32, float64 or int64,
whichever is proven exact for each operation by the program's bounds: float32 while every
intermediate stays below 2**24, float64 below 2**53, else the int64 definition. Additions of
integers below those bounds are exact in any order, so BLAS and multithreading cannot change a bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fxloom.backends.carriers import (
    RULES,
    Array,
    Plan,
    carrier_for,
    largest,
)
from fxloom.backends.fusion import find_chains
from fxloom.errors import DataError, FxloomError
from fxloom.fixed_point import (
    FixedPoint,
    FloatArray,
    Int64Array,
    Overflow,
    Rounding,
    quantize_floats,
    quantize_values,
    to_values,
)
from fxloom.program import Input, Instr, Program

Tensors = Any
"""One array-like [N, ...], or a sequence of them where the program has several inputs."""

EXACT_FLOAT64 = 2**53

_HALF = torch.tensor(0.5)


def quantize_inputs(program: Program, x: Tensors) -> list[Int64Array]:
    """Mantissas of the program's inputs, batch first, channels-last.

    x: real values in the user's layout [N, ...]; a sequence of them where there are several
    inputs. Raises DataError for wrong shapes, non-numbers, NaN and infinity.
    """
    return [
        quantize_values(values, port.value.type, port.rounding, port.overflow)
        for port, values in zip(program.inputs, check_inputs(program, x), strict=True)
    ]


def check_inputs(program: Program, x: Tensors) -> list[FloatArray]:
    """Real values of the program's inputs, batch first, channels-last, in float32 or float64."""
    return [
        np.ascontiguousarray(_internal(port, array))
        for port, array in zip(program.inputs, _user_inputs(program, x), strict=True)
    ]


def _internal(port: Input, array: Array) -> Array:
    """A view of an input in the program's order of axes."""
    return array.transpose(0, *(axis + 1 for axis in port.axes))


def _user_inputs(program: Program, x: Tensors) -> list[FloatArray]:
    """Checked real values in the user's layout."""
    arrays = [
        _checked(port, array)
        for port, array in zip(program.inputs, _split_inputs(program, x), strict=True)
    ]
    if len({len(array) for array in arrays}) > 1:
        raise DataError(f"inputs must have one batch size, got {[len(a) for a in arrays]}")
    return arrays


def _split_inputs(program: Program, x: Tensors) -> list[Any]:
    if len(program.inputs) == 1 and not (isinstance(x, list | tuple) and len(x) == 1):
        return [x]
    if not isinstance(x, list | tuple) or len(x) != len(program.inputs):
        raise DataError(
            f"the program has {len(program.inputs)} inputs; pass that many arrays, got "
            f"{len(x) if isinstance(x, list | tuple) else type(x).__name__}"
        )
    return list(x)


def user_shape(port: Input) -> tuple[int, ...]:
    """Shape of an input in the user's layout, without batch."""
    shape = [0] * len(port.axes)
    for internal, axis in enumerate(port.axes):
        shape[axis] = port.value.shape[internal]
    return tuple(shape)


def _checked(port: Input, array: Any) -> FloatArray:
    where = f"input {port.value.name}"
    try:
        values = np.asarray(array)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"dtype {values.dtype}")
        narrow = values.dtype.itemsize < 4 or values.dtype == np.float32
        values = values.astype(np.float32 if narrow else np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: needs an array of real numbers, got {error}") from None
    expected = user_shape(port)
    if values.shape[1:] != expected or values.ndim != len(expected) + 1:
        needed = ", ".join(["N", *map(str, expected)])
        raise DataError(f"{where}: needs shape [{needed}], got {list(values.shape)}")
    # The sum of squares is finite wherever all values are, overflow aside, and BLAS is quick at it.
    with np.errstate(all="ignore"):
        suspicious = not np.isfinite(np.vdot(values, values))
    if suspicious and not np.isfinite(values).all():
        index = np.argwhere(~np.isfinite(values))[0].tolist()
        raise DataError(f"{where}: holds NaN or infinity, first at index {index}")
    return values


def present_outputs(
    program: Program, mantissas: Sequence[Int64Array], raw: bool
) -> npt.NDArray[np.generic] | tuple[npt.NDArray[np.generic], ...]:
    """Outputs in the user's layout: int64 mantissas where raw, else float64 values.

    One array where the program has one output, else a tuple. Raises FxloomError if values are
    asked for that float64 cannot represent.
    """
    results: list[npt.NDArray[np.generic]] = []
    for port, array in zip(program.outputs, mantissas, strict=True):
        value = program.value(port.value)
        user = np.ascontiguousarray(array.transpose(0, *(axis + 1 for axis in port.axes)))
        if raw:
            results.append(user)
            continue
        if largest(value.lo, value.hi) > EXACT_FLOAT64:
            raise FxloomError(
                f"output {port.name} ({value.type}) exceeds what float64 represents exactly; "
                "ask for raw=True"
            )
        results.append(to_values(user, value.type.fraction))
    return results[0] if len(results) == 1 else tuple(results)


def reference(program: Program, inputs: Sequence[Int64Array]) -> list[Int64Array]:
    """Output mantissas by the int64 definition of every operation; slow, the yardstick.

    inputs: mantissas as quantize_inputs gives them. Outputs are channels-last.
    """
    values = trace_all(program, inputs)
    return [values[port.value] for port in program.outputs]


def trace_all(program: Program, inputs: Sequence[Int64Array]) -> dict[str, Int64Array]:
    """Mantissas of every input and every instruction's result, by the int64 definition."""
    values: dict[str, Int64Array] = {
        name: constant.data.astype(np.int64) for name, constant in program.constants.items()
    }
    for port, array in zip(program.inputs, inputs, strict=True):
        values[port.value.name] = array
    for instr in program.instrs:
        arrays = [values[name] for name in instr.args]
        values[instr.result.name] = instr.op.evaluate(program.operands(instr), arrays)
    return {name: array for name, array in values.items() if name not in program.constants}


@dataclass(frozen=True, slots=True)
class _Step:
    """One planned instruction: run it on slots, then forget the values that end here."""

    run: Callable[[Sequence[Array]], Array]
    args: tuple[str, ...]
    result: str
    ends: tuple[str, ...]


class Simulator:
    """A program planned for speed; gives the same integers as ``reference``."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._steps = _plan(program)
        sizes = [instr.result.size for instr in program.instrs]
        sizes += [port.value.size for port in program.inputs]
        # Large enough for BLAS, small enough for the caches, and for the allocator: beyond some
        # 4 MB a tensor it gives pages back after each use, and fresh pages are slow. Small late
        # layers want some 64 samples all the same.
        floats = max(sizes)
        samples = max(2**20 // floats, min(64, 2**22 // floats))
        self.chunk = int(np.clip(samples, 1, 2048))

    def run(
        self, x: Tensors, *, raw: bool = False
    ) -> npt.NDArray[np.generic] | tuple[npt.NDArray[np.generic], ...]:
        """Outputs for real inputs [N, ...] in the user's layout."""
        inputs = _user_inputs(self.program, x)
        return present_outputs(self.program, self._run(inputs, _quantize_piece), raw)

    def run_mantissas(self, inputs: Sequence[Int64Array]) -> list[Int64Array]:
        """Output mantissas (channels-last) for input mantissas, chunk by chunk."""
        return self._run(inputs, _carry_piece)

    def _run(
        self, inputs: Sequence[Array], enter: Callable[[Input, Array], Array]
    ) -> list[Int64Array]:
        count = len(inputs[0])
        outputs = [
            np.empty((count, *self.program.value(port.value).shape), np.int64)
            for port in self.program.outputs
        ]
        pieces = max(-(-count // self.chunk), 1)
        size = max(-(-count // pieces), 1)  # equal ones: a short rest costs as much as a full one
        for start in range(0, count, size):
            piece = slice(start, start + size)
            slots = {
                port.value.name: enter(port, array[piece])
                for port, array in zip(self.program.inputs, inputs, strict=True)
            }
            self._run_chunk(slots)
            for output, port in zip(outputs, self.program.outputs, strict=True):
                output[piece] = slots[port.value]
        return outputs

    def _run_chunk(self, slots: dict[str, Array]) -> None:
        for step in self._steps:
            slots[step.result] = step.run([slots[name] for name in step.args])
            for name in step.ends:
                del slots[name]


def _quantize_piece(port: Input, values: Array) -> Array:
    """Real values in the user's layout as mantissas in the carrier of an input's format."""
    to = port.value.type
    carrier = carrier_for(largest(to.lo, to.hi))
    if to.width > 53:
        return quantize_values(_internal(port, values), to, port.rounding, port.overflow)
    if port.rounding is Rounding.RND and port.overflow is Overflow.SAT and 2 * to.width < 23:
        mantissas = _round_and_saturate(values, to)
    else:
        mantissas = quantize_floats(values, to, port.rounding, port.overflow)
    moved = torch.from_numpy(_internal(port, mantissas.astype(carrier, copy=False)))
    result: Array = moved.contiguous().numpy()
    return result


def _round_and_saturate(values: Array, to: FixedPoint) -> Array:
    """Mantissas to nearest, ties upwards, in few passes that are exact for every float.

    floor(v + 1/2) would round v + 1/2; floor(floor(2 v) / 2 + 1/2) is the same number and rounds
    nothing within the range, in which the clamp leaves what is beyond it.
    """
    scale = values.dtype.type(2.0 ** (to.fraction + 1))
    with np.errstate(over="ignore", under="ignore"):
        y = torch.from_numpy(np.multiply(values, scale))
    torch.add(_HALF, y.floor_(), alpha=0.5, out=y)
    mantissas: Array = y.floor_().clamp_(to.lo, to.hi).numpy()
    return mantissas


def _carry_piece(port: Input, mantissas: Array) -> Array:
    """Mantissas in a carrier; a copy, because operations may reuse their argument's memory."""
    return mantissas.astype(carrier_for(largest(port.value.lo, port.value.hi)))


def _plan(program: Program) -> list[_Step]:
    chains = find_chains(program)
    hidden = {
        instr.result.name: chain.result for chain in chains.values() for instr in chain.instrs[:-1]
    }
    # A chain takes its arguments when it runs: in the place of its last instruction.
    last_use: dict[str, int] = {}
    places = {instr.result.name: place for place, instr in enumerate(program.instrs)}
    for place, instr in enumerate(program.instrs):
        for name in instr.args:
            runs = places[hidden.get(instr.result.name, instr.result.name)]
            last_use[name] = max(last_use.get(name, 0), place, runs)
    kept = {port.value for port in program.outputs}
    owner = _storage_owners(program)
    steps = []
    for position, instr in enumerate(program.instrs):
        if instr.result.name in hidden:
            continue
        chain = chains.get(instr.result.name)
        first = chain.instrs[0] if chain else instr
        computed = tuple(name for name in first.args if name not in program.constants)
        ends = tuple(
            name
            for name in dict.fromkeys(computed)
            if last_use[name] == position and name not in kept
        )
        # An argument's memory may be reused if it ends here and no other name shows it.
        free = {
            name
            for name in ends
            if computed.count(name) == 1
            and not any(
                other != name
                and owner[other] == owner[name]
                and (other in kept or last_use.get(other, -1) > position or other in computed)
                for other in owner
            )
        }
        run = chain.run if chain else RULES[instr.op.name](_view(program, instr, free))
        steps.append(_Step(run, computed, instr.result.name, ends))
    return steps


VIEWS = ("reshape", "transpose", "shift")
"""Operations whose result may share memory with their argument."""


def _storage_owners(program: Program) -> Mapping[str, str]:
    """For every value, the value whose memory it may share."""
    owner = {port.value.name: port.value.name for port in program.inputs}
    for instr in program.instrs:
        shares = instr.op.name in VIEWS
        owner[instr.result.name] = owner[instr.args[0]] if shares else instr.result.name
    return owner


def _view(program: Program, instr: Instr, free: set[str]) -> Plan:
    return Plan(
        op=instr.op,
        operands=tuple(program.operands(instr)),
        result=instr.result,
        free=tuple(name in free for name in instr.args),
    )


def simulate(
    program: Program, x: Tensors, *, raw: bool = False
) -> npt.NDArray[np.generic] | tuple[npt.NDArray[np.generic], ...]:
    """What the hardware computes for x, bit for bit.

    x: real values [N, ...] in the user's layout, a sequence of arrays for several inputs; they are
    rounded and saturated into the input's format first. Returns float64 values, or int64
    mantissas where raw; a tuple where the model has several outputs. Raises DataError for
    inputs that do not fit the program.
    """
    return Simulator(program).run(x, raw=raw)
