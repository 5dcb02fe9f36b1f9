"""The state of one lowering, and what its rules use."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom import ops
from fxloom.batch_axis import sample_shape
from fxloom.errors import UnsupportedLayer, VerifyError
from fxloom.fixed_point import FixedPoint, IntArray, Overflow, Rounding, quantize_values
from fxloom.graph import arguments, constant, describe, origin
from fxloom.lowering.layouts import usual_layout
from fxloom.ops import Op, Shape
from fxloom.program import Program, ProgramBuilder, Value
from fxloom.quantized_ops import (
    REQUANTIZE,
    REQUANTIZE_WEIGHTS,
    brings_formats,
    is_given,
    requantize_modes,
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

    A graph whose model brought all formats along needs no quantize: it is legalized first, if it is
    not. Raises UnsupportedLayer, listing every layer that has no exact lowering, among them those
    that carry no fixed-point format because the graph was not quantized.
    """
    return Lowering(legalized(graph)).run()


def legalized(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with its averages, batch norms and the like as primitives, where its formats are
    the model's own and nobody did it before; else itself."""
    if not brings_formats(graph):
        return graph
    # Passes are built on this module.
    from fxloom.passes.fold_batchnorm import FoldBatchnorm
    from fxloom.passes.legalize import Legalize

    return Legalize()(FoldBatchnorm()(graph).graph).graph


def exact_values(
    graph: fx.GraphModule,
    assumed: Mapping[Node, FixedPoint] = MappingProxyType({}),
    rounded: Collection[Node] = (),
) -> tuple[dict[Node, Value], list[Node]]:
    """The values of a legalized graph that are computed exactly in formats that the model brought
    along, as they are in its program, and the nodes whose values need more bits than there are.

    A rounding has its format whatever is rounded there. assumed: formats that nodes without an
    exact value will have; what is computed from them is exact. rounded: nodes that get theirs from
    there even though they have a value.
    """
    lowering = _Partly(graph, assumed, rounded)
    lowering.visit()
    values = {
        node: found.value
        for node, found in lowering.known.items()
        if isinstance(found, Lowered) and node.op == "call_function" and node not in lowering.begun
    }
    return values, list(lowering.too_wide)


class Lowering:
    """State of one lowering: the builder and what each node became."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.module = graph
        self.builder = ProgramBuilder()
        self.known: dict[Node, Lowered | Quantized] = {}
        self.problems = refused_ports(graph)
        self.too_wide: dict[Node, VerifyError] = {}
        self.constants: dict[str, list[Value]] = {}
        self.literals: dict[tuple[float, int, Shape], Value] = {}

    def run(self) -> Program:
        """Lower every node; all problems are gathered before they are raised."""
        self.visit()
        if self.too_wide:
            raise next(iter(self.too_wide.values()))
        if self.problems:
            raise UnsupportedLayer(self.problems)
        self._outputs(self.module.graph.output_node())
        return self.builder.build()

    def visit(self) -> None:
        """Lower every node that can be; what cannot is a problem, or too wide."""
        for node in self.module.graph.nodes:
            self._visit(node)

    def _visit(self, node: Node) -> None:
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "call_function" and self._ready(node):
            try:
                self.known[node] = self._call(node)
            except NotLowered as reason:
                self.problems.append(f"{describe(node)}: {reason}")
            except VerifyError as reason:
                self.too_wide[node] = reason

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
            self.problems.append(_without_format(node, len(users)))
            return
        to, rounding, overflow = requantize_modes(users[0])
        user = sample_shape(node)
        layout = usual_layout(users[0])
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
        if node.target in (REQUANTIZE, REQUANTIZE_WEIGHTS) and is_constant:
            return self._weight(node)
        rule = LOWERINGS.get(node.target)
        if rule is None and node.target is aten.div.Tensor:
            raise NotLowered(
                f"a quotient by {arguments(node)[1]} has no end in binary, and nothing rounds it. "
                "Round it into a format, or run the quantize pass, which does"
            )
        if rule is None:
            raise NotLowered("no lowering. Run the quantize pass, which writes it as others")
        return rule(self, node)

    def _weight(self, node: Node) -> Quantized:
        source = arguments(node)[0]
        assert isinstance(source, Node)
        data, to, shifts = mantissas(constant(self.module, source.target), node)
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
        """Add a constant; the same one again where a layer is used again."""
        for value in self.constants.get(name, []):
            if value.type == kind and np.array_equal(self.builder.data(value), data):
                return value
        value = self.builder.constant(name, data, kind)
        self.constants.setdefault(name, []).append(value)
        return value

    def literal(self, number: float, name: str, like: Value) -> Value:
        """A number of the graph as a constant of one element that broadcasts to like, exact."""
        mantissa, kind = short_mantissa(number, like)
        shape = (1,) if like.shape else ()
        key = (number, kind.fraction, shape)
        if key not in self.literals:
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
        value = self.permuted(value, lowered.layout, tuple(range(len(value.shape))), layer)
        value = self.builder.emit(ops.Reshape(flat), [value], layer)
        return Lowered(value, (0,))

    def in_layout(self, lowered: Lowered, layout: tuple[int, ...], node: Node) -> Value:
        """The tensor's value with its axes in a given order; a transpose only if needed."""
        plain = self.unflatten(lowered, origin(node))
        return self.permuted(plain.value, plain.layout, layout, origin(node))

    def in_order(self, lowered: Lowered, node: Node) -> Value:
        """The tensor's value with its axes in the user's order."""
        plain = self.unflatten(lowered, origin(node))
        return self.in_layout(plain, tuple(range(len(plain.layout))), node)

    def permuted(
        self, value: Value, have: tuple[int, ...], want: tuple[int, ...], layer: str
    ) -> Value:
        """The value with its axes, which lie as in have, as in want."""
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


class _Partly(Lowering):
    """As much of a graph as has formats: what rounds, and what is but compared, begins anew where
    its argument has none, and so does what will be rounded."""

    def __init__(
        self, graph: fx.GraphModule, assumed: Mapping[Node, FixedPoint], rounded: Collection[Node]
    ) -> None:
        super().__init__(graph)
        self._assumed, self._rounded = assumed, rounded
        self.begun: set[Node] = set()

    def _visit(self, node: Node) -> None:
        super()._visit(node)
        if node in self.known and node not in self._rounded:
            return
        to = _kind_of(node)
        if to is None and (to := self._assumed.get(node)) is not None:
            self.begun.add(node)
        if to is not None:
            user = sample_shape(node)
            layout = usual_layout(node)
            shape = tuple(user[axis] for axis in layout)
            self.known[node] = Lowered(self.builder.input(node.name, shape, to), layout)

    def weight(self, node: Node, position: int) -> Quantized:
        """A bias of floats will be rounded to the steps of the products with weights that are."""
        argument = arguments(node)[position]
        is_bias = node.target in (aten.linear.default, aten.convolution.default) and position == 2
        if not is_bias or argument.op != "get_attr":
            return super().weight(node, position)
        kernel = super().weight(node, 1)
        finest = kernel.type.fraction + max(kernel.shifts, default=0)
        fraction = self.tensor(node, 0).value.type.fraction + finest
        steps = np.ldexp(constant(self.module, argument.target).detach().double().numpy(), fraction)
        low, high = int(np.floor(steps.min())), int(np.ceil(steps.max()))
        kind = FixedPoint.holding(min(low, 0), max(high, 0), fraction)
        return Quantized(str(argument.target), np.rint(steps).astype(np.int64), kind)


def _kind_of(node: Node) -> FixedPoint | None:
    """The format of a value whatever it is computed from, where its operation says it."""
    if is_given(node) and node.target is not REQUANTIZE_WEIGHTS:
        return requantize_modes(node)[0]
    if node.op != "call_function" or node.meta.get("batch_axis") is None:
        return None
    if node.target is aten.sign.default:
        return FixedPoint(2, 2)
    return FixedPoint(1, 1, False) if node.meta["val"].dtype == torch.bool else None


def _without_format(port: Node, roundings: int) -> str:
    """Why an input has no port: nothing rounds it, or not all that reads it reads it rounded."""
    what = "it has no fixed-point format. "
    if roundings > 1:
        what = "several roundings read it, and no format holds what all of them tell apart. "
    elif roundings and len(port.users) > 1:
        what = "a rounding reads it, and what it is without that rounding is read as well. "
    advice = "Run the quantize pass before lower."
    if roundings:
        advice = "Round it once in front of all, or run the quantize pass, which gives it a format."
    return f"input {port.target}: {what}{advice}"


def short_mantissa(number: float, like: Value) -> tuple[int, FixedPoint]:
    """A number of the graph that meets like as a mantissa without trailing zeros, exact."""
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
    return mantissa, FixedPoint.holding(min(mantissa, 0), max(mantissa, 0), fraction)


def mantissas(tensor: Tensor, node: Node) -> tuple[IntArray, FixedPoint, tuple[int, ...]]:
    """What a rounding of weights makes of a tensor: integers, their format, and how many bits
    further left the binary point of each channel (first axis) is; none where all are the same."""
    to, rounding, overflow = requantize_modes(node)
    tensor = tensor.detach().cpu()
    shifts: tuple[int, ...] = ()
    if node.target is REQUANTIZE_WEIGHTS:
        shifts = tuple(arguments(node)[1])
        tensor = REQUANTIZE_WEIGHTS(tensor, *arguments(node)[1:])
    values = tensor.numpy()
    if shifts:
        values = np.ldexp(values, np.reshape(shifts, (-1, *(1,) * (values.ndim - 1))))
    # Mantissas are kept in the narrowest integers at once: no second copy of the model.
    return quantize_in_chunks(values, to, rounding, overflow), to, shifts


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


def constant_sample(data: np.ndarray[Any, Any], node: Node) -> np.ndarray[Any, Any]:
    """A constant argument of an elementwise node as one sample sees it, with the rank of that.

    Broadcasting aligns last dimensions; the one that meets the batch has length 1 and goes.
    """
    rank, batch = node.meta["val"].dim(), node.meta["batch_axis"]
    full = data.reshape((1,) * (rank - data.ndim) + data.shape)
    return full[(slice(None),) * batch + (0,)] if isinstance(batch, int) else full
