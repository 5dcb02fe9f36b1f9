"""Arguments of one elementwise operation, laid out so that they broadcast as in PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx.node import Node

from fxloom import ops
from fxloom.batch_axis import sample_shape
from fxloom.fixed_point import FixedPoint, IntArray
from fxloom.graph import arguments, constant, origin
from fxloom.lowering.core import (
    Lowered,
    Lowering,
    NotLowered,
    Quantized,
    constant_of,
    constant_sample,
)
from fxloom.ops import Op
from fxloom.program import Value


@dataclass(frozen=True, slots=True)
class Operands:
    """Values in the order of the arguments, and the tensor whose layout the result has."""

    values: list[Value]
    like: Lowered

    def emit(self, lowering: Lowering, node: Node, op: Op) -> Lowered:
        """The operation on these values."""
        value = lowering.emit(op, self.values, node)
        return Lowered(value, self.like.layout, self.like.flattened, self.like.lifted)


def operands(
    lowering: Lowering, node: Node, positions: Sequence[int], thresholds: bool = False
) -> Operands:
    """The arguments at these positions: computed tensors, constants or numbers.

    thresholds: constants are but compared with the computed argument, so that its steps suffice.
    Raises NotLowered where none is computed, or a constant has no format.
    """
    found = [_argument(lowering, arguments(node)[position]) for position in positions]
    computed = [each for each in found if isinstance(each, Lowered)]
    if not computed:
        raise NotLowered("none of its arguments is computed from an input")
    arrays = [each for each in found if isinstance(each, _Constant)]
    first = computed[0]
    alike = len({(x.layout, x.flattened, x.lifted) for x in computed}) == 1
    rank = len(sample_shape(node))
    if not alike or any(array.data.ndim for array in arrays):
        computed = [lowering.unflatten(x, origin(node)) for x in computed]
        layout = tuple(range(rank))
        if all(len(x.layout) == rank for x in computed):
            layout = computed[0].layout
            computed = [Lowered(lowering.in_layout(x, layout, node), layout) for x in computed]
        else:  # Ranks differ: broadcasting aligns the user's last axes.
            computed = [Lowered(lowering.in_order(x, node), layout) for x in computed]
        first = computed[0]
    remaining = iter(computed)
    values: list[Value] = []
    for each in found:
        if isinstance(each, Lowered):
            values.append(next(remaining).value)
        elif isinstance(each, _Constant):
            values.append(_placed(lowering, node, each, first, rank, thresholds))
        elif thresholds:
            number = _Constant("number", np.asarray(each, np.float64), None)
            values.append(_placed(lowering, node, number, first, rank, thresholds))
        else:
            values.append(lowering.literal(float(each), "number", first.value))
    return Operands(values, first)


@dataclass(frozen=True, slots=True)
class _Constant:
    """type: of its mantissas; None where data are real numbers."""

    name: str
    data: np.ndarray[Any, Any]
    type: FixedPoint | None


def _argument(lowering: Lowering, argument: Any) -> Lowered | _Constant | int | float:
    if isinstance(argument, int | float):
        return argument
    assert isinstance(argument, Node)
    known = lowering.known.get(argument)
    if isinstance(known, Lowered):
        return known
    if isinstance(known, Quantized):
        return _Constant(known.name, known.data, known.type)
    if argument.op == "placeholder":
        raise NotLowered("its input has no fixed-point format. Run the quantize pass")
    values = constant_of(constant(lowering.module, argument.target))
    name = str(argument.target)
    if values.dtype.kind in "biu":  # integers need no rounding
        data = values.astype(np.int64)
        kind = FixedPoint.holding(min(int(data.min()), 0), max(int(data.max()), 0), 0)
        return _Constant(name, data, kind)
    return _Constant(name, values.astype(np.float64), None)


def _placed(
    lowering: Lowering, node: Node, array: _Constant, like: Lowered, rank: int, thresholds: bool
) -> Value:
    """A constant in the layout of a computed tensor."""
    data, kind = array.data, array.type
    if thresholds:
        real = data if kind is None else data * kind.step
        data, kind = _thresholds(np.asarray(real, np.float64), like.value)
    elif kind is None:
        raise NotLowered(
            f"{array.name} has no fixed-point format. Run the quantize pass before lower"
        )
    if data.ndim:
        data = constant_sample(data, node)
        assert data.ndim == rank
        data = data.transpose(like.layout)
    elif like.value.shape:
        data = data.reshape(1)
    return lowering.constant(array.name, data, kind)


def _thresholds(real: np.ndarray[Any, Any], x: Value) -> tuple[IntArray, FixedPoint]:
    """Numbers that compare with every value of x as the given ones do, in few bits.

    What lies between two values of x may lie anywhere between them: half a step above the lower
    one. What lies beyond all of them may lie just beyond.
    """
    with np.errstate(over="ignore"):
        scaled = np.ldexp(real, x.type.fraction)
    whole = np.floor(scaled)
    between = whole != scaled
    steps = np.clip(whole, -(2.0**62), 2.0**62).astype(np.int64)
    inside = (steps >= x.lo) & (steps <= x.hi)
    steps = np.clip(steps, x.lo - 1, x.hi + 1)
    between &= inside
    more = int(between.any())
    data = (steps << more) + between
    low, high = int(data.min()), int(data.max())
    return data, FixedPoint.holding(min(low, 0), max(high, 0), x.type.fraction + more)


def without(
    lowering: Lowering, node: Node, x: Lowered, axes: Sequence[int], value: Value
) -> Lowered:
    """A value in the layout of x, less these axes of the program, along which it has length 1."""
    user_axes = {x.layout[axis] for axis in axes}
    left = [axis for axis in x.layout if axis not in user_axes]
    layout = tuple(sorted(left).index(axis) for axis in left)
    shape = tuple(n for position, n in enumerate(value.shape) if position not in axes)
    return Lowered(lowering.emit(ops.Reshape(shape), [value], node), layout)
