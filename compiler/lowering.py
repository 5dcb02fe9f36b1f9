"""Lowering: from a quantized graph to a Program.

One small function per ATen op, registered with ``@lowers``. Layout is decided here: images become
channels-last, and every tensor remembers how its axes were permuted, so that a transpose is emitted
only where the order of the values really matters (and not even then where it can be folded into
the next layer's weights).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom import ops
from fxloom.batch_axis import sample_shape
from fxloom.errors import UnsupportedLayer
from fxloom.fixed_point import FixedPoint, IntArray, Overflow, Rounding, quantize_values
from fxloom.graph import arguments, constant, describe, origin
from fxloom.ops import Op, Shape
from fxloom.program import Program, ProgramBuilder, Value
from fxloom.quantized_ops import (
    DIVIDE,
    LOOKUP,
    NORMALISE,
    REQUANTIZE,
    REQUANTIZE_CHANNELS,
    SHIFT_LIKE,
)
from fxloom.support import refused_ports

aten = torch.ops.aten

MAX_LITERAL_BITS = 32
"""Longest literal number: 6 and 0.25 pass, a float 0.1 (53 bits) is one that quantize missed."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """A tensor of one sample in the program.

    value == user_tensor.transpose(layout). Where flattened is given, the user's tensor is flat and
    value is the flattening, in the program's own order, of a tensor of that shape and layout. Where
    lifted, value has one more axis in front, of length 1: a signal as an image of height 1.
    """

    value: Value
    layout: tuple[int, ...]
    flattened: Shape | None = None
    lifted: bool = False


@dataclass(frozen=True, slots=True)
class Quantized:
    """Constant mantissas in a format, shaped as the user's tensor.

    shifts: how many bits further left the binary point of each channel (first axis) lies; empty
    where it is the same for all.
    """

    name: str
    data: IntArray
    type: FixedPoint
    shifts: tuple[int, ...] = ()


class NotLowered(Exception):
    """Why a node has no lowering; the text follows the layer's name."""


Argument = Any
Rule = Callable[["Lowering", Node], Lowered]
LOWERINGS: dict[Any, Rule] = {}


def lowers(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the lowering of one or more ATen ops."""

    def register(rule: Rule) -> Rule:
        LOWERINGS.update(dict.fromkeys(targets, rule))
        return rule

    return register


def lower(graph: fx.GraphModule) -> Program:
    """The integer program of a quantized graph.

    Raises UnsupportedLayer, listing every layer that has no exact lowering, among them those
    that carry no fixed-point format because the graph was not quantized.
    """
    return Lowering(graph).run()


class Lowering:
    """State of one lowering: the builder and what each node became."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.module = graph
        self.builder = ProgramBuilder()
        self.known: dict[Node, Lowered | Quantized] = {}
        self.problems = refused_ports(graph)
        self.literals: dict[tuple[float, int, Shape], Value] = {}

    def run(self) -> Program:
        """Lower every node; all problems are gathered before they are raised."""
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function" and self._ready(node):
                try:
                    self.known[node] = self._call(node)
                except NotLowered as reason:
                    self.problems.append(f"{describe(node)}: {reason}")
        if self.problems:
            raise UnsupportedLayer(self.problems)
        self._outputs(self.module.graph.output_node())
        return self.builder.build()

    def _ready(self, node: Node) -> bool:
        """Whether all computed arguments were lowered: one problem is reported once."""
        return all(
            arg in self.known or arg.op in ("get_attr", "placeholder")
            for arg in node.all_input_nodes
        )

    def _placeholder(self, node: Node) -> None:
        if not node.users:
            return  # one of the refused ports
        users = [user for user in node.users if user.target is REQUANTIZE]
        if len(users) != 1 or len(node.users) != 1:
            self.problems.append(
                f"input {node.target}: it has no fixed-point format. "
                "Run the quantize pass before lower."
            )
            return
        to, rounding, overflow = requantize_format(users[0])
        user = sample_shape(node)
        layout = _input_layout(users[0], len(user))
        value = self.builder.input(
            str(node.target),
            tuple(user[axis] for axis in layout),
            to,
            axes=layout,
            rounding=rounding,
            overflow=overflow,
        )
        self.known[users[0]] = Lowered(value, layout)

    def _call(self, node: Node) -> Lowered | Quantized:
        if node in self.known:  # the requantize of an input
            return self.known[node]
        is_constant = node.all_input_nodes and node.all_input_nodes[0].op == "get_attr"
        if node.target in (REQUANTIZE, REQUANTIZE_CHANNELS) and is_constant:
            return self._weight(node)
        rule = LOWERINGS.get(node.target)
        if rule is None:
            supported = ", ".join(sorted({str(op).split(".")[1] for op in LOWERINGS}))
            raise NotLowered(f"no lowering. Supported: {supported}")
        return rule(self, node)

    def _weight(self, node: Node) -> Quantized:
        source = arguments(node)[0]
        assert isinstance(source, Node)
        to, rounding, overflow = requantize_format(node)
        values = constant(self.module, source.target).detach().cpu().numpy()
        shifts: tuple[int, ...] = ()
        if node.target is REQUANTIZE_CHANNELS:
            shifts = tuple(arguments(node)[1])
            values = np.ldexp(values, np.reshape(shifts, (-1, *(1,) * (values.ndim - 1))))
        # Mantissas are kept in the narrowest integers at once: no second copy of the model.
        data = quantize_in_chunks(values, to, rounding, overflow)
        return Quantized(str(source.target), data, to, shifts)

    def _outputs(self, output: Node) -> None:
        results = output.args[0]
        nodes = list(results) if isinstance(results, tuple | list) else [results]
        for index, node in enumerate(nodes):
            name = "output" if len(nodes) == 1 else f"output_{index}"
            assert isinstance(node, Node)
            lowered = self.known.get(node)
            if not isinstance(lowered, Lowered):
                raise UnsupportedLayer([f"{name}: it does not depend on any input"])
            plain = self.unflatten(lowered, name)
            axes = tuple(int(a) for a in np.argsort(plain.layout))
            self.builder.output(plain.value, name, axes)

    # What rules use

    def tensor(self, node: Node, position: int) -> Lowered:
        """The computed argument at a position."""
        argument = arguments(node)[position]
        lowered = self.known.get(argument) if isinstance(argument, Node) else None
        if isinstance(lowered, Lowered):
            return lowered
        if isinstance(argument, Node) and argument.op == "placeholder":
            raise NotLowered("its input has no fixed-point format. Run the quantize pass")
        raise NotLowered(f"argument {position} must be computed from an input, got {argument}")

    def weight(self, node: Node, position: int) -> Quantized:
        """The constant argument at a position, which must have a format."""
        argument = arguments(node)[position]
        quantized = self.known.get(argument) if isinstance(argument, Node) else None
        if isinstance(quantized, Quantized):
            return quantized
        if isinstance(argument, Node) and argument.op == "get_attr":
            raise NotLowered(
                f"{argument.target} has no fixed-point format. Run the quantize pass before lower"
            )
        raise NotLowered(f"argument {position} must be a constant weight, got {argument}")

    def emit(self, op: Op, args: Sequence[Value], node: Node) -> Value:
        """Add an instruction named and attributed after the node's layer."""
        return self.builder.emit(op, args, origin(node))

    def constant(self, name: str, data: IntArray, kind: FixedPoint) -> Value:
        """Add a constant."""
        return self.builder.constant(name, data, kind)

    def literal(self, number: float, name: str, like: Value) -> Value:
        """A number of the graph as a constant of one element that broadcasts to like, exact."""
        exact = Fraction(number)
        fraction = exact.denominator.bit_length() - 1
        mantissa = exact.numerator
        while mantissa and mantissa % 2 == 0:
            mantissa, fraction = mantissa // 2, fraction - 1
        if mantissa.bit_length() > MAX_LITERAL_BITS:
            raise NotLowered(
                f"the number {number} needs {mantissa.bit_length()} bits. Run the quantize pass, "
                "which rounds it"
            )
        if mantissa == 0:  # zero in coarse steps: it must not make a huge value wider
            fraction = min(0, like.type.fraction)
        shape = (1,) if like.shape else ()
        key = (number, fraction, shape)
        if key not in self.literals:
            kind = FixedPoint.holding(min(mantissa, 0), max(mantissa, 0), fraction)
            self.literals[key] = self.constant(name, np.full(shape, mantissa), kind)
        return self.literals[key]

    def unflatten(self, lowered: Lowered, layer: str) -> Lowered:
        """The same tensor with the user's axes: not lifted, not flattened in another order."""
        if lowered.lifted:
            shape = lowered.value.shape[1:]
            value = self.builder.emit(ops.Reshape(shape), [lowered.value], layer)
            return Lowered(value, lowered.layout)
        if lowered.flattened is None:
            return lowered
        flat = lowered.value.shape
        value = self.builder.emit(ops.Reshape(lowered.flattened), [lowered.value], layer)
        value = self._permuted(value, lowered.layout, tuple(range(len(value.shape))), layer)
        value = self.builder.emit(ops.Reshape(flat), [value], layer)
        return Lowered(value, (0,))

    def in_layout(self, lowered: Lowered, layout: tuple[int, ...], node: Node) -> Value:
        """The tensor's value with its axes in a given order; a transpose only if needed."""
        plain = self.unflatten(lowered, origin(node))
        return self._permuted(plain.value, plain.layout, layout, origin(node))

    def in_order(self, lowered: Lowered, node: Node) -> Value:
        """The tensor's value with its axes in the user's order."""
        plain = self.unflatten(lowered, origin(node))
        return self.in_layout(plain, tuple(range(len(plain.layout))), node)

    def _permuted(
        self, value: Value, have: tuple[int, ...], want: tuple[int, ...], layer: str
    ) -> Value:
        if have == want:
            return value
        axes = tuple(have.index(axis) for axis in want)
        moved = [axis for axis in axes if value.shape[axis] != 1]
        if moved == sorted(moved):  # only axes of length one move
            shape = tuple(value.shape[axis] for axis in axes)
            if shape == value.shape:
                return value
            return self.builder.emit(ops.Reshape(shape), [value], layer)
        return self.builder.emit(ops.Transpose(axes), [value], layer)

    def image(self, node: Node, position: int = 0) -> Value:
        """A channels-last image [H, W, C]; a signal [channels, length] is one of height 1."""
        lowered = self.tensor(node, position)
        rank = len(lowered.layout)
        if rank not in (2, 3) or lowered.flattened is not None:
            raise NotLowered(
                "needs a signal [batch, channels, length] or an image [batch, channels, height, "
                f"width], got {rank + 1} dimensions"
            )
        if rank == 3:
            return self.in_layout(lowered, (1, 2, 0), node)
        if lowered.lifted and lowered.layout == (1, 0):
            return lowered.value
        signal = self.in_layout(lowered, (1, 0), node)
        return self.emit(ops.Reshape((1, *signal.shape)), [signal], node)

    def from_image(self, value: Value, node: Node) -> Lowered:
        """The tensor of a node computed as an image: a signal stays lifted until need be."""
        if len(sample_shape(node)) == 2:
            return Lowered(value, (1, 0), lifted=True)
        return Lowered(value, (1, 2, 0))


def _input_layout(node: Node, rank: int) -> tuple[int, ...]:
    """Channels last for images, and for signals that a layer on signals reads."""
    if rank == 3:
        return (1, 2, 0)
    if rank == 2 and any(user.target in _ON_SIGNALS for user in node.users):
        return (1, 0)
    return tuple(range(rank))


_ON_SIGNALS = (aten.convolution.default, aten.max_pool1d.default)


def requantize_format(node: Node) -> tuple[FixedPoint, Rounding, Overflow]:
    """Format and modes of a requantize or divide node."""
    width, integer, signed, rounding, overflow = arguments(node)[-5:]
    return (
        FixedPoint(width, integer, signed),
        Rounding(rounding),
        Overflow(overflow),
    )


def quantize_in_chunks(
    values: np.ndarray[Any, Any], to: FixedPoint, rounding: Rounding, overflow: Overflow
) -> IntArray:
    """quantize_values for large tensors: float64 temporaries of a piece at a time."""
    dtype = np.dtype(f"i{next(n for n in (1, 2, 4, 8) if to.width + (not to.signed) <= 8 * n)}")
    flat = np.ascontiguousarray(values).reshape(-1)
    result = np.empty(flat.size, dtype)
    for start in range(0, flat.size, 1 << 20):
        piece = slice(start, start + (1 << 20))
        result[piece] = quantize_values(flat[piece], to, rounding, overflow)
    return result.reshape(values.shape)


def constant_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor's values as an array."""
    array: np.ndarray[Any, Any] = tensor.detach().cpu().numpy()
    return array


# Layers with weights


@lowers(aten.linear.default)
def _linear(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    weight = lowering.weight(node, 1)
    matrix = weight.data.T
    if x.flattened is not None:
        # Read the weights in the order in which the values lie instead of moving the values.
        order = np.arange(prod(x.flattened)).reshape(
            tuple(x.flattened[x.layout.index(axis)] for axis in range(len(x.layout)))
        )
        matrix = matrix[order.transpose(x.layout).reshape(-1)]
        value = x.value
    else:
        value = lowering.in_order(x, node)
    kernel = lowering.constant(weight.name, matrix, weight.type)
    product = lowering.emit(ops.MatMul(), [value, kernel], node)
    product = _with_points(lowering, node, product, weight)
    return Lowered(_biased(lowering, node, product), tuple(range(len(product.shape))))


def _with_points(lowering: Lowering, node: Node, product: Value, weight: Quantized) -> Value:
    """A product of narrow weights with every channel's own binary point: powers of two, wires."""
    if not weight.shifts:
        return product
    finest = max(weight.shifts)
    powers = np.array([1 << (finest - shift) for shift in weight.shifts])
    kind = FixedPoint.holding(1, int(powers.max()), finest)
    points = lowering.constant(f"{weight.name}.points", powers, kind)
    return lowering.emit(ops.Mul(), [product, points], node)


def _biased(lowering: Lowering, node: Node, product: Value) -> Value:
    if arguments(node)[2] is None:
        return product
    bias = lowering.weight(node, 2)
    offset = lowering.constant(bias.name, bias.data, bias.type)
    return lowering.emit(ops.Add(), [product, offset], node)


@lowers(aten.convolution.default)
def _convolution(lowering: Lowering, node: Node) -> Lowered:
    stride, padding, dilation, transposed, _, groups = arguments(node)[3:]
    if transposed:
        raise NotLowered("transposed convolution has no lowering yet")
    image = lowering.image(node)
    weight = lowering.weight(node, 1)
    if weight.data.ndim not in (3, 4):
        raise NotLowered(
            f"only 1-D and 2-D convolution have a lowering, got {weight.data.ndim - 2}-D"
        )
    data = weight.data[:, :, None] if weight.data.ndim == 3 else weight.data
    kernel = lowering.constant(weight.name, data.transpose(2, 3, 1, 0), weight.type)
    height, width = _pair(padding, 0)
    op = ops.Conv(_pair(stride), ((height, height), (width, width)), _pair(dilation), groups)
    product = lowering.emit(op, [image, kernel], node)
    product = _with_points(lowering, node, product, weight)
    return lowering.from_image(_biased(lowering, node, product), node)


def _pair(numbers: Any, height: int = 1) -> tuple[int, int]:
    """Attributes along height and width; a signal's have none along its height of 1."""
    first, second = (height, *numbers) if len(numbers) == 1 else numbers
    return int(first), int(second)


# Elementwise


@lowers(aten.relu.default)
def _relu(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    zero = lowering.literal(0.0, "zero", x.value)
    return replace(x, value=lowering.emit(ops.Max(), [x.value, zero], node))


@lowers(aten.clamp.default)
def _clamp(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    low, high = arguments(node)[1:3]
    value = x.value
    if low is not None:
        value = lowering.emit(ops.Max(), [value, lowering.literal(low, "low", value)], node)
    if high is not None:
        value = lowering.emit(ops.Min(), [value, lowering.literal(high, "high", value)], node)
    return replace(x, value=value)


@lowers(aten.leaky_relu.default)
def _leaky_relu(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    slope = arguments(node)[1]
    scaled = lowering.emit(ops.Mul(), [x.value, lowering.literal(slope, "slope", x.value)], node)
    # Up to a slope of one the function is the larger of x and slope * x, beyond it the smaller.
    pick: Op = ops.Max() if slope <= 1 else ops.Min()
    return replace(x, value=lowering.emit(pick, [x.value, scaled], node))


def _merge(op: Op) -> Rule:
    def rule(lowering: Lowering, node: Node) -> Lowered:
        first, second = arguments(node)[:2]
        if node.kwargs:
            raise NotLowered(f"arguments {dict(node.kwargs)} have no lowering")
        computed = [
            isinstance(arg, Node) and isinstance(lowering.known.get(arg), Lowered)
            for arg in (first, second)
        ]
        if all(computed):
            return _merge_computed(lowering, node, op)
        position = 0 if computed[0] else 1
        x = lowering.tensor(node, position)
        other = arguments(node)[1 - position]
        if isinstance(other, int | float):
            if isinstance(op, ops.Mul) and _is_power_of_two(float(other)):
                bits = int(np.log2(float(other)))
                return replace(x, value=lowering.emit(ops.Shift(bits), [x.value], node))
            y = lowering.literal(float(other), "number", x.value)
        else:
            x, y = _with_constant(lowering, node, x, 1 - position)
        pair = [x.value, y] if position == 0 else [y, x.value]
        return replace(x, value=lowering.emit(op, pair, node))

    return rule


def _is_power_of_two(number: float) -> bool:
    return number > 0 and float(np.log2(number)).is_integer()


def _merge_computed(lowering: Lowering, node: Node, op: Op) -> Lowered:
    a, b = lowering.tensor(node, 0), lowering.tensor(node, 1)
    if (a.layout, a.flattened, a.lifted) == (b.layout, b.flattened, b.lifted):
        return replace(a, value=lowering.emit(op, [a.value, b.value], node))
    if len(a.layout) == len(b.layout):
        a = lowering.unflatten(a, origin(node))
        pair = [a.value, lowering.in_layout(b, a.layout, node)]
        return replace(a, value=lowering.emit(op, pair, node))
    # Ranks differ: broadcasting aligns the user's last axes.
    plain = [lowering.in_order(x, node) for x in (a, b)]
    value = lowering.emit(op, plain, node)
    return Lowered(value, tuple(range(len(value.shape))))


def _with_constant(
    lowering: Lowering, node: Node, x: Lowered, position: int
) -> tuple[Lowered, Value]:
    """x and the constant argument, brought to x's layout."""
    weight = lowering.weight(node, position)
    x = lowering.unflatten(x, origin(node))
    data = constant_sample(weight.data, node)
    rank = data.ndim
    if rank > len(x.layout):
        raise NotLowered(
            f"{weight.name} of shape {weight.data.shape} has more dimensions than its input"
        )
    return x, lowering.constant(weight.name, data.transpose(x.layout), weight.type)


def constant_sample(data: np.ndarray[Any, Any], node: Node) -> np.ndarray[Any, Any]:
    """A constant argument of an elementwise node as one sample sees it, with the rank of that.

    Broadcasting aligns last dimensions; the one that meets the batch has length 1 and goes.
    """
    rank, batch = node.meta["val"].dim(), node.meta["batch_axis"]
    full = data.reshape((1,) * (rank - data.ndim) + data.shape)
    return full[(slice(None),) * batch + (0,)] if isinstance(batch, int) else full


LOWERINGS[aten.add.Tensor] = _merge(ops.Add())
LOWERINGS[aten.sub.Tensor] = _merge(ops.Sub())
LOWERINGS[aten.mul.Tensor] = _merge(ops.Mul())


@lowers(REQUANTIZE)
def _requantize(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    return replace(
        x, value=lowering.emit(ops.Requantize(*requantize_format(node)), [x.value], node)
    )


@lowers(DIVIDE)
def _divide(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.unflatten(lowering.tensor(node, 0), origin(node))
    divisor = arguments(node)[1]
    assert isinstance(divisor, Node)
    values = constant_of(constant(lowering.module, divisor.target))
    data = constant_sample(values, node).transpose(x.layout)
    integers = data.astype(np.int64)
    if (integers != data).any() or integers.min() < 1:
        raise NotLowered("a divisor must be positive integers")
    kind = FixedPoint.holding(0, int(integers.max()), 0)
    d = lowering.constant(f"{origin(node)}.divisor", integers, kind)
    op = ops.Divide(*requantize_format(node))
    return replace(x, value=lowering.emit(op, [x.value, d], node))


# Tables


@lowers(LOOKUP)
def _lookup(lowering: Lowering, node: Node) -> Lowered:
    x, table = lowering.tensor(node, 0), lowering.weight(node, 1)
    entries = lowering.constant(table.name, table.data, table.type)
    op = ops.Lookup(FixedPoint(*arguments(node)[2:]))
    return replace(x, value=lowering.emit(op, [x.value, entries], node))


@lowers(NORMALISE)
def _normalise(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    width, integer = arguments(node)[1:]
    op = ops.Normalise(FixedPoint(width, integer, False))
    return replace(x, value=lowering.emit(op, [x.value], node))


@lowers(SHIFT_LIKE)
def _shift_like(lowering: Lowering, node: Node) -> Lowered:
    width, integer = arguments(node)[2:]
    return _merge_computed(lowering, node, ops.ShiftLike(FixedPoint(width, integer, False)))


# Pools and reductions


def _pooled(lowering: Lowering, node: Node, kind: str, ceil_mode: bool) -> Lowered:
    image = lowering.image(node)
    kernel = _pair(arguments(node)[1])
    stride = _pair(arguments(node)[2]) if arguments(node)[2] else kernel
    padding = _pair(arguments(node)[3], 0)
    pads = tuple(
        pool_padding(n, k, s, p, ceil_mode)
        for n, k, s, p in zip(image.shape, kernel, stride, padding, strict=False)
    )
    op = ops.Pool(kind, kernel, stride, (pads[0], pads[1]))
    return lowering.from_image(lowering.emit(op, [image], node), node)


def pool_padding(
    size: int, kernel: int, stride: int, padding: int, ceil_mode: bool
) -> tuple[int, int]:
    """Padding before and after that gives PyTorch's windows.

    With ceil_mode a last window may hang over the end, but must start inside the input or its left
    padding (torch.nn.MaxPool2d). Without it, positions that no window reaches do not matter.
    """
    if not ceil_mode:
        return padding, padding
    count = -(-(size + 2 * padding - kernel) // stride) + 1
    if (count - 1) * stride >= size + padding:
        count -= 1
    reach = (count - 1) * stride + kernel
    return padding, max(reach - size - padding, 0)


@lowers(aten.max_pool1d.default, aten.max_pool2d.default)
def _max_pool(lowering: Lowering, node: Node) -> Lowered:
    if any(n != 1 for n in arguments(node)[4]):
        raise NotLowered(f"dilation {arguments(node)[4]} of a max pool has no lowering yet")
    return _pooled(lowering, node, "max", bool(arguments(node)[5]))


@lowers(aten.avg_pool2d.default)
def _sum_pool(lowering: Lowering, node: Node) -> Lowered:
    if arguments(node)[6] != 1:
        raise NotLowered("an average has no fixed-point format. Run the quantize pass before lower")
    return _pooled(lowering, node, "sum", bool(arguments(node)[4]))


@lowers(aten.sum.dim_IntList, aten.amax.default)
def _reduce(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.unflatten(lowering.tensor(node, 0), origin(node))
    source, dims, keep = arguments(node)[:3]
    assert isinstance(source, Node)
    user_axes = [_sample_axis(source, dim) for dim in dims]
    axes = tuple(sorted(x.layout.index(axis) for axis in user_axes))
    op: Op = ops.ReduceMax(axes) if node.target is aten.amax.default else ops.ReduceSum(axes)
    value = lowering.emit(op, [x.value], node)
    if keep:
        return Lowered(value, x.layout)
    kept = [axis for axis in x.layout if axis not in user_axes]
    layout = tuple(sorted(kept).index(axis) for axis in kept)
    shape = tuple(n for position, n in enumerate(value.shape) if position not in axes)
    return Lowered(lowering.emit(ops.Reshape(shape), [value], node), layout)


def _sample_axis(node: Node, dim: int) -> int:
    """A dimension of a tensor as an axis of one sample (a merged batch axis stays an axis)."""
    batch = node.meta["batch_axis"]
    return dim - 1 if isinstance(batch, int) and dim > batch else dim


# Shapes


@lowers(aten.reshape.default, aten.view.default)
def _view(lowering: Lowering, node: Node) -> Lowered:
    x = lowering.tensor(node, 0)
    if x.flattened is None:
        x = lowering.unflatten(x, origin(node))
    shape = sample_shape(node)
    identity = tuple(range(len(shape)))
    layout = _layout_after_ones(x, shape)
    if layout is not None:
        inner = tuple(shape[axis] for axis in layout)
        if inner == x.value.shape:
            return Lowered(x.value, layout)
        return Lowered(lowering.emit(ops.Reshape(inner), [x.value], node), layout)
    if len(shape) == 1 and x.flattened is None and x.layout != tuple(range(len(x.layout))):
        moved = [axis for axis in x.layout if x.value.shape[x.layout.index(axis)] != 1]
        value = lowering.emit(ops.Reshape(shape), [x.value], node)
        if moved == sorted(moved):
            return Lowered(value, identity)
        return Lowered(value, x.layout, flattened=x.value.shape)
    value = lowering.in_order(x, node)
    if value.shape == shape:
        return Lowered(value, identity)
    return Lowered(lowering.emit(ops.Reshape(shape), [value], node), identity)


def _layout_after_ones(x: Lowered, shape: Shape) -> tuple[int, ...] | None:
    """The layout that leaves values where they are if shape only adds or drops axes of length 1."""
    if x.flattened is not None or len(shape) < 2:
        return None
    extent = dict(zip(x.layout, x.value.shape, strict=True))
    before = [axis for axis in sorted(extent) if extent[axis] != 1]
    after = [axis for axis, n in enumerate(shape) if n != 1]
    if [extent[axis] for axis in before] != [shape[axis] for axis in after]:
        return None
    moved = dict(zip(before, after, strict=True))
    ones = [axis for axis, n in enumerate(shape) if n == 1]
    return (*ones, *(moved[axis] for axis in x.layout if axis in moved))


@lowers(aten.permute.default)
def _permute(lowering: Lowering, node: Node) -> Lowered:
    source, dims = arguments(node)
    assert isinstance(source, Node)
    x = lowering.unflatten(lowering.tensor(node, 0), origin(node))
    # new[i] = old[dims[i]]: no value moves, only the bookkeeping of axes.
    order = [_sample_axis(source, dim) for dim in dims if dim != source.meta["batch_axis"]]
    layout = tuple(order.index(axis) for axis in x.layout)
    return Lowered(x.value, layout)


@lowers(aten.cat.default)
def _cat(lowering: Lowering, node: Node) -> Lowered:
    tensors, dim = arguments(node)
    parts = [lowering.known.get(part) for part in tensors]
    computed = [part for part in parts if isinstance(part, Lowered)]
    if len(computed) < len(parts):
        raise NotLowered("only tensors computed from an input can be concatenated")
    first = lowering.unflatten(computed[0], origin(node))
    axis = first.layout.index(_sample_axis(node, dim))
    rest = [lowering.in_layout(part, first.layout, node) for part in computed[1:]]
    return Lowered(lowering.emit(ops.Concat(axis), [first.value, *rest], node), first.layout)


@lowers(aten.constant_pad_nd.default)
def _pad(lowering: Lowering, node: Node) -> Lowered:
    source, amounts, fill = arguments(node)[:3]
    assert isinstance(source, Node)
    if fill != 0:
        raise NotLowered(f"padding with {fill} has no lowering yet, only with 0")
    if min(amounts) < 0:
        raise NotLowered("negative padding (cropping) has no lowering yet")
    x = lowering.unflatten(lowering.tensor(node, 0), origin(node))
    rank = source.meta["val"].dim()
    pairs = [(0, 0)] * rank
    for index in range(len(amounts) // 2):
        pairs[rank - 1 - index] = (amounts[2 * index], amounts[2 * index + 1])
    if isinstance(source.meta["batch_axis"], int):
        del pairs[source.meta["batch_axis"]]
    op = ops.Pad(tuple(pairs[axis] for axis in x.layout))
    return replace(x, value=lowering.emit(op, [x.value], node))
