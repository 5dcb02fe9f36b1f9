"""From a Program to the layers of an hls4ml project: which layer computes what, under which name.

A layer is hls4ml's own (Dense, Conv2D, DepthwiseConv2D) where it is exact, with the bias and the
final Requantize that follow taken in; everything else is a kernel of ours. The plan decides names,
arrays and types of the whole project before hls4ml sees it, so that afterwards every one of them
can be compared with what hls4ml made of it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from fxloom.accumulators import needed_bits
from fxloom.allotment import Allotment, allot
from fxloom.backends.hls4ml.dialect import DIALECTS, VITIS, Dialect, ValueType
from fxloom.backends.hls4ml.kernels import (
    Argument,
    Kernel,
    MatrixSite,
    Site,
    fork,
    render,
    render_matrix,
)
from fxloom.backends.hls4ml.weights import Weights
from fxloom.choosing import choose, require_kernels
from fxloom.fixed_point import FixedPoint, IntArray
from fxloom.fusing import Fusion
from fxloom.matrices import KERNEL, Matrix, matrix_of
from fxloom.multipliers import are_powers
from fxloom.ops import Conv, MatMul, Pad, Requantize
from fxloom.program import Input, Instr, Program, Value
from fxloom.stream_schedule import StreamSchedule
from fxloom.target import Target

PRODUCT, POWER_PRODUCT = "nnet::product::mult", "fxloom::power_product"
"""hls4ml's own, and ours for weights that need no multiplier."""

UNROLLED = (Allotment("latency", 1),)
"""What a pipelined top function may hold, and codebooks in one step."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """What follows a product in the same layer: a bias a channel, and a conversion.

    exact: the format of the sum; accum: that in which it is added up, narrower where upper bits
    are dropped next.
    """

    bias: IntArray
    bias_type: FixedPoint
    exact: FixedPoint
    accum: FixedPoint
    result: ValueType


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the project.

    name: its legal and unique C++ name; array: the C++ array it fills; inputs: names of layers;
    values: names of the program's values it stands for, the last being its result; kind: the
    hls4ml class; attributes: what that class needs; kernel: text, for kernels of ours;
    allotment: strategy and reuse factor, where it multiplies by a matrix; copies: names and arrays
    of its results, where it hands out one value several times (streams can be read only once).
    """

    index: int
    name: str
    array: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    type: ValueType
    origin: str
    values: tuple[str, ...]
    ops: tuple[str, ...]
    weights: Mapping[str, Weights] = field(default_factory=dict)
    accum: ValueType | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    kernel: Kernel | None = None
    allotment: Allotment | None = None
    copies: tuple[tuple[str, str], ...] = ()

    @property
    def results(self) -> tuple[tuple[str, str], ...]:
        """Names, for the inputs of other layers, and arrays of its results."""
        return self.copies or ((self.name, self.array),)

    @property
    def pointwise(self) -> bool:
        """Whether it is a convolution with a 1 x 1 kernel."""
        kernel = [self.attributes.get(f"filt_{side}") for side in ("height", "width")]
        return self.kind == "Conv2D" and kernel == [1, 1]

    @property
    def product(self) -> str | None:
        """The class that multiplies in hls4ml's layers; None for our kernels and what has none."""
        if self.accum is None:
            return None
        weight = self.weights["weight"]
        shifts = are_powers(weight.mantissas, weight.kind.width)
        return POWER_PRODUCT if shifts else PRODUCT

    @property
    def packs(self) -> int:
        """How many reads of a stream make up the result."""
        return prod(self.shape[:-1])

    @property
    def size(self) -> int:
        """Number of elements of the result."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Plan:
    """All layers in order; inputs and outputs are layers, in the order of the program's ports.

    fifos: of streams, how many packs each array between two layers holds.
    """

    layers: tuple[Layer, ...]
    inputs: tuple[Layer, ...]
    outputs: tuple[Layer, ...]
    stream: bool = False
    dialect: Dialect = VITIS
    fifos: Mapping[str, int] = field(default_factory=dict)

    def depths(self, layer: Layer) -> list[int]:
        """Of the streams that a layer fills; of ports, which the project does not hold, and of what
        is dropped instead, as hls4ml has it: the whole tensor."""
        return [self.fifos.get(array, layer.packs) for _, array in layer.results]

    @property
    def dataflow(self) -> bool:
        """Whether a layer iterates over positions or reuses multipliers; a pipelined top function
        would unroll that."""
        return self.stream or any(
            (layer.allotment is not None and not _unrolled(layer.allotment))
            or layer.attributes.get("out_height", 1) * layer.attributes.get("out_width", 1) > 1
            or (layer.kernel is not None and layer.kernel.repeats > 1)
            for layer in self.layers
        )


def _unrolled(given: Allotment) -> bool:
    return given in UNROLLED or (given.kernel, given.reuse) == ("codebook", 1)


def identifier(index: int, origin: str) -> str:
    """A legal C++ name, unique by its index, that still shows the user's name.

    Lower-case ASCII only: hls4ml looks layers up in lower case.
    """
    readable = re.sub(r"[^a-z0-9]+", "_", origin.lower()).strip("_")[:40].strip("_")
    return f"n{index}_{readable}" if readable else f"n{index}"


def make_plan(program: Program, target: Target | None = None) -> Plan:
    """The layers of a program's project. Raises FxloomError for operations without a rule."""
    return _Planner(program, target or Target()).plan()


class _Planner:
    def __init__(self, program: Program, target: Target) -> None:
        self.program = program
        self.target = target
        self.stream = target.io == "stream"
        self.dialect = DIALECTS[target.backend]
        self.sources: dict[str, list[tuple[str, str]]] = {}
        self.layers: list[Layer] = []
        self.layer_of: dict[str, Layer] = {}
        self.fusion = Fusion(program)
        found = {i.result.name: matrix_of(program, i, target) for i in program.instrs}
        self.matrices = {name: matrix for name, matrix in found.items() if matrix is not None}

    def plan(self) -> Plan:
        require_kernels(self.program, self.target)
        inputs = tuple(self._input(port) for port in self.program.inputs)
        for layer in inputs:
            self._publish(layer)
        fused: set[str] = set()
        for instr in self.program.instrs:
            if instr.result.name in fused:
                continue
            layer = self._matrix_layer(instr) or self._kernel_layer(instr)
            fused.update(layer.values)
            self._add(layer)
            self._publish(layer)
        outputs = tuple(self._output(port.value, port.name) for port in self.program.outputs)
        fifos = {}
        if self.stream:
            schedule = StreamSchedule(self.program, self.target)
            fifos = {name: depth.written for name, depth in schedule.depths.items()}
        return Plan(tuple(self.layers), inputs, outputs, self.stream, self.dialect, fifos)

    def _add(self, layer: Layer) -> Layer:
        self.layers.append(layer)
        return layer

    def _publish(self, layer: Layer) -> None:
        """Make a layer the one that later ones read a value from.

        A stream can be read once: where a value has not exactly one reader, a layer copies it, or
        reads it and drops it.
        """
        value = layer.values[-1]
        self.layer_of[value] = layer
        readers = self.fusion.uses[value] + self.fusion.outputs[value]
        if self.stream and readers != 1:
            index, name, array = self._next(layer.origin)
            copies = tuple((f"{name}_{n}", f"{array}_{n}") for n in range(readers))
            argument = self._argument(value, layer.array)
            site = Site(index, None, (argument,), self.program.value(value), array)
            layer = self._add(
                Layer(
                    index,
                    name,
                    array,
                    KERNEL,
                    (layer.name,),
                    layer.shape,
                    layer.type,
                    layer.origin,
                    (value,),
                    ("fork",),
                    kernel=fork(site, [array for _, array in copies]),
                    copies=copies,
                )
            )
        self.sources[value] = list(layer.results)

    def _take(self, value: str) -> tuple[str, str]:
        """Name and array to read a value from; of a stream, every copy once."""
        return self.sources[value].pop(0) if self.stream else self.sources[value][0]

    def _argument(self, value: str, array: str) -> Argument:
        name = array + self.dialect.suffix
        return Argument(name, self.program.operand(value), self.program.value(value).type)

    def _next(self, origin: str) -> tuple[int, str, str]:
        """Index, layer name and array name of the next layer."""
        index = len(self.layers) + 1
        return index, identifier(index, origin), f"layer{index}_out"

    def _input(self, port: Input) -> Layer:
        value = port.value
        index, name, _ = self._next(value.name)
        return self._add(
            Layer(
                index,
                name,
                name,
                "InputLayer",
                (),
                value.shape,
                ValueType(value.type),
                value.name,
                (value.name,),
                ("input",),
            )
        )

    def _output(self, value_name: str, port_name: str) -> Layer:
        """A layer whose array is the output port; a copy where the value is also needed inside."""
        layer = self.layer_of[value_name]
        alone = self.fusion.outputs[value_name] == 1 and not self.fusion.uses[value_name]
        if alone and layer.kind != "InputLayer":
            return layer
        value = self.program.value(value_name)
        return self._add(self._kernel(None, [value_name], value, port_name, "output"))

    # -- kernels of ours ------------------------------------------------------------------------

    def _kernel_layer(self, instr: Instr) -> Layer:
        return self._kernel(instr.op, instr.args, instr.result, instr.origin, instr.op.name)

    def _kernel(self, op: Any, args: Sequence[str], result: Value, origin: str, what: str) -> Layer:
        """A layer that computes op, or a copy where that is None."""
        if isinstance(op, Requantize):
            op = op.without_idle_overflow(self.program.operand(args[0]))
        index, name, array = self._next(origin)
        arguments, weights, inputs = [], {}, []
        for number, arg in enumerate(args):
            constant = self.program.constants.get(arg)
            if constant is None:
                source, stream = self._take(arg)
                inputs.append(source)
                arguments.append(self._argument(arg, stream))
                continue
            operand = self.program.operand(arg)
            kind = FixedPoint.holding(operand.lo, operand.hi, 0)
            held = Weights(f"c{index}_{number}", constant.data, kind, True)
            weights[f"constant{number}"] = held
            arguments.append(Argument(held.name, operand, kind))
        allotment = None
        if isinstance(op, MatMul | Conv):
            allotment = self._allot(origin, args[1], result)
        reuse = 1 if allotment is None else allotment.reuse
        filled = array + self.dialect.suffix
        site = Site(index, op, tuple(arguments), result, filled, reuse)
        return Layer(
            index,
            name,
            array,
            KERNEL,
            tuple(inputs),
            result.shape,
            ValueType(result.type),
            origin,
            (result.name,),
            (what,),
            weights,
            kernel=render(site, origin, self.stream),
            allotment=allotment,
        )

    def _allot(self, origin: str, weight: str, result: Value) -> Allotment:
        """What a kernel of ours with a dense matrix gets."""
        wanted = self.target.resolve(origin)
        if result.name in self.matrices:
            return choose(self.matrices[result.name], wanted, self.target.io)
        if self.dialect.algorithmic_c:
            note = ""
            if wanted.reuse > 1:
                note = f"reuse {wanted.reuse} asked for, 1 given: the matrix is computed"
            return Allotment("latency", 1, note)
        n_in, n_out = self.program.value(weight).shape[-2:]
        return allot(KERNEL, n_in, n_out, wanted, self.target.io)

    # -- products with a constant matrix ----------------------------------------------------------

    def _matrix_layer(self, first: Instr) -> Layer | None:
        """A kernel of lanes or a layer of hls4ml's own, with what follows; None for all else."""
        matrix = self.matrices.get(first.result.name)
        if matrix is None:
            return None
        allotment = choose(matrix, self.target.resolve(first.origin), self.target.io)
        if not allotment.is_dense:
            return self._lane_layer(first, matrix, allotment)
        return None if matrix.kind == KERNEL else self._hls4ml_layer(first, matrix, allotment)

    def _lane_layer(self, first: Instr, matrix: Matrix, allotment: Allotment) -> Layer:
        index, name, array = self._next(first.origin)
        # Conversions are those of AMD's types.
        chain = [first] if self.dialect.algorithmic_c else self.fusion.chain(first)
        ending = self._ending(chain)
        source, stream = self._take(first.args[0])
        declared = self.program.value(first.args[1]).type
        kind = FixedPoint(declared.width, declared.width, declared.signed)
        holding = FixedPoint.holding(int(ending.bias.min()), int(ending.bias.max()), 0)
        bias = Weights(f"b{index}", ending.bias, holding, True)
        weight = Argument("", self.program.operand(first.args[1]), kind)
        arguments = (self._argument(first.args[0], stream), weight)
        site = MatrixSite(
            Site(index, first.op, arguments, first.result, array + self.dialect.suffix),
            matrix,
            allotment,
            bias,
            shift=ending.exact.fraction - first.result.type.fraction,
            # Without a bias zeros of any format are added.
            bias_shift=max(ending.exact.fraction - ending.bias_type.fraction, 0),
            accumulator=self.dialect.fixed(ValueType(ending.accum)),
            sum=ending.accum,
            stream=self.stream,
        )
        memories, kernel = render_matrix(site)
        return Layer(
            index,
            name,
            array,
            KERNEL,
            (source,),
            chain[-1].result.shape,
            ending.result,
            first.origin,
            tuple(instr.result.name for instr in chain),
            tuple(instr.op.name for instr in chain),
            {**memories, "bias": bias},
            kernel=kernel,
            allotment=allotment,
        )

    def _ending(self, chain: Sequence[Instr]) -> _Ending:
        product, channels = chain[0].result, chain[0].result.shape[-1]
        bias: IntArray = np.zeros(channels, np.int8)
        bias_type = FixedPoint(1, 1, False)
        exact, accum, result = product.type, None, ValueType(product.type)
        for instr in chain[1:]:
            if isinstance(instr.op, Requantize):
                op = instr.op.without_idle_overflow(self.program.operand(instr.args[0]))
                result = ValueType(op.to, op.rounding, op.overflow)
                accum = accum or needed_bits(exact, instr.op)
                continue
            constant = self.program.constants[self.fusion.bias(instr, product) or ""]
            bias = np.broadcast_to(constant.data.reshape(-1), (channels,))
            bias_type = constant.value.type
            exact = instr.result.type
            result = ValueType(exact)
        return _Ending(bias, bias_type, exact, accum or exact, result)

    def _padded(self, instr: Instr, attributes: dict[str, Any]) -> str:
        """What hls4ml's layer for a stream reads: its convolutions want the input padded."""
        x = self.program.value(instr.args[0])
        if not isinstance(instr.op, Conv) or instr.op.padding == ((0, 0), (0, 0)):
            return self._take(x.name)[0]
        pad = Pad((*instr.op.padding, (0, 0)))
        shape = pad.infer([self.program.operand(x.name)]).shape
        # Zeros are of every type, so the padded value keeps the type of the input.
        padded = replace(x, shape=shape)
        attributes |= {"in_height": shape[0], "in_width": shape[1]}
        attributes |= dict.fromkeys(("pad_top", "pad_bottom", "pad_left", "pad_right"), 0)
        return self._add(self._kernel(pad, [x.name], padded, instr.origin, "pad")).name

    def _hls4ml_layer(self, first: Instr, matrix: Matrix, allotment: Allotment) -> Layer:
        kind = matrix.kind
        weight = self.program.constants[first.args[1]]
        x = self.program.value(first.args[0])
        attributes = _attributes(first, x, weight.value)
        chain = self.fusion.chain(first)
        source = self._padded(first, attributes) if self.stream else self._take(x.name)[0]
        index, name, array = self._next(first.origin)
        ending = self._ending(chain)
        data = weight.data
        if kind == "DepthwiseConv2D":
            data = data.transpose(0, 1, 3, 2)
        elif allotment.strategy == "resource":
            # Outputs first, as its loops read them.
            data = np.moveaxis(data, -1, 0)
        return Layer(
            index,
            name,
            array,
            kind,
            (source,),
            chain[-1].result.shape,
            ending.result,
            first.origin,
            tuple(instr.result.name for instr in chain),
            tuple(instr.op.name for instr in chain),
            {
                "weight": Weights(f"w{index}", data, weight.value.type, False),
                "bias": Weights(f"b{index}", ending.bias, ending.bias_type, False),
            },
            # The exact result's format: as wide as the sum, no fraction bit dropped. Partial sums
            # may wrap in it, which cannot change a sum that fits. Nor can it change the lower bits
            # of one that does not, where only those are read.
            accum=ValueType(ending.accum),
            attributes=attributes,
            allotment=allotment,
        )


def _attributes(instr: Instr, x: Value, weight: Value) -> dict[str, Any]:
    """What the hls4ml class that computes a matmul or conv needs to know."""
    op = instr.op
    if isinstance(op, MatMul):
        return {"n_in": weight.shape[0], "n_out": weight.shape[1]}
    assert isinstance(op, Conv)
    kernel_height, kernel_width, _, n_filt = weight.shape
    return {
        "data_format": "channels_last",
        "in_height": x.shape[0],
        "in_width": x.shape[1],
        "n_chan": x.shape[2],
        "out_height": instr.result.shape[0],
        "out_width": instr.result.shape[1],
        "n_filt": n_filt,
        "filt_height": kernel_height,
        "filt_width": kernel_width,
        "stride_height": op.stride[0],
        "stride_width": op.stride[1],
        "pad_top": op.padding[0][0],
        "pad_bottom": op.padding[0][1],
        "pad_left": op.padding[1][0],
        "pad_right": op.padding[1][1],
    }


def describe(plan: Plan) -> Iterator[dict[str, Any]]:
    """One record a layer: C++ names, type, the user's layer it comes from, what it got of the
    strategy and reuse factor asked for, and how deep the FIFOs are that it fills."""
    for layer in plan.layers:
        given = {} if layer.allotment is None else asdict(layer.allotment)
        fifos = {array: plan.fifos[array] for _, array in layer.results if array in plan.fifos}
        if fifos:
            given["fifos"] = fifos
        yield {
            "name": layer.name,
            "array": layer.array,
            "type": plan.dialect.fixed(layer.type),
            "shape": list(layer.shape),
            "origin": layer.origin,
            "values": list(layer.values),
            "ops": list(layer.ops),
            "class": layer.kind,
            **given,
        }
